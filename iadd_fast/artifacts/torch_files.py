"""Files of ``torch.save`` that strangers made: gone through before torch loads them.

``torch.load(weights_only=True)`` runs no code, but it allocates what a file announces, unpacks what
it finds packed, makes sparse, quantised and whatever other tensors, and a key made of nested tuples
keeps it busy for years. So the pickle of a file is read by :mod:`iadd_fast.pickled` first, where a
tensor is its shape and the room it has in the file, and torch gets what passed.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from iadd_fast import pickled
from iadd_fast.reading import regular_file

#: Bytes of the pickle in a file, which holds lists and shapes and no values.
_LARGEST_PICKLE = 2**28
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_ITEM_SIZES = {
    "Double": 8, "Long": 8, "Float": 4, "Int": 4, "Half": 2, "BFloat16": 2, "Short": 2, "Char": 1,
    "Byte": 1, "Bool": 1,
}  # fmt: skip
_SCALAR = np.float64(0).__reduce__()[0]
#: DC's and DSA's files hold accuracies as NumPy numbers: plain data, but a class torch asks about.
_NUMPY_NUMBERS: list[Any] = [
    np.dtype,
    type(np.dtype(np.float64)),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
]


def load_torch(path: Path) -> Any:
    """What ``torch.save`` wrote into ``path``, on the CPU: tensors, numbers and text.

    Tensors are dense, and each has as many values in the file as its shape says.

    Raises:
        ValueError: the file is damaged or no such file, asks for anything else, or announces more
            than it holds.
    """
    size = regular_file(path).stat().st_size
    try:
        with path.open("rb") as file:
            # As torch tells its two formats apart.
            (_check_zip if file.read(4) == b"PK\3\4" else _check_legacy)(file, size)
        with torch.serialization.safe_globals(_NUMPY_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickled.Forbidden as error:
        reason = (
            f"it refers to {error.name}, which may run code; only tensors and numbers are loaded"
        )
    except OSError as error:
        if error.filename is not None:
            raise
        reason = f"it is damaged or no PyTorch file ({error})"  # a place outside of the file
    except _Refused as error:
        reason = str(error)
    # torch's own text advises weights_only=False, which would run whatever is in the file.
    except Exception as error:
        told = str(error) if type(error) is ValueError else type(error).__name__
        reason = f"it is damaged or no PyTorch file ({told})"
    raise ValueError(f"{path}: refused: {reason}") from None


def check_held(tensors: Iterable[Tensor], path: Path) -> None:
    """Raise ``ValueError`` where ``tensors`` are more than ``path`` holds.

    They are where the same values stand in several places: a few bytes of a file can refer to all
    of its values, and copies of them would fill any memory.
    """
    held, wanted = path.stat().st_size, 0
    for tensor in tensors:
        wanted += max(1, tensor.nbytes)
        if wanted > held:
            raise ValueError(
                f"{path}: refused: it has {held:,} bytes and its tensors more: the same values "
                "stand in several places"
            )


class _Refused(Exception):
    """Why a file is not given to torch."""


class _Number(pickled.StandIn):
    """Takes the place of NumPy's numbers and types, and of torch's empty dictionaries of hooks."""

    def __init__(self, *_: Any) -> None:
        pass

    def build(self, state: Any) -> None:
        pass


class _Storage:
    """The values that a tensor is a view of."""

    def __init__(self, count: int) -> None:
        self.count = count


class _Tensor:
    """Takes the place of a tensor."""

    def __init__(self, storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> None:
        sides = (*shape, *stride, offset)
        if not (
            isinstance(storage, _Storage)
            and len(shape) == len(stride) <= 64
            and all(isinstance(side, int) for side in sides)
            and not any(rest[2:])
        ):
            raise _Refused("it holds a damaged tensor")
        if not all(0 <= side <= storage.count for side in sides):
            raise _Refused(f"it holds a tensor of {_text(shape)} out of {storage.count:,} values")
        last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
        values = math.prod(shape)
        if values and (last >= storage.count or values > storage.count):
            raise _Refused(f"it holds a tensor of {_text(shape)} out of {storage.count:,} values")


def _parameter(tensor: Any, *_: Any) -> _Tensor:
    if not isinstance(tensor, _Tensor):
        raise _Refused("it holds a damaged parameter")
    return tensor


def _hooks(*items: Any) -> _Number:
    if items:
        raise _Refused("it holds hooks")
    return _Number()


_ADMITTED: dict[str, Callable[..., Any] | None] = {
    "torch._utils._rebuild_tensor_v2": _Tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": _hooks,
    "numpy.dtype": _Number,
    "numpy.core.multiarray.scalar": _Number,
    "numpy._core.multiarray.scalar": _Number,
    **{f"torch.{name}Storage": None for name in _ITEM_SIZES},
}


#: The last records of a zip: the end, and in front of it those for large files.
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")


def _check_end(file: IO[bytes], size: int) -> int:
    """How many records the archive says it has, of the one directory that every reader finds.

    Python takes the directory that stands right before the end, torch the one at the place that the
    end says: a file could show a harmless one to the first and anything to the second.
    """
    at = size - _END.size
    if at < 0:
        raise _Refused("it is damaged or no PyTorch file")
    file.seek(at)
    signature, *_, count, length, offset, comment = _END.unpack(file.read(_END.size))
    if signature != b"PK\5\6" or comment:
        raise _Refused("it is damaged or no PyTorch file: its directory does not end where it does")
    if at >= _LOCATOR.size:
        file.seek(at - _LOCATOR.size)
        signature, _, place, _ = _LOCATOR.unpack(file.read(_LOCATOR.size))
        if signature == b"PK\6\7":
            at -= _LOCATOR.size + _END_64.size
            if place != at:
                raise _Refused("its directory is in two places")
            file.seek(at)
            signature, *_, count, length, offset = _END_64.unpack(file.read(_END_64.size))
            if signature != b"PK\6\6":
                raise _Refused("its directory is damaged")
    if offset + length != at:
        raise _Refused("its directory is in two places")
    file.seek(0)
    return int(count)


def _check_zip(file: IO[bytes], size: int) -> None:
    count = _check_end(file, size)
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        if len(records) != count:
            raise _Refused(f"it holds {len(records)} records and announces {count}")
        names = [info.filename.casefold() for info in records]  # as torch looks for them
        if len(set(names)) < len(names) or len({name.partition("/")[0] for name in names}) > 1:
            raise _Refused("it holds two records of one name")
        if any(info.compress_type != zipfile.ZIP_STORED for info in records):
            raise _Refused("its records are packed, which torch.save does not do")
        if sum(info.file_size for info in records) > size:
            raise _Refused(f"its records announce more than its {size:,} bytes")
        held = {info.filename.partition("/")[2]: info for info in records}

        def room(key: str) -> int:
            return held[f"data/{key}"].file_size

        info = held["data.pkl"]
        with archive.open(info) as pickle:
            _check_pickle(pickle, info.file_size, room)


def _check_legacy(file: IO[bytes], size: int) -> None:
    """The format before torch 1.6: five pickles, then the values."""
    file.seek(0)
    if pickled.load(file, min(size, 64), {}) != _LEGACY_MAGIC:
        raise _Refused("it is damaged or no PyTorch file")
    for _ in range(2):
        pickled.load(file, size, {})
    _check_pickle(file, size, lambda _: size)
    _check_pickle(file, size, lambda _: size)


def _check_pickle(file: IO[bytes], size: int, room: Callable[[str], int]) -> None:
    """Read one pickle; ``room`` says how many bytes the file has under a storage's key."""
    start = file.tell()

    def storage(identity: Any) -> _Storage:
        kind, of, key, _, count, *rest = identity
        name = of.name.removeprefix("torch.").removesuffix("Storage")
        if kind != "storage" or not isinstance(key, str) or not isinstance(count, int) or any(rest):
            raise _Refused("it holds a damaged storage")
        if not 0 <= count * _ITEM_SIZES[name] <= room(key):
            raise _Refused(f"it announces {count:,} values ({name}) in {room(key):,} bytes")
        return _Storage(count)

    pickled.load(file, min(size, start + _LARGEST_PICKLE), _ADMITTED, storage)


def _text(shape: tuple[int, ...]) -> str:
    fits = len(shape) <= 8 and all(abs(side) < 10**30 for side in shape)
    return f"shape {tuple(shape)}" if fits else "an absurd shape"
