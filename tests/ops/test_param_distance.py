"""param_distance: the definition, its closed-form gradients and its argument checks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import grad, jvp

from iadd_fast import ops
from iadd_fast.ops import param_distance, param_distance_gradients
from iadd_fast.ops.backends import implementation
from iadd_fast.ops.param_distance import Normaliser
from iadd_fast.reference import param_distance as definition
from tests.tolerances import assert_close

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


@pytest.mark.parametrize("weight, normaliser", CASES)
def test_derivatives_of_both_orders_and_modes(
    weight: str | None, normaliser: Normaliser, backend: str
) -> None:
    """For all four vectors: breaks when one has no (or a wrong) derivative of either order."""
    v = vectors(6)
    names = ["theta", "start", "target", *([weight] if weight else [])]

    def loss(*x: torch.Tensor) -> torch.Tensor:
        theta, start, target = x[:3]
        return param_distance(theta, start, target, x[3] if weight else None, normaliser)

    inputs = [v[name].requires_grad_(True) for name in names]
    assert torch.autograd.gradcheck(loss, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, inputs, check_fwd_over_rev=True)


def test_func_transforms_compose(backend: str) -> None:
    """jvp of grad equals that of the formula: breaks when the fused gradient hides the second."""
    v = vectors(9)

    def ours(theta: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return param_distance(theta, v["start"], v["target"], w, "weighted")

    def formula(theta: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        above, below = w * (theta - v["target"]), w * (v["start"] - v["target"])
        return above.square().sum() / below.square().sum()

    x, xdot = (v["theta"], v["w"]), (v["start"], v["target"])
    got = jvp(grad(ours, (0, 1)), x, xdot)
    wanted = jvp(grad(formula, (0, 1)), x, xdot)
    torch.testing.assert_close(got, wanted)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("weight, normaliser", CASES)
@pytest.mark.parametrize("count", [1, 7, 4096, 320_010])
def test_compiled_equals_the_reference(
    weight: str | None, normaliser: Normaliser, count: int
) -> None:
    """Value and gradients into poisoned memory: breaks on a chunk's tail or a lost partial sum."""
    kernels = compiled()
    for dtype in (torch.float32, torch.float64):
        v = {name: value.to(dtype) for name, value in vectors(count).items()}
        given = (v["theta"], v["start"], v["target"], v.get(weight or ""), normaliser == "weighted")
        truth = [x.double() if isinstance(x, torch.Tensor) else x for x in given]
        wanted = definition.param_distance_gradients(*truth)  # type: ignore[arg-type]
        got = kernels.param_distance_gradients(*given)
        for one, want in zip(got, wanted, strict=True):
            assert (one is None) == (want is None)
            # With one parameter the weighted distance does not depend on the weight at all.
            if want is not None and not (count == 1 and normaliser == "weighted"):
                assert_close(one, want, "backward")
        assert_close(kernels.param_distance(*given), wanted[0], "forward")


def test_magnitudes_and_threads() -> None:
    """Huge and tiny vectors, unaligned slices, and the same bits for any number of threads."""
    kernels = compiled()
    threads = torch.get_num_threads()
    for scale in (1e-15, 1e15):
        v = {name: (value * scale).float()[3:] for name, value in vectors(100_003).items()}
        results = []
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                given = (v["theta"], v["start"], v["target"], v["w"] / scale)
                results.append(kernels.param_distance_gradients(*given, True))
        finally:
            torch.set_num_threads(threads)
        theta, start, target, w = (x.double() for x in given[:4])
        truth = definition.param_distance_gradients(theta, start, target, w, True)
        for first, second, third, want in zip(*results, truth, strict=True):
            assert torch.equal(first, second) and torch.equal(first, third)
            assert_close(first, want, "backward")


def compiled() -> Any:
    reason = ops.backends()["param_distance"]["cpp"]
    if reason is not None:
        pytest.skip(reason)
    with ops.use_backend("cpp"):
        return implementation("param_distance", torch.empty(0))


def test_float32_sums_accumulate_in_float64(backend: str) -> None:
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
