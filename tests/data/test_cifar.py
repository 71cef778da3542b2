from __future__ import annotations

import pickle
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from iadd_fast.data import load_data
from iadd_fast.data.sources import cifar

VALUES = 3 * 32 * 32


def batch(count: int = 4, seed: int = 0) -> tuple[NDArray[Any], list[int]]:
    draw = np.random.default_rng(seed)
    data = draw.integers(0, 256, (count, VALUES), dtype=np.uint8)
    return data, [int(label) for label in np.arange(count) % 2]


class Python2:
    """Protocol 2 as Python 2.7 wrote it: text is a byte string, arrays hold their data as one."""

    @classmethod
    def dumps(cls, value: Any) -> bytes:
        return b"\x80\x02" + cls.write(value) + b"."

    @classmethod
    def write(cls, value: Any) -> bytes:
        if value is None:
            return b"N"
        if isinstance(value, bool):
            return b"\x88" if value else b"\x89"
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, bytes):
            return b"T" + struct.pack("<i", len(value)) + value
        if isinstance(value, str):
            return b"U" + bytes([len(value)]) + value.encode()
        if isinstance(value, list):
            return b"](" + b"".join(map(cls.write, value)) + b"e"
        if isinstance(value, tuple):
            return b"(" + b"".join(map(cls.write, value)) + b"t"
        if isinstance(value, dict):
            items = b"".join(cls.write(key) + cls.write(held) for key, held in value.items())
            return b"}(" + items + b"u"
        assert isinstance(value, np.ndarray)
        kind = b"cnumpy\ndtype\n" + cls.write(("u1", 0, 1)) + b"R"
        kind += cls.write((3, "|", None, None, None, -1, -1, 0)) + b"b"
        shell = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
        shell += cls.write((0,)) + cls.write("b") + b"tR"
        state = cls.write(1) + cls.write(value.shape) + kind + cls.write(False)
        return shell + b"(" + state + cls.write(value.tobytes()) + b"tb"


def write_cifar10(folder: Path, dumps: Any) -> None:
    for index in range(1, 6):
        data, labels = batch(seed=index)
        content = {
            "batch_label": "one of 5",
            "labels": labels,
            "data": data,
            "filenames": ["a.png"],
        }
        (folder / f"data_batch_{index}").write_bytes(dumps(content))
    data, labels = batch(seed=6)
    (folder / "test_batch").write_bytes(dumps({"labels": labels, "data": data}))
    names = {"label_names": ["plane", "cat"], "num_vis": 3072}
    (folder / "batches.meta").write_bytes(dumps(names))
    (folder / "readme.html").write_text("")


def in_bytes(value: Any) -> Any:
    """Text as Python 2's pickles look when Python 3 has read and rewritten them."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list):
        return [in_bytes(held) for held in value]
    if isinstance(value, dict):
        return {in_bytes(key): in_bytes(held) for key, held in value.items()}
    return value


def python3(value: Any, protocol: int = 4) -> bytes:
    return pickle.dumps(value, protocol)


WRITERS = {
    "python 2": Python2.dumps,
    **{f"python 3, protocol {number}": partial(python3, protocol=number) for number in range(6)},
    "python 3, byte keys": lambda value: python3(in_bytes(value)),
}


@pytest.mark.parametrize("writer", list(WRITERS))
def test_cifar10_batches_load(tmp_path: Path, writer: str) -> None:
    """Breaks if batches are taken out of order, a channel is read as rows, or byte strings fail."""
    write_cifar10(tmp_path, WRITERS[writer])
    data = load_data(tmp_path, normalise="none", validation_fraction=0)
    wanted = np.concatenate([batch(seed=index)[0] for index in range(1, 6)])
    np.testing.assert_array_equal(data.train.images.flatten(1), wanted / np.float32(255))
    assert data.train.labels.tolist() == [0, 1, 0, 1] * 5
    assert data.sample_shape == (3, 32, 32)
    # Red is the first third of a row of the batch, and its 33rd value starts the second line.
    assert data.train.images[0, 0, 1, 0] == wanted[0, 32] / np.float32(255)
    assert data.train.images[0, 1, 0, 0] == wanted[0, 1024] / np.float32(255)
    assert data.test is not None
    np.testing.assert_array_equal(data.test.images.flatten(1), batch(seed=6)[0] / np.float32(255))
    assert data.class_names == ("plane", "cat")  # the order of the labels, not of the alphabet


def test_cifar100_takes_the_fine_labels(tmp_path: Path) -> None:
    """Breaks if the 20 coarse labels or their names are taken."""
    data, labels = batch()
    for name in ("train", "test"):
        content = {"fine_labels": labels, "coarse_labels": [0] * 4, "data": data}
        (tmp_path / name).write_bytes(Python2.dumps(content))
    names = {"fine_label_names": ["apple", "bee"], "coarse_label_names": ["fruit"]}
    (tmp_path / "meta").write_bytes(Python2.dumps(names))
    loaded = load_data(tmp_path, validation_fraction=0)
    assert loaded.class_names == ("apple", "bee")
    assert loaded.train.labels.tolist() == labels


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_other_order_and_type_unpickle(tmp_path: Path, protocol: int) -> None:
    """Breaks if the byte order or the order of the axes that a pickle states is ignored."""
    path = tmp_path / "batch"
    held = {
        "column major": np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3)),
        "big-endian": np.arange(4, dtype=">i4"),
        "little-endian": np.arange(4, dtype="<f8"),
    }
    path.write_bytes(python3(held, protocol))
    for name, array in cifar.load_pickle(path).items():
        np.testing.assert_array_equal(array, held[name])
        assert array.dtype == held[name].dtype


class Malicious:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


def attack(kind: str, mark: Path) -> bytes:
    command = f"open({str(mark)!r}, 'w')"
    if kind == "eval":
        return pickle.dumps({"labels": [], "data": Malicious(eval, command)})
    if kind == "exec":
        return pickle.dumps({"data": Malicious(exec, command)}, 0)
    if kind == "system":
        return b"cposix\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR."
    if kind == "numpy function":
        return pickle.dumps({"data": Malicious(np.save, str(mark), 1)})
    if kind == "attribute of an admitted class":
        return b"\x80\x04\x8c\x05numpy\x8c\x17ndarray.tofile.__call__\x93."
    assert kind == "pickle in an object array"
    return pickle.dumps({"data": np.array([Malicious(eval, command)], object)})


@pytest.mark.parametrize(
    "kind",
    [
        "eval",
        "exec",
        "system",
        "numpy function",
        "attribute of an admitted class",
        "pickle in an object array",
    ],
)
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, kind: str) -> None:
    """Breaks if the unpickler imports or calls what a stranger's file names."""
    write_cifar10(tmp_path, Python2.dumps)
    mark = tmp_path / "mark"
    path = tmp_path / "data_batch_3"
    path.write_bytes(attack(kind, mark))
    with pytest.raises(ValueError, match=r"data_batch_3: cannot be read .*it asks for \S+; only "):
        load_data(tmp_path)
    assert not mark.exists() and not mark.with_suffix(".npy").exists()


