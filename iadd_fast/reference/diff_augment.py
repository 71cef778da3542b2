"""Differentiable siamese augmentation (DSA, Zhao and Bilen 2021): the definition.

Ranges and order are MTT's ``utils.py``. Every family is affine in the pixels, so autograd of this
code is the exact adjoint. The parameters of sample n come from ``philox(seed, n, position)``,
``position`` being the family's place in the chain: MTT's distributions, other numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from iadd_fast.reference.philox import integers, philox, uniform

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def diff_augment(images: Tensor, families: tuple[str, ...], seed: int, shared: bool) -> Tensor:
    """``families`` applied one after another to ``images`` ``[N, C, H, W]``.

    ``shared`` gives every sample the parameters of sample 0.
    """
    samples = torch.arange(images.shape[0], device=images.device)
    if shared:
        samples = torch.zeros_like(samples)
    for position, family in enumerate(families):
        images = FAMILIES[family](images, philox(seed, samples, position))
    return images


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def color(images: Tensor, words: Words) -> Tensor:
    """Brightness +-0.5, saturation x[0, 2) around the channel mean, contrast x[0.5, 1.5)."""
    brightness, saturation, contrast = (_column(uniform(w, images.dtype)) for w in words[:3])
    images = images + (brightness - 0.5)
    mean = images.mean(1, keepdim=True)
    images = (images - mean) * (2 * saturation) + mean
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + 0.5) + mean


def crop(images: Tensor, words: Words) -> Tensor:
    """Shift by up to an eighth of each side, zeros moving in."""
    height, width = images.shape[2:]
    reach_y, reach_x = int(height * 0.125 + 0.5), int(width * 0.125 + 0.5)
    shift_y = _column(integers(words[0], -reach_y, reach_y)) + reach_y
    shift_x = _column(integers(words[1], -reach_x, reach_x)) + reach_x
    padded = F.pad(images, (reach_x, reach_x, reach_y, reach_y))
    places = [torch.arange(size, device=images.device) for size in images.shape]
    sample, channel, row, column = torch.meshgrid(places, indexing="ij")
    return padded[sample, channel, row + shift_y, column + shift_x]


def cutout(images: Tensor, words: Words) -> Tensor:
    """A window of half of each side set to zero, its centre anywhere in the image."""
    inside = torch.ones((), dtype=torch.bool, device=images.device)
    for axis, word in ((2, words[0]), (3, words[1])):
        length = images.shape[axis]
        size = int(length * 0.5 + 0.5)
        first = integers(word, 0, length - size % 2) - size // 2
        place = torch.arange(length, device=images.device).view(1, -1)
        within = (place >= first.view(-1, 1)) & (place < first.view(-1, 1) + size)
        shape = [images.shape[0], 1, 1, 1]
        shape[axis] = length
        inside = inside & within.view(shape)
    return images.masked_fill(inside, 0.0)


def flip(images: Tensor, words: Words) -> Tensor:
    """Mirrored left to right with probability one half."""
    return torch.where(_column(uniform(words[0], images.dtype)) < 0.5, images.flip(3), images)


def scale(images: Tensor, words: Words) -> Tensor:
    """Each axis scaled by its own factor in [1/1.2, 1.2), bilinear, zeros outside."""
    low, high = 1 / 1.2, 1.2
    factor_x, factor_y = (uniform(w, images.dtype) * (high - low) + low for w in words[:2])
    zero = torch.zeros_like(factor_x)
    return _resample(images, (factor_x, zero, zero, factor_y))


def rotate(images: Tensor, words: Words) -> Tensor:
    """Rotated by an angle in [-15, 15) degrees, bilinear, zeros outside."""
    angle = (uniform(words[0], images.dtype) - 0.5) * (2 * 15 / 180 * math.pi)
    return _resample(images, (angle.cos(), -angle.sin(), angle.sin(), angle.cos()))


def _resample(images: Tensor, matrix: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    a, b, c, d = matrix
    zero = torch.zeros_like(a)
    affine = torch.stack([a, b, zero, c, d, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(affine, list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=True)


FAMILIES: dict[str, Callable[[Tensor, Words], Tensor]] = {
    "color": color,
    "crop": crop,
    "cutout": cutout,
    "flip": flip,
    "scale": scale,
    "rotate": rotate,
}
