"""Importance policies: the update rules, their bounds, and that nothing collapses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from iadd_fast import students
from iadd_fast.importance import (
    Adaptive,
    Fisher,
    Importance,
    Paper,
    Prune,
    Ranked,
    Segment,
    Setting,
    Similarity,
    Uniform,
    fisher_information,
    parse_importance,
)
from iadd_fast.importance.adaptive import group_index, group_mean
from iadd_fast.ops import param_distance, param_distance_gradients

STUDENT = students.mlp(inputs=6, classes=3, width=5, depth=2)
P = STUDENT.num_parameters


def setting() -> Setting:
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(40, 6, generator=draw, dtype=torch.float64)
    labels = torch.arange(40) % 3
    return Setting(STUDENT, images, labels, torch.device("cpu"), torch.float64, 7)


def segment(expert: int = 0) -> Segment:
    draw = torch.Generator().manual_seed(100 + expert)
    start = STUDENT.init(expert, dtype=torch.float64)
    noise = torch.randn(P, generator=draw, dtype=torch.float64)
    return Segment(expert, 0, start, start + 0.1 * noise)


def arrival(piece: Segment) -> Tensor:
    draw = torch.Generator().manual_seed(55)
    return piece.start + 0.05 * torch.randn(P, generator=draw, dtype=torch.float64)


def learn(policy: Importance, rounds: int = 1) -> tuple[Tensor, Tensor]:
    """``rounds`` updates towards one fixed arrival; the first gradient and the final weight."""
    piece = segment()
    theta = arrival(piece)
    first = None
    for _ in range(rounds):
        weight = policy.weight(piece)
        assert isinstance(weight, Tensor)
        gradient = param_distance_gradients(
            theta, piece.start, piece.target, weight, policy.normaliser
        )[2]
        assert gradient is not None
        first = gradient if first is None else first
        policy.update(gradient)
    assert first is not None
    final = policy.weight(piece)
    assert isinstance(final, Tensor)
    return first, final


@pytest.mark.parametrize("direction, sign", [("ascent", 1.0), ("descent", -1.0)])
def test_adaptive_update_is_the_documented_rule(direction: str, sign: float) -> None:
    """One step from uniform weights, from the formula of s; breaks on a lost factor or sign."""
    policy = Adaptive(direction=direction, learning_rate=0.01)  # type: ignore[arg-type]
    policy.prepare(setting())
    _, weight = learn(policy)
    piece = segment()
    d, d0 = arrival(piece) - piece.target, piece.start - piece.target
    loss = (d**2).sum() / (d0**2).sum()
    s = (P * (d**2 - loss * d0**2) / (d0**2).sum()).clamp(-5, 5)
    v = (sign * 0.01 * s).exp().clamp(0.5, 2)
    torch.testing.assert_close(weight.square(), v / v.mean())


@pytest.mark.parametrize("direction", ["ascent", "descent"])
def test_adaptive_never_collapses(direction: str) -> None:
    """300 large steps: mean 1 and a bounded ratio stay; the paper's form goes to zero instead."""
    policy = Adaptive(direction=direction, learning_rate=0.5)  # type: ignore[arg-type]
    policy.prepare(setting())
    _, weight = learn(policy, 300)
    v = weight.square()
    assert float(v.mean()) == pytest.approx(1)
    assert float(v.max() / v.min()) <= 4 + 1e-9
    assert float(v.max() / v.min()) > 3


def test_ascent_raises_and_descent_lowers_the_loss() -> None:
    """Weights alone, student fixed: the two directions must move the loss apart."""
    piece = segment()
    theta = arrival(piece)
    loss = {}
    for direction in ("ascent", "descent"):
        policy = Adaptive(direction=direction, learning_rate=0.05)
        policy.prepare(setting())
        _, weight = learn(policy, 20)
        loss[direction] = float(
            param_distance(theta, piece.start, piece.target, weight, policy.normaliser)
        )
    uniform = float(param_distance(theta, piece.start, piece.target))
    assert loss["descent"] < uniform < loss["ascent"]


