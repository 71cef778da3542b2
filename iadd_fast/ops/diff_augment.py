"""``diff_augment``: differentiable siamese augmentation of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from iadd_fast.ops import registered
from iadd_fast.ops.backends import implementation
from iadd_fast.ops.chain import applied
from iadd_fast.ops.checks import check_flag, check_images, checked_families, checked_seed


def diff_augment(
    images: Tensor, families: tuple[str, ...], seed: int | Tensor, *, shared: bool = False
) -> Tensor:
    """DSA families applied one after another (Zhao and Bilen 2021; ranges as in MTT).

    color: brightness +-0.5, saturation x[0, 2), contrast x[0.5, 1.5); crop: shift by up to 1/8
    of the side, zeros moving in; cutout: half of each side set to zero; flip: left-right with
    probability 1/2; scale: each axis by [1/1.2, 1.2); rotate: [-15, 15) degrees. The last two
    sample bilinearly with ``align_corners=True`` and zeros outside.

    Args:
        images: ``[N, C, H, W]``, floating point, any strides.
        families: names out of :data:`~iadd_fast.ops.checks.FAMILIES`, in the order to apply, at
            most eight; a name may come again. Rotated planes have sides that differ by at most a
            factor of 256.
        seed: fixes every draw (Philox 4x32-10 counters), equally on every device and backend; in
            0 .. 2^63 - 1, or an int64 scalar on the images' device, which the kernel reads itself.
        shared: one draw for the whole batch instead of one per sample.

    Returns:
        Contiguous images of the same shape and dtype. bfloat16 and float16 are storage: the
        arithmetic is float32. Affine in ``images``: differentiable to any order in either mode.

    Raises:
        ValueError: not a floating-point batch of images, an unknown family or too many of them,
            sides too unequal to rotate, or a seed out of range, of another dtype or on another
            device.
    """
    check_images("images", images)
    families = checked_families(families, *images.shape[2:])
    seed = checked_seed(seed, images)
    check_flag("shared", shared)
    if torch.compiler.is_compiling():
        drawn = torch.as_tensor(seed, device=images.device)
        compiled: Tensor = registered.diff_augment(images, "_".join(families), drawn, shared, False)
        return compiled
    kernels = implementation("diff_augment", images)
    augmented: Tensor = applied(_Augment, kernels, (families, seed, shared), False, images)
    return augmented


class _Augment(Function):
    """The affine map, or (``linear``) its linear part."""

    @staticmethod
    def forward(kernels: Any, chain: Any, linear: bool, images: Tensor) -> Tensor:
        return kernels.diff_augment(images, *chain, linear)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.kernels, ctx.chain = inputs[:2]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return None, None, None, applied(_Adjoint, ctx.kernels, ctx.chain, *cotangents)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return applied(_Augment, ctx.kernels, ctx.chain, True, tangents[-1])


class _Adjoint(Function):
    """The transpose of the linear part."""

    @staticmethod
    def forward(kernels: Any, chain: Any, cotangent: Tensor) -> Tensor:
        return kernels.diff_augment_adjoint(cotangent, *chain)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.kernels, ctx.chain = inputs[:2]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return None, None, applied(_Augment, ctx.kernels, ctx.chain, True, *cotangents)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return applied(_Adjoint, ctx.kernels, ctx.chain, tangents[-1])