@pytest.mark.parametrize("name", ["numpy ndarray", "numpy dtype", "_codecs encode"])
def test_a_pickle_cannot_change_the_reader_for_the_next(tmp_path: Path, name: str) -> None:
    """Breaks if a pickle can set attributes of the classes that stand in for NumPy's."""
    path = tmp_path / "batch"
    module, attribute = name.split()
    change = f"c{module}\n{attribute}\n".encode() + b"(N" + Python2.write({"array": 1}) + b"tb."
    path.write_bytes(b"\x80\x02" + change)
    with pytest.raises(ValueError, match="batch: cannot be read as a CIFAR batch"):
        cifar.load_pickle(path)
    data, _ = batch()
    path.write_bytes(Python2.dumps({"data": data}))
    np.testing.assert_array_equal(cifar.load_pickle(path)["data"], data)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            {"labels": [0, 1, 0, 1]},
            "found nothing under 'data' (keys: ['labels']); expected a uint8",
        ),
        ({"data": batch()[0].astype("f4"), "labels": [0, 1, 0, 1]}, "an array of float32"),
        ({"data": batch()[0][:, :784], "labels": [0, 1, 0, 1]}, "shape (4, 784) under 'data'"),
        ({"data": batch()[0], "labels": [0, 1]}, "found a list of 2 under 'labels'"),
        ({"data": batch()[0]}, "found nothing under 'labels'"),
        ({"data": batch()[0], "labels": [0, 1, 0, 7]}, "found labels from 0 to 7; expected 0 to 1"),
        ({"data": np.array(["text"])}, "found an array of type 'U4'; expected bytes or numbers"),
        ([1, 2], "found a list; expected a dictionary"),
    ],
)
def test_other_pickles_are_refused(tmp_path: Path, content: Any, text: str) -> None:
    """Breaks if a batch of another form is half read, or the error does not name it."""
    write_cifar10(tmp_path, pickle.dumps)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError) as caught:
        load_data(tmp_path)
    assert text in str(caught.value)
    assert str(tmp_path / "data_batch_1") in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no pickle", Python2.dumps({"data": batch()[0]})[:-50]])
def test_damaged_pickles_are_refused(tmp_path: Path, content: bytes) -> None:
    """Breaks if half a file raises an error that does not name it."""
    write_cifar10(tmp_path, Python2.dumps)
    (tmp_path / "data_batch_2").write_bytes(content)
    with pytest.raises(ValueError, match="data_batch_2: cannot be read as a CIFAR batch"):
        load_data(tmp_path)


def test_a_class_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    """Breaks if it costs the whole run, whose result cannot be made with such a name."""
    write_cifar10(tmp_path, pickle.dumps)
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({"label_names": ["\ud800", "cat"]}))
    with pytest.raises(ValueError, match=r"batches.meta: found a name under 'label_names' .*Unico"):
        load_data(tmp_path)


@pytest.mark.parametrize("start", [b"\x80\x02c", b"F"])
def test_what_a_file_says_is_not_quoted_whole(tmp_path: Path, start: bytes) -> None:
    """Breaks if the message has as many letters as the file."""
    write_cifar10(tmp_path, pickle.dumps)
    (tmp_path / "data_batch_1").write_bytes(start + b"A" * 10**6 + b"\nb\n.")
    with pytest.raises(ValueError, match="data_batch_1: cannot be read as a CIFAR") as caught:
        load_data(tmp_path)
    assert len(str(caught.value)) < len(str(tmp_path)) + 450
