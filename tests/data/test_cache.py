"""Data mapped from a cache file: the same data, whatever happens to the file, in little memory."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import TensorDataset

from iadd_fast.artifacts import files
from iadd_fast.data import Data, Split, load_data
from iadd_fast.data import cache as caching
from iadd_fast.data.pixels import Pixels
from tests.data.test_load import made_up

COUNT = 40


def arrays(shape: tuple[int, ...] = (3, 6, 5)) -> tuple[NDArray[Any], NDArray[Any]]:
    draw = np.random.default_rng(3)
    images = draw.integers(0, 256, (COUNT, *shape), dtype=np.uint8)
    return images, np.arange(COUNT) * 7 % 4


def as_npy(folder: Path) -> dict[str, Any]:
    """Floats of 64 bits with channels last: moved and rounded piece by piece."""
    images, labels = arrays((6, 5, 3))
    np.save(folder / "images.npy", images / 255.0)
    return {"source": folder / "images.npy", "labels": labels}


def as_npy_parts(folder: Path) -> dict[str, Any]:
    for part, begin, end in (("train", 0, 24), ("val", 24, 32), ("test", 32, 40)):
        images, labels = arrays()
        np.save(folder / f"{part}_images.npy", images[begin:end])
        np.save(folder / f"{part}_labels.npy", labels[begin:end])
    return {"source": folder}


def as_npz(folder: Path) -> dict[str, Any]:
    images, labels = arrays()
    np.savez(folder / "set.npz", images=images, labels=labels)
    return {"source": folder / "set.npz"}


def as_class_folders(folder: Path) -> dict[str, Any]:
    images, labels = arrays()
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / ("train", "train", "val", "test")[index // 10] / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.moveaxis(image, 0, 2)).save(place / f"{index}.png")
    return {"source": folder, "image_size": (5, 7)}


def as_idx(folder: Path) -> dict[str, Any]:
    images, labels = arrays((6, 5))
    header = struct.pack(">BBBBIII", 0, 0, 8, 3, *images.shape)
    (folder / "train-images-idx3-ubyte").write_bytes(header + images.tobytes())
    header = struct.pack(">BBBBI", 0, 0, 8, 1, COUNT)
    (folder / "train-labels-idx1-ubyte").write_bytes(header + labels.astype(np.uint8).tobytes())
    return {"source": folder}


def as_cifar(folder: Path) -> dict[str, Any]:
    images, labels = arrays((3, 32, 32))
    batch = {b"data": images.reshape(COUNT, -1), b"labels": labels.tolist()}
    (folder / "data_batch_1").write_bytes(pickle.dumps(batch))
    return {"source": folder}


def as_series(folder: Path) -> dict[str, Any]:
    images, labels = arrays((12,))
    for part, rows in (("TRAIN", slice(0, 30)), ("TEST", slice(30, 40))):
        lines = ["\t".join(map(str, [y, *x])) for x, y in zip(images[rows], labels[rows])]  # noqa: B905
        (folder / f"Made_{part}.tsv").write_text("\n".join(lines))
    return {"source": folder}


def as_dataset(folder: Path) -> dict[str, Any]:
    images, labels = arrays()
    return {"source": TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))}


def as_digits(folder: Path) -> dict[str, Any]:
    return {"source": "digits"}


SOURCES = (
    as_npy, as_npy_parts, as_npz, as_class_folders, as_idx, as_cifar, as_series, as_dataset,
    as_digits,
)  # fmt: skip


def assert_same(got: Data, wanted: Data) -> None:
    """Bit for bit, labels, names, fingerprint and transform included."""
    assert (got.name, got.class_names, got.fingerprint) == (
        wanted.name,
        wanted.class_names,
        wanted.fingerprint,
    )
    for one, other in zip(parts(got), parts(wanted), strict=True):
        assert one.images.dtype == torch.float32
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    assert (got.test_rows is None) == (wanted.test_rows is None)
    if got.test_rows is not None and wanted.test_rows is not None:
        assert torch.equal(got.test_rows, wanted.test_rows)
    assert got.transform.kind == wanted.transform.kind
    assert got.transform.metadata() == wanted.transform.metadata()
    for name, tensor in wanted.transform.tensors().items():
        assert torch.equal(got.transform.tensors()[name], tensor)


def parts(data: Data) -> list[Split]:
    return [data.train, data.validation, *([] if data.test is None else [data.test])]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven images of 90 values: pieces that do not divide the parts."""
    monkeypatch.setattr("iadd_fast.data.pixels.VALUES_AT_ONCE", 7 * 90)


