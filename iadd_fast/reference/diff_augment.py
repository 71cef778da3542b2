"""Differentiable siamese augmentation (DSA, Zhao and Bilen 2021): the definition.

Ranges and order are MTT's ``utils.py``. Every family is affine in the pixels; the adjoints are
those of the linear parts. The parameters of sample n come from ``philox(seed, n, position)``,
``position`` being the family's place in the chain: MTT's distributions, other numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from iadd_fast.reference.philox import integers, philox, uniform
from iadd_fast.reference.precision import widened

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def diff_augment(
    images: Tensor,
    families: tuple[str, ...],
    seed: int | Tensor,
    shared: bool,
    linear: bool = False,
) -> Tensor:
    """``families`` applied one after another to ``images`` ``[N, C, H, W]``.

    ``shared`` gives every sample the parameters of sample 0. ``linear`` leaves out what does not
    depend on the pixels (the brightness): the derivative of the affine map. bfloat16 and float16
    are storage: the arithmetic is float32.
    """
    samples = torch.arange(images.shape[0], device=images.device)
    if shared:
        samples = torch.zeros_like(samples)
    pixels = widened(images)
    for position, family in enumerate(families):
        words = philox(seed, samples, position)
        if family == "color" and linear:
            words = (torch.full_like(words[0], 2**31), *words[1:])
        pixels = FAMILIES[family](pixels, words)
    return pixels.to(images.dtype)


def diff_augment_adjoint(
    cotangent: Tensor, families: tuple[str, ...], seed: int | Tensor, shared: bool
) -> Tensor:
    """The transpose of the linear part, applied to ``cotangent`` ``[N, C, H, W]``.

    The families' own transposes in reverse order.
    """
    samples = torch.arange(cotangent.shape[0], device=cotangent.device)
    if shared:
        samples = torch.zeros_like(samples)
    pixels = widened(cotangent)
    for position, family in reversed(list(enumerate(families))):
        pixels = ADJOINTS[family](pixels, philox(seed, samples, position))
    return pixels.to(cotangent.dtype)


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _towards_mean(images: Tensor, factor: Tensor, axes: tuple[int, ...]) -> Tensor:
    """``mean + factor (images - mean)``: its own transpose."""
    mean = images.mean(axes, keepdim=True)
    return (images - mean) * factor + mean


def color(images: Tensor, words: Words) -> Tensor:
    """Brightness +-0.5, saturation x[0, 2) around the channel mean, contrast x[0.5, 1.5)."""
    brightness, saturation, contrast = (_column(uniform(w, images.dtype)) for w in words[:3])
    images = images + (brightness - 0.5)
    images = _towards_mean(images, 2 * saturation, (1,))
    return _towards_mean(images, contrast + 0.5, (1, 2, 3))


def color_adjoint(cotangent: Tensor, words: Words) -> Tensor:
    """Contrast and saturation the other way round, without the brightness."""
    saturation, contrast = (_column(uniform(w, cotangent.dtype)) for w in words[1:3])
    cotangent = _towards_mean(cotangent, contrast + 0.5, (1, 2, 3))
    return _towards_mean(cotangent, 2 * saturation, (1,))


def crop(images: Tensor, words: Words, direction: int = 1) -> Tensor:
    """Shift by up to an eighth of each side, zeros moving in."""
    height, width = images.shape[2:]
    reach_y, reach_x = int(height * 0.125 + 0.5), int(width * 0.125 + 0.5)
    shift_y = _column(integers(words[0], -reach_y, reach_y)) * direction + reach_y
    shift_x = _column(integers(words[1], -reach_x, reach_x)) * direction + reach_x
    padded = F.pad(images, (reach_x, reach_x, reach_y, reach_y))
    places = [torch.arange(size, device=images.device) for size in images.shape]
    sample, channel, row, column = torch.meshgrid(places, indexing="ij")
    return padded[sample, channel, row + shift_y, column + shift_x]


def crop_adjoint(cotangent: Tensor, words: Words) -> Tensor:
    """The shift back."""
    return crop(cotangent, words, direction=-1)


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
    return _resample(images, _scale_grid(images, words))


def scale_adjoint(cotangent: Tensor, words: Words) -> Tensor:
    """Every value spread over the pixels it was sampled from."""
    return _spread(cotangent, _scale_grid(cotangent, words))


def rotate(images: Tensor, words: Words) -> Tensor:
    """Rotated by an angle in [-15, 15) degrees, bilinear, zeros outside."""
    return _resample(images, _rotate_grid(images, words))


def rotate_adjoint(cotangent: Tensor, words: Words) -> Tensor:
    """Every value spread over the pixels it was sampled from."""
    return _spread(cotangent, _rotate_grid(cotangent, words))


def _scale_grid(images: Tensor, words: Words) -> Tensor:
    low, high = 1 / 1.2, 1.2
    factor_x, factor_y = (uniform(w, images.dtype) * (high - low) + low for w in words[:2])
    zero = torch.zeros_like(factor_x)
    return _grid(images, factor_x, zero, zero, factor_y)


def _rotate_grid(images: Tensor, words: Words) -> Tensor:
    angle = (uniform(words[0], images.dtype) - 0.5) * (2 * 15 / 180 * math.pi)
    return _grid(images, angle.cos(), -angle.sin(), angle.sin(), angle.cos())


def _grid(images: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """``F.affine_grid`` with ``align_corners=True``, which takes no empty batch.

    A side of one pixel has the coordinate 0, as there.
    """
    y, x = (_coordinates(images, axis) for axis in (2, 3))
    a, b, c, d = (value.view(-1, 1, 1) for value in (a, b, c, d))
    y, x = y.view(1, -1, 1), x.view(1, 1, -1)
    return torch.stack([a * x + b * y, c * x + d * y], dim=-1)


def _coordinates(images: Tensor, axis: int) -> Tensor:
    size = images.shape[axis]
    begin = -1 if size > 1 else 0
    return torch.linspace(begin, -begin, size, dtype=images.dtype, device=images.device)


def _resample(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=True)


def _spread(cotangent: Tensor, grid: Tensor) -> Tensor:
    # Bilinear is 0, zeros outside is 0; of the two gradients only that of the images.
    gradient, _ = torch.ops.aten.grid_sampler_2d_backward(
        cotangent, torch.empty_like(cotangent), grid, 0, 0, True, [True, False]
    )
    return gradient


FAMILIES: dict[str, Callable[[Tensor, Words], Tensor]] = {
    "color": color,
    "crop": crop,
    "cutout": cutout,
    "flip": flip,
    "scale": scale,
    "rotate": rotate,
}
# A window set to zero and a mirror are their own transposes.
ADJOINTS: dict[str, Callable[[Tensor, Words], Tensor]] = {
    "color": color_adjoint,
    "crop": crop_adjoint,
    "cutout": cutout,
    "flip": flip,
    "scale": scale_adjoint,
    "rotate": rotate_adjoint,
}
