"""The gate of the training bench: a contender that is wrong has no time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench import bench_training
from bench.bench_training import CASES, Contest
from iadd_fast.training import train_many


def test_a_wrong_contender_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a percent too large a step is refused; breaks when the gate compares start with start,
    or a contender with itself."""
    contest = Contest(CASES["evaluation, 10 images"], torch.device("cpu"))
    assert contest.gate("fused") < 1e-4

    def longer(student: Any, thetas: Tensor, sets: Any, **options: Any) -> Tensor:
        return train_many(student, thetas, sets, **options | {"lr": 1.005 * options["lr"]})

    monkeypatch.setattr(bench_training, "train_many", longer)
    for contender in ("plain", "fused"):
        with pytest.raises(AssertionError, match=f"{contender} is wrong on evaluation, 10 images"):
            contest.gate(contender)
