"""Which settings mattered: a planted one is found, noise is not."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest

from iadd_fast.tuning.importances import importances
from iadd_fast.tuning.space import Choices, Space, make_space


def test_importances_find_what_was_planted_and_say_what_they_rest_on() -> None:
    """One setting matters, in the lowest third of its logarithmic range alone.

    Breaks when ranges are measured linearly (that third is then 1 % of it), when noise passes for a
    setting that matters, or when the number of trials is not told.
    """
    given = {"expert_epochs": 1, "max_start_epoch": 1, "steps": 20}
    space = make_space(given, None, None, 10, None)
    draw = random.Random(0)
    trials = [drawn(space, draw) for _ in range(25)]
    scored = [
        (values, 70.0 + 10 * (values["lr_images"] > 10) + draw.gauss(0, 1)) for values in trials
    ]
    found = importances(space, scored, 0)
    assert found["trials"] == 25
    assert "rests on 25 trials for 5 settings; below 50" in found["note"]
    assert found["reliable"] is False
    first, *others = found["settings"]
    assert first["name"] == "lr_images"
    assert first["share"] > 0.5
    assert first["p"] == pytest.approx(1 / 25)
    assert all(other["p"] > 0.3 for other in others)
    noise = importances(space, [(values, draw.gauss(70, 1)) for values in trials[:8]], 0)
    assert max(entry["share"] for entry in noise["settings"]) > 0.2
    assert all(entry["p"] > 0.05 for entry in noise["settings"])
    few = importances(space, scored[:4], 0)
    assert few["settings"] == [] and few["chance"] is None
    assert few["note"] == "rests on 4 trials, too few to say anything"
    json.dumps([found, noise, few], allow_nan=False)


def drawn(space: Space, draw: random.Random) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, kind in space.searched.items():
        if isinstance(kind, Choices):
            values[name] = draw.choice(kind.values)
        else:
            value = math.exp(draw.uniform(math.log(kind.low), math.log(kind.high)))
            values[name] = round(value) if kind.whole else value
    return values
