"""``.npz`` archives and ``.npy`` files, under the names that MedMNIST, Keras and others use."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from iadd_fast.data.sources.arrays import as_part
from iadd_fast.data.sources.part import Part, PartName, Source

_KEYS: dict[PartName, tuple[tuple[str, str], ...]] = {
    "train": (
        ("train_images", "train_labels"),
        ("x_train", "y_train"),
        ("images", "labels"),
        ("x", "y"),
    ),
    "validation": (("val_images", "val_labels"), ("x_val", "y_val")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}
_DAMAGED = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
_EXPECTED = "; ".join(
    f"{part}: " + " or ".join(f"{images} + {labels}" for images, labels in pairs)
    for part, pairs in _KEYS.items()
)


def recognises(folder: Path) -> bool:
    """Whether ``folder`` holds ``.npy`` files of known names."""
    images = (pair[0] for pairs in _KEYS.values() for pair in pairs)
    return any((folder / f"{name}.npy").is_file() for name in images)


def read_folder(folder: Path) -> Source:
    """``train_images.npy`` + ``train_labels.npy`` and so on, or ``images.npy`` + ``labels.npy``.

    Raises:
        ValueError: images without labels or the reverse, or a file that is no such array.
    """
    return _read_parts(
        folder,
        {path.stem for path in folder.glob("*.npy")},
        lambda name: load_npy(folder / f"{name}.npy"),
    )


def read_npz(path: Path) -> Source:
    """An archive with the keys images and labels, x and y, or train_images, train_labels, val_...,
    test_... (as MedMNIST), or x_train, y_train, x_test, y_test (as Keras).

    Raises:
        ValueError: no such archive, keys are missing, or it holds Python objects.
    """
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
        except _DAMAGED as error:
            raise ValueError(f"{path}: cannot be read as a .npz archive: {error}") from None
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError(f"{path}: holds one array; expected a .npz archive of several")

        def load(name: str) -> Any:
            try:
                return archive[name]
            except _DAMAGED as error:
                raise ValueError(f"{path}: {name} cannot be read: {error}") from None

        return _read_parts(path, archive.files, load)


def load_npy(path: Path) -> Any:
    """The array in ``path``, mapped, not read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no array, or holds Python objects.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file") from None
    except _DAMAGED as error:
        raise ValueError(f"{path}: cannot be read as a .npy array: {error}") from None


def _read_parts(path: Path, names: Iterable[str], load: Callable[[str], Any]) -> Source:
    held = set(names)
    found = f"found {', '.join(sorted(held)) or 'nothing'}"
    parts: dict[PartName, Part] = {}
    for part, pairs in _KEYS.items():
        for images, labels in pairs:
            if part in parts or not {images, labels} & held:
                continue
            if not {images, labels} <= held:
                raise ValueError(f"{path}: {found}; expected {images} and {labels} together")
            parts[part] = as_part(
                load(images), load(labels), f"{path}: {images}", f"{path}: {labels}"
            )
    if not parts:
        raise ValueError(f"{path}: {found}; expected {_EXPECTED}")
    return Source(path.resolve().stem, parts)
