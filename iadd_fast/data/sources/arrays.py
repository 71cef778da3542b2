"""Arrays and tensors, and the checks that the images and labels of every source go through."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iadd_fast import arguments
from iadd_fast.data.pixels import images_at_once
from iadd_fast.data.sources.part import Part, Source
from iadd_fast.reading import check_memory, check_text

_MOST_SERIES_CHANNELS = 16
#: From here on a float may stand for several whole numbers.
_INEXACT = 2**53


def read(images: Any, labels: Any, images_where: str, labels_where: str) -> Source:
    """Images or series with ``labels`` as one part."""
    if labels is None:
        raise ValueError(f"{labels_where}: got None; an array of images takes one label per image")
    return Source("arrays", {"train": as_part(images, labels, images_where, labels_where)})


def as_part(images: Any, labels: Any, images_where: str, labels_where: str) -> Part:
    """Images and labels checked, alone and against each other."""
    array, classes = _as_array(images, images_where), as_labels(labels, labels_where)
    # Before the values are looked at: a view of no memory can have 10^12 rows.
    if array.ndim > 0 and len(array) != len(classes):
        raise ValueError(
            f"{labels_where}: got {len(classes)} labels for {len(array)} images "
            f"({images_where}); takes one label per image"
        )
    return Part(as_images(array, images_where), classes, images_where)


def as_images(value: Any, where: str) -> NDArray[Any]:
    """``value`` as uint8 or floats ``[N, C, H, W]`` or ``[N, C, L]``, finite in float32.

    Not copied: the axes of a mapped array are moved, and its values are looked at piece by piece.
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
        _check_finite(array, where)
    return array


def _check_finite(array: NDArray[Any], where: str) -> None:
    count, bad, first = images_at_once(array.shape), 0, None
    for begin in range(0, len(array), count):
        with np.errstate(over="ignore"):
            piece = array[begin : begin + count].astype(np.float32)
        wrong = ~np.isfinite(piece).reshape(len(piece), -1).all(1)
        if first is None and wrong.any():
            first = begin + int(wrong.argmax())
        bad += int(wrong.sum())
    if first is not None:
        raise ValueError(
            f"{where}: {bad} of {len(array)} images hold values that are not finite numbers in "
            f"float32, the first is image {first}; takes finite pixels"
        )


def as_labels(value: Any, where: str) -> NDArray[Any]:
    """``value`` as int64 or text ``[N]``; (N, 1) is flattened, whole floats become integers.

    Raises:
        ValueError: another shape, labels that are neither whole numbers nor text, or as
            :func:`check_label`.
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
    check_memory(where, 8 * array.size)
    if array.dtype.kind in "SU":
        return as_text(array, where)
    whole = array.dtype.kind in "biu" or (
        array.dtype.kind == "f" and bool(np.isfinite(array).all() and (array % 1 == 0).all())
    )
    if not whole:
        raise ValueError(
            f"{where}: got labels of dtype {array.dtype} that are not whole numbers; takes whole "
            "numbers or text"
        )
    if array.size:
        kind = float if array.dtype.kind == "f" else int
        check_label(kind(array.min()), where)
        check_label(kind(array.max()), where)
    return array.astype(np.int64)


def check_label(label: int | float, where: str) -> None:
    """Raise ``ValueError`` for a whole number that int64 has not, or that a float may have rounded.

    Either would give several labels one name.
    """
    if isinstance(label, float):
        exact = abs(label) < _INEXACT
    else:
        exact = -arguments.LARGEST - 1 <= label <= arguments.LARGEST
    if not exact:
        raise ValueError(
            f"{where}: got the label {arguments.shown(label)}; takes whole numbers of int64 (as "
            "floats: below 2**53, for larger ones are rounded) or text"
        )


def as_text(array: NDArray[Any], where: str) -> NDArray[Any]:
    """Texts or bytes of UTF-8 as texts.

    Raises:
        ValueError: one is not valid.
    """
    try:
        if array.dtype.kind == "S":
            array = np.char.decode(array, "utf-8")
        check_text("".join(np.unique(array).tolist()))
    # SystemError: NumPy's texts can hold numbers beyond Unicode.
    except (ValueError, SystemError):
        raise ValueError(f"{where}: holds text that is no valid Unicode") from None
    return array


def _is_series(shape: tuple[int, ...]) -> bool:
    channels, length = shape
    return channels <= _MOST_SERIES_CHANNELS and length >= 4 * channels


def from_tensor(value: Tensor, where: str) -> NDArray[Any]:
    """The values of a dense tensor on any device; bfloat16 as float32, which NumPy has.

    Raises:
        ValueError: it is nested, quantised, sparse or on meta, or of a type that NumPy has not
            (float8 and its kin).
    """
    for kind, is_so in (("nested", value.is_nested), ("quantised", value.is_quantized)):
        if is_so:  # neither has a shape or values in the common sense
            raise ValueError(f"{where}: got a {kind} tensor; takes a dense one of plain numbers")
    arguments.tensor(where, value)
    if value.dtype == torch.bfloat16:
        check_memory(where, 4 * value.numel())
        value = value.float()
    try:
        array: NDArray[Any] = value.numpy(force=True)
    except TypeError:
        raise ValueError(
            f"{where}: got {arguments.shown(value)}; takes a type that NumPy has too, or bfloat16"
        ) from None
    return array


def _as_array(value: Any, where: str) -> NDArray[Any]:
    if isinstance(value, Tensor):
        return from_tensor(value, where)
    try:
        return np.asarray(value)
    except Exception as error:  # whatever the elements' own conversions raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{where}: cannot be read as one array: {reason}") from None
