"""Files as the package and other tools write them, small, and pieces to make hostile ones of."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from iadd_fast.artifacts import DistilledSet, ExpertStore
from iadd_fast.data.transform import Standardise
from iadd_fast.students import mlp

TERA = 10**12
SHAPE = (3, 4, 4)


def distilled_set(**changes: Any) -> DistilledSet:
    """Four samples of two classes, with weights and a transform."""
    student = mlp(inputs=SHAPE, classes=2, width=3, depth=2)
    values: dict[str, Any] = {
        "images": torch.linspace(-1, 1, 4 * 48).view(4, *SHAPE),
        "labels": torch.tensor([0, 0, 1, 1]),
        "lr": 0.1,
        "weight": torch.linspace(0.5, 1.5, student.num_parameters),
        "class_names": ("cat", "dog"),
        "transform": Standardise(torch.zeros(3), torch.ones(3)),
        "student_spec": student.spec,
        "data_name": "pets",
        "data_fingerprint": "ab" * 32,
    }
    return DistilledSet(**{**values, **changes})


def expert_store(folder: Path) -> Path:
    """A store of one expert of two that are wanted, with two epochs of five parameters."""
    store = ExpertStore.create(
        folder,
        student_spec={"name": "mlp"},
        settings={},
        data_fingerprint="ab",
        data_name="pets",
        count=2,
        epochs=2,
    )
    store.add(0, torch.arange(15.0).view(3, 5), {"test_accuracy": [50.0, 60.0]})
    return folder


def safetensors(
    header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None
) -> bytes:
    """The bytes of such a file; ``length`` is what it says of its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def edited(content: bytes, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> bytes:
    """A file of ours after ``change(header, metadata)``, without checksum as early ones were."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = json.loads(header["__metadata__"]["iadd_fast"])
    for name in ("sha256", "snapshots_sha256"):
        metadata.pop(name, None)
    change(header, metadata)
    header["__metadata__"]["iadd_fast"] = json.dumps(metadata)
    return safetensors(header, content[8 + length :])


def torch_bytes(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def repacked(
    content: bytes, change: Callable[[str, bytes], bytes | None], packed: bool = False
) -> bytes:
    """A zip (of torch or NumPy) with its records changed; None drops one."""
    buffer = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", kind) as new:
        for name in old.namelist():
            changed = change(name, old.read(name))
            if changed is not None:
                new.writestr(name, changed)
    return buffer.getvalue()


def torch_pickle(body: bytes, storage: bytes = bytes(16)) -> bytes:
    """A file of torch with this pickle and 16 bytes of values."""
    held = torch_bytes(torch.zeros(4))

    def change(name: str, content: bytes) -> bytes:
        if name.endswith("data.pkl"):
            return b"\x80\x02" + body + b"."
        return storage if name.endswith("data/0") else content

    return repacked(held, change)


def number(value: int) -> bytes:
    """A whole number as a pickle writes it."""
    size = max(1, value.bit_length() // 8 + 1)
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def text(value: str) -> bytes:
    coded = value.encode()
    return b"X" + struct.pack("<I", len(coded)) + coded


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    count: int = 4,
    offset: int = 0,
    kind: str = "Float",
) -> bytes:
    """A tensor in a pickle of torch: ``count`` values under the key 0, seen by shape and stride."""
    identity = (
        b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text("0") + text("cpu")
    )
    storage = identity + number(count) + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = storage + number(offset) + numbers(shape) + numbers(stride) + b"\x89" + hooks
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def running(canary: Path, protocol: int = 2) -> bytes:
    """A pickle whose loading makes the folder ``canary``."""

    class Runs:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(canary),)

    return pickle.dumps(Runs(), protocol)


def cifar_batch(count: int = 4) -> bytes:
    values = np.arange(count * 3072, dtype=np.uint8).reshape(count, 3072)
    return pickle.dumps({"data": values, "labels": [index % 2 for index in range(count)]}, 2)


def idx(shape: tuple[int, ...], data: bytes, code: int = 8) -> bytes:
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + data


def npy(
    shape: tuple[int, ...], descr: str = "'|u1'", data: bytes = b"", fortran: bool = False
) -> bytes:
    """An array whose header says this, whatever stands behind it."""
    return (
        npy_header(f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}") + data
    )


def npy_header(header: str) -> bytes:
    line = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(line)) + line


def npz(members: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def picture(shape: tuple[int, ...] = (8, 8, 3), kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    values = (np.arange(int(np.prod(shape))) % 251).astype(np.uint8).reshape(shape)
    Image.fromarray(values).save(buffer, kind, **options)
    return buffer.getvalue()


def class_folder(folder: Path, images: int = 2) -> Path:
    """Two classes of pictures."""
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        for index in range(images):
            (folder / name / f"{index}.png").write_bytes(picture())
    return folder


def idx_folder(folder: Path) -> Path:
    images = bytes(index % 251 for index in range(4 * 16))
    (folder / "train-images-idx3-ubyte").write_bytes(idx((4, 4, 4), images))
    labels = gzip.compress(idx((4,), bytes([0, 1, 0, 1])))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(labels)
    return folder


def holes(path: Path, size: int, start: bytes = b"") -> Path:
    """A file of ``size`` bytes that takes next to nothing on the disk."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    return path
