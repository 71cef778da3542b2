"""param_distance: the definition, its closed-form gradients and its argument checks."""

from __future__ import annotations

import pytest
import torch

from iadd_fast.ops import param_distance, param_distance_gradients
from iadd_fast.ops.param_distance import Normaliser

CASES: list[tuple[str | None, Normaliser]] = [(None, "start"), ("w", "start"), ("w", "weighted")]


def vectors(count: int = 37) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    make = lambda: torch.randn(count, generator=draw, dtype=torch.float64)  # noqa: E731
    return {"theta": make(), "start": make(), "target": make(), "w": make().abs() + 0.1}


@pytest.mark.parametrize("weight, normaliser", CASES)
def test_value_is_the_papers_formula(weight: str | None, normaliser: Normaliser) -> None:
    """Breaks when the weight enters after the square, or the wrong vector normalises."""
    v = vectors(5)
    w = [1.0] * 5 if weight is None else v["w"].tolist()
    u = w if normaliser == "weighted" else [1.0] * 5
    rows = list(zip(v["theta"], v["start"], v["target"], strict=True))
    above = sum((a * float(t - g)) ** 2 for a, (t, _, g) in zip(w, rows, strict=True))
    below = sum((b * float(s - g)) ** 2 for b, (_, s, g) in zip(u, rows, strict=True))
    got = param_distance(v["theta"], v["start"], v["target"], v.get(weight or ""), normaliser)
    assert float(got) == pytest.approx(above / below, rel=1e-13)


@pytest.mark.parametrize("weight, normaliser", CASES)
def test_closed_form_gradients_equal_autograd(weight: str | None, normaliser: Normaliser) -> None:
    """Breaks when a factor 2, the L d0^2 term or a power of w is lost in the closed form."""
    v = vectors()
    theta = v["theta"].requires_grad_(True)
    w = None if weight is None else v["w"].requires_grad_(True)
    loss = param_distance(theta, v["start"], v["target"], w, normaliser)
    wanted = torch.autograd.grad(loss, [theta] if w is None else [theta, w])
    value, d_theta, d_weight = param_distance_gradients(
        theta, v["start"], v["target"], w, normaliser
    )
    torch.testing.assert_close(value, loss.detach(), rtol=1e-14, atol=0)
    torch.testing.assert_close(d_theta, wanted[0], rtol=1e-12, atol=1e-15)
    if w is None:
        assert d_weight is None
    else:
        torch.testing.assert_close(d_weight, wanted[1], rtol=1e-12, atol=1e-15)


def test_gradcheck_both_orders() -> None:
    """Breaks when an operation inside has no (or a wrong) derivative of either order."""
    v = vectors(6)

    def loss(theta: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return param_distance(theta, v["start"], v["target"], weight, "weighted")

    inputs = (v["theta"].requires_grad_(True), v["w"].requires_grad_(True))
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


def test_float32_sums_accumulate_in_float64() -> None:
    """A million equal terms: a float32 running sum would be off by far more than one rounding."""
    count = 1_000_003
    theta = torch.full((count,), 0.1)
    start, target = torch.full((count,), 0.3), torch.zeros(count)
    got = float(param_distance(theta, start, target))
    exact = (float(theta[0]) / float(start[0])) ** 2
    assert got == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"target": torch.zeros(4)}, "target"),
        ({"start": torch.zeros(3, dtype=torch.float64)}, "start"),
        ({"weight": torch.ones(3, 1)}, "weight"),
        ({"theta": torch.zeros(3, dtype=torch.int64)}, "theta"),
        ({"normaliser": "both"}, "normaliser"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], named: str) -> None:
    """Breaks when a mismatch is broadcast into a silent wrong answer."""
    good: dict[str, object] = {
        "theta": torch.ones(3),
        "start": torch.zeros(3),
        "target": torch.ones(3) * 2,
        "weight": torch.ones(3),
        "normaliser": "start",
    }
    with pytest.raises(ValueError, match=rf"^{named}: got"):
        param_distance(**{**good, **change})  # type: ignore[arg-type]
