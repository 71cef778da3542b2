"""What the plane kernels share: 2x2 windows of (image, channel) planes, their means and sums.

A program owns ``P`` neighbouring channels of one image. Their planes are rows of 2x2 windows,
blocks ``[P, WINDOWS, 2 columns, 2 rows]`` whose last two axes lie in one thread, so that a 2x2 pool
and its transpose cost no exchange between threads. With an odd side the last windows are cut short:
their missing pixels read as zero, and they have no place in the pooled plane.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Windows a program holds at once: what small planes are put together to, the most of one chunk, and
# the most of one whole plane (held once, it needs no pointers for another round).
SMALL_TILE, TILE, WHOLE_TILE = 256, 1024, 2048
# Channels-last planes come in packs of neighbouring channels, which share a 32-byte sector.
PACK = 8


class Tiling(NamedTuple):
    """How planes ``[N, C, H, W]`` of one dense layout are cut into programs."""

    channels_last: bool
    planes: int  # channels of a program
    block: int  # windows of a chunk
    chunks: int  # chunks of a plane
    programs: int
    warps: int


def tiling(z: Tensor) -> Tiling:
    """The cut for a dense ``z``: small planes share a program, large ones come in chunks."""
    samples, channels, height, width = z.shape
    windows = triton.cdiv(height, 2) * triton.cdiv(width, 2)
    most_planes = triton.next_power_of_2(channels)
    channels_last = not z.is_contiguous()
    if channels_last:
        planes = min(most_planes, PACK)
        block = triton.next_power_of_2(windows)
        if planes * block > WHOLE_TILE:
            block = TILE // planes
    else:
        block = min(triton.next_power_of_2(windows), TILE)
        planes = min(most_planes, max(1, SMALL_TILE // block))
    chunks = triton.cdiv(windows, block)
    # 16 pixels a thread, of up to four tensors, fit the registers; in chunks, with their sums and
    # pointers, half as many.
    windows_of_warp = 128 if chunks == 1 else 64
    return Tiling(
        channels_last,
        planes,
        block,
        chunks,
        programs=samples * triton.cdiv(channels, planes),
        warps=min(max(planes * block // windows_of_warp, 1), 16),
    )


def dense(z: Tensor) -> Tensor:
    """``z`` itself where it is contiguous or channels-last, else a contiguous copy."""
    if z.is_contiguous() or z.is_contiguous(memory_format=torch.channels_last):
        return z
    return z.contiguous()


def dense_as(tensor: Tensor, channels_last: bool) -> Tensor:
    """``tensor`` in the layout of the planes it goes with."""
    return tensor.contiguous(memory_format=_layout(channels_last))


def empty_pooled(z: Tensor, channels_last: bool, pool: bool) -> Tensor:
    """Room for a pooled (or, without pool, a like) batch of planes in the layout of ``z``."""
    samples, channels, height, width = z.shape
    shape = (samples, channels, height // 2, width // 2) if pool else z.shape
    return torch.empty(shape, dtype=z.dtype, device=z.device, memory_format=_layout(channels_last))


def _layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


@triton.jit
def own_planes(C, P: tl.constexpr):
    """The image and the channels ``[P]`` of this program."""
    groups = tl.cdiv(C, P)
    program = tl.program_id(0)
    return (program // groups).to(tl.int64), program % groups * P + tl.arange(0, P)


@triton.jit
def load_windows(
    image_ptr, channel, window, C, H: tl.constexpr, W: tl.constexpr, CHANNELS_LAST: tl.constexpr
):
    """float32 ``[P, WINDOWS, 2, 2]`` of one image ``[C, H, W]``; zero outside."""
    offset, step, inside, inside_below = _places(channel, window, C, H, W, CHANNELS_LAST)
    if CHANNELS_LAST:
        # Neighbouring threads take neighbouring channels, so each column is a load of its own.
        right = inside & _right_inside(window, W)
        right_below = inside_below & _right_inside(window, W)
        top = tl.join(
            tl.load(image_ptr + offset, inside, 0.0),
            tl.load(image_ptr + offset + C, right, 0.0),
        )
        bottom = tl.join(
            tl.load(image_ptr + offset + step, inside_below, 0.0),
            tl.load(image_ptr + offset + step + C, right_below, 0.0),
        )
    else:
        # Both columns of a window in one load: 8 bytes a thread, every sector read once.
        top = tl.load(image_ptr + offset, inside, 0.0)
        bottom = tl.load(image_ptr + offset + step, inside_below, 0.0)
    return tl.join(top, bottom).to(tl.float32)


@triton.jit
def store_windows(
    image_ptr,
    value,  # [P, WINDOWS, 2, 2]
    channel,
    window,
    C,
    H: tl.constexpr,
    W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """The transpose of :func:`load_windows`: pixels that exist are written."""
    offset, step, inside, inside_below = _places(channel, window, C, H, W, CHANNELS_LAST)
    top, bottom = tl.split(value)
    if CHANNELS_LAST:
        right = inside & _right_inside(window, W)
        right_below = inside_below & _right_inside(window, W)
        top_left, top_right = tl.split(top)
        bottom_left, bottom_right = tl.split(bottom)
        tl.store(image_ptr + offset, top_left, inside)
        tl.store(image_ptr + offset + C, top_right, right)
        tl.store(image_ptr + offset + step, bottom_left, inside_below)
        tl.store(image_ptr + offset + step + C, bottom_right, right_below)
    else:
        tl.store(image_ptr + offset, top, inside)
        tl.store(image_ptr + offset + step, bottom, inside_below)


@triton.jit
def _right_inside(window, W: tl.constexpr):
    return (2 * (window % ((W + 1) // 2)) + 1 < W)[None, :]


@triton.jit
def _places(channel, window, C, H: tl.constexpr, W: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Offsets of the windows' upper pixels, the step to the lower ones, and which of both exist."""
    ACROSS: tl.constexpr = (W + 1) // 2
    WINDOWS: tl.constexpr = ACROSS * ((H + 1) // 2)
    row, column = 2 * (window // ACROSS), 2 * (window % ACROSS)
    inside = (channel < C)[:, None] & (window < WINDOWS)[None, :]
    if CHANNELS_LAST:
        offset = ((row * W + column) * C)[None, :] + channel[:, None]
        step = W * C
        inside_below = inside & (row + 1 < H)[None, :]
    else:
        pair = tl.arange(0, 2)[None, None, :]
        offset = (channel * (H * W))[:, None, None] + (row * W + column)[None, :, None] + pair
        step = W
        inside = inside[:, :, None]
        if W % 2 == 1:
            inside = inside & (column[None, :, None] + pair < W)
        else:
            inside = tl.broadcast_to(inside, offset.shape)
        inside_below = inside & (row + 1 < H)[None, :, None]
    return offset, step, inside, inside_below


@triton.jit
def load_pooled(
    image_ptr,
    channel,
    window,
    C,
    H: tl.constexpr,
    W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    POOL: tl.constexpr,
):
    """The transpose of the pool on a pooled image: a quarter of each value, for its four pixels."""
    if POOL:
        offset, inside = _pooled_places(channel, window, C, H, W, CHANNELS_LAST)
        pooled = tl.load(image_ptr + offset, inside, 0.0).to(tl.float32) * 0.25
        return pooled[:, :, None, None]
    else:
        return load_windows(image_ptr, channel, window, C, H, W, CHANNELS_LAST)


@triton.jit
def store_pooled(
    image_ptr,
    value,  # [P, WINDOWS, 2, 2]
    channel,
    window,
    C,
    H: tl.constexpr,
    W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    POOL: tl.constexpr,
):
    """The pool of ``value``, written to a pooled image."""
    if POOL:
        offset, inside = _pooled_places(channel, window, C, H, W, CHANNELS_LAST)
        tl.store(image_ptr + offset, tl.sum(tl.sum(value, 3), 2) * 0.25, inside)
    else:
        store_windows(image_ptr, value, channel, window, C, H, W, CHANNELS_LAST)


@triton.jit
def _pooled_places(
    channel, window, C, H: tl.constexpr, W: tl.constexpr, CHANNELS_LAST: tl.constexpr
):
    ACROSS: tl.constexpr = (W + 1) // 2
    HEIGHT: tl.constexpr = H // 2
    WIDTH: tl.constexpr = W // 2
    row, column = window // ACROSS, window % ACROSS
    inside = (channel < C)[:, None] & ((row < HEIGHT) & (column < WIDTH))[None, :]
    place = row * WIDTH + column
    if CHANNELS_LAST:
        offset = (place * C)[None, :] + channel[:, None]
    else:
        offset = (channel * (HEIGHT * WIDTH))[:, None] + place[None, :]
    return offset, inside


@triton.jit
def where_pixels(value, window, H: tl.constexpr, W: tl.constexpr):
    """``value`` ``[P, WINDOWS, 2, 2]`` with zero where a plane has no pixel."""
    ACROSS: tl.constexpr = (W + 1) // 2
    pair = tl.arange(0, 2)
    row = 2 * (window // ACROSS)[None, :, None, None] + pair[None, None, None, :]
    column = 2 * (window % ACROSS)[None, :, None, None] + pair[None, None, :, None]
    return tl.where((row < H) & (column < W), value, 0.0)


@triton.jit
def load_column(vector_ptr, channel, C, MISSING: tl.constexpr):
    """A vector ``[C]`` as a column ``[P, 1, 1, 1]``; ``MISSING`` everywhere without one."""
    if vector_ptr is None:
        column = tl.full(channel.shape, MISSING, tl.float32)
    else:
        column = tl.load(vector_ptr + channel, channel < C, 0.0).to(tl.float32)
    return column[:, None, None, None]


@triton.jit
def plane_sum(value):
    """``[P, 1, 1, 1]``: the sum over each plane of ``[P, WINDOWS, 2, 2]``."""
    return tl.sum(tl.sum(tl.sum(value, 3), 2), 1)[:, None, None, None]


@triton.jit
def plane_mean(
    image_ptr,
    channel,
    C,
    H: tl.constexpr,
    W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    total = tl.zeros((channel.shape[0], 1, 1, 1), tl.float32)
    for chunk in range(CHUNKS):
        window = chunk * BLOCK + tl.arange(0, BLOCK)
        total += plane_sum(load_windows(image_ptr, channel, window, C, H, W, CHANNELS_LAST))
    return total / (H * W)


@triton.jit
def plane_statistics(
    z_ptr,
    channel,
    C,
    eps,
    H: tl.constexpr,
    W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """The mean in two parts, and r. ``(z - mean) - rest`` is centred to the plane's spread.

    A float32 mean is off by a rounding of the plane's offset; ``rest``, the mean of what it left,
    brings that down to a rounding of the spread, for one more sum over registers.
    """
    mean = plane_mean(z_ptr, channel, C, H, W, CHANNELS_LAST, BLOCK, CHUNKS)
    first = tl.zeros((channel.shape[0], 1, 1, 1), tl.float32)
    second = tl.zeros((channel.shape[0], 1, 1, 1), tl.float32)
    for chunk in range(CHUNKS):
        window = chunk * BLOCK + tl.arange(0, BLOCK)
        z = load_windows(z_ptr, channel, window, C, H, W, CHANNELS_LAST)
        centred = where_pixels(z - mean, window, H, W)
        first += plane_sum(centred)
        second += plane_sum(centred * centred)
    rest = first / (H * W)
    variance = second / (H * W) - rest * rest
    variance = tl.where(variance < 0, 0.0, variance)
    # NaN where the variance overflowed: an r of 0 would pass for a plane without spread.
    overflow = variance - variance
    return mean, rest, tl.rsqrt(variance + tl.full((), eps, tl.float32)) + overflow


@triton.jit
def channel_sums_kernel(
    sums_ptr,  # float32 [2, N, C]
    d_gamma_ptr,  # out: [C]
    d_beta_ptr,  # out: [C]
    N,
    C,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,  # blocks of images, at least enough for N
):
    # A fixed order over the images; float64, so that the sum is as good for any number of them.
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sums_ptr += tl.program_id(1).to(tl.int64) * N * C
    total = tl.zeros((BLOCK,), tl.float64)
    for step in range(STEPS):
        image = step * BLOCK + tl.arange(0, BLOCK)
        place = image.to(tl.int64)[:, None] * C + channel[None, :]
        inside = (image < N)[:, None] & (channel < C)[None, :]
        total += tl.sum(tl.load(sums_ptr + place, inside, 0.0).to(tl.float64), 0)
    if tl.program_id(1) == 0:
        tl.store(d_gamma_ptr + channel, total.to(tl.float32), channel < C)
    else:
        tl.store(d_beta_ptr + channel, total.to(tl.float32), channel < C)


@triton.jit
def store_sums(sums_ptr, of_gamma, of_beta, image, channel, N, C):
    place = image * C + channel
    tl.store(sums_ptr + place, tl.reshape(of_gamma, channel.shape), channel < C)
    sums_ptr += tl.full((), N, tl.int64) * C
    tl.store(sums_ptr + place, tl.reshape(of_beta, channel.shape), channel < C)
