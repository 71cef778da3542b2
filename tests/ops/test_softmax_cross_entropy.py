"""softmax_cross_entropy: F.cross_entropy with both orders, hard and soft labels, class weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp

from iadd_fast import ops
from iadd_fast.ops.backends import implementation
from iadd_fast.reference import softmax_cross_entropy as definition
from tests.tolerances import assert_close

DOUBLE = torch.float64
KINDS = [(soft, weighted) for soft in (False, True) for weighted in (False, True)]
ORDERS = ("", "_backward", "_tangent", "_backward_tangent")


def arguments(
    samples: int, classes: int, soft: bool, weighted: bool, dtype: torch.dtype = DOUBLE
) -> dict[str, Any]:
    """Random logits; hard labels that leave classes out, soft ones that do not sum to one."""
    draw = torch.Generator().manual_seed(samples * 100 + classes)
    make = lambda *size: torch.randn(size, generator=draw, dtype=DOUBLE).to(dtype)  # noqa: E731
    hard = torch.randint((classes + 1) // 2, (samples,), generator=draw)
    return {
        "logits": 3 * make(samples, classes),
        "labels": make(samples, classes).abs() if soft else hard,
        "class_weights": make(classes).abs() + 0.1 if weighted else None,
        "dloss": make(),
        "dlossdot": make(),
        "logitsdot": make(samples, classes),
        "labelsdot": make(samples, classes) if soft else None,
    }


def run(kernels: Any, order: str, given: dict[str, Any]) -> Any:
    """One order's outputs as a tuple, without those that do not exist."""
    names = {
        "": ("logits", "labels"),
        "_backward": ("logits", "labels", "dloss"),
        "_tangent": ("logits", "labels", "logitsdot", "labelsdot"),
        "_backward_tangent": (
            *("logits", "labels", "dloss"),
            *("logitsdot", "labelsdot", "dlossdot"),
        ),
    }
    kernel = getattr(kernels, f"softmax_cross_entropy{order}")
    outputs = kernel(*(given[name] for name in (*names[order], "class_weights")))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return tuple(output for output in outputs if output is not None)


def doubled(given: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.double() if value is not None and value.is_floating_point() else value
        for name, value in given.items()
    }


def compiled() -> Any:
    reason = ops.backends()["softmax_cross_entropy"]["cpp"]
    if reason is not None:
        pytest.skip(reason)
    with ops.use_backend("cpp"):
        return implementation("softmax_cross_entropy", torch.empty(0))


def cross_entropy(given: dict[str, Any]) -> Any:
    """PyTorch's loss as a function of what is differentiated."""
    if given["labels"].is_floating_point():
        return lambda x, y: F.cross_entropy(x, y, given["class_weights"])
    return lambda x: F.cross_entropy(x, given["labels"], given["class_weights"])


@pytest.mark.parametrize("soft, weighted", KINDS)
def test_closed_forms_are_the_derivatives_of_cross_entropy(soft: bool, weighted: bool) -> None:
    """Every order against autograd: breaks on a lost row sum, weight or normaliser."""
    given = arguments(5, 7, soft, weighted)
    f = cross_entropy(given)
    x = (given["logits"], given["labels"]) if soft else (given["logits"],)
    xdot = (given["logitsdot"], given["labelsdot"]) if soft else (given["logitsdot"],)

    def gradients(*x_and_dloss: Tensor) -> Any:
        *x, dloss = x_and_dloss
        return grad(lambda *x: f(*x) * dloss, tuple(range(len(x))))(*x)

    value, tangent, *_ = jvp(f, x, xdot)
    backward, backward_tangent, *_ = jvp(
        gradients, (*x, given["dloss"]), (*xdot, given["dlossdot"])
    )
    wanted = {
        "": (value,),
        "_backward": backward,
        "_tangent": (tangent,),
        "_backward_tangent": backward_tangent,
    }
    for order in ORDERS:
        for got, want in zip(run(definition, order, given), wanted[order], strict=True):
            assert_close(got, want, order[1:] or "forward", slack=5)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("soft, weighted", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 10), (7, 3), (10, 200), (256, 10)], ids=str)
