"""A ``.pt`` file with two directories: one for who checks it, another for who loads it."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from iadd_fast.artifacts.torch_files import load_torch

_ENTRY, _END = b"PK\1\2", struct.Struct("<4s4H2LH")


def archive(value: object, packing: int = zipfile.ZIP_STORED) -> bytes:
    """``value`` as torch saves it, in three records."""
    made, held = io.BytesIO(), io.BytesIO()
    torch.save(value, made)
    source = zipfile.ZipFile(made)
    with zipfile.ZipFile(held, "w", packing) as out:
        for name in source.namelist():
            if name.endswith(("/data.pkl", "/version", "/data/0")):
                out.writestr(name, source.read(name))
    return held.getvalue()


def parts(whole: bytes) -> tuple[bytes, bytes, int]:
    """Records, directory and how many it has."""
    *_, count, length, offset, _ = _END.unpack(whole[-_END.size :])
    return whole[:offset], whole[offset : offset + length], count


def padded(directory: bytes, length: int) -> bytes:
    """The directory, made longer by the comment of its last entry."""
    made, last = bytearray(directory), directory.rfind(_ENTRY)
    made[last + 32 : last + 34] = struct.pack("<H", length - len(directory))
    return bytes(made) + b" " * (length - len(directory))


def two_faced(shown: bytes, loaded: bytes) -> bytes:
    """Python's zipfile finds the directory of ``shown``, torch that of ``loaded``."""
    records, directory, count = parts(loaded)
    other_records, other, _ = parts(shown)
    length = max(len(directory), len(other))
    directory, other = padded(directory, length), padded(other, length)
    begin = len(records) + len(directory)
    # What Python takes for a foreign beginning, and adds to every place.
    shift = begin + len(other_records) - len(records)
    moved = bytearray(other)
    at = moved.find(_ENTRY)
    while at >= 0:
        (place,) = struct.unpack_from("<L", moved, at + 42)
        struct.pack_into("<L", moved, at + 42, (place + begin - shift) % 2**32)
        at = moved.find(_ENTRY, at + 4)
    end = _END.pack(b"PK\5\6", 0, 0, count, count, length, len(records), 0)
    return records + directory + other_records + bytes(moved) + end


def test_what_is_checked_is_what_is_loaded(tmp_path: Path) -> None:
    """A few kilobytes that become 4 MB: breaks when the directory before the end is checked and
    the one at the place that the end names is loaded."""
    path = tmp_path / "replay_buffer_0.pt"
    path.write_bytes(
        two_faced(archive([torch.zeros(2)]), archive([torch.zeros(10**6)], zipfile.ZIP_DEFLATED))
    )
    # The file does what it is made for: each reader sees another one.
    assert zipfile.ZipFile(path).infolist()[0].compress_type == zipfile.ZIP_STORED
    assert torch.load(path, weights_only=True)[0].shape == (10**6,)
    with pytest.raises(ValueError, match="its directory is in two places"):
        load_torch(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda whole: b"x" * 64 + whole, "damaged or no PyTorch file"),
        (lambda whole: whole[:-2] + b"\3\0abc", "does not end where it does"),
        (lambda whole: whole + b"more", "does not end where it does"),
        (lambda whole: whole[:-12] + b"\2\0" + whole[-10:], "holds 3 records and announces 2"),
        (lambda whole: whole[:3], "damaged or no PyTorch file"),
    ],
)
def test_an_end_that_two_readers_may_understand_differently_is_refused(
    tmp_path: Path, change: object, told: str
) -> None:
    """Breaks when a comment, a foreign beginning or another count moves a reader's directory."""
    path = tmp_path / "replay_buffer_0.pt"
    path.write_bytes(archive([torch.ones(3)]))
    assert torch.equal(load_torch(path)[0], torch.ones(3))
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(ValueError, match=told):
        load_torch(path)


def test_an_archive_for_large_files_is_read(tmp_path: Path) -> None:
    """torch writes the records for large files always: breaks when they are refused, or when
    their locator may point elsewhere."""
    path = tmp_path / "replay_buffer_0.pt"
    torch.save([torch.ones(3)], path)
    whole = bytearray(path.read_bytes())
    at = whole.rfind(b"PK\6\7")
    if at < 0:
        pytest.skip("this torch writes none")
    assert torch.equal(load_torch(path)[0], torch.ones(3))
    (place,) = struct.unpack_from("<Q", whole, at + 8)
    struct.pack_into("<Q", whole, at + 8, place - 1)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="its directory is in two places"):
        load_torch(path)
