"""Triton: differentiable siamese augmentation and its adjoint, one gather per pixel.

A chain of families is one affine map of the image, so no intermediate image is needed: each pixel
of the result is followed back through the stages, and what it needs of the source is loaded. Flip
and crop move it, cutout and the image's border end it, scale and rotate split it into the taps of a
bilinear sample. The colors along a path make ``a v + b mean_c(v) + constant`` of the source's v.

The adjoint goes the same way from the other end. A resampling stage then splits into the pixels
whose bilinear sample may reach the one at hand: those within one pixel of it under the stage's map.
So the adjoint too is a gather: no atomics, the same bits every time.

A color stage needs the mean over its input: a first pass over the pixels, one for each color stage.
"Depth" counts stages from the source: 0 is the first one after it, for either direction.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from iadd_fast.kernels.launch import launch

FAMILIES = ("color", "crop", "cutout", "flip", "scale", "rotate")
COLOR = tl.constexpr(1)
CROP = tl.constexpr(2)
CUTOUT = tl.constexpr(3)
FLIP = tl.constexpr(4)
SCALE = tl.constexpr(5)
ROTATE = tl.constexpr(6)

# What 3 bits a stage and the kernel's eight means hold.
MOST_STAGES = 8
# Paths through the taps that a pixel is summed over: four resamplings of a square take 9^4.
MOST_PATHS = 2**13
# Values (channels times pixels) of a block: 2 a thread, since a long chain's draws take registers.
BLOCK = 512


@triton.jit(do_not_specialize=["seed"])
def diff_augment_kernel(
    source_ptr,  # [N, C, H, W]: images, or for the adjoint the cotangent of the augmented ones
    result_ptr,  # out: [N, C, H, W], contiguous
    seed,  # int64: the number, or a pointer to it
    C,
    stride_n,  # of the source
    stride_c,
    stride_h,
    stride_w,
    H: tl.constexpr,
    W: tl.constexpr,
    CHAIN: tl.constexpr,  # 3 bits a stage, the first stage lowest
    STAGES: tl.constexpr,
    SPLITS: tl.constexpr,  # 4 bits a depth: resampling stages between it and the source
    COLORED: tl.constexpr,  # whether the chain has a color stage
    REACH_X: tl.constexpr,  # pixels that a resampling stage's adjoint looks at along a row
    REACH_Y: tl.constexpr,
    ADJOINT: tl.constexpr,
    LINEAR: tl.constexpr,  # leave the brightness out
    SHARED: tl.constexpr,
    SEED_ON_DEVICE: tl.constexpr,
    CHANNELS: tl.constexpr,  # at least C, a power of two
    PIXELS: tl.constexpr,
):
    # Writes the batch once and reads it through the cache: once, for each resampling stage 4 times
    # (the adjoint up to 9 times), and by every program once more for each color stage.
    BLOCKS: tl.constexpr = (H * W + PIXELS - 1) // PIXELS
    sample = tl.program_id(0) // BLOCKS
    drawn_for = sample * 0 if SHARED else sample
    key = tl.load(seed) if SEED_ON_DEVICE else seed
    source_ptr += sample.to(tl.int64) * stride_n
    channel = tl.arange(0, CHANNELS)
    means = tl.zeros((8,), tl.float32)
    for depth in tl.static_range(STAGES):
        if (CHAIN >> (3 * (STAGES - 1 - depth if ADJOINT else depth))) & 7 == COLOR:
            total = tl.zeros((), tl.float32)
            for block in range(BLOCKS):
                pixel = block * PIXELS + tl.arange(0, PIXELS)
                value = _gather(
                    source_ptr, pixel, channel, C, stride_c, stride_h, stride_w, key, drawn_for,
                    means, depth, H, W, CHAIN, STAGES, SPLITS, COLORED, REACH_X, REACH_Y, ADJOINT,
                    LINEAR,
                )  # fmt: skip
                value = tl.where((channel < C)[:, None], value, 0.0)
                total += tl.sum(tl.sum(value, 0), 0)
            means = tl.where(tl.arange(0, 8) == depth, total / (C * (H * W)), means)
    pixel = tl.program_id(0) % BLOCKS * PIXELS + tl.arange(0, PIXELS)
    value = _gather(
        source_ptr, pixel, channel, C, stride_c, stride_h, stride_w, key, drawn_for,
        means, STAGES, H, W, CHAIN, STAGES, SPLITS, COLORED, REACH_X, REACH_Y, ADJOINT, LINEAR,
    )  # fmt: skip
    result_ptr += sample.to(tl.int64) * C * (H * W)
    inside = (channel < C)[:, None] & (pixel < H * W)[None, :]
    tl.store(result_ptr + channel[:, None] * (H * W) + pixel[None, :], value, inside)


@triton.jit
def _gather(
    source_ptr,
    pixel,
    channel,
    C,
    stride_c,
    stride_h,
    stride_w,
    key,
    drawn_for,
    means,
    DEPTH: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    CHAIN: tl.constexpr,
    STAGES: tl.constexpr,
    SPLITS: tl.constexpr,
    COLORED: tl.constexpr,
    REACH_X: tl.constexpr,
    REACH_Y: tl.constexpr,
    ADJOINT: tl.constexpr,
    LINEAR: tl.constexpr,
):
    """``[CHANNELS, PIXELS]`` after the ``DEPTH`` stages next to the source; zero past the image."""
    WAYS: tl.constexpr = REACH_X * REACH_Y if ADJOINT else 4
    PATHS: tl.constexpr = WAYS ** ((SPLITS >> (4 * DEPTH)) & 15)
    total = tl.zeros((channel.shape[0], pixel.shape[0]), tl.float32)
    for path in range(PATHS):
        row, column = pixel // W, pixel % W
        alive = pixel < H * W
        way = path
        # Along the path: the weight of its taps, the color own v + mixed mean_c(v), the constants.
        share = tl.full(pixel.shape, 1.0, tl.float32)
        own = tl.full((), 1.0, tl.float32)
        mixed = tl.full((), 0.0, tl.float32)
        constant = tl.zeros(pixel.shape, tl.float32)
        for step in tl.static_range(DEPTH):
            row, column, alive, way, share, own, mixed, constant = _followed(
                row, column, alive, way, share, own, mixed, constant, key, drawn_for, means,
                DEPTH - 1 - step, H, W, CHAIN, STAGES, REACH_X, REACH_Y, ADJOINT, LINEAR,
            )  # fmt: skip
        place = channel[:, None] * stride_c + (row * stride_h + column * stride_w)[None, :]
        inside = (channel < C)[:, None] & alive[None, :]
        value = tl.load(source_ptr + place, inside, 0.0).to(tl.float32)
        if COLORED:
            value = own * value + mixed * (tl.sum(value, 0) / C)[None, :]
        total += share[None, :] * value + constant[None, :]
    return total


@triton.jit
def _followed(
    row,
    column,
    alive,
    way,
    share,
    own,
    mixed,
    constant,
    key,
    drawn_for,
    means,
    DEEP: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    CHAIN: tl.constexpr,
    STAGES: tl.constexpr,
    REACH_X: tl.constexpr,
    REACH_Y: tl.constexpr,
    ADJOINT: tl.constexpr,
    LINEAR: tl.constexpr,
):
    """A path through the stage at depth ``DEEP``, towards the source."""
    STAGE: tl.constexpr = STAGES - 1 - DEEP if ADJOINT else DEEP
    FAMILY: tl.constexpr = (CHAIN >> (3 * STAGE)) & 7
    WAYS: tl.constexpr = REACH_X * REACH_Y if ADJOINT else 4
    word0, word1, word2, _ = tl.philox(key, drawn_for, STAGE, 0, 0)
    if FAMILY == COLOR:
        # v becomes scale v + mix mean_c(v) + shift; brightness leaves the rest as it is.
        contrast = _uniform(word2) + 0.5
        scale = contrast * (2.0 * _uniform(word1))
        mean = tl.sum(tl.where(tl.arange(0, 8) == DEEP, means, 0.0), 0)
        shift = (1.0 - contrast) * mean
        if not (ADJOINT or LINEAR):
            shift += _uniform(word0) - 0.5
        constant += tl.where(alive, share, 0.0) * ((own + mixed) * shift)
        mixed = own * (contrast - scale) + mixed * contrast
        own = own * scale
    elif FAMILY == CROP:
        row, column = _cropped(row, column, word0, word1, H, W, ADJOINT)
        alive = alive & _inside(row, column, H, W)
    elif FAMILY == CUTOUT:
        alive = alive & (_uncut(row, word0, H) | _uncut(column, word1, W))
    elif FAMILY == FLIP:
        column = tl.where(_uniform(word0) < 0.5, W - 1 - column, column)
    else:
        xx, xy, yx, yy = _matrix(word0, word1, FAMILY, H, W)
        # What was added before the split counts once.
        constant = tl.where(way % WAYS == 0, constant, 0.0)
        if ADJOINT:
            row, column, tap = _reached(row, column, way % WAYS, xx, xy, yx, yy, H, W, REACH_X)
        else:
            row, column, tap = _tapped(row, column, way % WAYS, xx, xy, yx, yy, H, W)
        way = way // WAYS
        share *= tap
        alive = alive & _inside(row, column, H, W)
    return row, column, alive, way, share, own, mixed, constant


@triton.jit
def _uniform(word):
    return (word >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def _integer(word, low, high):
    return low + ((word.to(tl.int64) * (high - low + 1)) >> 32).to(tl.int32)


@triton.jit
def _inside(row, column, H: tl.constexpr, W: tl.constexpr):
    return (row >= 0) & (row < H) & (column >= 0) & (column < W)


@triton.jit
def _cropped(row, column, word0, word1, H: tl.constexpr, W: tl.constexpr, ADJOINT: tl.constexpr):
    REACH_ROW: tl.constexpr = (H + 4) // 8
    REACH_COLUMN: tl.constexpr = (W + 4) // 8
    shift_row = _integer(word0, -REACH_ROW, REACH_ROW)
    shift_column = _integer(word1, -REACH_COLUMN, REACH_COLUMN)
    if ADJOINT:
        return row - shift_row, column - shift_column
    else:
        return row + shift_row, column + shift_column


@triton.jit
def _uncut(place, word, LENGTH: tl.constexpr):
    SIZE: tl.constexpr = (LENGTH + 1) // 2
    first = _integer(word, 0, LENGTH - SIZE % 2) - SIZE // 2
    return (place < first) | (place >= first + SIZE)


@triton.jit
def _matrix(word0, word1, FAMILY: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    """The sample's map, from offsets from the centre to offsets from the centre, in pixels.

    The definition's matrix acts on coordinates in [-1, 1]. A side of one pixel has the coordinate 0
    alone: it adds nothing to the other axis.
    """
    if FAMILY == SCALE:
        # low + u (high - low) with low = 1 / 1.2, high = 1.2.
        xx = _uniform(word0) * 0.3666666666666667 + 0.8333333333333334
        yy = _uniform(word1) * 0.3666666666666667 + 0.8333333333333334
        return xx, xx * 0.0, yy * 0.0, yy
    else:
        # 30 degrees in radians. To 15 degrees these series are as good as float32; the library's
        # functions would reserve stack memory for reducing large angles.
        angle = (_uniform(word0) - 0.5) * 0.5235987755982988
        square = angle * angle
        cosine = 1 - square * (1 / 2 - square * (1 / 24 - square * (1 / 720)))
        sine = angle * (1 - square * (1 / 6 - square * (1 / 120 - square * (1 / 5040))))
        ACROSS: tl.constexpr = (W - 1) / (H - 1) if H > 1 else 0.0
        ALONG: tl.constexpr = (H - 1) / (W - 1) if W > 1 else 0.0
        return cosine, -sine * ACROSS, sine * ALONG, cosine


@triton.jit
def _tapped(row, column, way, xx, xy, yx, yy, H: tl.constexpr, W: tl.constexpr):
    """One of the 4 pixels that a bilinear sample takes, and its weight."""
    x = column.to(tl.float32) - (W - 1) / 2
    y = row.to(tl.float32) - (H - 1) / 2
    from_x = xx * x + xy * y + (W - 1) / 2
    from_y = yx * x + yy * y + (H - 1) / 2
    left, top = tl.floor(from_x), tl.floor(from_y)
    part_x, part_y = from_x - left, from_y - top
    weight_x = tl.where(way % 2 == 0, 1.0 - part_x, part_x)
    weight_y = tl.where(way // 2 == 0, 1.0 - part_y, part_y)
    return top.to(tl.int32) + way // 2, left.to(tl.int32) + way % 2, weight_x * weight_y


@triton.jit
def _reached(
    row, column, way, xx, xy, yx, yy, H: tl.constexpr, W: tl.constexpr, REACH_X: tl.constexpr
):
    """One of the pixels whose bilinear sample may take this one, and the weight it takes it with.

    Under the inverse map, the open square of one pixel about this one lies in the box searched.
    """
    x = column.to(tl.float32) - (W - 1) / 2
    y = row.to(tl.float32) - (H - 1) / 2
    inverse = 1.0 / (xx * yy - xy * yx)
    first_x = inverse * (yy * x - xy * y - tl.abs(yy) - tl.abs(xy)) + (W - 1) / 2
    first_y = inverse * (xx * y - yx * x - tl.abs(xx) - tl.abs(yx)) + (H - 1) / 2
    at_column = tl.ceil(first_x).to(tl.int32) + way % REACH_X
    at_row = tl.ceil(first_y).to(tl.int32) + way // REACH_X
    at_x = at_column.to(tl.float32) - (W - 1) / 2
    at_y = at_row.to(tl.float32) - (H - 1) / 2
    weight_x = 1.0 - tl.abs(xx * at_x + xy * at_y - x)
    weight_y = 1.0 - tl.abs(yx * at_x + yy * at_y - y)
    weight = tl.where((weight_x > 0) & (weight_y > 0), weight_x * weight_y, 0.0)
    return at_row, at_column, weight


def diff_augment(
    images: Tensor,
    families: tuple[str, ...],
    seed: int | Tensor,
    shared: bool,
    linear: bool = False,
) -> Tensor:
    """As ``reference.diff_augment.diff_augment``, with float32 arithmetic."""
    return _augment(images, families, seed, shared, linear, adjoint=False)


def diff_augment_adjoint(
    cotangent: Tensor, families: tuple[str, ...], seed: int | Tensor, shared: bool
) -> Tensor:
    """As ``reference.diff_augment.diff_augment_adjoint``, with float32 arithmetic."""
    return _augment(cotangent, families, seed, shared, linear=True, adjoint=True)


def _augment(
    source: Tensor,
    families: tuple[str, ...],
    seed: int | Tensor,
    shared: bool,
    linear: bool,
    adjoint: bool,
) -> Tensor:
    if len(families) > MOST_STAGES:
        raise ValueError(f"families: got {len(families)}; the kernel takes up to {MOST_STAGES}")
    samples, channels, height, width = source.shape
    reach_x, reach_y = _reach(families, width, height), _reach(families, height, width)
    resamplings = sum(family in ("scale", "rotate") for family in families)
    # Asked of the forward too: its adjoint is going to come.
    if (reach_x * reach_y) ** resamplings > MOST_PATHS:
        raise ValueError(
            f"families: got {resamplings} of scale and rotate for planes of {height}x{width}; the "
            f"Triton kernel walks every path through them, (taps of one)^{resamplings}, and takes "
            f"up to {MOST_PATHS} a pixel (iadd_fast.use_backend names another)"
        )
    ids = [FAMILIES.index(family) + 1 for family in families]
    chain = sum(family << (3 * stage) for stage, family in enumerate(ids))
    splits = split_so_far = 0
    for depth, family in enumerate(reversed(families) if adjoint else families):
        split_so_far += family in ("scale", "rotate")
        splits += split_so_far << (4 * (depth + 1))
    block_channels = triton.next_power_of_2(channels)
    pixels = min(max(BLOCK // block_channels, 1), triton.next_power_of_2(height * width))
    result = torch.empty(
        (samples, channels, height, width), dtype=source.dtype, device=source.device
    )
    launch(
        diff_augment_kernel,
        (samples * triton.cdiv(height * width, pixels),),
        source,
        source,
        result,
        seed,
        channels,
        *source.stride(),
        H=height,
        W=width,
        CHAIN=chain,
        STAGES=len(families),
        SPLITS=splits,
        COLORED="color" in families,
        REACH_X=reach_x,
        REACH_Y=reach_y,
        ADJOINT=adjoint,
        LINEAR=linear,
        SHARED=shared,
        SEED_ON_DEVICE=isinstance(seed, Tensor),
        CHANNELS=block_channels,
        PIXELS=pixels,
        num_warps=min(max(block_channels * pixels // 64, 1), 8),
    )
    return result


def _reach(families: tuple[str, ...], side: int, other: int) -> int:
    """Whole numbers in the longest interval that a resampling stage's adjoint must search."""
    half = 1.0
    if "scale" in families:
        half = 1.2
    if "rotate" in families:
        # The inverse stretches one pixel to cos + ratio sin, largest at atan(ratio) if reached.
        ratio = (side - 1) / (other - 1) if other > 1 else 0.0
        angle = min(math.atan(ratio), math.radians(15))
        half = max(half, 1 / math.cos(math.radians(15)), math.cos(angle) + ratio * math.sin(angle))
    return math.floor(2 * half + 1e-3) + 1
