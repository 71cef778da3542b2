"""Hostile files of the package's own formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from iadd_fast.artifacts.files import save_tensors
from tests.strangers import building as b
from tests.strangers.building import TERA
from tests.strangers.cases import Case, Maker, beside, file, link, link_to_precious, pipe, sparse


def a_set(change: Callable[[dict[str, Any], dict[str, Any]], Any], **values: Any) -> Maker:
    """A distilled set after ``change(header, metadata)``."""

    def make(folder: Path) -> Path:
        path = folder / "set.safetensors"
        b.distilled_set(**values).save(path)
        path.write_bytes(b.edited(path.read_bytes(), change))
        return path

    return make


def meta(**changes: Any) -> Maker:
    """A distilled set with other metadata."""
    return a_set(lambda header, metadata: metadata.update(changes))


def header(name: str, **changes: Any) -> Maker:
    """A distilled set that says something else of a tensor."""
    return a_set(lambda header, metadata: header[name].update(changes))


def student(**changes: Any) -> Maker:
    return a_set(lambda header, metadata: metadata["student_spec"].update(changes))


def nan_in_a_set(folder: Path) -> Path:
    path = folder / "set.safetensors"
    b.distilled_set().save(path)
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    start = 8 + length + json.loads(content[8 : 8 + length])["images"]["data_offsets"][0]
    content[start : start + 4] = torch.tensor(torch.nan).numpy().tobytes()
    path.write_bytes(b.edited(bytes(content), lambda *_: None))
    return path


def manifest(**changes: Any) -> Maker:
    """A store of experts with another manifest."""

    def make(folder: Path) -> Path:
        b.expert_store(folder)
        path = folder / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return folder

    return make


def expert(change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> Maker:
    """A store whose expert was changed by ``change(header, metadata)``."""

    def make(folder: Path) -> Path:
        b.expert_store(folder)
        path = folder / "expert_0000.safetensors"
        path.write_bytes(b.edited(path.read_bytes(), change))
        return folder

    return make


def nan_in_an_expert(folder: Path) -> Path:
    b.expert_store(folder)
    rows = torch.arange(15.0).view(3, 5)
    rows[1, 2] = torch.inf
    metadata = {"kind": "expert", "schema": 1, "index": 0, "metrics": {}}
    save_tensors(folder / "expert_0000.safetensors", {"snapshots": rows}, metadata)
    return folder


def of_all_holes(size: int) -> bytes:
    """The start of a set whose images take ``size`` bytes that are not written."""
    count = size // 192
    tensors = {"images": {"dtype": "F32", "shape": [count, 48], "data_offsets": [0, count * 192]}}
    metadata = {"iadd_fast": json.dumps({"kind": "distilled set", "schema": 1})}
    return b.safetensors({"__metadata__": metadata, **tensors})


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


START = of_all_holes(4 * TERA)
NOT_OURS = b.safetensors(
    {"images": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)
)
HUGE = b.safetensors(
    {"images": {"dtype": "F32", "shape": [TERA, TERA], "data_offsets": [0, 4]}}, bytes(4)
)
SET = "set.safetensors"

CASES = [
    Case("set: pipe", "set", pipe(SET), "is a pipe"),
    Case("set: /dev/zero", "set", link(SET, "/dev/zero"), "is a device"),
    Case("set: link to itself", "set", link(SET, SET), "symbolic links"),
    Case("set: link to nothing", "set", link(SET, "gone"), "a link to nothing", "OSError"),
    Case("set: folder", "set", lambda folder: folder, "is a folder", "IsADirectoryError"),
    Case("set: header of 2**62 bytes", "set", file(SET, b.safetensors({}, b"", 2**62)), "damaged"),
    Case("set: tensor of 10**24 values", "set", file(SET, HUGE), "damaged"),
    Case("set: 4 TB of holes", "set", sparse(SET, len(START) + 4 * TERA, START), "of holes"),
    Case("set: not ours", "set", file(SET, NOT_OURS), "not one of iadd_fast's"),
    Case(
        "set: metadata nested 10**5 deep",
        "set",
        file(SET, b.safetensors({"__metadata__": {"iadd_fast": deep(10**5)}})),
        "not one of iadd_fast's",
    ),
    Case("set: half a surrogate pair", "set", meta(data_name="\ud800"), "not one of iadd_fast's"),
    Case("set: newer schema", "set", meta(schema=99), "written by a newer iadd_fast"),
    Case("set: schema true", "set", meta(schema=True), "schema version True"),
    Case("set: schema 0", "set", meta(schema=0), "schema version 0"),
    Case("set: another kind", "set", meta(kind="checkpoint"), "holds 'checkpoint'"),
    Case("set: NaN in the images", "set", nan_in_a_set, "1 of 192 values are not finite"),
    Case(
        "set: images of float8",
        "set",
        header("images", dtype="F8_E4M3", shape=[16, 48]),
        "images: got torch.float8_e4m3fn",
    ),
    Case("set: images of whole numbers", "set", header("images", dtype="I32"), "images: got"),
    Case("set: complex images", "set", header("images", dtype="C64", shape=[2, 48]), "images: got"),
    Case("set: negative shape", "set", header("images", shape=[-4, 48]), "damaged"),
    Case("set: shape of other size", "set", header("images", shape=[5, 3, 4, 4]), "damaged"),
    Case(
        "set: no images",
        "set",
        a_set(lambda h, m: h["images"].update(shape=[0, 3, 4, 4])),
        "damaged",
    ),
    Case(
        "set: more labels than images", "set", header("images", shape=[2, 3, 4, 8]), "labels: got"
    ),
    Case("set: learning rate NaN", "set", meta(lr=float("nan")), "lr: got nan"),
    Case("set: learning rate 1e999", "set", meta(lr=10**999), "lr: got"),
    Case("set: a student of 10**12 units", "set", student(width=TERA), "width: got"),
    Case("set: a student of 10**9 layers", "set", student(depth=10**9), "depth: got"),
    Case("set: student of a text", "set", meta(student_spec="mlp"), "student_spec: got a str"),
    Case("set: student for other images", "set", student(inputs=[3, 9, 9]), "weight: got"),
    Case(
        "set: student of other classes",
        "set",
        a_set(lambda h, m: m["student_spec"].update(classes=5), weight=None),
        "has 5 classes",
    ),
    Case(
        "set: transform by another name",
        "set",
        meta(transform={"kind": [], "metadata": {}}),
        "transform: got []",
    ),
    Case(
        "set: tensor in the transform's metadata",
        "set",
        meta(transform={"kind": "standard", "metadata": {"mean": "text"}}),
        "got the metadata ['mean']",
    ),
    Case("set: class names of numbers", "set", meta(class_names=[1, 2]), "class_names: got"),
    Case(
        "set: a tensor more",
        "set",
        a_set(lambda h, m: h.update(pickle={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]})),
        "holds 'pickle'",
    ),
    Case(
        "set: path in the class names",
        "set",
        meta(class_names=["../../etc/passwd", "<script>"]),
        "",
    ),
    Case("experts: 10**12 of them", "experts", manifest(count=TERA), "count: got 1000000000000"),
    Case("experts: 10**12 epochs", "experts", manifest(epochs=TERA), "epochs: got 1000000000000"),
    Case("experts: count true", "experts", manifest(count=True), "count: got True"),
    Case("experts: other epochs", "experts", manifest(epochs=50), "the manifest says 50 epochs"),
    Case(
        "experts: manifest of 10 GB of holes",
        "experts",
        sparse("manifest.json", 10**10, b"{", inside=True),
        "of holes",
    ),
    Case(
        "experts: manifest is a pipe",
        "experts",
        pipe("manifest.json", inside=True),
        "no manifest.json",
        "FileNotFoundError",
    ),
    Case("experts: NaN in a snapshot", "experts", nan_in_an_expert, "snapshot 1 holds values that"),
    Case(
        "experts: snapshots of whole numbers",
        "experts",
        expert(lambda h, m: h["snapshots"].update(dtype="I32")),
        "snapshots of type I32",
    ),
    Case(
        "experts: another's index",
        "experts",
        expert(lambda h, m: m.update(index=-1)),
        "holds expert -1",
    ),
    Case(
        "experts: accuracies of text",
        "experts",
        expert(lambda h, m: m.update(metrics={"test_accuracy": ["high"]})),
        "holds no accuracies",
    ),
    Case(
        "experts: metrics of text",
        "experts",
        expert(lambda h, m: m.update(metrics="good")),
        "metrics: expected a JSON object",
    ),
    Case(
        "experts: expert is a link to /dev/zero",
        "experts",
        beside(b.expert_store, link("expert_0001.safetensors", "/dev/zero")),
        "expert_0001",
    ),
    Case(
        "experts: number of Arabic digits",
        "experts",
        beside(b.expert_store, file("expert_\u0660\u0660\u0660\u0661.safetensors", b"")),
        "",
    ),
    Case("checkpoint: pipe", "checkpoint", pipe("checkpoint.safetensors", inside=True), ""),
    Case(
        "checkpoint: 4 TB of holes",
        "checkpoint",
        sparse("checkpoint.safetensors", len(START) + 4 * TERA, START, inside=True),
        "of holes",
    ),
    Case("json: 10 GB of holes", "json", sparse("a.json", 10**10, b"["), "of holes"),
    Case("json: 100 MB of holes", "json", sparse("a.json", 10**8, b"["), "takes at most"),
    Case("json: nested 10**6 deep", "json", file("a.json", deep(10**6).encode()), "nested deeper"),
    Case("json: no UTF-8", "json", file("a.json", b'"\xff"'), "no UTF-8 text"),
    Case(
        "evaluation: accuracy of 10**999",
        "evaluation",
        file(
            "e.json",
            json.dumps(
                {
                    "rows": [
                        {
                            "method": "a",
                            "architecture": "b",
                            "accuracies": [10**999],
                            "seconds": 1,
                            "bytes": 1,
                            "images": 1,
                        }
                    ]
                }
            ).encode(),
        ),
        "evaluation: got something",
    ),
    Case("metrics: pipe", "metrics", pipe("metrics.jsonl"), "is a pipe"),
    Case("metrics: one line of 100 MB", "metrics", sparse("metrics.jsonl", 10**8), "line 1"),
    Case(
        "metrics: iteration infinity",
        "metrics",
        file("m.jsonl", b'{"iteration": 1e999}\n'),
        "line 1",
    ),
    Case(
        "metrics: layers of a list",
        "metrics",
        file("m.jsonl", b'{"iteration": 1, "layer_weight": [1]}\n'),
        "line 1",
    ),
    Case(
        "metrics: loss of 10**999",
        "metrics",
        file("m.jsonl", b'{"iteration": 1, "loss": 1' + b"0" * 999 + b"}\n"),
        "",
    ),
    Case(
        "metrics: nested 10**5 deep",
        "metrics",
        file("m.jsonl", deep(10**5).encode() + b"\n"),
        "line 1",
    ),
    Case("log: link to another file", "log", link_to_precious("metrics.jsonl"), ""),
    Case("log: pipe", "log", pipe("metrics.jsonl", inside=True), "remove the file or give another"),
    Case(
        "lock: link to another file", "lock", link_to_precious(".lock"), "symbolic links", "OSError"
    ),
    Case(
        "journal: link to another file", "journal", link_to_precious("trials.journal"), "is a link"
    ),
    Case("journal: pipe", "journal", pipe("trials.journal", inside=True), "is a pipe"),
    Case(
        "journal: another language",
        "journal",
        file("trials.journal", b'{"op_code": 99}\n[]\n', inside=True),
        "is damaged",
    ),
    Case("config: pipe", "config", pipe("run.toml"), "is a pipe"),
    Case(
        "config: nested 10**5 deep",
        "config",
        file("run.toml", b"a = " + deep(10**5).encode()),
        "is not TOML",
    ),
    Case(
        "config: key of 10**5 parts",
        "config",
        file("run.toml", b"a" + b".a" * 10**5 + b" = 1\n"),
        "line 1 has 100,000 dots",
    ),
    Case("config: 10 MB", "config", sparse("run.toml", 10**7), "takes at most"),
    Case("config: no UTF-8", "config", file("run.toml", b'name = "\xff"'), "no UTF-8 text"),
    Case("slices: pipe", "slices", pipe("slices.csv"), "is a pipe"),
    Case("slices: 10 GB of holes", "slices", sparse("slices.csv", 10**10, b"a\n"), "of holes"),
    Case(
        "slices: field of 10**7 letters",
        "slices",
        file("s.csv", b"a\n" + b"x" * 10**7),
        "larger than",
    ),
    Case(
        "slices: array of terabytes", "slices", file("s.npy", b.npy((TERA,))), "announces 1,000,0"
    ),
    Case(
        "slices: array of objects", "slices", file("s.npy", b.npy((4,), "'|O'")), "Python objects"
    ),
    Case(
        "slices: no text of bytes",
        "slices",
        file("s.npy", b.npy((4,), "'|S1'", b"\xff" * 4)),
        "no valid Unicode",
    ),
]
