"""Importance weights driven to a corner, and policies with nothing to weigh."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from iadd_fast.importance import Adaptive, Fisher, Paper, Prune, Segment, Setting, Uniform
from iadd_fast.importance.policy import Importance
from iadd_fast.importance.record import loss_shares
from iadd_fast.ops import param_distance, param_distance_gradients
from iadd_fast.settings import DistillSettings
from iadd_fast.trajectory_matching import TrajectoryMatching
from tests.trouble.small import MLP, QUICK, blobs, draw, trajectory

P = MLP.num_parameters
UPDATES = 1000


def prepared(policy: Any) -> Any:
    images, labels = torch.randn(20, 1, 8, 8, generator=draw()), torch.arange(20) % 3
    policy.prepare(Setting(MLP, images, labels, torch.device("cpu"), torch.float32, 0))
    return policy


def segment(moved: Tensor | None = None) -> Segment:
    """From an initialisation to one step beyond; only ``moved`` parameters move (None: all)."""
    start = MLP.init(0)
    step = 0.1 * torch.randn(P, generator=draw(1))
    return Segment(0, 0, start, start + (step if moved is None else step * moved))


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize("kind", ["constant", "alternating", "one", "all but one"])
@pytest.mark.parametrize("direction", ["ascent", "descent"])
def test_bounds_hold_whatever_the_gradients(kind: str, size: float, direction: str) -> None:
    """A thousand updates under one extreme gradient: v keeps mean 1 and the documented bounds, and
    is then where it stays.

    Breaks when the bounds are applied to a v that was not yet divided by its mean of the step
    before: v then leaves them by the ratio at every step.
    """
    policy = prepared(Adaptive(direction=direction, learning_rate=0.5))  # type: ignore[arg-type]
    gradient = torch.full((P,), size)
    if kind == "one":
        gradient[1:] = 0.0
    elif kind == "all but one":
        gradient[0] = -size
    elif kind == "alternating":
        gradient[::2] = -size
    for _ in range(UPDATES):
        policy.update(gradient)
    v = policy.weight(segment()).double().square()
    ratio = policy.maximum / policy.minimum
    assert float(v.mean()) == pytest.approx(1.0, abs=1e-5)
    assert 1 / ratio - 1e-5 <= float(v.min()) and float(v.max()) <= ratio + 1e-5
    assert float(v.max() / v.min()) <= ratio * (1 + 1e-5)
    for _ in range(20):
        policy.update(gradient)
    torch.testing.assert_close(policy.weight(segment()).double().square(), v, rtol=1e-4, atol=0)


def test_pruning_ends_at_its_floor() -> None:
    """A floor that is passed by the last pruning leaves fewer than asked for, in the end none."""
    policy = prepared(Prune(learning_rate=0.5, floor=0.6, every=1))
    for _ in range(300):
        policy.update(torch.linspace(-1, 1, P))
    assert int(policy._kept.sum()) == int(0.6 * P + 0.5)
    assert bool(policy.weight(segment()).isfinite().all())


def test_pruning_of_all_that_moves() -> None:
    """Where no parameter that is left moves the distance is 0 / 0; then all of them count."""
    policy = prepared(Prune(learning_rate=0.5, floor=0.3, every=1))
    for _ in range(300):
        policy.update(torch.linspace(-1, 1, P))
    piece = segment((~policy._kept).float())
    weight = policy.weight(piece)
    assert bool((weight > 0).all())
    loss = param_distance(piece.start, piece.start, piece.target, weight, "weighted")
    assert float(loss) == pytest.approx(1.0)


def test_an_undone_step_restores_pruned_parameters() -> None:
    """Pruning in place: the state of the step before would be pruned too, and undoing would not."""
    policy = prepared(Prune(learning_rate=0.5, every=1))
    before = policy.state()
    for _ in range(10):
        policy.update(torch.linspace(-1, 1, P))
    assert not bool(policy._kept.all())
    policy.load_state(before)
    assert bool(policy._kept.all())


def test_parameters_that_stand_still_keep_their_weight() -> None:
    """start == target for some: they score 0, and nothing is divided by their movement."""
    policy = prepared(Adaptive(learning_rate=0.1))
    moved = (torch.arange(P) % 3 != 0).float()
    piece = segment(moved)
    weight = policy.weight(piece)
    theta = piece.start + 0.05 * torch.randn(P, generator=draw(2)) * moved
    gradient = param_distance_gradients(theta, piece.start, piece.target, weight, "weighted")[2]
    assert gradient is not None and not bool(gradient[moved == 0].any())
    policy.update(gradient)
    still = policy.weight(piece)[moved == 0].unique()
    assert len(still) == 1 and bool((policy.weight(piece)[moved == 1] != still).any())


def test_paper_says_when_its_weights_have_collapsed() -> None:
    """The trivial optimum W = 0: a loss near 0 that no image has earned. Told once, at the time."""
    policy = prepared(Paper(learning_rate=0.05))
    piece = segment()
    theta = piece.start + 0.03 * torch.randn(P, generator=draw(3))

    def loss() -> float:
        return float(param_distance(theta, piece.start, piece.target, policy.weight(piece)))

    first, told = loss(), None
    with pytest.warns(UserWarning, match="the weights of 'paper' have made the loss") as seen:
        for _ in range(400):
            if told is None and len(seen):
                told = loss() / first
            policy.update(gradient_of(policy, theta, piece))
    assert len(seen) == 1
    assert told is not None and 1e-5 < told < 1e-3


def gradient_of(policy: Importance, theta: Tensor, piece: Segment) -> Tensor:
    weight = policy.weight(piece)
    assert isinstance(weight, Tensor)
    gradient = param_distance_gradients(
        theta, piece.start, piece.target, weight, policy.normaliser
    )[2]
    assert gradient is not None
    return gradient


def test_paper_past_zero_comes_back() -> None:
    """A step too large: W changes its sign, only W^2 counts; no NaN, and it does not grow."""
    policy = prepared(Paper(learning_rate=0.05, momentum=0.9))
    piece = segment()
    theta = piece.start + 0.03 * torch.randn(P, generator=draw(3))
    lowest = 1.0
    with pytest.warns(UserWarning, match="paper"):
        for _ in range(400):
            policy.update(gradient_of(policy, theta, piece))
            lowest = min(lowest, float(policy.weight(piece).min()))
    assert lowest < 0
    weight = policy.weight(piece)
    assert bool(weight.isfinite().all()) and float(weight.abs().max()) < 1.0


class Zeros(Uniform):
    """Weights of 0 throughout."""

    def weight(self, segment: Segment) -> Any:
        return torch.zeros(P)


def test_a_loss_of_nothing_is_no_step() -> None:
    """Weights of 0 in the numerator alone: loss 0, gradient 0. Hours of such steps did nothing."""
    options = DistillSettings.of(**{k: v for k, v in QUICK.items() if k != "progress"})
    run = TrajectoryMatching(
        blobs(), trajectory(MLP), MLP, Zeros(), 1, options, None, torch.device("cpu")
    )
    assert run.outer_step()["loss"] == 0.0
    assert run.skips_in_a_row == 1


def test_no_fisher_information_at_all() -> None:
    """A network of zeros but for a saturated bias: F = 0 everywhere, so v = 1 (0 / 0 otherwise)."""
    theta = torch.zeros(P)
    theta[-3] = 1e4
    start = torch.zeros(P)
    weight = prepared(Fisher()).weight(Segment(0, 0, start, theta))
    torch.testing.assert_close(weight, torch.ones(P))
    adaptive = prepared(Adaptive(initial="fisher"))
    torch.testing.assert_close(adaptive.weight(Segment(0, 0, start, theta)), torch.ones(P))


def test_fisher_information_of_an_overflowing_network() -> None:
    """torch's own error speaks of a probability tensor, not of the expert."""
    theta = torch.full((P,), 1e30)
    with pytest.raises(ValueError, match="has no Fisher information, .* smaller learning rate"):
        prepared(Fisher()).weight(Segment(0, 0, torch.zeros(P), theta))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0.0])
def test_bounds_that_bound_nothing(value: float) -> None:
    """maximum = inf passed, and v / mean(v) was NaN after hours."""
    with pytest.raises(ValueError, match="maximum: got .*; takes a"):
        Adaptive(maximum=value)


def test_no_shares_of_a_step_that_matched_nothing() -> None:
    """A validation right after steps that came to nothing: torch.stack of an empty list."""
    assert loss_shares(MLP, [], [], []) == {}
