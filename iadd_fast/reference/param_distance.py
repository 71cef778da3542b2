"""Importance-weighted, normalised squared distance between parameter vectors: the definition."""

from __future__ import annotations

from torch import Tensor

from iadd_fast.reference.precision import widened


def param_distance(
    theta: Tensor, start: Tensor, target: Tensor, weight: Tensor | None, weighted_normaliser: bool
) -> Tensor:
    """``sum (w (theta - target))^2 / sum (v (start - target))^2``, v = w if weighted else 1.

    Squares and sums are in float64, where those of float32 numbers neither overflow nor vanish.
    bfloat16 and float16 are storage: the other arithmetic, and the distance, are float32.
    Differentiable in all arguments to any order.
    """
    theta, start, target = widened(theta), widened(start), widened(target)
    difference, span = theta - target, start - target
    if weight is not None:
        difference = widened(weight) * difference
        if weighted_normaliser:
            span = widened(weight) * span
    total = _squares(difference) / _squares(span)
    return total.to(theta.dtype)


def param_distance_gradients(
    theta: Tensor, start: Tensor, target: Tensor, weight: Tensor | None, weighted_normaliser: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The distance L and its gradients for ``theta`` and ``weight`` (None without one).

    With d = theta - target, d0 = start - target, D the denominator::

        dL/dtheta  = 2 w^2 d / D
        dL/dweight = 2 w (d^2 - L d0^2) / D     (normaliser weighted)
                   = 2 w d^2 / D                (normaliser of the start)
    """
    dtype = theta.dtype
    theta, start, target = widened(theta), widened(start), widened(target)
    difference, span = theta - target, start - target
    if weight is None:
        denominator = _squares(span)
        loss = _squares(difference) / denominator
        d_theta = difference * (2 / denominator).to(theta.dtype)
        return loss.to(theta.dtype), d_theta.to(dtype), None
    weight = widened(weight)
    scaled, scaled_span = weight * difference, span
    if weighted_normaliser:
        scaled_span = weight * span
    denominator = _squares(scaled_span)
    loss = (_squares(scaled) / denominator).to(theta.dtype)
    factor = (2 / denominator).to(theta.dtype)
    d_weight = scaled * difference
    if weighted_normaliser:
        d_weight = d_weight - loss * scaled_span * span
    return loss, (factor * weight * scaled).to(dtype), (factor * d_weight).to(dtype)


def _squares(values: Tensor) -> Tensor:
    return values.double().square().sum()
