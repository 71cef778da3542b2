"""Valid files with bytes flipped, cut, copied and put in: read right, or refused by name."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from iadd_fast.artifacts import DistilledSet
from iadd_fast.artifacts.checkpoint import save_checkpoint
from tests.strangers import building as b
from tests.strangers.readers import READERS

Writer = Callable[[Path], Path]
#: Numbers that headers are full of, at their edges.
_EDGES = (0, 1, 127, 128, 255)


@dataclass(frozen=True)
class Format:
    """A format: how a valid file is made and what reads it.

    Attributes:
        write: fills an empty folder and returns the file that is changed.
        reader: key of ``READERS``. inside: it is given the folder.
        same: the content of a result, where nothing else may be read out of a changed file; None
            for formats without a checksum, of which a changed value is a value.
    """

    write: Writer
    reader: str
    inside: bool = False
    same: Callable[[Any], Any] | None = None


def _one(name: str, content: Callable[[], bytes]) -> Writer:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content())
        return folder / name

    return write


def _set(folder: Path) -> Path:
    b.distilled_set().save(folder / "set.safetensors")
    return folder / "set.safetensors"


def _experts(name: str) -> Writer:
    def write(folder: Path) -> Path:
        return b.expert_store(folder) / name

    return write


def _checkpoint(folder: Path) -> Path:
    tensors = {"images": torch.linspace(0, 1, 50), "step": torch.tensor(3)}
    save_checkpoint(folder, tensors, {"iteration": 7, "config": {"lr": 0.5}})
    return folder / "checkpoint.safetensors"


def _evaluation() -> bytes:
    row = {"method": "a", "architecture": "b", "accuracies": [50.0, 51.5], "seconds": 1.5}
    return json.dumps({"rows": [{**row, "bytes": 12, "images": 4}], "settings": {"a": 1}}).encode()


def _metrics() -> bytes:
    rows = ({"iteration": k, "loss": k / 7, "layer_weight": {"a": 1.5}} for k in range(6))
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _buffers(**options: Any) -> Writer:
    def content() -> bytes:
        draw = torch.Generator().manual_seed(0)
        rows = [[torch.randn(3, 2, generator=draw), torch.randn(4, generator=draw)] for _ in "abc"]
        return b.torch_bytes([rows], **options)

    return _one("replay_buffer_0.pt", content)


def _mtt(folder: Path) -> Path:
    (folder / "labels_best.pt").write_bytes(b.torch_bytes(torch.tensor([0, 0, 1, 1])))
    (folder / "lr_best.pt").write_bytes(b.torch_bytes(torch.tensor(0.25)))
    return _one("images_best.pt", lambda: b.torch_bytes(torch.ones(4, *b.SHAPE)))(folder)


def _dc(folder: Path) -> Path:
    sets = {"data": [[torch.ones(2, *b.SHAPE), torch.tensor([0, 1])]]}
    accuracies = {"ConvNet": [np.float64(0.5)]}
    content = b.torch_bytes({**sets, "accs_all_exps": accuracies})
    return _one("res_DC.pt", lambda: content)(folder)


def _names(folder: Path) -> Path:
    (folder / "data_batch_1").write_bytes(b.cifar_batch(2))
    names = {b"label_names": [b"plane", b"cat"], b"num_vis": 3072}
    return _one("batches.meta", lambda: pickle.dumps(names, 2))(folder)


def _array(name: str) -> Writer:
    def write(folder: Path) -> Path:
        np.save(folder / "images.npy", np.linspace(0, 1, 64, dtype=np.float32).reshape(4, 4, 4))
        np.save(folder / "labels.npy", np.array(["a", "b", "a", "b"]))
        return folder / f"{name}.npy"

    return write


def _archive(folder: Path) -> Path:
    images = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
    np.savez_compressed(folder / "set.npz", images=images, labels=np.array([0, 1, 0, 1]))
    return folder / "set.npz"


def _idx(name: str) -> Writer:
    def write(folder: Path) -> Path:
        return b.idx_folder(folder) / name

    return write


def _series() -> bytes:
    return b"".join(b"%d\t0.5\t-1e-3\t%d\n" % (k % 2, k) for k in range(6))


def _picture(kind: str, **options: Any) -> Writer:
    def write(folder: Path) -> Path:
        b.class_folder(folder)
        target = folder / "cats" / f"1.{kind.lower()}"
        values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(values).save(target, kind, **options)
        return target

    return write


def _of_set(result: DistilledSet) -> Any:
    assert result.weight is not None
    tensors = (result.images, result.labels, result.weight)
    return [tensor.tolist() for tensor in tensors], result.lr, result.class_names, result.config


def _of_checkpoint(result: Any) -> Any:
    tensors, metadata = result
    return {name: tensor.tolist() for name, tensor in tensors.items()}, metadata["iteration"]


FORMATS = {
    "distilled set": Format(_set, "set", same=_of_set),
    "checkpoint": Format(_checkpoint, "checkpoint", True, _of_checkpoint),
    "expert": Format(_experts("expert_0000.safetensors"), "experts", True, lambda read: read[1]),
    "manifest of experts": Format(_experts("manifest.json"), "experts", True),
    "evaluation.json": Format(_one("evaluation.json", _evaluation), "evaluation"),
    "metrics.jsonl": Format(_one("metrics.jsonl", _metrics), "metrics"),
    "settings in TOML": Format(
        _one("run.toml", lambda: b'iterations = 12\nname = "pets"\n'), "config"
    ),
    "slices in CSV": Format(_one("s.csv", lambda: b'age,"sex"\n1,f\n2,m\n3,f\n,m\n'), "slices"),
    "slices in .npy": Format(
        _one("s.npy", lambda: b.npy((4, 2), "'<f8'", np.arange(8.0).tobytes())), "slices"
    ),
    "MTT's experts": Format(_buffers(), "buffers"),
    "MTT's experts, legacy": Format(_buffers(_use_new_zipfile_serialization=False), "buffers"),
    "MTT's set": Format(_mtt, "mtt set", True),
    "DC's set": Format(_dc, "mtt set"),
    "CIFAR's batch": Format(_one("data_batch_1", b.cifar_batch), "data", True),
    "CIFAR's names": Format(_names, "data", True),
    ".npy of images": Format(_array("images"), "data", True),
    ".npy of labels": Format(_array("labels"), "data", True),
    ".npz": Format(_archive, "data"),
    "IDX": Format(_idx("train-images-idx3-ubyte"), "data", True),
    "IDX in gzip": Format(_idx("train-labels-idx1-ubyte.gz"), "data", True),
    "UCR's series": Format(_one("Set_TRAIN.tsv", _series), "data", True),
    **{f"{kind} picture": Format(_picture(kind), "data", True) for kind in (
        "PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "TIFF"
    )},
    "TIFF picture, packed": Format(_picture("TIFF", compression="tiff_lzw"), "data", True),
}  # fmt: skip


def mutated(content: bytes, draw: random.Random) -> bytes:
    """``content`` with one to three changes: bytes flipped, overwritten, cut, copied or put in."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if not changed:
            break
        # Headers are at the start and, of archives, at the end.
        near = draw.choice((64, 256, len(changed), -256))
        low, high = (0, near) if near > 0 else (len(changed) + near, len(changed))
        place = min(max(0, draw.randrange(low, max(low + 1, high))), len(changed) - 1)
        length = draw.choice((1, 1, 2, 4, 8, 30))
        kind = draw.randrange(7)
        if kind == 0:
            changed[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[place] = draw.choice((*_EDGES, draw.randrange(256)))
        elif kind == 2:
            changed[place : place + length] = draw.randbytes(length)
        elif kind == 3:
            changed[place : place + length] = bytes([draw.choice((0, 255))]) * length
        elif kind == 4:
            del changed[place : place + length]
        elif kind == 5:
            other = draw.randrange(len(changed))
            changed[place:place] = changed[other : other + length]
        else:
            del changed[place:]
    return bytes(changed)


def cases(name: str, count: int, folder: Path) -> dict[str, int]:
    """Read ``count`` changed files of the format ``name``: how many were read and refused.

    Raises:
        AssertionError: one was read as something else than it was where there is a checksum, or
            raised an error of another kind or that does not name it.
    """
    kind, told = FORMATS[name], {"read": 0, "refused": 0}
    valid = folder / "valid"
    valid.mkdir(parents=True)
    target = kind.write(valid)
    content = target.read_bytes()
    original = READERS[kind.reader](valid if kind.inside else target)
    for number in range(count):
        own = folder / "changed"
        shutil.copytree(valid, own)
        changed = own / target.relative_to(valid)
        other = mutated(content, random.Random(f"{name} {number}"))
        changed.write_bytes(other)
        what = f"{name}, change {number}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = READERS[kind.reader](own if kind.inside else changed)
        except (ValueError, OSError) as error:
            named = changed.name in str(error) or str(own) in str(error)
            own_kinds = (ValueError, OSError, FileNotFoundError, IsADirectoryError)
            assert type(error) in own_kinds, f"{what}: {type(error).__name__}: {error}"
            assert named or kind.reader in _ARGUMENTS, f"{what}: names no file: {error}"
            told["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        else:
            if kind.same is not None and other != content:
                assert kind.same(result) == kind.same(original), f"{what}: reads something else"
            told["read"] += 1
        finally:
            shutil.rmtree(own)
    shutil.rmtree(valid)
    return told


#: Readers whose caller has read the file and is named instead.
_ARGUMENTS = ("evaluation",)


#: What may stand anywhere in a JSON file.
_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 10**400, 1e999, float("nan"), "", "x" * 1000, "\ud800", [], {},
    [[]], [None], {"a": 1}, ["images"] * 3,
)  # fmt: skip


def values(name: str, folder: Path) -> dict[str, int]:
    """Put each of ``_VALUES`` into every place of the metadata of ``name``, without a checksum.

    Raises:
        AssertionError: as :func:`cases`.
    """
    kind, told = UNSEALED[name], {"read": 0, "refused": 0}
    folder.mkdir(parents=True, exist_ok=True)
    target = kind.write(folder)
    content = target.read_bytes()
    is_json = target.suffix == ".json"
    held: dict[str, Any] = {}
    if is_json:
        held = json.loads(content)
    else:
        b.edited(content, lambda header, metadata: held.update(metadata))
    for place in _places(held):
        for value in _VALUES:

            def put(header: Any, metadata: Any, place: Any = place, value: Any = value) -> None:
                for step in place[:-1]:
                    metadata = metadata[step]
                metadata[place[-1]] = value

            if is_json:
                changed = json.loads(content)
                put(None, changed)
                target.write_text(json.dumps(changed))
            else:
                target.write_bytes(b.edited(content, put))
            what = f"{name}: {place} = {str(value)[:50]!r}"
            try:
                READERS[kind.reader](folder if kind.inside else target)
                told["read"] += 1
            except (ValueError, OSError) as error:
                assert type(error) is ValueError, f"{what}: {type(error).__name__}: {error}"
                assert str(folder) in str(error), f"{what}: names no file: {error}"
                told["refused"] += 1
            except Exception as error:
                raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    return told


UNSEALED = {
    "distilled set, unsealed": Format(_set, "set"),
    "expert, unsealed": Format(_experts("expert_0000.safetensors"), "experts", True),
    "manifest": Format(_experts("manifest.json"), "experts", True),
}


def _places(value: Any) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, outermost first."""
    entries = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    found: list[tuple[Any, ...]] = []
    for key, inner in entries:
        found += [(key,), *((key, *rest) for rest in _places(inner))]
    return found