def test_compiled_equals_the_reference(soft: bool, weighted: bool, size: tuple[int, int]) -> None:
    """All orders, into poisoned memory: breaks on a row too few or a sum over the wrong axis."""
    kernels = compiled()
    for dtype in (torch.float32, DOUBLE):
        given = arguments(*size, soft, weighted, dtype)
        for order in ORDERS:
            wanted = run(definition, order, doubled(given))
            for got, want in zip(run(kernels, order, given), wanted, strict=True):
                assert got.dtype == dtype
                # One class alone: every derivative is zero, up to the rounding of p = 1.
                if size == (1, 1) or float(want.abs().max()) == 0:
                    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
                else:
                    cancelled = cancellation(doubled(given)) if order == "_tangent" else 1
                    assert_close(got, want, order[1:] or "forward", slack=cancelled)


def cancellation(given: dict[str, Any]) -> float:
    """Sum of the magnitudes of the tangent's terms over that of their sum: its condition."""
    log_p, targets, scale = definition._parts(
        given["logits"], given["labels"], given["class_weights"]
    )
    terms = targets.abs() * (
        given["logitsdot"].abs() + (log_p.exp() * given["logitsdot"].abs()).sum(1, keepdim=True)
    )
    if given["labelsdot"] is not None:
        terms = terms + (scale * given["labelsdot"] * log_p).abs()
    return float(terms.sum() / run(definition, "_tangent", given)[0].abs())


@pytest.mark.parametrize("soft, weighted", KINDS)
def test_any_strides_are_taken(soft: bool, weighted: bool) -> None:
    """Transposed, sliced and expanded inputs: breaks when rows are read as if dense."""
    kernels = compiled()
    given = arguments(6, 5, soft, weighted)
    strided = dict(given)
    for name in ("logits", "logitsdot", "labels", "labelsdot"):
        value = given[name]
        if value is not None and value.ndim == 2:
            strided[name] = value.t().contiguous().t()
    strided["logitsdot"] = given["logitsdot"][:1].expand(6, 5)
    if not soft:
        strided["labels"] = torch.stack([given["labels"]] * 2, dim=1)[:, 0]
    if weighted:
        strided["class_weights"] = given["class_weights"][:1].expand(5)
    for order in ORDERS:
        wanted = run(definition, order, {**strided})
        for got, want in zip(run(kernels, order, strided), wanted, strict=True):
            assert_close(got, want, order[1:] or "forward")


@pytest.mark.parametrize("soft", [False, True])
def test_huge_and_tiny_logits(soft: bool) -> None:
    """Breaks when the largest logit is not subtracted before exp, or log p comes from log(p)."""
    kernels = compiled()
    for scale in (1e4, 1e-6):
        given = arguments(4, 6, soft, False, torch.float32)
        given["logits"] = given["logits"] * scale
        for order in ("", "_backward"):
            wanted = run(definition, order, doubled(given))
            for got, want in zip(run(kernels, order, given), wanted, strict=True):
                assert_close(got, want, order[1:] or "forward")


def test_a_missing_tangent_is_zero() -> None:
    """Breaks when a kernel reads through a null pointer or drops the other tangents too."""
    given = arguments(4, 6, True, True)
    for missing in ("labelsdot", "dlossdot"):
        zero = {**given, missing: torch.zeros_like(given[missing])}
        for order in ("_tangent", "_backward_tangent"):
            for module in (compiled(), definition):
                outputs = run(module, order, {**given, missing: None})
                for got, want in zip(outputs, run(definition, order, zero), strict=True):
                    assert_close(got, want, order[1:])


