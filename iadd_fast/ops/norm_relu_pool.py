"""``norm_relu_pool``: instance norm, affine, ReLU and 2x2 average pool in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from iadd_fast.ops import chain, registered
from iadd_fast.ops.backends import implementation
from iadd_fast.ops.checks import check_planes


def norm_relu_pool(
    z: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    *,
    pool: bool = True,
) -> Tensor:
    """``avg_pool2d(relu(gamma (z - mean) / sqrt(var + eps) + beta), 2)``, per sample and channel.

    Equivalent to ``F.avg_pool2d(F.relu(F.group_norm(z, C, gamma, beta, eps)), 2)``: a block of
    the ConvNet (MTT, arXiv 2203.11932) behind its convolution. An odd last row or column counts in
    mean and variance and is left out by the pool, as there.

    Args:
        z: ``[N, C, H, W]``, any strides; contiguous and channels-last are read as they lie.
        gamma, beta: ``[C]`` of z's dtype and device, both or neither (1 and 0).
        eps: added to the variance, positive.
        pool: False leaves out the pool.

    Returns:
        ``[N, C, H // 2, W // 2]``, or z's shape without pool, in z's dtype and memory format.
        bfloat16 and float16 are storage: the arithmetic is float32.

    Differentiable in z, gamma and beta to second order, in reverse and forward mode and both
    mixed; a third derivative raises NotImplementedError. The ReLU has derivative 0 at 0.

    Raises:
        ValueError: a dtype, shape, device or eps that does not fit; a side below 2 with a pool.
    """
    eps = check_planes(z, gamma, beta, eps, pool)
    if torch.compiler.is_compiling():
        compiled: Tensor = registered.norm_relu_pool(z, gamma, beta, eps, pool)
        return compiled
    kernels = implementation("norm_relu_pool", z)
    if gamma is None or beta is None:
        return chain.apply(_Plain(kernels, eps, pool), z)
    return chain.apply(_Affine(kernels, eps, pool), z, gamma, beta)


@dataclass(frozen=True)
class _Affine:
    kernels: Any
    eps: float
    pool: bool
    name: str = "norm_relu_pool"

    def forward(self, x: Any) -> Tensor:
        return self.kernels.norm_relu_pool(*x, self.eps, self.pool)

    def backward(self, x: Any, dy: Tensor) -> Any:
        return self.kernels.norm_relu_pool_backward(*x, dy, self.eps, self.pool)

    def tangent(self, x: Any, xdot: Any) -> Tensor:
        return self.kernels.norm_relu_pool_tangent(*x, *xdot, self.eps, self.pool)

    def backward_tangent(self, x: Any, dy: Tensor, xdot: Any, dydot: Tensor | None) -> Any:
        kernel = self.kernels.norm_relu_pool_backward_tangent
        return kernel(*x, dy, *xdot, dydot, self.eps, self.pool)


class _Plain(_Affine):
    """Without affine: z alone is differentiated."""

    def forward(self, x: Any) -> Tensor:
        return super().forward((*x, None, None))

    def backward(self, x: Any, dy: Tensor) -> Any:
        return super().backward((*x, None, None), dy)[:1]

    def tangent(self, x: Any, xdot: Any) -> Tensor:
        return super().tangent((*x, None, None), (*xdot, None, None))

    def backward_tangent(self, x: Any, dy: Tensor, xdot: Any, dydot: Tensor | None) -> Any:
        bare, baredot = (*x, None, None), (*xdot, None, None)
        return super().backward_tangent(bare, dy, baredot, dydot)[:1]
