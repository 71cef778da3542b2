"""What a run writes down of its weights: values by hand, and taken at the right moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from iadd_fast import distill, train_experts
from iadd_fast.data import Data, load_data
from iadd_fast.importance import Adaptive, parse_importance, record
from iadd_fast.metrics import read_metrics
from iadd_fast.settings import DistillSettings
from iadd_fast.students import convnet, mlp
from iadd_fast.trajectory_matching import TrajectoryMatching

STUDENT = mlp(inputs=(1, 3, 3), classes=2, width=4, depth=2)
QUICK: dict[str, Any] = {
    "iterations": 4, "steps": 3, "expert_epochs": 1, "max_start_epoch": 1, "augment": "none",
    "validation_networks": 1, "validation_epochs": 2, "validate_every": 1, "max_loss": 1e6,
}  # fmt: skip


def some_data(count: int = 40) -> Data:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    images = torch.randn(count, 1, 3, 3, generator=draw) + labels[:, None, None, None]
    return load_data(images, labels, validation_fraction=0.2, name="two")


def test_a_filter_is_the_mean_over_one_output() -> None:
    """Breaks when filters run along the inputs, or w is taken for w^2."""
    student = convnet(channels=2, classes=3, image_size=8, width=5, depth=2)
    weight = torch.rand(student.num_parameters, generator=torch.Generator().manual_seed(0))
    weight[:7] = 0.0
    found = record.weight_record(student, weight)
    parts = student.unflatten(weight.double().square())
    matrices = [name for name, part in parts.items() if part.ndim > 1]
    assert list(found["filter_weight"]) == matrices
    for name in matrices:
        expected = parts[name].flatten(1).mean(1)
        assert found["filter_weight"][name] == pytest.approx(expected.tolist(), rel=1e-3)
    first = next(iter(student.layers()))
    assert found["pruned_by_layer"][first] == 7
    assert sum(found["pruned_by_layer"].values()) == 7
    own = torch.cat([weight[part].double().square() for part in student.layers()[first]])
    assert found["layer_weight"][first] == pytest.approx(float(own.mean()))
    assert found["filter_run"] == {}


def test_a_wide_layer_is_averaged_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when filters are dropped beyond the limit, or the page cannot know of it."""
    monkeypatch.setattr(record, "FILTERS", 3)
    values = torch.arange(STUDENT.num_parameters, dtype=torch.float64)
    means, runs = record.filter_means(STUDENT, values)
    entry = next(entry for entry in STUDENT.parameters if entry.shape[0] == 4)
    rows = values[entry.start : entry.stop].view(4, -1).mean(1)
    assert runs == {entry.name: 2}
    expected = [float(rows[:2].mean()), float(rows[2:].mean())]
    assert means[entry.name] == pytest.approx(expected, rel=1e-3)


def test_loss_shares_are_means_over_segments() -> None:
    """Breaks when segments are summed before dividing, or the weight is not squared."""
    draw = torch.Generator().manual_seed(0)
    size = STUDENT.num_parameters
    reached, targets, weight = (torch.randn(2, size, generator=draw) for _ in range(3))
    reached[1] *= 30.0
    found = record.loss_shares(STUDENT, list(reached), list(targets), [weight[0], None])
    errors = (reached - targets).double().square()
    weighted = torch.stack([errors[0] * weight[0].double().square(), errors[1]])
    for key, error in (("loss_share", weighted), ("loss_share_unweighted", errors)):
        shares = (error / error.sum(1, keepdim=True)).mean(0)
        for layer, parts in STUDENT.layers().items():
            expected = sum(float(shares[part].sum()) for part in parts)
            assert found[key][layer] == pytest.approx(expected, rel=1e-3)
    assert found["loss_share"] != found["loss_share_unweighted"]


def test_no_distance_has_no_shares() -> None:
    """Breaks when 0 / 0 reaches the log as NaN, which is no JSON."""
    theta = torch.ones(STUDENT.num_parameters)
    assert record.loss_shares(STUDENT, [theta], [theta], [None]) == {}
    assert record.loss_shares(STUDENT, [theta / 0], [theta], [None]) == {}


def test_the_share_is_under_the_weights_that_the_step_matched_with() -> None:
    """Breaks when the weights after the step's update are taken, or of another segment."""
    data = some_data()
    experts = train_experts(
        data, STUDENT, count=2, epochs=2, lr=0.1, batch_size=8, augment="none", progress=False
    )
    options = DistillSettings.of(**QUICK | {"trajectories": 2})
    policy = Adaptive(learning_rate=2.0)
    run = TrajectoryMatching(data, experts, STUDENT, policy, 1, options, None, torch.device("cpu"))
    run.outer_step()
    before = policy.current().clone()
    run.outer_step()
    after = policy.current()
    matched = run._matched
    assert len(matched) == 2
    reached = [result.theta for _, _, result in matched]
    targets = [segment.target for segment, _, _ in matched]
    found = run.logged_at_validation()
    expected = record.loss_shares(STUDENT, reached, targets, [before, before])
    assert found["loss_share"] == expected["loss_share"]
    other = record.loss_shares(STUDENT, reached, targets, [after, after])
    assert found["loss_share"] != other["loss_share"]


@pytest.mark.parametrize(
    "importance",
    [
        "uniform",
        "adaptive",
        "prune:threshold=0.9,every=1,learning_rate=0.5",
        "similarity:threshold=0.99",
    ],
)
def test_a_run_logs_what_its_policy_has(tmp_path: Path, importance: str) -> None:
    """Breaks when a policy without weights of its own, or with a function for one, is not logged
    as such, or when the log cannot be read back."""
    data = some_data()
    distill(
        data, None, 1, parse_importance(importance), student=STUDENT, out=tmp_path,
        progress=False, **QUICK,
    )  # fmt: skip
    rows = read_metrics(tmp_path / "metrics.jsonl").records
    assert len(rows) == QUICK["iterations"]
    for row in rows:
        assert sum(row["loss_share"].values()) == pytest.approx(1.0, abs=1e-3)
        assert ("pruned" in row) == ("filter_weight" in row) == (importance != "uniform")
        if importance != "uniform":
            assert row["pruned"] == sum(row["pruned_by_layer"].values())
    if importance.startswith(("prune", "similarity")):
        assert rows[-1]["pruned"] > 0
        assert rows[-1]["loss_share"] != rows[-1]["loss_share_unweighted"]
