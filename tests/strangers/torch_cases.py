"""Hostile files of torch: MTT's experts and sets."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import torch

from tests.strangers import building as b
from tests.strangers.building import TERA
from tests.strangers.cases import Case, Maker, beside, file, pipe

BUFFER = "replay_buffer_0.pt"


def tensors(value: Callable[[], Any], **options: Any) -> Maker:
    """What ``torch.save`` makes of a value."""
    return file(BUFFER, lambda _: b.torch_bytes(value(), **options))


def pickled(body: bytes) -> Maker:
    """A buffer of one trajectory, snapshot and tensor, the tensor given by its pickle."""
    return file(BUFFER, b.torch_pickle(b"](](](" + body + b"eee"))


def images_set(images: bytes, labels: bytes | None = None, lr: bytes | None = None) -> Maker:
    held = b.torch_bytes(torch.tensor([0, 1])) if labels is None else labels
    files = [file("images_best.pt", images), file("labels_best.pt", held)]
    return beside(*files, *([] if lr is None else [file("lr_best.pt", lr)]))


def repacked(change: Callable[[str, bytes], bytes | None], packed: bool = False) -> Maker:
    return file(BUFFER, b.repacked(b.torch_bytes([[[torch.zeros(10**6)]]]), change, packed))


def two_pickles() -> bytes:
    """Two records whose names differ in capitals, which torch does not see."""
    buffer = io.BytesIO()
    held = io.BytesIO(b.torch_bytes(torch.ones(4)))
    with zipfile.ZipFile(held) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr(old.namelist()[0].upper(), b"N.")
    return buffer.getvalue()


def legacy(count: bytes = b"K\x04") -> bytes:
    content = b.torch_bytes([[[torch.ones(4)]]], _use_new_zipfile_serialization=False)
    return content.replace(b"K\x04Nt", count + b"Nt")


PHOTOS = b.torch_bytes(torch.ones(2, 3, 4, 4))
SHARED, OTHER = torch.ones(1000), torch.zeros(1000)
TUPLES = b"q\x00h\x00\x86" * 60


def sparse_tensor() -> Any:
    places = torch.tensor([[0], [0]])
    return [[[torch.sparse_coo_tensor(places, torch.ones(1), (9**6, 9**6), check_invariants=True)]]]


CASES = [
    Case(
        "buffers: runs code",
        "buffers",
        file(BUFFER, lambda canary: b.torch_pickle(b.running(canary)[2:-1])),
        "refers to",
    ),
    Case("buffers: runs code, legacy", "buffers", file(BUFFER, b.running), "refers to"),
    Case("buffers: pipe", "buffers", pipe(BUFFER), "is a pipe"),
    Case(
        "buffers: 4 TB by stride 0", "buffers", pickled(b.tensor((TERA,), (0,))), "out of 4 values"
    ),
    Case(
        "buffers: stride beyond the values",
        "buffers",
        pickled(b.tensor((2, 2), (4, 1))),
        "out of 4",
    ),
    Case(
        "buffers: offset beyond the values",
        "buffers",
        pickled(b.tensor((4,), (1,), offset=1)),
        "out of 4",
    ),
    Case("buffers: negative stride", "buffers", pickled(b.tensor((4,), (-1,))), "out of 4 values"),
    Case(
        "buffers: 10**12 values in 16 bytes",
        "buffers",
        pickled(b.tensor((4,), (1,), TERA)),
        "announces 1,000,000,000,000 values",
    ),
    Case(
        "buffers: 100 values in 16 bytes",
        "buffers",
        pickled(b.tensor((100,), (1,), 100)),
        "announces 100 values",
    ),
    Case(
        "buffers: bytearray of 10**12",
        "buffers",
        pickled(b"cbuiltins\nbytearray\n(" + b.number(TERA) + b"tR"),
        "refers to builtins.bytearray",
    ),
    Case(
        "buffers: torch.Tensor(10**6, 10**6)",
        "buffers",
        pickled(b"ctorch\nTensor\n(" + b.number(10**6) * 2 + b"tR"),
        "refers to torch.Tensor",
    ),
    Case(
        "buffers: hash of 2**60 tuples",
        "buffers",
        pickled(b"})" + TUPLES + b"Ns"),
        "holds a tuple as a key",
    ),
    Case(
        "buffers: place 2**31 of the memo",
        "buffers",
        pickled(b"Nr\xff\xff\xff\x7f"),
        "at place 2,147,483,647",
    ),
    Case(
        "buffers: text of 2**62 bytes",
        "buffers",
        pickled(b"\x8d" + struct.pack("<Q", 2**62) + b"x"),
        "damaged",
    ),
    Case(
        "buffers: sparse",
        "buffers",
        tensors(sparse_tensor),
        "refers to torch._utils._rebuild_sparse",
    ),
    Case(
        "buffers: quantised",
        "buffers",
        tensors(lambda: [[[torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)]]]),
        "refers to",
    ),
    Case(
        "buffers: meta",
        "buffers",
        tensors(lambda: [[[torch.empty(TERA, device="meta")]]]),
        "refers to torch._utils._rebuild_meta",
    ),
    Case(
        "buffers: complex",
        "buffers",
        tensors(lambda: [[[torch.ones(2, dtype=torch.complex64)]]]),
        "refers to torch.ComplexFloatStorage",
    ),
    Case(
        "buffers: values used again and again",
        "buffers",
        tensors(lambda: [[[SHARED], [OTHER]]] * 10**4),
        "stand in several places",
    ),
    Case(
        "buffers: one snapshot again and again",
        "buffers",
        tensors(lambda: [[[SHARED]] * 1000]),
        "all 1000 snapshots are equal",
    ),
    Case(
        "buffers: 10**12 empty tensors",
        "buffers",
        tensors(lambda: [[[torch.empty(0)] * 10**4] * 10**4] * 10**4),
        "out of 0 values",
    ),
    Case(
        "buffers: packed records",
        "buffers",
        repacked(lambda name, content: content, True),
        "are packed",
    ),
    Case(
        "buffers: two pickles",
        "buffers",
        file(BUFFER, lambda _: two_pickles()),
        "two records of one name",
    ),
    Case(
        "buffers: no values",
        "buffers",
        repacked(lambda name, content: None if name.endswith("/0") else content),
        "damaged",
    ),
    Case(
        "buffers: NaN",
        "buffers",
        tensors(lambda: [[[torch.ones(4)], [torch.full((4,), torch.nan)]]]),
        "after epoch 1 are not finite",
    ),
    Case("buffers: a dictionary", "buffers", tensors(lambda: {"a": 1}), "got a dict"),
    Case(
        "buffers: TorchScript",
        "buffers",
        file(BUFFER, b"PK\3\4" + bytes(100)),
        "damaged or no PyTorch",
    ),
    Case(
        "buffers: tar",
        "buffers",
        file(BUFFER, bytes(257) + b"ustar" + bytes(762)),
        "damaged or no PyTorch",
    ),
    Case(
        "buffers: legacy",
        "buffers",
        tensors(
            lambda: [[[torch.ones(4)], [torch.zeros(4)]]], _use_new_zipfile_serialization=False
        ),
        "",
    ),
    Case(
        "buffers: legacy of 10**12 values",
        "buffers",
        file(BUFFER, lambda _: legacy(b"J\xff\xff\xff\x7f")),
        "announces",
    ),
    Case(
        "mtt set: labels of NaN",
        "mtt set",
        images_set(PHOTOS, b.torch_bytes(torch.full((2, 2), torch.nan)), b.torch_bytes(0.1)),
        "not finite",
    ),
    Case(
        "mtt set: 4 TB of images",
        "mtt set",
        images_set(b.torch_pickle(b.tensor((TERA,), (0,)))),
        "images_best.pt: refused",
    ),
    Case(
        "mtt set: rate of 10**400",
        "mtt set",
        images_set(PHOTOS, lr=b.torch_bytes(10**400)),
        "beyond all floats",
    ),
]
