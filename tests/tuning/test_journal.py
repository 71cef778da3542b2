"""A journal of a search whose lines are Optuna's, with values that no search has written."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iadd_fast import tune
from iadd_fast.artifacts import Experts
from iadd_fast.data import Data, load_data
from iadd_fast.experts import train_experts
from iadd_fast.tuning import Tuning

STUDENT = "mlp:width=4,depth=2"
QUICK: dict[str, Any] = {
    "iterations": 2, "augment": "none", "validation_networks": 1, "validation_epochs": 1,
    "steps": 1, "expert_epochs": 1, "max_start_epoch": 1, "batch_size": 2, "max_loss": 1e6,
}  # fmt: skip
HUGE = 10**400
Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def data() -> Data:
    images = np.random.default_rng(0).random((60, 1, 8, 8)).astype(np.float32)
    return load_data(images, np.arange(60) % 2)


@pytest.fixture(scope="module")
def experts(data: Data) -> Experts:
    return train_experts(data, STUDENT, count=1, epochs=2, augment="none", progress=False)


@pytest.fixture(scope="module")
def folder(data: Data, experts: Experts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of two trials; its folder is copied, never changed."""
    found = tmp_path_factory.mktemp("search") / "tune"
    quick(data, experts, found)
    return found


def quick(data: Data, experts: Experts, out: Path) -> Tuning:
    return tune(data, out, experts, student=STUDENT, trials=2, progress=False, **QUICK)


def settings(change: Any) -> Callable[[Lines], None]:
    """The recorded settings replaced, or those of one name."""

    def edit(lines: Lines) -> None:
        (line,) = [line for line in lines if "settings" in line.get("user_attr", {})]
        saved = line["user_attr"]["settings"]
        is_one = isinstance(change, dict) and bool(change)
        line["user_attr"]["settings"] = {**saved, **change} if is_one else change

    return edit


def every(key: str, value: Any) -> Callable[[Lines], None]:
    """``key`` of all lines that have a value there."""

    def edit(lines: Lines) -> None:
        for line in lines:
            if line.get(key) is not None:
                line[key] = value

    return edit


def of_trials(name: str, value: Any) -> Callable[[Lines], None]:
    """The attribute ``name`` of all trials."""

    def edit(lines: Lines) -> None:
        for line in lines:
            for key in ("user_attr", "system_attr", "system_attrs"):
                if name in line.get(key, {}):
                    line[key][name] = value

    return edit


def of_the_second(drawn: Any) -> Callable[[Lines], None]:
    """What the journal says was drawn for the trial after the first, or a change of it."""

    def edit(lines: Lines) -> None:
        attributes = [line["system_attrs"] for line in lines if "fixed_params" in str(line)]
        held = [entry for entry in attributes if "fixed_params" in entry][1]
        held["fixed_params"] = drawn(held["fixed_params"]) if callable(drawn) else drawn

    return edit


def another_range(lines: Lines) -> None:
    for line in lines:
        if line.get("param_name") == "lr_images":
            changed = json.loads(line["distribution"])
            changed["attributes"] = {"step": None, "low": 0.0, "high": 1e300, "log": False}
            line["distribution"] = json.dumps(changed)


def out_of_range(lines: Lines) -> None:
    for line in lines:
        if line.get("param_name") == "lr_images":
            line["param_value_internal"] = 1e300


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (settings([]), r"settings: got \[\]"),
        (settings(5), "settings: got 5"),
        (settings("x"), "settings: got 'x'"),
        (settings({"importance": {"choices": 5}}), "importance: got 5"),
        (settings({"importance": {"choices": [5]}}), "importance: got 5"),
        (settings({"lr_lr": {"low": "x", "high": 1}}), "lr_lr: got 'x'"),
        (settings({"lr_lr": {"low": 1}}), "lr_lr: got None"),
        (every("directions", [1]), r"directions: got \['MINIMIZE'\]"),
        (every("directions", [2, 2]), r"directions: got \['MAXIMIZE', 'MAXIMIZE'\]"),
        (every("values", ["x"]), "trial 0: value: got 'x'"),
        (every("values", [math.nan]), "trial 0: value: got nan"),
        (every("values", [1.0, 2.0]), "trial 0: values: got 2"),
        (every("values", [HUGE]), "trial 0: value: got 1000"),
        (every("intermediate_value", "x"), "trial 0: validation: got 'x'"),
        (every("step", "x"), "trial 0: iteration of a validation: got 'x'"),
        (of_trials("seconds", []), r"trial 0: seconds: got \[\]"),
        (of_trials("seconds", None), "trial 0: seconds: got None"),
        (of_trials("seconds", HUGE), "trial 0: seconds: got 1000"),
        (of_trials("ended", {}), r"trial 0: ended: got \{\}"),
        (of_trials("fixed_params", 5), "trial 0: begins with 5"),
        (of_the_second([]), r"trial 1: what was drawn: got \[\]"),
        (of_the_second({"zzz": 1}), r"trial 1: was drawn with \['zzz'\]"),
        (of_the_second(lambda drawn: {**drawn, "lr_lr": 1e30}), r"trial 1: lr_lr: got 1e\+30"),
        (another_range, "trial 0: got 'lr_images', drawn from another range"),
        (out_of_range, r"trial 0: lr_images: got 1e\+300"),
        (every("param_name", "zzz"), "trial 0: got 'zzz'"),
    ],
)
def test_a_damaged_journal_is_refused(
    data: Data,
    experts: Experts,
    folder: Path,
    tmp_path: Path,
    edit: Callable[[Lines], None],
    named: str,
) -> None:
    """Breaks if a value that Optuna replays ends the search from inside, or is ranked."""
    out = tmp_path / "tune"
    shutil.copytree(folder, out)
    path = out / "trials.journal"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    edit(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=f"trials.journal is damaged .*{named}.*another folder"):
        quick(data, experts, out)


def test_what_a_search_has_written_is_taken(
    data: Data, experts: Experts, folder: Path, tmp_path: Path
) -> None:
    """Breaks if a check refuses a search's own journal."""
    shutil.copytree(folder, tmp_path / "tune")
    assert [row.state for row in quick(data, experts, tmp_path / "tune").trials] == ["complete"] * 2


def test_a_folder_is_no_lock_of_the_journal(
    data: Data, experts: Experts, folder: Path, tmp_path: Path
) -> None:
    """Breaks if what a stranger's folder holds in the place of the lock ends in an OSError."""
    shutil.copytree(folder, tmp_path / "tune")
    (tmp_path / "tune" / "trials.journal.lock").mkdir()
    with pytest.raises(ValueError, match=r"trials.journal.lock is a folder; takes another"):
        quick(data, experts, tmp_path / "tune")
