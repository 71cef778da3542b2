"""Normalised images in a file that is mapped instead of read: data larger than memory.

A cache file is named by what it holds: the fingerprints of the raw images, their order and the
transform. ``NAME.npy`` holds the images, ``NAME.safetensors`` the fitted transform, and the shape
and SHA-256 of the first; it is written last, so that a file without it was never finished. Files
are written whole or not at all, and two processes that write the same one write the same bytes.
Writers share a lock on the folder; who is alone there first removes what killed ones have left.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iadd_fast.artifacts.files import (
    check_schema,
    check_writable,
    load_tensors,
    save_tensors,
    write_atomically,
)
from iadd_fast.data.transform import Transform, transform_from

KIND = "cached images"
SCHEMA = 1

#: The temporary names that ``write_atomically`` gives the files of a cache.
_LEFTOVER = re.compile(r"\.[0-9a-f]{32}\.[0-9a-f]{12}\.(npy|safetensors)")
#: Lets a private mapping be larger than memory and swap together: none of it is written to.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def cached(
    folder: Path,
    content: Mapping[str, Any],
    shape: tuple[int, ...],
    fit: Callable[[], Transform],
    pieces: Callable[[Transform], Iterator[Tensor]],
) -> tuple[Tensor, Transform]:
    """The images mapped from ``folder``, written there first where they are not, and the transform.

    Args:
        folder: of the cache; made when missing.
        content: what decides every byte of the images, JSON-able: the name of the file.
        shape: ``(N, C, ...)`` of all images.
        fit: fits the transform.
        pieces: all images, normalised by it, float32, in order.

    Returns:
        float32 ``shape``, backed by the file: pages that are read can be dropped again. Writing
        into it changes the memory of this process, never the file.

    Raises:
        OSError: ``folder`` cannot be written to.
        ValueError: it has not room enough.

    Warns:
        UserWarning: a cache file is damaged; it is written anew.
    """
    name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
    images, about = folder / f"{name}.npy", folder / f"{name}.safetensors"
    if about.is_file():
        try:
            return _opened(images, about, content, shape)
        except (OSError, ValueError) as error:
            warnings.warn(f"cache: {error}; it is written anew", stacklevel=4)
    with _writing(folder):
        check_writable("cache", folder, 4 * math.prod(shape))
        transform = fit()
        _write(images, about, content, shape, transform, pieces(transform))
    return _mapped(images, shape), transform


def _write(
    images: Path,
    about: Path,
    content: Mapping[str, Any],
    shape: tuple[int, ...],
    transform: Transform,
    pieces: Iterator[Tensor],
) -> None:
    """Write the two files of :func:`cached`, the images first."""
    digest = hashlib.sha256()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for piece in pieces:
                values = piece.contiguous().numpy().astype("<f4", copy=False)
                digest.update(values.data)
                file.write(values.data)

    write_atomically(images, write)
    metadata = {
        "kind": KIND,
        "schema": SCHEMA,
        "content": dict(content),
        "shape": list(shape),
        "images_sha256": digest.hexdigest(),
        "transform": transform.kind,
        "transform_metadata": transform.metadata(),
    }
    save_tensors(about, transform.tensors(), metadata)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Hold the lock of those that write in ``folder``, cleared first where there is nobody else.

    The lock is ``flock``'s on the folder itself, which leaves no file behind and ends with the
    process. Without such locks nothing is removed.
    """
    if not folder.is_dir():
        check_writable("cache", folder)  # makes it
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # Somebody else writes here, or the file system has no locks.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_leftovers(folder)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    for entry in folder.iterdir():
        if _LEFTOVER.fullmatch(entry.name):
            with suppress(OSError):
                entry.unlink()


def scratch(folder: Path) -> Callable[[tuple[int, ...]], NDArray[np.uint8]]:
    """Makes uint8 arrays that lie in unnamed files of ``folder``, gone when nobody has them."""

    def make(shape: tuple[int, ...]) -> NDArray[np.uint8]:
        size = math.prod(shape)
        check_writable("cache", folder, size)
        with tempfile.TemporaryFile(dir=folder) as file:
            # The room is taken now: writing to a mapping has no way to say that the disk is full.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return np.ndarray(shape, np.uint8, mmap.mmap(file.fileno(), size))

    return make


def _opened(
    images: Path, about: Path, content: Mapping[str, Any], shape: tuple[int, ...]
) -> tuple[Tensor, Transform]:
    tensors, metadata = load_tensors(about)
    check_schema(about, metadata, KIND, SCHEMA)
    if (metadata.get("content"), metadata.get("shape")) != (dict(content), list(shape)):
        raise ValueError(f"{about}: describes other images than its name says")
    mapped = _mapped(images, shape)
    if metadata.get("images_sha256") != _sha256(images):
        raise ValueError(f"{images}: is damaged (its content does not fit its checksum)")
    transform = transform_from(
        str(metadata.get("transform")), tensors, metadata.get("transform_metadata") or {}
    )
    return mapped, transform


def _mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    with path.open("rb") as file:
        found = _header(file, path)
        offset, size = file.tell(), os.fstat(file.fileno()).st_size
        if found != shape or size != offset + 4 * math.prod(shape):
            raise ValueError(f"{path}: is damaged (shape {found}, {size:,} bytes)")
        if sys.platform == "win32":
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        else:
            mapped = mmap.mmap(
                file.fileno(),
                0,
                flags=mmap.MAP_PRIVATE | _NORESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
    count = math.prod(shape)
    return torch.frombuffer(mapped, dtype=torch.float32, count=count, offset=offset).view(shape)


def _header(file: BinaryIO, path: Path) -> tuple[int, ...]:
    try:
        version = np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError as error:
        raise ValueError(f"{path}: is damaged ({error})") from None
    if version != (1, 0) or dtype != np.dtype("<f4"):
        raise ValueError(f"{path}: is damaged (version {version}, {dtype})")
    found: tuple[int, ...] = shape
    return found


def _sha256(path: Path) -> str:
    """Of the values, without the header."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        _header(file, path)
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
