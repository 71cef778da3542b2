"""``norm_relu_pool`` compiled; the formulas stand in the reference of the same name.

Planes are taken as they lie where they are dense, contiguous or channels-last; everything else is
laid out anew in the format of ``z``, which the outputs have too. ``out`` has to be laid out so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from iadd_fast.native.library import laid_out, laid_out_or_none, operators

Outputs = tuple[Tensor, Tensor | None, Tensor | None]


def norm_relu_pool(
    z: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    pool: bool,
    *,
    out: Tensor | None = None,
) -> Tensor:
    z, layout, last = _dense_planes(z)
    p = _pooled_like(z, pool, layout) if out is None else out
    operators().norm_relu_pool.default(
        z, laid_out_or_none(gamma), laid_out_or_none(beta), eps, pool, last, p
    )
    return p


def norm_relu_pool_backward(
    z: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    dp: Tensor,
    eps: float,
    pool: bool,
    *,
    out: Outputs | None = None,
) -> Outputs:
    z, layout, last = _dense_planes(z)
    dz, dgamma, dbeta = _outputs_like(z, gamma) if out is None else out
    dp = laid_out(dp, layout)
    operators().norm_relu_pool_backward.default(
        z, laid_out_or_none(gamma), laid_out_or_none(beta), dp, eps, pool, last, dz, dgamma, dbeta
    )
    return dz, dgamma, dbeta


def norm_relu_pool_tangent(
    z: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    zdot: Tensor,
    gammadot: Tensor | None,
    betadot: Tensor | None,
    eps: float,
    pool: bool,
    *,
    out: Tensor | None = None,
) -> Tensor:
    z, layout, last = _dense_planes(z)
    pdot = _pooled_like(z, pool, layout) if out is None else out
    zdot = laid_out(zdot, layout)
    operators().norm_relu_pool_tangent.default(
        z,
        laid_out_or_none(gamma),
        laid_out_or_none(beta),
        zdot,
        laid_out_or_none(gammadot),
        laid_out_or_none(betadot),
        eps,
        pool,
        last,
        pdot,
    )
    return pdot


def norm_relu_pool_backward_tangent(
    z: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    dp: Tensor,
    zdot: Tensor,
    gammadot: Tensor | None,
    betadot: Tensor | None,
    dpdot: Tensor | None,
    eps: float,
    pool: bool,
    *,
    out: Outputs | None = None,
    dz: Tensor | None = None,
) -> Outputs:
    z, layout, last = _dense_planes(z)
    dzdot, dgammadot, dbetadot = _outputs_like(z, gamma) if out is None else out
    operators().norm_relu_pool_backward_tangent.default(
        z,
        laid_out_or_none(gamma),
        laid_out_or_none(beta),
        laid_out(dp, layout),
        laid_out(zdot, layout),
        laid_out_or_none(gammadot),
        laid_out_or_none(betadot),
        None if dpdot is None else laid_out(dpdot, layout),
        eps,
        pool,
        last,
        dzdot,
        dgammadot,
        dbetadot,
        dz,
    )
    return dzdot, dgammadot, dbetadot


def _dense_planes(z: Tensor) -> tuple[Tensor, torch.memory_format, bool]:
    """``z`` dense, the format it has, and whether that is channels-last."""
    if not z.is_contiguous() and z.is_contiguous(memory_format=torch.channels_last):
        return z, torch.channels_last, True
    return laid_out(z), torch.contiguous_format, False


def _pooled_like(z: Tensor, pool: bool, layout: torch.memory_format) -> Tensor:
    samples, channels, height, width = z.shape
    shape = (samples, channels, height // 2, width // 2) if pool else z.shape
    return torch.empty(shape, dtype=z.dtype, device=z.device, memory_format=layout)


def _outputs_like(z: Tensor, gamma: Tensor | None) -> Outputs:
    if gamma is None:
        return torch.empty_like(z), None, None
    dgamma = torch.empty(gamma.shape, dtype=gamma.dtype, device=gamma.device)
    return torch.empty_like(z), dgamma, torch.empty_like(dgamma)
