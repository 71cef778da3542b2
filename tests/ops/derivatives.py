"""A call of an operator differentiated by autograd, and compared with plain PyTorch in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp

from tests.ops.odd_cases import Call
from tests.tolerances import TOLERANCES

ORDERS = ("forward", "backward", "tangent", "backward_tangent", "double_backward")


def derivative(
    f: Callable[..., Tensor], x: list[Tensor], xdot: list[Tensor], dy: Tensor, order: str
) -> tuple[Tensor, ...]:
    """What autograd makes of ``f`` at ``x`` in this order and mode."""
    if order == "forward":
        return (f(*x),)
    if order == "tangent":
        return (jvp(f, tuple(x), tuple(xdot))[1],)
    if order == "backward_tangent":
        return jvp(lambda *x: vjp(f, *x)[1](dy), tuple(x), tuple(xdot))[1]
    leaves = [value.detach().requires_grad_(True) for value in x]
    first = torch.autograd.grad(f(*leaves), leaves, dy, create_graph=order == "double_backward")
    if order == "backward":
        return first
    total = torch.stack([(g * v).sum() for g, v in zip(first, xdot, strict=True)]).sum()
    if not total.requires_grad:
        return tuple(torch.zeros_like(value) for value in x)
    second = torch.autograd.grad(total, leaves, allow_unused=True)
    return tuple(
        torch.zeros_like(value) if g is None else g for g, value in zip(second, x, strict=True)
    )


def as_function(run: Any, tensors: dict[str, Any], call: Call) -> Callable[..., Tensor]:
    """Of the differentiated tensors alone."""
    return lambda *x: run(
        *{**tensors, **dict(zip(call.differentiated, x, strict=True))}.values(),
        **call.settings,
    )


def widened(tensors: dict[str, Any]) -> dict[str, Any]:
    """In float64 and plainly in memory: PyTorch's own derivatives do not take every view."""
    return {
        name: value.double().contiguous().resolve_neg()
        if value is not None and value.is_floating_point()
        else value
        for name, value in tensors.items()
    }


def assert_near(got: Tensor, want: Tensor, order: str, name: str) -> None:
    """A hundred times the table, which is for kind inputs: wrong answers are far off."""
    assert got.shape == want.shape, f"{name}: got {tuple(got.shape)}, want {tuple(want.shape)}"
    if want.numel() == 0:
        return
    order = {"double_backward": "backward_tangent"}.get(order, order)
    error = float((got.double() - want).square().mean().sqrt())
    allowed = 100 * TOLERANCES[got.dtype][order] * (1 + float(want.square().mean().sqrt()))
    assert error <= allowed, f"{name} ({order}): error {error:.2e}, at most {allowed:.1e} allowed"