@pytest.mark.parametrize("source", SOURCES, ids=lambda make: make.__name__)
def test_every_source_gives_the_same_data(tmp_path: Path, source: Any) -> None:
    """Written, and read again: breaks on another order, rounding, transform, class name or test
    row, or a piece that is lost, for any kind of source and normalisation."""
    (tmp_path / "data").mkdir()
    given = source(tmp_path / "data")
    large = source in (as_digits, as_cifar)  # for ZCA in a test
    for normalise in ("standard", "none") if large else ("standard", "zca", "none"):
        options: dict[str, Any] = {"normalise": normalise, "seed": 3}
        wanted = load_data(**given, **options)
        for _ in range(2):
            assert_same(load_data(**given, **options, cache=tmp_path / "cache"), wanted)
    assert len(list((tmp_path / "cache").iterdir())) == (4 if large else 6)


def test_pixels_and_fingerprint_are_what_they_were() -> None:
    """The formulas without pieces: breaks when the fingerprint of known data changes, which
    parts experts from their data, or pixels are scaled in another way."""
    images, labels = made_up()
    data = load_data(images, labels, normalise="none", test_fraction=0, validation_fraction=0)
    digest = hashlib.sha256()
    for array in (images, labels):
        digest.update(f"{array.dtype.name}{array.shape}".encode() + array.tobytes())
    assert data.fingerprint == digest.hexdigest()
    assert torch.equal(data.train.images, torch.from_numpy(images) / 255)


