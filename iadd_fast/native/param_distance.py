"""The distance of parameter vectors by the native operators; defined in ``reference``."""

from __future__ import annotations

import torch
from torch import Tensor

from iadd_fast.native.library import laid_out, laid_out_or_none, operators


def param_distance(
    theta: Tensor, start: Tensor, target: Tensor, weight: Tensor | None, weighted_normaliser: bool
) -> Tensor:
    """As ``reference.param_distance``; not differentiable."""
    theta, start, target, weight = _contiguous(theta, start, target, weight)
    loss = _scalar(theta)
    operators().param_distance(theta, start, target, weight, weighted_normaliser, loss)
    return loss


def param_distance_gradients(
    theta: Tensor, start: Tensor, target: Tensor, weight: Tensor | None, weighted_normaliser: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As ``reference.param_distance_gradients``."""
    theta, start, target, weight = _contiguous(theta, start, target, weight)
    loss, d_theta = _scalar(theta), torch.empty_like(theta)
    d_weight = None if weight is None else torch.empty_like(weight)
    operators().param_distance_gradients(
        theta, start, target, weight, weighted_normaliser, loss, d_theta, d_weight
    )
    return loss, d_theta, d_weight


def _contiguous(
    theta: Tensor, start: Tensor, target: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    return laid_out(theta), laid_out(start), laid_out(target), laid_out_or_none(weight)


def _scalar(theta: Tensor) -> Tensor:
    dtype = torch.float64 if theta.dtype == torch.float64 else torch.float32
    return theta.new_empty((), dtype=dtype)
