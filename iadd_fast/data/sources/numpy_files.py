"""``.npz`` archives and ``.npy`` files, under the names that MedMNIST, Keras and others use."""

from __future__ import annotations

import math
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from iadd_fast.data.sources.arrays import as_part
from iadd_fast.data.sources.part import Part, PartName, Source
from iadd_fast.reading import check_memory, regular_file

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
#: Bytes that a packed byte can stand for at most (deflate: 1032).
_MOST_PACKED = 1032
_PIECE = 2**20
_DAMAGED = (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error)
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
        lambda name: load_npy(folder / f"{name}.npy", folder),
        lambda name: f"{folder / name}.npy",
    )


def read_npz(path: Path) -> Source:
    """An archive with the keys images and labels, x and y, or train_images, train_labels, val_...,
    test_... (as MedMNIST), or x_train, y_train, x_test, y_test (as Keras).

    Raises:
        ValueError: no such archive, keys are missing, or it holds Python objects.
    """
    with regular_file(path).open("rb") as file:
        if file.read(6) == np.lib.format.MAGIC_PREFIX:
            raise ValueError(f"{path}: holds one array; expected a .npz archive of several")
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # its directory is parsed without checks
        raise ValueError(f"{path}: cannot be read as a .npz archive: {error}") from None
    try:
        with archive:
            members = _members(archive, path.stat().st_size)
            return _read_parts(
                path,
                members,
                lambda name: _read_member(archive, members[name]),
                lambda name: f"{path}: {name}",
            )
    except _Refused as error:
        raise ValueError(f"{path}: {error}") from None


def load_npy(path: Path, within: Path | None = None) -> Any:
    """The array in ``path``, mapped, not read.

    Args:
        within: a folder that a link at ``path`` may not lead out of.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no array, holds Python objects, or fewer values than it announces.
    """
    path = regular_file(path, within)
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            dtype, shape, _ = _read_header(file)
            held = size - file.tell()
        expected = math.prod(shape) * dtype.itemsize
        if not 0 < expected <= held:
            raise _Refused(
                f"it announces {expected:,} bytes of values (shape {shape}) and holds {held:,}"
            )
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (_Refused, *_DAMAGED) as error:
        raise ValueError(f"{path}: cannot be read as a .npy array: {error}") from None


class _Refused(Exception):
    """Why an array is not read."""


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The arrays of an archive of ``size`` bytes by name."""
    packed = sum(info.compress_size for info in archive.infolist())
    if packed > size:
        raise _Refused(f"it announces {packed:,} bytes of packed arrays and has {size:,}")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name in members:
            raise _Refused(f"holds two arrays named {name[:40]!r}")
        members[name] = info
    return members


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    """One array of an archive, allocated once its header, size and packed size agree."""
    where = f"{info.filename.removesuffix('.npy')[:40]} cannot be read"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _Refused(f"{where}: it is packed in another way than NumPy does")
    if info.file_size > _MOST_PACKED * info.compress_size:
        raise _Refused(
            f"{where}: it announces {info.file_size:,} bytes, more than {info.compress_size:,} "
            "packed ones can hold"
        )
    try:
        with archive.open(info) as file:
            dtype, shape, column_major = _read_header(file)
            held = info.file_size - file.tell()
            expected = math.prod(shape) * dtype.itemsize
            if expected != held or expected == 0:
                raise _Refused(
                    f"it announces {expected:,} bytes of values (shape {shape}) and holds {held:,}"
                )
            check_memory(info.filename[:40], expected)
            values = np.empty(math.prod(shape), dtype)
            free = values.view(np.uint8)
            while len(free):
                read = file.read(min(len(free), _PIECE))
                if not read:
                    raise EOFError("it ends")
                free[: len(read)] = np.frombuffer(read, np.uint8)
                free = free[len(read) :]
    # RuntimeError, NotImplementedError: it is encrypted, or of a later kind of zip.
    except (_Refused, RuntimeError, *_DAMAGED) as error:
        raise _Refused(f"{where}: {str(error) or type(error).__name__}") from None
    return values.reshape(shape, order="F" if column_major else "C")


def _read_header(file: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """Type, shape and whether columns come first; ``_Refused`` for what is no array of values."""
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(file)
        if version not in read:
            raise _Refused(f"its format {version[0]}.{version[1]} is for records")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 2 wrote headers that NumPy warns of
            shape, column_major, dtype = read[version](file)
    except _Refused:
        raise
    # NumPy parses the header as a literal of Python, in which anything can go wrong.
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise _Refused(f"its header is damaged ({reason})") from None
    if dtype.hasobject:
        raise _Refused("it holds Python objects, which are pickled; takes allow_pickle=False")
    if any(side < 0 for side in shape) or len(shape) > 32:
        raise _Refused(f"its header announces the shape {shape}")
    return dtype, shape, column_major


def _read_parts(
    path: Path, names: Iterable[str], load: Callable[[str], Any], where: Callable[[str], str]
) -> Source:
    held = set(names)
    found = f"found {', '.join(name[:40] for name in sorted(held)[:20]) or 'nothing'}"
    parts: dict[PartName, Part] = {}
    for part, pairs in _KEYS.items():
        for images, labels in pairs:
            if part in parts or not {images, labels} & held:
                continue
            if not {images, labels} <= held:
                raise ValueError(f"{path}: {found}; expected {images} and {labels} together")
            parts[part] = as_part(load(images), load(labels), where(images), where(labels))
    if not parts:
        raise ValueError(f"{path}: {found}; expected {_EXPECTED}")
    return Source(path.resolve().stem, parts)