def test_paper_form_shrinks_to_zero_under_descent() -> None:
    """dL/dW >= 0: known and documented; breaks when a normalisation slips into this form."""
    policy = Paper(learning_rate=0.05, momentum=0.5)
    policy.prepare(setting())
    gradient, weight = learn(policy)
    assert bool((gradient >= 0).all())
    torch.testing.assert_close(weight, 1 - 0.05 * P * gradient)
    with pytest.warns(UserWarning, match="the weights of 'paper' have made the loss .* of what"):
        _, later = learn(policy, 200)
    piece = segment()
    theta = arrival(piece)
    before = float(param_distance(theta, piece.start, piece.target))
    after = float(param_distance(theta, piece.start, piece.target, later, "start"))
    # The loss is gone although the student has not moved, and half of the weights with it.
    assert after < 0.01 * before
    assert float(later.median()) < 0.05


@pytest.mark.parametrize("granularity", ["tensor", "layer"])
def test_groups_share_one_weight(granularity: str) -> None:
    """Breaks when a group straddles tensors, or the score is summed instead of averaged."""
    policy = Adaptive(granularity=granularity, learning_rate=0.05)  # type: ignore[arg-type]
    policy.prepare(setting())
    _, weight = learn(policy, 3)
    stretches = (
        [[slice(e.start, e.stop)] for e in STUDENT.parameters]
        if granularity == "tensor"
        else list(STUDENT.layers().values())
    )
    values = [torch.cat([weight[s] for s in parts]) for parts in stretches]
    assert all(float(v.std(correction=0)) < 1e-12 for v in values)
    assert len({round(float(v[0]), 9) for v in values}) == len(values)


