"""IDX files: MNIST, Fashion-MNIST and their relatives, compressed with gzip or not."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iadd_fast.data.sources.arrays import as_part
from iadd_fast.data.sources.part import Part, PartName, Source
from iadd_fast.reading import check_memory, regular_file

_NAME = re.compile(
    r"(?P<prefix>.*?)(?P<part>train|t10k|test)[-_.]?(?P<what>images|labels)[-._]idx\d-ubyte(\.gz)?",
    re.IGNORECASE,
)
_PARTS: dict[str, PartName] = {"train": "train", "t10k": "test", "test": "test"}
#: Bytes that a byte of gzip can stand for at most (deflate: 1032).
_MOST_PACKED = 1032
_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def recognises(folder: Path) -> bool:
    """Whether a file in ``folder`` is named as MNIST's are."""
    return any(_NAME.fullmatch(path.name) for path in folder.iterdir())


def read(folder: Path) -> Source:
    """The parts of ``folder``: ``train-images-idx3-ubyte[.gz]``, ``train-labels-idx1-ubyte[.gz]``
    and the same with ``t10k`` or ``test``.

    Raises:
        ValueError: a file lacks its partner, there are two of a kind, or one is damaged.
    """
    found: dict[tuple[PartName, str], Path] = {}
    for path in sorted(folder.iterdir()):  # an uncompressed file comes before its .gz
        match = _NAME.fullmatch(path.name)
        if not match:
            continue
        key = (_PARTS[match["part"].lower()], match["what"].lower())
        if key not in found:
            found[key] = path
        elif path.name != f"{found[key].name}.gz":
            raise ValueError(
                f"{folder}: found {found[key].name} and {path.name}; expected the {key[1]} of one "
                f"{key[0]} part"
            )
    parts: dict[PartName, Part] = {}
    for part in sorted({part for part, _ in found}):
        for what, other in (("images", "labels"), ("labels", "images")):
            if (part, what) not in found:
                raise ValueError(
                    f"{folder}: found {found[part, other].name}; expected a file of {what} beside "
                    "it, named alike"
                )
        images, labels = found[part, "images"], found[part, "labels"]
        parts[part] = as_part(
            read_file(images, (3, 4), folder),
            read_file(labels, (1,), folder),
            str(images),
            str(labels),
        )
    return Source(folder.resolve().name, parts)


def read_file(path: Path, dimensions: tuple[int, ...], within: Path | None = None) -> NDArray[Any]:
    """One IDX file: bytes 0, 0, type code, number of dimensions; the sizes as big-endian 32-bit
    integers; the values, big-endian, last axis fastest.

    Args:
        path: compressed where its name ends in ``.gz``.
        dimensions: how many dimensions are allowed.
        within: a folder that a link at ``path`` may not lead out of.

    Raises:
        ValueError: not an IDX file, other dimensions, more or fewer values than it announces, or
            more than its size or the machine's memory allows; found out before they are read.
    """
    path = regular_file(path, within)
    packed = path.suffix.lower() == ".gz"
    size = path.stat().st_size
    try:
        with (gzip.open if packed else open)(path, "rb") as file:
            dtype, shape = _read_header(path, file, dimensions)
            expected = math.prod(shape) * dtype.itemsize
            start = 4 + 4 * len(shape)
            if packed and expected > _MOST_PACKED * size:
                raise ValueError(
                    f"{path}: its header announces {expected:,} bytes of values (shape {shape}), "
                    f"more than {size:,} bytes of gzip can hold"
                )
            if not packed and size - start != expected:
                raise ValueError(_another_size(path, str(size - start), expected, shape))
            check_memory(path, expected)
            content = file.read(expected + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: is not a complete gzip file: {error}") from None
    if len(content) != expected:
        held = f"more than {expected}" if len(content) > expected else str(len(content))
        raise ValueError(_another_size(path, held, expected, shape))
    values = np.frombuffer(content, dtype).reshape(shape)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _read_header(
    path: Path, file: Any, dimensions: tuple[int, ...]
) -> tuple[np.dtype[Any], tuple[int, ...]]:
    magic = file.read(4)
    code = _DTYPES.get(magic[2]) if len(magic) == 4 and magic[:2] == b"\0\0" else None
    if code is None or magic[3] not in dimensions:
        wanted = " or ".join(f"00 00 08 {count:02x}" for count in dimensions)
        raise ValueError(
            f"{path}: starts with bytes {magic.hex(' ') or '(none)'}; expected {wanted} (IDX)"
        )
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise ValueError(
            f"{path}: ends after {4 + len(sizes)} bytes; its header takes {4 + 4 * magic[3]}"
        )
    return np.dtype(code), tuple(int(size) for size in np.frombuffer(sizes, ">u4"))


def _another_size(path: Path, held: str, expected: int, shape: tuple[int, ...]) -> str:
    return f"{path}: holds {held} bytes of values; its header announces {expected} (shape {shape})"
