"""CIFAR-10's and CIFAR-100's Python batches: pickles, read without running anything in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iadd_fast.data.sources.arrays import as_part
from iadd_fast.data.sources.part import PartName, Source

_SIDE = 32


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
        batch = load_pickle(path)
        data = batch.get("data")
        own = batch.get("labels", batch.get("fine_labels"))
        values = 3 * _SIDE * _SIDE
        if not (
            isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape[1:] == (values,)
        ):
            raise ValueError(
                f"{path}: found {_describe(data)} under 'data' (keys: {sorted(batch)}); expected a "
                f"uint8 array of shape (N, {values})"
            )
        if not isinstance(own, list | np.ndarray) or len(own) != len(data):
            raise ValueError(
                f"{path}: found {_describe(own)} under 'labels' or 'fine_labels' for {len(data)} "
                "images; expected a list of one label each"
            )
        images.append(data.reshape(-1, 3, _SIDE, _SIDE))
        labels.extend(own)
    return np.concatenate(images), labels


def _class_names(path: Path, key: str) -> tuple[str, ...] | None:
    if not path.is_file():
        return None
    names = load_pickle(path).get(key)
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise ValueError(f"{path}: found {_describe(names)} under {key!r}; expected a list of text")
    return tuple(name.decode() if isinstance(name, bytes) else name for name in names)


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} and shape {value.shape}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "nothing" if value is None else f"a {type(value).__name__}"


def load_pickle(path: Path) -> dict[str, Any]:
    """The dictionary pickled in ``path``, by Python 2 or 3, its keys as text.

    Admits numbers, text, bytes, lists, tuples, dictionaries and NumPy arrays of bytes or numbers.
    Whatever else a pickle names is refused, before anything of it is imported or called.

    Raises:
        ValueError: it is no such pickle.
    """
    with path.open("rb") as file:
        try:
            content = _Unpickler(file, encoding="bytes").load()
            if not isinstance(content, dict):
                raise ValueError(f"found a {type(content).__name__}; expected a dictionary")
            return {
                key.decode() if isinstance(key, bytes) else str(key): (
                    value.array() if isinstance(value, _Array) else value
                )
                for key, value in content.items()
            }
        except Exception as error:  # a damaged pickle can raise anything
            raise ValueError(f"{path}: cannot be read as a CIFAR batch: {error}") from None


class _Type:
    """Takes the place of ``numpy.dtype``: remembers what it was called with."""

    def __init__(self, code: str | bytes, *_: Any) -> None:
        self.code = code.decode() if isinstance(code, bytes) else code
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        self.order = order.decode() if isinstance(order, bytes) else order

    def dtype(self) -> np.dtype[Any]:
        if self.code not in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"):
            raise ValueError(f"found an array of type {self.code!r}; expected bytes or numbers")
        return np.dtype(self.order.replace("|", "=") + self.code)


class _Array:
    """Takes the place of a NumPy array being unpickled: nothing of NumPy runs on a stranger's word.

    Stands for ``ndarray`` and for its constructor, which the pickle calls before it sets the state.
    """

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def array(self) -> NDArray[Any]:
        if self.state is None:
            raise ValueError("found an array without content")
        _, shape, kind, column_major, content = self.state
        values = np.frombuffer(content, kind.dtype())
        return values.reshape(shape, order="F" if column_major else "C")


class _Buffer(_Array):
    """The same for protocol 5, where one call holds everything."""

    def __init__(self, content: bytes, kind: _Type, shape: tuple[int, ...], order: str) -> None:
        self.state = (1, shape, kind, order == "F", content)


class _Bytes(bytes):
    """Takes the place of ``codecs.encode``, with which Python 3 writes bytes for Python 2."""

    def __new__(cls, text: str, encoding: str) -> _Bytes:
        if encoding not in ("latin1", b"latin1"):
            raise ValueError(f"found text in {encoding!r}; expected latin1")
        return super().__new__(cls, text.encode("latin1"))

    # Without it a pickle could set attributes of the class itself.
    def __setstate__(self, state: Any) -> None:
        raise ValueError("found bytes with a state")


_ADMITTED: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
    ("numpy._core.numeric", "_frombuffer"): _Buffer,
    ("_codecs", "encode"): _Bytes,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}; only NumPy arrays, numbers and text are read"
            )
        return _ADMITTED[module, name]
