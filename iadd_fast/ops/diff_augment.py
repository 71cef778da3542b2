"""``diff_augment``: differentiable siamese augmentation of a batch."""

from __future__ import annotations

from torch import Tensor

from iadd_fast.reference import diff_augment as reference

FAMILIES = tuple(reference.FAMILIES)


def diff_augment(
    images: Tensor, families: tuple[str, ...], seed: int, *, shared: bool = False
) -> Tensor:
    """DSA families applied one after another (Zhao and Bilen 2021; ranges as in MTT).

    color: brightness +-0.5, saturation x[0, 2), contrast x[0.5, 1.5); crop: shift by up to 1/8
    of the side, zeros moving in; cutout: half of each side set to zero; flip: left-right with
    probability 1/2; scale: each axis by [1/1.2, 1.2); rotate: [-15, 15) degrees. The last two
    sample bilinearly with ``align_corners=True`` and zeros outside.

    Args:
        images: ``[N, C, H, W]``, floating point.
        families: names out of :data:`FAMILIES`, in the order to apply.
        seed: fixes every draw (Philox 4x32-10 counters), equally on every device and backend.
        shared: one draw for the whole batch instead of one per sample.

    Returns:
        Images of the same shape and dtype. Affine in ``images``: differentiable to any order.

    Raises:
        ValueError: not a floating-point batch of images, or an unknown family.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"images: got {images.dtype} of shape {tuple(images.shape)}; augmentation takes a "
            "floating-point batch (N, C, H, W)"
        )
    for family in families:
        if family not in FAMILIES:
            raise ValueError(f"families: got {family!r}; takes names out of {', '.join(FAMILIES)}")
    return reference.diff_augment(images, families, seed, shared)
