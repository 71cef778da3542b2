"""CIFAR-10's and CIFAR-100's Python batches: pickles, read without running anything in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iadd_fast import pickled
from iadd_fast.data.sources.arrays import as_part
from iadd_fast.data.sources.part import PartName, Source, checked_name
from iadd_fast.reading import regular_file

_SIDE = 32
#: Bytes of a batch; CIFAR-100's have 155 MB at most.
_LARGEST = 2**31
_TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


def recognises(folder: Path) -> bool:
    """Whether ``folder`` holds CIFAR-10's ``data_batch_1`` or CIFAR-100's ``train`` file."""
    return any(folder.glob("data_batch_*")) or (folder / "train").is_file()


def read(folder: Path) -> Source:
    """The training and test part of ``folder``; class names from ``batches.meta`` or ``meta``.

    All ``data_batch_*`` that are there are taken, in order. CIFAR-100 has its fine labels.

    Raises:
        ValueError: a file is no such batch, or holds anything but arrays, numbers and text.
    """
    training = sorted(folder.glob("data_batch_*"))
    if training:
        meta, names, test = folder / "batches.meta", "label_names", folder / "test_batch"
    else:
        meta, names, test = folder / "meta", "fine_label_names", folder / "test"
        training = [folder / "train"]
    files: dict[PartName, list[Path]] = {"train": training}
    if test.is_file():
        files["test"] = [test]
    parts = {
        part: as_part(*_read_batches(paths), *[_where(paths)] * 2) for part, paths in files.items()
    }
    return Source(folder.resolve().name, parts, _class_names(meta, names))


def _where(paths: list[Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} to {paths[-1].name}"


def _read_batches(paths: list[Path]) -> tuple[NDArray[Any], list[Any]]:
    images: list[NDArray[Any]] = []
    labels: list[Any] = []
    for path in paths:
        batch = load_pickle(path, path.parent)
        data = batch.get("data")
        own = batch.get("labels", batch.get("fine_labels"))
        values = 3 * _SIDE * _SIDE
        if not (
            isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape[1:] == (values,)
        ):
            raise ValueError(
                f"{path}: found {_describe(data)} under 'data' (keys: {_shown(batch)}); expected a "
                f"uint8 array of shape (N, {values})"
            )
        if not isinstance(own, list | np.ndarray) or len(own) != len(data):
            raise ValueError(
                f"{path}: found {_describe(own)} under 'labels' or 'fine_labels' for {len(data)} "
                "images; expected a list of one label each"
            )
        if isinstance(own, list) and not all(isinstance(label, int) for label in own):
            raise ValueError(f"{path}: found labels that are no whole numbers; expected those")
        images.append(data.reshape(-1, 3, _SIDE, _SIDE))
        labels.extend(own)
    return np.concatenate(images), labels


def _class_names(path: Path, key: str) -> tuple[str, ...] | None:
    if not path.is_file():
        return None
    names = load_pickle(path, path.parent).get(key)
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise ValueError(f"{path}: found {_describe(names)} under {key!r}; expected a list of text")
    try:
        texts = [name.decode() if isinstance(name, bytes) else name for name in names]
    except UnicodeDecodeError:
        raise ValueError(f"{path}: found names under {key!r} that are no UTF-8 text") from None
    return tuple(checked_name(text, f"{path}: found a name under {key!r}") for text in texts)


def _shown(batch: dict[str, Any]) -> str:
    keys = sorted(batch)
    return f"{[key[:40] for key in keys[:10]]}" + (" and others" if len(keys) > 10 else "")


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} and shape {value.shape}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "nothing" if value is None else f"a {type(value).__name__}"


def load_pickle(path: Path, within: Path | None = None) -> dict[str, Any]:
    """The dictionary pickled in ``path``, by Python 2 or 3, its keys as text.

    Admits numbers, text, bytes, lists, tuples, dictionaries and NumPy arrays of bytes or numbers.
    Whatever else a pickle names is refused; nothing of it, nor of NumPy, is imported or called on a
    stranger's word (:mod:`iadd_fast.pickled`).

    Args:
        within: a folder that a link at ``path`` may not lead out of.

    Raises:
        ValueError: it is no such pickle.
    """
    size = regular_file(path, within).stat().st_size
    if size > _LARGEST:
        raise ValueError(f"{path}: has {size:,} bytes; a CIFAR batch has at most {_LARGEST:,}")
    with path.open("rb") as file:
        try:
            content = pickled.load(file, size, _ADMITTED)
            if not isinstance(content, dict):
                raise ValueError(f"found a {type(content).__name__}; expected a dictionary")
            return {
                key.decode() if isinstance(key, bytes) else key: (
                    value.array() if isinstance(value, _Array) else value
                )
                for key, value in content.items()
            }
        except pickled.Forbidden as error:
            told = f"{error}; only NumPy arrays, numbers and text are read"
        except ValueError as error:
            told = str(error)
    raise ValueError(f"{path}: cannot be read as a CIFAR batch: {told}")


class _Type(pickled.StandIn):
    """Takes the place of a ``numpy.dtype``: remembers what it was called with."""

    def __init__(self, code: str | bytes, *_: Any) -> None:
        self.code = _text(code)
        self.order = "="

    def build(self, state: Any) -> None:
        self.order = _text(state[1])

    def dtype(self) -> np.dtype[Any]:
        if self.code not in _TYPES:
            raise ValueError(f"found an array of type {self.code!r}; expected bytes or numbers")
        if self.order not in ("|", "=", "<", ">"):
            raise ValueError(f"found an array of the byte order {self.order!r}")
        return np.dtype(self.order.replace("|", "=") + self.code)


class _Array(pickled.StandIn):
    """Takes the place of an array, whose constructor is called before its state is set."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] | None = None

    def build(self, state: Any) -> None:
        self.state = state

    def array(self) -> NDArray[Any]:
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise ValueError("found an array without content")
        _, shape, kind, column_major, content = self.state
        if not (
            isinstance(kind, _Type)
            and isinstance(content, bytes | bytearray)
            and isinstance(shape, tuple)
            and len(shape) <= 8
            and all(isinstance(size, int) and 0 <= size <= _LARGEST for size in shape)
        ):
            raise ValueError("found an array without a type, shape or content that fit")
        dtype = kind.dtype()
        if math.prod(shape) * dtype.itemsize != len(content):
            raise ValueError(f"found an array of other content than its shape {shape} takes")
        # Without values NumPy still takes the product of the other sides.
        if 0 in shape:
            raise ValueError(f"found an empty array, of shape {shape}")
        values = np.frombuffer(content, dtype)
        return values.reshape(shape, order="F" if column_major else "C")


def _buffer(content: Any, kind: Any, shape: Any, order: Any) -> _Array:
    """The same for protocol 5, where one call holds everything."""
    array = _Array()
    array.build((1, shape, kind, order == "F", content))
    return array


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode()
    if not isinstance(value, str) or len(value) > 20:
        raise ValueError("found an array of an unknown type")
    return value


_ADMITTED: dict[str, Callable[..., Any] | None] = {
    "numpy.ndarray": None,
    "numpy.dtype": _Type,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.core.numeric._frombuffer": _buffer,
    "numpy._core.numeric._frombuffer": _buffer,
}
