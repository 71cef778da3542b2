"""Importance-weighted, normalised squared distance between parameter vectors: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def param_distance(
    theta: Tensor, start: Tensor, target: Tensor, weight: Tensor | None, weighted_normaliser: bool
) -> Tensor:
    """``sum (w (theta - target))^2 / sum (v (start - target))^2``, v = w if weighted else 1.

    Sums are accumulated in float64. Differentiable in ``theta`` and ``weight`` to any order.
    """
    difference, span = theta - target, start - target
    if weight is not None:
        difference = weight * difference
        if weighted_normaliser:
            span = weight * span
    total = difference.square().sum(dtype=torch.float64) / span.square().sum(dtype=torch.float64)
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
    difference, span = theta - target, start - target
    if weight is None:
        denominator = span.square().sum(dtype=torch.float64)
        loss = difference.square().sum(dtype=torch.float64) / denominator
        return loss.to(theta.dtype), difference * (2 / denominator).to(theta.dtype), None
    scaled, scaled_span = weight * difference, span
    if weighted_normaliser:
        scaled_span = weight * span
    denominator = scaled_span.square().sum(dtype=torch.float64)
    loss = (scaled.square().sum(dtype=torch.float64) / denominator).to(theta.dtype)
    factor = (2 / denominator).to(theta.dtype)
    weight_gradient = scaled * difference
    if weighted_normaliser:
        weight_gradient = weight_gradient - loss * scaled_span * span
    return loss, factor * weight * scaled, factor * weight_gradient
