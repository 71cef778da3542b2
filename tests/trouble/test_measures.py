"""Evaluation and audit of networks that diverged and of parts that lack something."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from iadd_fast import Evaluation, evaluate, load_data
from iadd_fast.audit import audit
from iadd_fast.audit.outputs import Outputs
from iadd_fast.audit.rates import placements
from iadd_fast.audit.scores import SCORES, scores_of
from iadd_fast.data import Data
from tests.trouble.small import CLASSES, CONVNET, blobs, draw, one_of_each

AUDIT: dict[str, Any] = {"networks": 2, "epochs": 3, "full_epochs": 2, "progress": False}


def with_test(labels: list[int]) -> Data:
    images = torch.randn(30 + len(labels), 1, 8, 8, generator=draw(6))
    return load_data(
        images[:30],
        torch.arange(30) % CLASSES,
        test=images[30:],
        test_labels=torch.tensor(labels),
        validation_fraction=0.2,
    )


def no_numbers(value: Any, where: str = "") -> Iterator[str]:
    """Where NaN and infinities stand."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from no_numbers(part, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from no_numbers(part, f"{where}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield where


def test_an_evaluation_says_which_networks_diverged() -> None:
    """A third of the test images "right", and nobody was told."""
    data = blobs()
    with pytest.warns(UserWarning, match="2 of 2 networks of 'iadd' on convnet diverged, trained"):
        evaluation = evaluate(
            one_of_each(data, lr=1e30), data, CONVNET, networks=2, epochs=3, baselines=(),
            full=False, progress=False,
        )  # fmt: skip
    (row,) = evaluation.rows
    assert (row.accuracies, row.diverged) == ([0.0, 0.0], 2)
    assert "0.00 ± 0.00 (2 diverged)" in evaluation.table()
    assert Evaluation.from_dict(evaluation.to_dict()).rows[0].diverged == 2
    before = evaluation.to_dict()
    del before["rows"][0]["diverged"]  # as written by version 0.1
    assert Evaluation.from_dict(before).rows[0].diverged == 0


def test_scores_of_a_diverged_network_tell_nothing() -> None:
    """NaN sorts above every number: members on which a network overflows had an AUC of 1."""
    labels = torch.arange(20) % 3
    logits = torch.zeros(20, 3)
    logits[:10] = torch.nan
    for name in SCORES:
        score = scores_of(logits, labels)[name]
        assert placements([score[:10]], [score[10:]]).auc == 0.5


def test_a_diverged_network_is_right_nowhere() -> None:
    """All logits 0 stand for it; argmax makes class 0 of them."""
    outputs = Outputs(np.zeros((1, 4, 3)), np.array([0, 0, 1, 2]), diverged=1)
    assert outputs.right.tolist() == [[0.0] * 4]


@pytest.mark.filterwarnings("ignore:2 of 2 networks of 'iadd'")
@pytest.mark.parametrize(
    ("labels", "lr"),
    [([0] * 12, 0.05), ([0, 1], 0.05), ([0, 1, 2] * 4, 1e30)],
    ids=["test part of one class", "two test images", "a set whose networks diverge"],
)
def test_audits_of_little_have_no_nan(labels: list[int], lr: float) -> None:
    """Calibration, AUC, coverage and influence of a class without test images: None, not NaN."""
    data = with_test(labels)
    found = audit(one_of_each(data, lr=lr), data, **AUDIT).to_dict()
    assert list(no_numbers(found)) == []
    targets = {t["method"]: t for t in found["privacy"]["membership"]["targets"]}
    if lr > 1:
        assert targets["iadd"]["attacks"]["loss"]["auc"] == 0.5
        assert found["representativeness"]["diverged"]["distilled"] == 2


def test_one_test_record_is_refused_before_networks_are_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was refused after all of them."""
    monkeypatch.setattr("iadd_fast.audit.run.evaluate", lambda *_, **__: pytest.fail("trained"))
    data = with_test([0])
    with pytest.raises(ValueError, match="data: has one test record; an audit compares with"):
        audit(one_of_each(data), data, **AUDIT)


@pytest.mark.filterwarnings("ignore:2 of 2 networks of")
def test_an_audit_whose_yardstick_diverged() -> None:
    """Distances in the features of such a network were NaN, in the report too."""
    data = with_test([0, 1, 2] * 4)
    with pytest.raises(ValueError, match="baseline_lr: 2 of 2 networks .* diverged, .* lower it"):
        audit(one_of_each(data), data, baseline_lr=1e30, **AUDIT)
