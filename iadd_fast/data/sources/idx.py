"""IDX files: MNIST, Fashion-MNIST and their relatives, compressed with gzip or not."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iadd_fast.data.sources.arrays import as_part
from iadd_fast.data.sources.part import Part, PartName, Source

_NAME = re.compile(
    r"(?P<prefix>.*?)(?P<part>train|t10k|test)[-_.]?(?P<what>images|labels)[-._]idx\d-ubyte(\.gz)?",
    re.IGNORECASE,
)
_PARTS: dict[str, PartName] = {"train": "train", "t10k": "test", "test": "test"}
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
            read_file(images, (3, 4)), read_file(labels, (1,)), str(images), str(labels)
        )
    return Source(folder.resolve().name, parts)


def read_file(path: Path, dimensions: tuple[int, ...]) -> NDArray[Any]:
    """One IDX file: bytes 0, 0, type code, number of dimensions; the sizes as big-endian 32-bit
    integers; the values, big-endian, last axis fastest.

    Args:
        path: compressed where its name ends in ``.gz``.
        dimensions: how many dimensions are allowed.

    Raises:
        ValueError: not an IDX file, other dimensions, or more or fewer values than it announces.
    """
    content = path.read_bytes()
    if path.suffix.lower() == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: is not a complete gzip file: {error}") from None
    magic = content[:4]
    dtype = _DTYPES.get(magic[2]) if len(magic) == 4 and magic[:2] == b"\0\0" else None
    if dtype is None or magic[3] not in dimensions:
        wanted = " or ".join(f"00 00 08 {count:02x}" for count in dimensions)
        raise ValueError(
            f"{path}: starts with bytes {magic.hex(' ') or '(none)'}; expected {wanted} (IDX)"
        )
    start = 4 + 4 * magic[3]
    if len(content) < start:
        raise ValueError(f"{path}: ends after {len(content)} bytes; its header takes {start}")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", magic[3], 4))
    expected = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    if len(content) - start != expected:
        raise ValueError(
            f"{path}: holds {len(content) - start} bytes of values; its header announces "
            f"{expected} (shape {shape})"
        )
    values = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return values.astype(values.dtype.newbyteorder("="), copy=False)