def test_nothing_is_read_again_and_nothing_is_written_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when a cache that is there is fitted or written anew."""
    given = as_npy(tmp_path)
    wanted = load_data(**given, cache=tmp_path / "cache")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}

    def refused(*_: Any) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr("iadd_fast.data.load.fit", refused)
    assert_same(load_data(**given, cache=tmp_path / "cache"), wanted)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == before


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"normalise": "none"}, {"validation_fraction": 0.3}, "pixel", "test"]
)
def test_other_content_has_another_name(tmp_path: Path, change: Any) -> None:
    """Breaks when a file of another split, transform, training or test image is taken."""
    images, labels = arrays()
    tests = arrays((3, 6, 5))[0][:8].copy()
    options: dict[str, Any] = {"test": tests, "test_labels": labels[:8]}
    load_data(images, labels, **options, cache=tmp_path)
    if change == "pixel":
        images[5, 0, 0, 0] ^= 1
    elif change == "test":
        tests[5, 0, 0, 0] ^= 1
    else:
        options |= change
    assert_same(
        load_data(images, labels, **options, cache=tmp_path), load_data(images, labels, **options)
    )
    assert len(list(tmp_path.glob("*.npy"))) == 2


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)


def junk(path: Path) -> None:
    path.write_bytes(b"junk")


@pytest.mark.parametrize("damage", [tear, flip, junk, Path.unlink], ids=lambda f: f.__name__)
@pytest.mark.parametrize("which", [".npy", ".safetensors"])
def test_a_damaged_cache_is_written_anew(tmp_path: Path, which: str, damage: Any) -> None:
    """Breaks when a torn, changed or missing file is mapped, or ends the load."""
    given = as_npz(tmp_path)
    wanted = load_data(**given)
    load_data(**given, cache=tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob(f"*{which}")
    damage(path)
    if which == ".safetensors" and damage is Path.unlink:  # as after a kill between both files
        assert_same(load_data(**given, cache=tmp_path / "cache"), wanted)
    else:
        with pytest.warns(UserWarning, match="cache: .*; it is written anew"):
            assert_same(load_data(**given, cache=tmp_path / "cache"), wanted)
    assert_same(load_data(**given, cache=tmp_path / "cache"), wanted)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_writing_into_the_images_leaves_the_file_alone(tmp_path: Path) -> None:
    """Breaks when the mapping is shared, or read-only: then a stray write ends the process."""
    given = as_npz(tmp_path)
    data = load_data(**given, cache=tmp_path / "cache")
    wanted = load_data(**given)
    data.train.images.zero_()
    assert_same(load_data(**given, cache=tmp_path / "cache"), wanted)


@pytest.mark.parametrize("cached", [False, True])
def test_training_and_validation_join_without_a_copy(tmp_path: Path, cached: bool) -> None:
    """Breaks when evaluation copies all training images, or joins what are no neighbours."""
    data = load_data(**as_npz(tmp_path), cache=tmp_path / "cache" if cached else None)
    joined = data.all_training()
    assert torch.equal(joined.images, torch.cat([data.train.images, data.validation.images]))
    assert torch.equal(joined.labels, torch.cat([data.train.labels, data.validation.labels]))
    assert joined.images.data_ptr() == data.train.images.data_ptr()
    apart = Data(
        **{
            **vars(data),
            "validation": Split(data.validation.images.clone(), data.validation.labels),
        }
    )
    assert torch.equal(apart.all_training().images, joined.images)
    swapped = Data(**{**vars(data), "train": data.validation, "validation": data.train})
    other = swapped.all_training().images
    assert torch.equal(other, torch.cat([data.validation.images, data.train.images]))


LEFT = (f".{32 * 'a'}.{12 * 'b'}.npy", f".{32 * 'a'}.{12 * 'b'}.safetensors")


def leave(folder: Path) -> None:
    """What a kill leaves behind, and files that are somebody else's."""
    folder.mkdir(exist_ok=True)
    for name in (*LEFT, ".mine.npy", "notes.txt", f"{32 * 'a'}.npy"):
        (folder / name).write_bytes(b"x")


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """Breaks if half a file, as large as the data, stays for good; or if another file goes."""
    leave(tmp_path / "cache")
    load_data(**as_npz(tmp_path), cache=tmp_path / "cache")
    held = {path.name for path in (tmp_path / "cache").iterdir()}
    assert not held & set(LEFT)
    assert len(held) == 5 and {".mine.npy", "notes.txt", f"{32 * 'a'}.npy"} < held


def _write_slowly(folder: str, begun: Any, finish: Any) -> None:
    torch.set_num_threads(1)
    whole = files.write_atomically

    def slowly(path: Path, write: Any) -> None:
        def stops(temporary: Path) -> None:
            write(temporary)
            begun.set()
            finish.wait(60)

        whole(path, stops)

    vars(caching)["write_atomically"] = slowly
    load_data(folder + "/set.npz", cache=folder + "/cache")


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    """Breaks if it is removed under the other one, which then ends with an error; or if the other
    one holds this one up."""
    given = as_npz(tmp_path)
    context = multiprocessing.get_context("fork")
    begun, finish = context.Event(), context.Event()
    other = context.Process(target=_write_slowly, args=(str(tmp_path), begun, finish))
    other.start()
    assert begun.wait(60)
    for seed in (0, 1):
        load_data(**given, seed=seed, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob(".*"))) == 1
    finish.set()
    other.join()
    assert other.exitcode == 0
    assert not list((tmp_path / "cache").glob(".*"))


