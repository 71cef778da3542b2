"""Differentiable siamese augmentation by the native operators; defined in ``reference``."""

from __future__ import annotations

import torch
from torch import Tensor

from iadd_fast.native.library import laid_out, operators

# The order of `Family` in csrc/include/diff_augment.h.
_CODES = {
    family: code
    for code, family in enumerate(("color", "crop", "cutout", "flip", "scale", "rotate"))
}


def diff_augment(
    images: Tensor,
    families: tuple[str, ...],
    seed: int | Tensor,
    shared: bool,
    linear: bool = False,
) -> Tensor:
    """As ``reference.diff_augment``: at most eight families. The result is contiguous."""
    images = laid_out(images)
    number, on_device = _seed(seed, images.device)
    out = torch.empty(images.shape, dtype=images.dtype, device=images.device)
    codes = [_CODES[family] for family in families]
    operators().diff_augment.default(images, codes, number, on_device, shared, linear, out)
    return out


def diff_augment_adjoint(
    cotangent: Tensor, families: tuple[str, ...], seed: int | Tensor, shared: bool
) -> Tensor:
    """As ``reference.diff_augment_adjoint``: at most eight families. The result is contiguous."""
    cotangent = laid_out(cotangent)
    number, on_device = _seed(seed, cotangent.device)
    out = torch.empty(cotangent.shape, dtype=cotangent.dtype, device=cotangent.device)
    codes = [_CODES[family] for family in families]
    operators().diff_augment_adjoint.default(cotangent, codes, number, on_device, shared, out)
    return out


def _seed(seed: int | Tensor, device: torch.device) -> tuple[int, Tensor | None]:
    """The key as a signed 64-bit number, or as the tensor that a kernel on ``device`` reads."""
    if isinstance(seed, Tensor):
        if seed.device == device:
            return 0, seed
        seed = int(seed)
    return (seed + 2**63) % 2**64 - 2**63, None
