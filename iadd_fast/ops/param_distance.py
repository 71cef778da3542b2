"""``param_distance``: the importance-weighted matching loss over flat parameter vectors."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function

from iadd_fast.ops import registered
from iadd_fast.ops.backends import implementation
from iadd_fast.ops.chain import applied
from iadd_fast.ops.checks import check_vectors
from iadd_fast.reference import param_distance as reference
from iadd_fast.reference.precision import widened

Normaliser = Literal["start", "weighted"]


def param_distance(
    theta: Tensor,
    start: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    normaliser: Normaliser = "start",
) -> Tensor:
    """``L = ||w (theta - target)||^2 / ||v (start - target)||^2`` (IADD, arXiv 2401.15863).

    ``normaliser="start"`` is the paper's form, v = 1 (``weight=None`` is then MTT's loss);
    ``"weighted"`` puts the weight into the denominator too, v = w. The weight multiplies the
    difference before squaring, so a squared error counts w^2 times.

    Args:
        theta, start, target: flat vectors ``[P]`` of one dtype and device.
        weight: ``[P]`` of the same dtype, or None for 1.

    Returns:
        A scalar of ``theta``'s dtype, float32 for bfloat16 and float16, whose arithmetic it is;
        sums accumulate in float64. Infinite or NaN when the denominator is zero.

    Differentiable in all arguments, to any order, in either mode. The first derivatives for theta
    and weight come out of the pass that computes the distance; every other derivative, and any
    under a transform that differentiates again, is composed from the closed forms in PyTorch.

    Raises:
        ValueError: shapes, dtypes or devices differ, or an unknown normaliser.
    """
    check_vectors(theta, start, target, weight, normaliser)
    weighted = normaliser == "weighted"
    if torch.compiler.is_compiling():
        return reference.param_distance(theta, start, target, weight, weighted)
    kernels = implementation("param_distance", theta)
    distance: Tensor = applied(_ParamDistance, kernels, weighted, theta, start, target, weight)[0]
    return distance


def param_distance_gradients(
    theta: Tensor,
    start: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    normaliser: Normaliser = "start",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """:func:`param_distance` with its gradients for ``theta`` and ``weight``, in closed form.

    The seed of a reverse sweep. Not differentiable itself; arguments and errors as there.
    """
    check_vectors(theta, start, target, weight, normaliser)
    weighted = normaliser == "weighted"
    theta, start, target = theta.detach(), start.detach(), target.detach()
    weight = None if weight is None else weight.detach()
    if torch.compiler.is_compiling():
        return _compiled_gradients(theta, start, target, weight, weighted)
    kernels = implementation("param_distance", theta)
    result: tuple[Tensor, Tensor, Tensor | None] = kernels.param_distance_gradients(
        theta, start, target, weight, weighted
    )
    return result


def _compiled_gradients(
    theta: Tensor, start: Tensor, target: Tensor, weight: Tensor | None, weighted: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    loss, d_theta, d_weight = registered.param_distance_gradients(
        theta, start, target, weight, weighted
    )
    return loss, d_theta, None if weight is None else d_weight


class _ParamDistance(Function):
    """The distance; where a gradient is wanted, the fused pass leaves it beside the distance."""

    @staticmethod
    def forward(
        kernels: Any,
        weighted: bool,
        theta: Tensor,
        start: Tensor,
        target: Tensor,
        weight: Tensor | None,
    ) -> Any:
        wanted = theta.requires_grad or (weight is not None and weight.requires_grad)
        if not wanted:
            return kernels.param_distance(theta, start, target, weight, weighted), None, None
        return kernels.param_distance_gradients(theta, start, target, weight, weighted)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, ctx.weighted, *vectors = inputs
        gradients = [gradient for gradient in output[1:] if gradient is not None]
        ctx.mark_non_differentiable(*gradients)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*vectors, *output[1:])
        ctx.save_for_forward(*vectors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        *vectors, d_theta, d_weight = ctx.saved_tensors
        cotangent, needed = cotangents[0], ctx.needs_input_grad[2:]
        if cotangent is None:
            return (None,) * 6
        constants = not (needed[1] or needed[2])
        fused = d_theta is not None and constants and not torch.is_grad_enabled()
        if fused:
            gradients: list[Tensor | None] = [d_theta, None, None, d_weight]
        else:
            gradients = _closed_form_gradients(vectors, ctx.weighted)
        return (
            None,
            None,
            *(
                (cotangent * gradient).to(vectors[0].dtype)
                if need and gradient is not None
                else None
                for need, gradient in zip(needed, gradients, strict=True)
            ),
        )

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, *tangents: Tensor | None) -> Any:
        vectors = ctx.saved_tensors[:4]
        total: Any = 0
        for gradient, tangent in zip(
            _closed_form_gradients(list(vectors), ctx.weighted), tangents, strict=True
        ):
            if gradient is not None and tangent is not None:
                total = total + (gradient * tangent).sum()
        return total, None, None


def _closed_form_gradients(vectors: list[Any], weighted: bool) -> list[Tensor | None]:
    """dL for theta, start, target and weight out of PyTorch operations: differentiable again.

    dL/dstart = -2 L v^2 (start - target) / D, and dL/dtarget = -dL/dtheta - dL/dstart: the
    distance does not change when all three vectors move together.
    """
    theta, start, target, weight = vectors
    loss, d_theta, d_weight = reference.param_distance_gradients(
        theta, start, target, weight, weighted
    )
    span = widened(start) - widened(target)
    scaled = span * widened(weight) if weighted and weight is not None else span
    d_start = -2 * loss * scaled / scaled.square().sum(dtype=torch.float64).to(scaled.dtype)
    if weighted and weight is not None:
        d_start = widened(weight) * d_start
    return [d_theta, d_start, -d_theta - d_start, d_weight]
