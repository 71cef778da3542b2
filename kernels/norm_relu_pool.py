"""Triton: instance norm, affine, ReLU and 2x2 average pool, with its derivatives.

Names as in the definition (``reference/norm_relu_pool.py``). A program owns whole (image, channel)
planes (``planes.py``), so that every mean stays inside it. A plane of one chunk is read once and
stays in registers; a larger one is walked once per round of means, out of the cache.

The derivatives need few sums: e = gamma dy and edot = gamma dydot + gammadot dy make every mean one
of the sums of dy and dydot, alone and times xh, and of dy and xh times the centred zdot.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from iadd_fast.kernels.launch import launch
from iadd_fast.kernels.planes import (
    Tiling,
    channel_sums_kernel,
    dense,
    dense_as,
    empty_pooled,
    load_column,
    load_pooled,
    load_windows,
    own_planes,
    plane_mean,
    plane_statistics,
    plane_sum,
    store_pooled,
    store_sums,
    store_windows,
    tiling,
    where_pixels,
)

SUM_BLOCK = 32

Outputs = tuple[Tensor, Tensor | None, Tensor | None]


@triton.jit
def norm_relu_pool_kernel(
    z_ptr,  # planes [N, C, H, W]
    gamma_ptr,  # [C] or None
    beta_ptr,  # [C] or None
    p_ptr,  # out: [N, C, H // 2, W // 2], or as z without pool
    C,
    eps,
    H: tl.constexpr,
    W: tl.constexpr,
    POOL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    # Reads z, writes a quarter of it.
    image, channel = own_planes(C, P)
    z_ptr += image * (C * H * W)
    p_ptr += image * (C * ((H // 2) * (W // 2) if POOL else H * W))
    mean, rest, r = plane_statistics(z_ptr, channel, C, eps, H, W, CHANNELS_LAST, BLOCK, CHUNKS)
    gamma = load_column(gamma_ptr, channel, C, 1.0)
    beta = load_column(beta_ptr, channel, C, 0.0)
    for chunk in range(CHUNKS):
        window = chunk * BLOCK + tl.arange(0, BLOCK)
        z = load_windows(z_ptr, channel, window, C, H, W, CHANNELS_LAST)
        y = gamma * (((z - mean) - rest) * r) + beta
        # NaN stays NaN, as in torch.
        y = tl.where(y < 0, 0.0, y)
        store_pooled(p_ptr, y, channel, window, C, H, W, CHANNELS_LAST, POOL)


@triton.jit
def norm_relu_pool_backward_kernel(
    z_ptr,  # planes [N, C, H, W]
    gamma_ptr,  # [C] or None
    beta_ptr,  # [C] or None
    dp_ptr,  # as p
    dz_ptr,  # out: as z
    sums_ptr,  # out: float32 [2, N, C], dgamma and dbeta of each plane; or None
    N,
    C,
    eps,
    H: tl.constexpr,
    W: tl.constexpr,
    POOL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    # Reads z and dp, writes dz: 2.25 of z.
    image, channel = own_planes(C, P)
    z_ptr += image * (C * H * W)
    dz_ptr += image * (C * H * W)
    dp_ptr += image * (C * ((H // 2) * (W // 2) if POOL else H * W))
    mean, rest, r = plane_statistics(z_ptr, channel, C, eps, H, W, CHANNELS_LAST, BLOCK, CHUNKS)
    gamma = load_column(gamma_ptr, channel, C, 1.0)
    beta = load_column(beta_ptr, channel, C, 0.0)
    sum_dy = tl.zeros((P, 1, 1, 1), tl.float32)
    sum_dy_xh = tl.zeros((P, 1, 1, 1), tl.float32)
    for chunk in range(CHUNKS):
        window = chunk * BLOCK + tl.arange(0, BLOCK)
        z = load_windows(z_ptr, channel, window, C, H, W, CHANNELS_LAST)
        xh = ((z - mean) - rest) * r
        up = load_pooled(dp_ptr, channel, window, C, H, W, CHANNELS_LAST, POOL)
        dy = tl.where(gamma * xh + beta > 0, up, 0.0)
        sum_dy += plane_sum(dy)
        sum_dy_xh += plane_sum(dy * xh)
    mean_e = gamma * sum_dy / (H * W)
    mean_e_xh = gamma * sum_dy_xh / (H * W)
    for chunk in range(CHUNKS):
        window = chunk * BLOCK + tl.arange(0, BLOCK)
        z = load_windows(z_ptr, channel, window, C, H, W, CHANNELS_LAST)
        xh = ((z - mean) - rest) * r
        up = load_pooled(dp_ptr, channel, window, C, H, W, CHANNELS_LAST, POOL)
        e = gamma * tl.where(gamma * xh + beta > 0, up, 0.0)
        dz = r * (e - mean_e - xh * mean_e_xh)
        store_windows(dz_ptr, dz, channel, window, C, H, W, CHANNELS_LAST)
    if sums_ptr is not None:
        store_sums(sums_ptr, sum_dy_xh, sum_dy, image, channel, N, C)


@triton.jit
def norm_relu_pool_tangent_kernel(
    z_ptr,  # planes [N, C, H, W]
    gamma_ptr,  # [C] or None
    beta_ptr,  # [C] or None
    zdot_ptr,  # as z
    gammadot_ptr,  # [C] or None
    betadot_ptr,  # [C] or None
    pdot_ptr,  # out: as p
    C,
    eps,
    H: tl.constexpr,
    W: tl.constexpr,
    POOL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    # Reads z and zdot, writes pdot: 2.25 of z.
    image, channel = own_planes(C, P)
    z_ptr += image * (C * H * W)
    zdot_ptr += image * (C * H * W)
    pdot_ptr += image * (C * ((H // 2) * (W // 2) if POOL else H * W))
    mean, rest, r = plane_statistics(z_ptr, channel, C, eps, H, W, CHANNELS_LAST, BLOCK, CHUNKS)
    mean_zdot = plane_mean(zdot_ptr, channel, C, H, W, CHANNELS_LAST, BLOCK, CHUNKS)
    gamma = load_column(gamma_ptr, channel, C, 1.0)
    beta = load_column(beta_ptr, channel, C, 0.0)
    gammadot = load_column(gammadot_ptr, channel, C, 0.0)
    betadot = load_column(betadot_ptr, channel, C, 0.0)
    sum_xh_zdot = tl.zeros((P, 1, 1, 1), tl.float32)
    for chunk in range(CHUNKS):
        window = chunk * BLOCK + tl.arange(0, BLOCK)
        z = load_windows(z_ptr, channel, window, C, H, W, CHANNELS_LAST)
        xh = ((z - mean) - rest) * r
        zdot = load_windows(zdot_ptr, channel, window, C, H, W, CHANNELS_LAST) - mean_zdot
        sum_xh_zdot += plane_sum(where_pixels(xh * zdot, window, H, W))
    q = sum_xh_zdot / (H * W)
    for chunk in range(CHUNKS):
        window = chunk * BLOCK + tl.arange(0, BLOCK)
        z = load_windows(z_ptr, channel, window, C, H, W, CHANNELS_LAST)
        xh = ((z - mean) - rest) * r
        zdot = load_windows(zdot_ptr, channel, window, C, H, W, CHANNELS_LAST) - mean_zdot
        ydot = gamma * (r * (zdot - xh * q)) + gammadot * xh + betadot
        ydot = tl.where(gamma * xh + beta > 0, ydot, 0.0)
        store_pooled(pdot_ptr, ydot, channel, window, C, H, W, CHANNELS_LAST, POOL)


@triton.jit
def norm_relu_pool_backward_tangent_kernel(
    z_ptr,  # planes [N, C, H, W]
    gamma_ptr,  # [C] or None
    beta_ptr,  # [C] or None
    dp_ptr,  # as p
    zdot_ptr,  # as z
    gammadot_ptr,  # [C] or None
    dpdot_ptr,  # as p, or None
    dzdot_ptr,  # out: as z
    dz_ptr,  # out: as z, or None
    sums_ptr,  # out: float32 [2, N, C], dgammadot and dbetadot of each plane; or None
    N,
    C,
    eps,
    H: tl.constexpr,
    W: tl.constexpr,
    POOL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    # Reads z, zdot, dp and dpdot, writes dzdot: 3.5 of z; and dz, if it is wanted: 4.5.
    image, channel = own_planes(C, P)
    z_ptr += image * (C * H * W)
    zdot_ptr += image * (C * H * W)
    dzdot_ptr += image * (C * H * W)
    if dz_ptr is not None:
        dz_ptr += image * (C * H * W)
    dp_ptr += image * (C * ((H // 2) * (W // 2) if POOL else H * W))
    if dpdot_ptr is not None:
        dpdot_ptr += image * (C * ((H // 2) * (W // 2) if POOL else H * W))
    mean, rest, r = plane_statistics(z_ptr, channel, C, eps, H, W, CHANNELS_LAST, BLOCK, CHUNKS)
    mean_zdot = plane_mean(zdot_ptr, channel, C, H, W, CHANNELS_LAST, BLOCK, CHUNKS)
    gamma = load_column(gamma_ptr, channel, C, 1.0)
    beta = load_column(beta_ptr, channel, C, 0.0)
    gammadot = load_column(gammadot_ptr, channel, C, 0.0)
    sum_xh_zdot = tl.zeros((P, 1, 1, 1), tl.float32)
    sum_dy = tl.zeros((P, 1, 1, 1), tl.float32)
    sum_dy_xh = tl.zeros((P, 1, 1, 1), tl.float32)
    sum_dy_zdot = tl.zeros((P, 1, 1, 1), tl.float32)
    sum_dydot = tl.zeros((P, 1, 1, 1), tl.float32)
    sum_dydot_xh = tl.zeros((P, 1, 1, 1), tl.float32)
    for chunk in range(CHUNKS):
        window = chunk * BLOCK + tl.arange(0, BLOCK)
        z = load_windows(z_ptr, channel, window, C, H, W, CHANNELS_LAST)
        xh = ((z - mean) - rest) * r
        zdot = load_windows(zdot_ptr, channel, window, C, H, W, CHANNELS_LAST) - mean_zdot
        up = load_pooled(dp_ptr, channel, window, C, H, W, CHANNELS_LAST, POOL)
        dy = tl.where(gamma * xh + beta > 0, up, 0.0)
        sum_xh_zdot += plane_sum(where_pixels(xh * zdot, window, H, W))
        sum_dy += plane_sum(dy)
        sum_dy_xh += plane_sum(dy * xh)
        sum_dy_zdot += plane_sum(dy * zdot)
        if dpdot_ptr is not None:
            updot = load_pooled(dpdot_ptr, channel, window, C, H, W, CHANNELS_LAST, POOL)
            dydot = tl.where(gamma * xh + beta > 0, updot, 0.0)
            sum_dydot += plane_sum(dydot)
            sum_dydot_xh += plane_sum(dydot * xh)
    q = sum_xh_zdot / (H * W)
    # sum dy xhdot, by xhdot = r (zdot - xh q) with zdot centred.
    sum_dy_xhdot = r * (sum_dy_zdot - q * sum_dy_xh)
    mean_e = gamma * sum_dy / (H * W)
    mean_e_xh = gamma * sum_dy_xh / (H * W)
    mean_edot = (gamma * sum_dydot + gammadot * sum_dy) / (H * W)
    # m(edot xh + e xhdot)
    mean_turn = (gamma * (sum_dydot_xh + sum_dy_xhdot) + gammadot * sum_dy_xh) / (H * W)
    for chunk in range(CHUNKS):
        window = chunk * BLOCK + tl.arange(0, BLOCK)
        z = load_windows(z_ptr, channel, window, C, H, W, CHANNELS_LAST)
        xh = ((z - mean) - rest) * r
        zdot = load_windows(zdot_ptr, channel, window, C, H, W, CHANNELS_LAST) - mean_zdot
        xhdot = r * (zdot - xh * q)
        s = gamma * xh + beta > 0
        up = load_pooled(dp_ptr, channel, window, C, H, W, CHANNELS_LAST, POOL)
        dy = tl.where(s, up, 0.0)
        edot = gammadot * dy
        if dpdot_ptr is not None:
            updot = load_pooled(dpdot_ptr, channel, window, C, H, W, CHANNELS_LAST, POOL)
            edot += gamma * tl.where(s, updot, 0.0)
        dz = r * (gamma * dy - mean_e - xh * mean_e_xh)
        if dz_ptr is not None:
            store_windows(dz_ptr, dz, channel, window, C, H, W, CHANNELS_LAST)
        turned = edot - mean_edot - xhdot * mean_e_xh - xh * mean_turn
        dzdot = r * turned - r * q * dz
        store_windows(dzdot_ptr, dzdot, channel, window, C, H, W, CHANNELS_LAST)
    if sums_ptr is not None:
        store_sums(sums_ptr, sum_dydot_xh + sum_dy_xhdot, sum_dydot, image, channel, N, C)


def norm_relu_pool(
    z: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    pool: bool,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """As ``reference.norm_relu_pool.norm_relu_pool``, with float32 arithmetic."""
    z = dense(z)
    cut = tiling(z)
    p = empty_pooled(z, cut.channels_last, pool) if out is None else out
    tensors = (z, _vector(gamma), _vector(beta), p)
    _launch(norm_relu_pool_kernel, cut, z, (*tensors, z.shape[1], eps), pool)
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
    """As ``reference.norm_relu_pool.norm_relu_pool_backward``, with float32 arithmetic."""
    z = dense(z)
    cut = tiling(z)
    dz, dgamma, dbeta = _outputs_like(z, gamma) if out is None else out
    sums = _empty_sums(z, gamma)
    dp = dense_as(dp, cut.channels_last)
    tensors = (z, _vector(gamma), _vector(beta), dp, dz, sums)
    shape = (z.shape[0], z.shape[1])
    _launch(norm_relu_pool_backward_kernel, cut, z, (*tensors, *shape, eps), pool)
    _channel_sums(sums, dgamma, dbeta)
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
    """As ``reference.norm_relu_pool.norm_relu_pool_tangent``, with float32 arithmetic."""
    z = dense(z)
    cut = tiling(z)
    pdot = empty_pooled(z, cut.channels_last, pool) if out is None else out
    zdot = dense_as(zdot, cut.channels_last)
    vectors = (_vector(gammadot), _vector(betadot))
    tensors = (z, _vector(gamma), _vector(beta), zdot, *vectors, pdot)
    _launch(norm_relu_pool_tangent_kernel, cut, z, (*tensors, z.shape[1], eps), pool)
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
    """As ``reference.norm_relu_pool.norm_relu_pool_backward_tangent``, in float32 arithmetic.

    ``betadot`` is not read: away from the kink of the ReLU the gradients are constant in beta.
    """
    z = dense(z)
    cut = tiling(z)
    dzdot, dgammadot, dbetadot = _outputs_like(z, gamma) if out is None else out
    sums = _empty_sums(z, gamma)
    dp, zdot = dense_as(dp, cut.channels_last), dense_as(zdot, cut.channels_last)
    dpdot = None if dpdot is None else dense_as(dpdot, cut.channels_last)
    vectors = (_vector(gamma), _vector(beta))
    tensors = (z, *vectors, dp, zdot, _vector(gammadot), dpdot, dzdot, dz, sums)
    shape = (z.shape[0], z.shape[1])
    _launch(norm_relu_pool_backward_tangent_kernel, cut, z, (*tensors, *shape, eps), pool)
    _channel_sums(sums, dgammadot, dbetadot)
    return dzdot, dgammadot, dbetadot


def _launch(
    kernel: Any, cut: Tiling, z: Tensor, arguments: tuple[Tensor | float | None, ...], pool: bool
) -> None:
    launch(
        kernel,
        (cut.programs,),
        z,
        *arguments,
        H=z.shape[2],
        W=z.shape[3],
        POOL=pool,
        CHANNELS_LAST=cut.channels_last,
        P=cut.planes,
        BLOCK=cut.block,
        CHUNKS=cut.chunks,
        num_warps=cut.warps,
    )


def _vector(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _empty_sums(z: Tensor, gamma: Tensor | None) -> Tensor | None:
    if gamma is None:
        return None
    return torch.empty((2, z.shape[0], z.shape[1]), dtype=torch.float32, device=z.device)


def _outputs_like(z: Tensor, gamma: Tensor | None) -> Outputs:
    # Not `empty_like`: of forward mode's zeros that is another tensor without memory.
    layout = torch.contiguous_format if z.is_contiguous() else torch.channels_last
    dz = torch.empty(z.shape, dtype=z.dtype, device=z.device, memory_format=layout)
    if gamma is None:
        return dz, None, None
    dgamma = torch.empty(gamma.shape, dtype=gamma.dtype, device=gamma.device)
    return dz, dgamma, torch.empty_like(dgamma)


def _channel_sums(sums: Tensor | None, dgamma: Tensor | None, dbeta: Tensor | None) -> None:
    if sums is None:
        return
    samples, channels = sums.shape[1:]
    launch(
        channel_sums_kernel,
        (triton.cdiv(channels, SUM_BLOCK), 2),
        sums,
        sums,
        dgamma,
        dbeta,
        samples,
        channels,
        BLOCK=SUM_BLOCK,
        STEPS=triton.next_power_of_2(triton.cdiv(samples, SUM_BLOCK)),
        num_warps=4,
    )
