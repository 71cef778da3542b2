from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from iadd_fast.data import Data, load_data

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def encode(array: NDArray[Any], code: int = 8) -> bytes:
    header = struct.pack(">BBBB", 0, 0, code, array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    return header + array.tobytes()


def arrays(count: int = 6, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (count, 3, 5), dtype=np.uint8)
    return images, (np.arange(count) % 3).astype(np.uint8)


def write(folder: Path, packed: bool = False, suffix: str = "ubyte") -> None:
    for part, seed in (("train", 0), ("t10k", 1)):
        for what, array in zip(("images-idx3", "labels-idx1"), arrays(seed=seed), strict=True):
            content = encode(array)
            path = folder / f"{part}-{what}-{suffix}{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)


def load(folder: Path) -> Data:
    return load_data(folder, normalise="none", validation_fraction=0)


@pytest.mark.parametrize("packed", [False, True])
def test_an_idx_folder_gives_its_values(tmp_path: Path, packed: bool) -> None:
    """Breaks if sizes are read little-endian, height and width change places, or t10k is lost."""
    write(tmp_path, packed)
    data = load(tmp_path)
    assert data.test is not None
    for part, seed in ((data.train, 0), (data.test, 1)):
        images, labels = arrays(seed=seed)
        np.testing.assert_array_equal(part.images[:, 0], images / np.float32(255))
        np.testing.assert_array_equal(part.labels, labels)
    assert data.name == tmp_path.name
    assert data.sample_shape == (1, 3, 5)


def test_an_uncompressed_file_beside_its_archive_is_no_conflict(tmp_path: Path) -> None:
    """Breaks if `gunzip --keep` makes a folder unreadable, or images are taken twice."""
    write(tmp_path)
    write(tmp_path, packed=True)
    assert len(load(tmp_path).train) == 6


def test_names_with_dots_are_read(tmp_path: Path) -> None:
    """Breaks for mirrors that name the files train-images.idx3-ubyte."""
    write(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    assert len(load(tmp_path).train) == 6


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        (TRAIN_IMAGES, encode(arrays()[1]),
         "starts with bytes 00 00 08 01; expected 00 00 08 03 or 00 00 08 04 (IDX)"),
        (TRAIN_IMAGES, b"\x89PNG....", "starts with bytes 89 50 4e 47"),
        (TRAIN_IMAGES, b"", "starts with bytes (none)"),
        (TRAIN_IMAGES, encode(arrays()[0])[:9], "ends after 9 bytes; its header takes 16"),
        (TRAIN_IMAGES, encode(arrays()[0])[:-1],
         "holds 89 bytes of values; its header announces 90 (shape (6, 3, 5))"),
        (TRAIN_IMAGES, encode(arrays()[0]) + b"x", "holds 91 bytes of values"),
        (TRAIN_IMAGES, encode(arrays()[0].astype(">i2"), 0x0B), "got images of dtype int16"),
        (TRAIN_LABELS, encode(arrays(5)[1]), "got 5 labels for 6 images"),
        (TRAIN_IMAGES, None, "expected a file of images beside it"),
        (TRAIN_LABELS, None, "expected a file of labels beside it"),
        ("emnist-train-images-idx3-ubyte", encode(arrays()[0]), "expected the images of one train"),
    ],
)  # fmt: skip
def test_damaged_folders_are_refused(
    tmp_path: Path, name: str, content: bytes | None, text: str
) -> None:
    """Breaks if a damaged file is read as far as it goes, or the error does not name it."""
    write(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load(tmp_path)
    assert text in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert content is None or name in str(caught.value)


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(encode(arrays()[0]))[:-9]])
def test_a_damaged_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    """Breaks if half a download raises EOFError or an error that does not name the file."""
    write(tmp_path, packed=True)
    (tmp_path / f"{TRAIN_IMAGES}.gz").write_bytes(content)
    with pytest.raises(ValueError, match=f"{TRAIN_IMAGES}.gz: is not a complete gzip file"):
        load(tmp_path)


def test_a_folder_without_training_part_is_refused(tmp_path: Path) -> None:
    """Breaks if the test images are taken for training; as test= they are what is meant."""
    write(tmp_path)
    (tmp_path / TRAIN_IMAGES).unlink()
    (tmp_path / TRAIN_LABELS).unlink()
    with pytest.raises(ValueError, match="source: found no training part beside .*t10k-images"):
        load(tmp_path)
    images, labels = arrays()
    data = load_data(images, labels, test=tmp_path, normalise="none")
    assert data.test is not None
    np.testing.assert_array_equal(data.test.images[:, 0], arrays(seed=1)[0] / np.float32(255))