def test_group_mean_is_a_mean_per_group() -> None:
    """Three parameters in two groups by hand."""
    got = group_mean(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
    assert got.tolist() == [2.0, 2.0, 5.0]
    assert group_index(STUDENT, "scalar").numel() == 0


def test_prune_is_iterative_permanent_and_keeps_its_floor() -> None:
    """Breaks when a dropped parameter comes back, or more than 1 - floor ever leave."""
    policy = Prune(threshold=0.9, floor=0.4, every=2, learning_rate=0.3)
    policy.prepare(setting())
    gone = torch.zeros(P, dtype=torch.bool)
    counts = []
    for _ in range(30):
        _, weight = learn(policy)
        assert not bool((weight[gone] != 0).any())
        gone = weight == 0
        counts.append(int(gone.sum()))
    assert counts[0] == 0 and counts[1] > 0 and counts == sorted(counts)
    assert P - counts[-1] >= round(0.4 * P)
    assert P - counts[-1] <= round(0.6 * P)


def test_similarity_drops_opposite_signs_and_small_ratios() -> None:
    """The documented criterion by hand."""
    policy = Similarity(threshold=0.1)
    theta = torch.tensor([1.0, 1.0, -1.0, 0.0, 0.05, 0.2])
    target = torch.tensor([1.0, 0.5, 1.0, 0.0, 1.0, 1.0])
    assert policy.kept(theta, target).tolist() == [True, True, False, True, False, True]


@pytest.mark.parametrize("keep", ["largest", "smallest"])
def test_ranked_keeps_its_share_of_the_right_side(keep: str) -> None:
    """Breaks when the ranking is reversed (PAD keeps the largest)."""
    policy = Ranked(share=0.4, keep=keep)  # type: ignore[arg-type]
    theta = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    kept = policy.kept(theta, torch.zeros(5)).tolist()
    expected = {"largest": [0, 0, 0, 1, 1], "smallest": [1, 1, 0, 0, 0]}[keep]
    assert kept == [bool(e) for e in expected]


def test_mask_that_leaves_no_movement_keeps_everything() -> None:
    """A mask whose kept parameters did not move would divide by zero."""
    policy = Ranked(share=0.25, keep="smallest")
    policy.prepare(setting())
    start = torch.tensor([0.0, 1.0, 1.0, 1.0])
    target = torch.tensor([0.0, 2.0, 2.0, 2.0])
    function = policy.weight(Segment(0, 0, start, target))
    assert function(start, start, target).tolist() == [1.0] * 4
    assert function(torch.tensor([5.0, 2.0, 3.0, 3.0]), start, target).tolist() == [0, 1, 0, 0]


def test_fisher_information_is_the_variance_of_the_score() -> None:
    """For one linear layer: F of the bias is E[p (1 - p)], here by exact summation over samples.

    Labels are drawn, so the estimate is compared within its sampling error; breaks when the true
    labels are used (the empirical Fisher), or gradients are averaged before they are squared.
    """
    student = students.mlp(inputs=6, classes=3, depth=1)
    base = setting()
    images = base.images.repeat(50, 1)
    given = Setting(student, images, base.labels.repeat(50), base.device, base.dtype, 3)
    theta = student.init(4, dtype=torch.float64)
    got = fisher_information(given, theta)
    p = student(theta, base.images).softmax(1)
    spread = (p * (1 - p)).mean(0)
    torch.testing.assert_close(got[-3:], spread, rtol=0.25, atol=0.0)
    # Sum over classes of the score's square is bounded by 2 per sample; a sum would be far above.
    assert float(got[-3:].sum()) < 2


def test_fisher_weights_are_tempered_bounded_and_kept_per_target() -> None:
    """v is F^power, mean 1; another expert has another weight, the same one is not recomputed."""
    policy = Fisher(power=0.5, minimum=0.05, maximum=20)
    policy.prepare(setting())
    first = policy.weight(segment(0))
    v = first.square()
    assert float(v.mean()) == pytest.approx(1)
    information = fisher_information(setting(), segment(0).target).sqrt()
    expected = (information / information.mean()).clamp(0.05, 20)
    torch.testing.assert_close(v, expected / expected.mean())
    assert policy.weight(segment(0)) is first
    assert not torch.equal(policy.weight(segment(1)), first)


def test_adaptive_can_start_from_fisher() -> None:
    """Breaks when the start is ignored or drawn again at every step."""
    policy = Adaptive(initial="fisher", minimum=0.1, maximum=10)
    policy.prepare(setting())
    begun = policy.weight(segment())
    information = fisher_information(setting(), segment().target).sqrt()
    expected = (information / information.mean()).clamp(0.1, 10)
    torch.testing.assert_close(begun.square(), expected / expected.mean())
    torch.testing.assert_close(policy.weight(segment(1)), begun)


@pytest.mark.parametrize(
    "policy", [Adaptive(learning_rate=0.1), Prune(every=2, threshold=0.9), Paper(), Fisher()]
)
def test_state_continues_bit_for_bit(policy: Importance) -> None:
    """A resumed run must learn the same weights; breaks when a buffer is left out of the state."""
    policy.prepare(setting())
    if isinstance(policy, Fisher):
        policy.weight(segment())
    else:
        learn(policy, 3)
    saved = {name: value.clone() for name, value in policy.state().items()}
    expected = learn(policy, 3)[1] if saved else policy.weight(segment())
    again = parse_importance(type(policy).__name__.lower())
    again.__dict__.update({k: v for k, v in vars(policy).items() if not k.startswith("_")})
    again.prepare(setting())
    again.load_state(saved)
    got = learn(again, 3)[1] if saved else again.weight(segment())
    assert isinstance(got, Tensor) and isinstance(expected, Tensor)
    assert torch.equal(got, expected)


def test_text_names_every_policy_and_option() -> None:
    """Breaks when an option is dropped or read with another type."""
    policy = parse_importance("adaptive:direction=descent,learning_rate=0.01,granularity=layer")
    assert isinstance(policy, Adaptive)
    assert policy.describe() == {
        "name": "adaptive",
        "direction": "descent",
        "learning_rate": 0.01,
        "granularity": "layer",
        "minimum": 0.5,
        "maximum": 2.0,
        "initial": "uniform",
    }
    assert isinstance(parse_importance("uniform"), Uniform)
    assert parse_importance(policy) is policy


@pytest.mark.parametrize(
    "text, message",
    [
        ("best", "importance: got 'best'; takes one of"),
        ("uniform:power=2", "uniform got option 'power'"),
        ("fisher:power=high", "fisher power got 'high'"),
        ("ranked:keep=0.5", "ranked keep got 0.5"),
        ("ranked:share=0", "share: got 0"),
        ("adaptive:direction=up", "direction: got 'up'"),
        ("adaptive:minimum=2,maximum=3", "must enclose 1"),
        ("prune:threshold=0.01", "threshold: got 0.01"),
        ("similarity:threshold=1", "threshold: got 1"),
        ("paper:momentum=1", "momentum: got 1"),
    ],
)
def test_bad_text_is_one_clear_error(text: str, message: str) -> None:
    """Breaks when a wrong option is ignored."""
    with pytest.raises(ValueError, match=message):
        parse_importance(text)