def test_a_full_disk_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when the images are fitted, or half of them written, before the room is known."""
    given = as_npz(tmp_path)
    usage = type("usage", (), {"free": 3000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises((OSError, ValueError), match="cache"):
        load_data(**given, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").glob("*")) == []


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    """Breaks when the error does not name the path."""
    (tmp_path / "cache").write_text("")
    with pytest.raises(OSError, match="cache"):
        load_data(**as_npz(tmp_path), cache=tmp_path / "cache")


def _load(folder: str, start: Any) -> None:
    torch.set_num_threads(1)
    start.wait()
    for normalise in ("standard", "none"):
        load_data(folder + "/set.npz", normalise=normalise, cache=folder + "/cache")


def test_processes_that_make_the_same_cache_do_no_harm(tmp_path: Path) -> None:
    """Breaks when one maps what the other is still writing, or leaves files behind."""
    given = as_npz(tmp_path)
    context = multiprocessing.get_context("fork")
    start = context.Barrier(3)
    processes = [context.Process(target=_load, args=(str(tmp_path), start)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(list((tmp_path / "cache").iterdir())) == 4
    assert_same(load_data(**given, cache=tmp_path / "cache"), load_data(**given))


def test_decoded_class_folders_lie_in_unnamed_files(tmp_path: Path) -> None:
    """Breaks when the decoded images are held in memory, or their file stays."""
    space = caching.scratch(tmp_path)
    array = space((5, 3, 4, 4))
    array[:] = 7
    assert array.shape == (5, 3, 4, 4) and (array == 7).all()
    assert list(tmp_path.iterdir()) == []
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert f"{tmp_path}/" in maps.read_text(), "the array is in memory"


def test_pixels_are_read_in_any_order_from_any_number_of_arrays() -> None:
    """Breaks when a piece over the seam of two arrays mixes up their images."""
    images, _ = arrays()
    pixels = Pixels([images[:13]]).joined(images[13:])
    order = np.random.default_rng(0).permutation(COUNT)[:31]
    chosen = pixels.take(order)
    assert chosen.shape == (31, 3, 6, 5)
    np.testing.assert_array_equal(np.concatenate(list(chosen.raw(4))), images[order])


_PROCESS = """
import sys, torch
torch.set_num_threads(1)
from iadd_fast import students
from iadd_fast.data import load_data
from iadd_fast.training import accuracy, train

def anonymous():
    lines = open("/proc/self/status").read().split("RssAnon:")[1]
    return int(lines.split()[0]) // 1024

folder = sys.argv[1]
network = students.convnet(channels=3, classes=4, image_size=(16, 16), width=2, depth=1)
# What the work itself takes, whatever the data's size.
small = torch.zeros(2048, 3, 16, 16), torch.arange(2048) % 4
train(network, network.init(0), *small, lr=0.01, epochs=1)
accuracy(network, network.init(0), *small, batch_size=256)
load_data(small[0].numpy(), small[1].numpy(), cache=folder + "/other")
before = anonymous()
peak = 0
import threading
done = threading.Event()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())
threading.Thread(target=watch, daemon=True).start()
data = load_data(folder + "/images.npy", folder + "/labels.npy", cache=folder + "/cache")
train(network, network.init(0), data.train.images, data.train.labels, lr=0.01, epochs=1)
accuracy(network, network.init(0), data.test.images, data.test.labels, batch_size=256)
data.all_training()
done.set()
print(data.train.images.nbytes // 2**20, max(peak, anonymous()) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_stays_flat_however_large_the_data_is(tmp_path: Path) -> None:
    """Loaded, trained on and tested: breaks when anything holds the images, raw or normalised, in
    memory of its own (60 MiB of floats, 15 raw)."""
    draw = np.random.default_rng(0)
    images = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, (20_480, 3, 16, 16))
    for begin in range(0, len(images), 1024):
        images[begin : begin + 1024] = draw.integers(0, 256, (1024, 3, 16, 16), np.uint8)
    np.save(tmp_path / "labels.npy", np.arange(len(images)) % 4)
    # Blocks of 256 KiB and more go back when freed, so that what is held can be told from the heap.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
    done = subprocess.run(
        [sys.executable, "-c", _PROCESS, str(tmp_path)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    size, grown = map(int, done.stdout.split())
    assert size >= 42
    assert grown < 15, f"{grown} MiB of anonymous memory for {size} MiB of training images"
