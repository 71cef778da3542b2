"""Arrays and tensors, and the checks that the images and labels of every source go through."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iadd_fast.data.sources.part import Part, Source

_MOST_SERIES_CHANNELS = 16


def read(images: Any, labels: Any, images_where: str, labels_where: str) -> Source:
    """Images or series with ``labels`` as one part."""
    if labels is None:
        raise ValueError(f"{labels_where}: got None; an array of images takes one label per image")
    return Source("arrays", {"train": as_part(images, labels, images_where, labels_where)})


def as_part(images: Any, labels: Any, images_where: str, labels_where: str) -> Part:
    """Images and labels checked, alone and against each other."""
    pixels, classes = as_images(images, images_where), as_labels(labels, labels_where)
    if len(pixels) != len(classes):
        raise ValueError(
            f"{labels_where}: got {len(classes)} labels for {len(pixels)} images "
            f"({images_where}); takes one label per image"
        )
    return Part(pixels, classes, images_where)


def as_images(value: Any, where: str) -> NDArray[Any]:
    """``value`` as uint8 or float32 ``[N, C, H, W]`` or ``[N, C, L]``, contiguous and finite.

    (N, H, W, C) with 1, 3 or 4 channels is moved to (N, C, H, W) unless its second axis could be
    channels too (4 or less). (N, H, W) gets a channel axis; floats (N, A, B) with A <= 16 and
    B >= 4 A are no picture but a series of A channels. Floats (N, L) are series of one channel.

    Raises:
        ValueError: another dtype or shape, no images, or a value that is not finite.
    """
    array = _as_array(value, where)
    floats = array.dtype.kind == "f"
    if not floats and array.dtype != np.uint8:
        raise ValueError(
            f"{where}: got images of dtype {array.dtype}; takes uint8 (0 to 255) or floats (taken "
            "as they are)"
        )
    if array.ndim not in ((2, 3, 4) if floats else (3, 4)) or array.size == 0:
        raise ValueError(
            f"{where}: got images of dtype {array.dtype} and shape {array.shape}; takes "
            "(N, channels, height, width), (N, height, width, channels), (N, height, width) or "
            "series of floats (N, channels, length)"
        )
    if array.ndim == 4 and array.shape[3] in (1, 3, 4) and array.shape[1] > 4:
        array = np.moveaxis(array, 3, 1)
    elif array.ndim == 2 or (array.ndim == 3 and not (floats and _is_series(array.shape[1:]))):
        array = array[:, None]
    if floats:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            bad = ~np.isfinite(array).reshape(len(array), -1).all(1)
            raise ValueError(
                f"{where}: {int(bad.sum())} of {len(array)} images hold values that are not finite "
                f"numbers in float32, the first is image {int(bad.argmax())}; takes finite pixels"
            )
    return np.ascontiguousarray(array)


def as_labels(value: Any, where: str) -> NDArray[Any]:
    """``value`` as int64 or text ``[N]``; (N, 1) is flattened, whole floats become integers.

    Raises:
        ValueError: another shape, or labels that are neither whole numbers nor text.
    """
    array = _as_array(value, where)
    if array.dtype.kind == "O":
        array = _as_array(array.tolist(), where)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(
            f"{where}: got labels of shape {array.shape}; takes one label per image, (N,)"
        )
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    if array.dtype.kind == "U":
        return array
    whole = array.dtype.kind in "biu" or (
        array.dtype.kind == "f" and bool(np.isfinite(array).all() and (array % 1 == 0).all())
    )
    if not whole:
        raise ValueError(
            f"{where}: got labels of dtype {array.dtype} that are not whole numbers; takes whole "
            "numbers or text"
        )
    return array.astype(np.int64)


def _is_series(shape: tuple[int, ...]) -> bool:
    channels, length = shape
    return channels <= _MOST_SERIES_CHANNELS and length >= 4 * channels


def _as_array(value: Any, where: str) -> NDArray[Any]:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{where}: cannot be read as one array: {error}") from None
