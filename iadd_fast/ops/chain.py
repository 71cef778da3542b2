"""From four kernels to an operator that autograd can differentiate twice, in either mode.

Let ``f(x)`` be an operator of tensors ``x = (x1 .. xk)`` with one output. Four kernels close it
under differentiation to second order::

    forward(x)                          f(x)
    backward(x, dy)                     B = J(x)^T dy
    tangent(x, xdot)                    T = J(x) xdot
    backward_tangent(x, dy, xdot, dydot)    derivative of B along (xdot, dydot)

The derivative of f in forward mode is T, in reverse mode B. B is linear in dy and symmetric in its
second derivative, so its own reverse derivative for a cotangent u is T(x, u) for dy and
backward_tangent(x, dy, u, 0) for x. T is linear in xdot; its reverse derivative is B for xdot and
backward_tangent(x, dy, xdot, 0) for x. Third derivatives raise.

The same rules hold for autograd, ``torch.func.grad``, ``vjp`` and ``jvp`` and their compositions.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

Tensors = tuple[Tensor, ...]


class Kernels(Protocol):
    """The four kernels of an operator, its other arguments bound; every gradient is a tensor."""

    @property
    def name(self) -> str: ...

    def forward(self, x: Tensors) -> Tensor: ...

    def backward(self, x: Tensors, dy: Tensor) -> Tensors: ...

    def tangent(self, x: Tensors, xdot: Tensors) -> Tensor: ...

    def backward_tangent(
        self, x: Tensors, dy: Tensor, xdot: Tensors, dydot: Tensor | None
    ) -> Tensors: ...


def apply(kernels: Kernels, *x: Tensor) -> Tensor:
    """``kernels.forward(x)``, differentiable to second order in every ``x``."""
    value: Tensor = applied(_Forward, kernels, *x)
    return value


def applied(function: type[Function], *arguments: Any) -> Any:
    """``function.apply``, which torch leaves untyped for its subclasses."""
    return function.apply(*arguments)


class _Forward(Function):
    @staticmethod
    def forward(kernels: Kernels, *x: Tensor) -> Tensor:
        return kernels.forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.kernels = inputs[0]
        _save(ctx, *inputs[1:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return None, *applied(_Backward, ctx.kernels, cotangents[0], *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, _: None, *xdot: Tensor | None) -> Any:
        x = ctx.saved_tensors
        return applied(_Tangent, ctx.kernels, *x, *_filled(xdot, x))


class _Backward(Function):
    @staticmethod
    def forward(kernels: Kernels, dy: Tensor, *x: Tensor) -> Tensors:
        return kernels.backward(x, dy)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.kernels = inputs[0]
        _save(ctx, *inputs[1:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        dy, *x = ctx.saved_tensors
        ddy = None
        if ctx.needs_input_grad[1]:
            ddy = applied(_Tangent, ctx.kernels, *x, *cotangents)
        dx: Any = [None] * len(x)
        if any(ctx.needs_input_grad[2:]):
            dx = applied(_BackwardTangent, ctx.kernels, None, dy, *x, *cotangents)
        return None, ddy, *dx

    @staticmethod
    def jvp(ctx: Any, _: None, dydot: Tensor | None, *xdot: Tensor | None) -> Any:
        dy, *x = ctx.saved_tensors
        return applied(_BackwardTangent, ctx.kernels, dydot, dy, *x, *_filled(xdot, tuple(x)))


class _Tangent(Function):
    @staticmethod
    def forward(kernels: Kernels, *x_and_xdot: Tensor) -> Tensor:
        count = len(x_and_xdot) // 2
        return kernels.tangent(x_and_xdot[:count], x_and_xdot[count:])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.kernels = inputs[0]
        _save(ctx, *inputs[1:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        count = len(ctx.saved_tensors) // 2
        x, xdot = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        (dy,) = cotangents
        dx: Any = [None] * count
        if any(ctx.needs_input_grad[1 : 1 + count]):
            dx = applied(_BackwardTangent, ctx.kernels, None, dy, *x, *xdot)
        dxdot: Any = [None] * count
        if any(ctx.needs_input_grad[1 + count :]):
            dxdot = applied(_Backward, ctx.kernels, dy, *x)
        return None, *dx, *dxdot

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        _raise_third(ctx.kernels, "a forward derivative of a forward derivative")


class _BackwardTangent(Function):
    @staticmethod
    def forward(kernels: Kernels, dydot: Tensor | None, dy: Tensor, *x_and_xdot: Tensor) -> Tensors:
        count = len(x_and_xdot) // 2
        return kernels.backward_tangent(x_and_xdot[:count], dy, x_and_xdot[count:], dydot)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.kernels = inputs[0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        _raise_third(ctx.kernels, "a third derivative")

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        _raise_third(ctx.kernels, "a third derivative")


def _save(ctx: Any, *tensors: Tensor) -> None:
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _filled(tangents: tuple[Tensor | None, ...], x: Tensors) -> Tensors:
    """A missing tangent as zeros."""
    return tuple(
        torch.zeros_like(value) if tangent is None else tangent
        for tangent, value in zip(tangents, x, strict=True)
    )


def _raise_third(kernels: Kernels, what: str) -> None:
    raise NotImplementedError(
        f"{kernels.name}: {what} is not implemented; first and second derivatives are"
    )
