"""``norm_relu_pool`` compiled; the formulas stand in the reference of the same name.

Planes are taken as they lie where they are dense, contiguous or channels-last; everything else is
laid out anew in the format of ``z``, which the outputs have too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from iadd_fast.native.library import operators


def norm_relu_pool(
    z: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, pool: bool
) -> Tensor:
    z, layout, last = _dense_planes(z)
    p = _pooled_like(z, pool, layout)
    operators().norm_relu_pool.default(z, _flat(gamma), _flat(beta), eps, pool, last, p)
    return p


def norm_relu_pool_backward(
    z: Tensor, gamma: Tensor | None, beta: Tensor | None, dp: Tensor, eps: float, pool: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    z, layout, last = _dense_planes(z)
    dz = torch.empty_like(z)
    dgamma, dbeta = _vectors_like(gamma)
    dp = dp.contiguous(memory_format=layout)
    operators().norm_relu_pool_backward.default(
        z, _flat(gamma), _flat(beta), dp, eps, pool, last, dz, dgamma, dbeta
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
) -> Tensor:
    z, layout, last = _dense_planes(z)
    pdot = _pooled_like(z, pool, layout)
    zdot = zdot.contiguous(memory_format=layout)
    operators().norm_relu_pool_tangent.default(
        z,
        _flat(gamma),
        _flat(beta),
        zdot,
        _flat(gammadot),
        _flat(betadot),
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
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    z, layout, last = _dense_planes(z)
    dzdot = torch.empty_like(z)
    dgammadot, dbetadot = _vectors_like(gamma)
    operators().norm_relu_pool_backward_tangent.default(
        z,
        _flat(gamma),
        _flat(beta),
        dp.contiguous(memory_format=layout),
        zdot.contiguous(memory_format=layout),
        _flat(gammadot),
        _flat(betadot),
        None if dpdot is None else dpdot.contiguous(memory_format=layout),
        eps,
        pool,
        last,
        dzdot,
        dgammadot,
        dbetadot,
    )
    return dzdot, dgammadot, dbetadot


def _dense_planes(z: Tensor) -> tuple[Tensor, torch.memory_format, bool]:
    """``z`` dense, the format it has, and whether that is channels-last."""
    if not z.is_contiguous() and z.is_contiguous(memory_format=torch.channels_last):
        return z, torch.channels_last, True
    return z.contiguous(), torch.contiguous_format, False


def _pooled_like(z: Tensor, pool: bool, layout: torch.memory_format) -> Tensor:
    samples, channels, height, width = z.shape
    shape = (samples, channels, height // 2, width // 2) if pool else z.shape
    return torch.empty(shape, dtype=z.dtype, device=z.device, memory_format=layout)


def _vectors_like(gamma: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if gamma is None:
        return None, None
    dgamma = torch.empty(gamma.shape, dtype=gamma.dtype, device=gamma.device)
    return dgamma, torch.empty_like(dgamma)


def _flat(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()