def test_class_weights_balance_the_classes() -> None:
    """Weights of one over the count: duplicating one class's samples changes nothing."""
    logits = arguments(3, 3, False, False)["logits"]
    labels = torch.tensor([0, 1, 2])
    even = ops.softmax_cross_entropy(logits, labels)
    more = torch.cat([logits, logits[:1], logits[:1]])
    uneven = ops.softmax_cross_entropy(
        more, torch.tensor([0, 1, 2, 0, 0]), torch.tensor([1 / 3, 1, 1], dtype=DOUBLE)
    )
    torch.testing.assert_close(uneven, even)


@pytest.mark.parametrize("soft, weighted", KINDS)
def test_derivatives_of_both_orders_and_modes(backend: str, soft: bool, weighted: bool) -> None:
    """gradcheck and gradgradcheck, forward mode and forward-over-reverse included."""
    given = arguments(3, 4, soft, weighted)
    x = [given["logits"].requires_grad_(True)]
    if soft:
        x.append(given["labels"].requires_grad_(True))

    def f(*x: Tensor) -> Tensor:
        labels = x[1] if soft else given["labels"]
        return ops.softmax_cross_entropy(x[0], labels, given["class_weights"])

    assert gradcheck(f, x, check_forward_ad=True)
    assert gradgradcheck(f, x, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("soft", [False, True])
def test_func_transforms_compose(backend: str, soft: bool) -> None:
    """jvp of grad, as the reverse sweep calls it, equals that of plain PyTorch."""
    given = arguments(4, 5, soft, True)
    x = (given["logits"], given["labels"]) if soft else (given["logits"],)
    xdot = (given["logitsdot"], given["labelsdot"]) if soft else (given["logitsdot"],)

    def ours(*x: Tensor) -> Tensor:
        labels = x[1] if soft else given["labels"]
        return ops.softmax_cross_entropy(x[0], labels, given["class_weights"])

    every = tuple(range(len(x)))
    got = jvp(grad(ours, every), x, xdot)[1]
    wanted = jvp(grad(cross_entropy(given), every), x, xdot)[1]
    for one, want in zip(got, wanted, strict=True):
        assert_close(one, want, "backward_tangent", slack=5)


def test_an_unknown_class_past_the_check_is_nan() -> None:
    """A direct call with a class out of range: NaN, never a read past the weights."""
    for label in (-1, 3, 2**40):
        labels = torch.tensor([0, label])
        for weights in (None, torch.ones(3)):
            loss = compiled().softmax_cross_entropy(torch.zeros(2, 3), labels, weights)
            assert bool(loss.isnan())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"logits": torch.zeros(2, 3, 1)}, "logits: got"),
        ({"logits": torch.zeros(2, 3, dtype=torch.int64)}, "logits: got torch.int64"),
        ({"logits": torch.zeros(0, 3)}, "logits: got shape"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels: got"),
        ({"labels": torch.zeros(2, dtype=torch.int32)}, "labels: got torch.int32"),
        ({"labels": torch.tensor([0, 3])}, "labels: got classes 0 .. 3"),
        ({"labels": torch.tensor([-1, 0])}, "labels: got classes -1 .. 0"),
        ({"labels": torch.zeros(2, 4)}, "labels: got"),
        ({"labels": torch.zeros(2, 3, dtype=torch.float64)}, "labels: got torch.float64"),
        ({"labels": torch.zeros(2, 3, device="meta")}, "labels: got .* on meta"),
        ({"class_weights": torch.ones(2)}, "class_weights: got"),
        ({"class_weights": torch.ones(3, requires_grad=True)}, "class_weights: require"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    """Breaks when a mismatch is broadcast into a silent wrong answer."""
    good = {"logits": torch.zeros(2, 3), "labels": torch.tensor([0, 2])}
    with pytest.raises(ValueError, match=f"^{message}"):
        ops.softmax_cross_entropy(**{**good, **change})
