"""Expert trajectories: the parameters of networks trained on real data, one snapshot an epoch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from iadd_fast.artifacts.files import (
    check_schema,
    existing_file,
    header_metadata,
    not_safetensors,
    read_json,
    save_tensors,
    to_json,
    write_json,
)

MANIFEST = "manifest.json"
SCHEMA = 1
STORE_KIND = "experts"
EXPERT_KIND = "expert"
_FILE_NAME = re.compile(r"expert_(\d{4,})\.safetensors")
_MANIFEST_TYPES: dict[str, type] = {
    "student_spec": dict,
    "settings": dict,
    "data_fingerprint": str,
    "data_name": str,
    "count": int,
    "epochs": int,
}


@runtime_checkable
class Experts(Protocol):
    """What distillation needs of expert trajectories, wherever they come from."""

    def __len__(self) -> int:
        """How many experts there are."""
        ...

    @property
    def epochs(self) -> int:
        """Number of the last epoch: a trajectory has snapshots 0 (initialisation) .. epochs."""
        ...

    @property
    def num_parameters(self) -> int:
        """Length P of one snapshot."""
        ...

    def snapshot(self, index: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
        """The parameters ``[P]`` of expert ``index`` after ``epoch`` epochs."""
        ...


class MemoryExperts:
    """Expert trajectories held in memory.

    Args:
        trajectories: one tensor ``[epochs + 1, P]`` per expert, all of one shape, float32 or
            float64; row 0 is the initialisation.

    Raises:
        ValueError: there is none, the shapes differ, a value is not finite, or all snapshots of a
            trajectory are equal.
    """

    def __init__(self, trajectories: Sequence[Tensor]) -> None:
        if not trajectories:
            raise ValueError("trajectories: got none; takes at least one")
        self.trajectories = [trajectory.detach().cpu() for trajectory in trajectories]
        shape = tuple(self.trajectories[0].shape)
        for index, trajectory in enumerate(self.trajectories):
            what = f"trajectories[{index}]"
            check_trajectory(trajectory, what)
            if tuple(trajectory.shape) != shape:
                raise ValueError(
                    f"{what}: got shape {tuple(trajectory.shape)}; the first one has {shape}"
                )
        self.epochs = shape[0] - 1
        self.num_parameters = shape[1]

    def __len__(self) -> int:
        return len(self.trajectories)

    def snapshot(self, index: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
        """A copy ``[P]`` of the parameters of expert ``index`` after ``epoch`` epochs.

        Raises:
            IndexError: ``index`` or ``epoch`` is out of range.
        """
        _check_range("index", index, len(self))
        _check_range("epoch", epoch, self.epochs + 1)
        return self.trajectories[index][epoch].to(device, copy=True)


class ExpertStore:
    """A folder of experts: ``manifest.json`` and one safetensors file per finished expert.

    ``expert_0003.safetensors`` holds ``snapshots [epochs + 1, P]`` of expert 3 and its metrics. An
    expert counts as finished when its file is there; files appear whole or not at all, so a stopped
    run goes on with :meth:`missing`. Made by :meth:`create` or :meth:`open`.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self.student_spec: dict[str, Any] = manifest["student_spec"]
        self.settings: dict[str, Any] = manifest["settings"]
        self.data_fingerprint: str = manifest["data_fingerprint"]
        self.data_name: str = manifest["data_name"]
        self.count: int = manifest["count"]
        self.epochs: int = manifest["epochs"]

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        student_spec: Mapping[str, Any],
        settings: Mapping[str, Any],
        data_fingerprint: str,
        data_name: str,
        count: int,
        epochs: int,
    ) -> ExpertStore:
        """Start a store, or go on with the one that already is at ``path``.

        Args:
            path: the folder; made when missing.
            student_spec: :attr:`iadd_fast.students.Student.spec` of the network.
            settings: how the experts are trained (JSON-able).
            data_fingerprint, data_name: of the training data.
            count: how many experts are wanted. epochs: of each.

        Raises:
            ValueError: the store at ``path`` was started with something else (the message names
                what), its manifest is damaged, or there are expert files without a manifest.
            NotADirectoryError: ``path`` is a file.
        """
        path = Path(path)
        for name, number in (("count", count), ("epochs", epochs)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ValueError(f"{name}: got {number!r}; takes a whole number of at least 1")
        asked = {
            "student_spec": dict(student_spec),
            "settings": dict(settings),
            "data_fingerprint": data_fingerprint,
            "data_name": data_name,
            "count": count,
            "epochs": epochs,
        }
        # As it will be read: what is a tuple here is a list in the file.
        asked = json.loads(to_json(asked, "student_spec, settings"))
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(f"{path}: is a file; takes a folder for the experts")
        if not (path / MANIFEST).exists():
            strays = _finished(path)
            if strays:
                raise ValueError(
                    f"{path}: holds {len(strays)} expert files but no {MANIFEST}, so nobody can "
                    "tell how they were trained; give another folder or remove them"
                )
            write_json(path / MANIFEST, {"kind": STORE_KIND, "schema": SCHEMA, **asked})
        here = _read_manifest(path)
        differing = list(_differences({key: here[key] for key in asked}, asked))
        if differing:
            raise ValueError(
                f"{path}: holds experts made in another way ({'; '.join(differing)}); ask for the "
                "same again, or give another folder"
            )
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> ExpertStore:
        """The store at ``path``, complete or not.

        Raises:
            FileNotFoundError: there is no such folder, or no manifest in it.
            ValueError: the manifest or an expert file is damaged, of another kind, or newer than
                this version reads.
        """
        path = Path(path)
        store = cls(path, _read_manifest(path))
        sizes = {index: store._checked_size(index) for index in store.finished()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"{path}: the experts have different numbers of parameters: {sizes}")
        return store

    def __repr__(self) -> str:
        return f"ExpertStore({str(self.path)!r}, {len(self)} of {self.count} experts)"

    def __len__(self) -> int:
        """How many experts are finished."""
        return len(self.finished())

    def finished(self) -> list[int]:
        """The finished experts, ascending."""
        return [index for index in _finished(self.path) if index < self.count]

    def missing(self) -> list[int]:
        """The wanted experts that are not finished, ascending."""
        return sorted(set(range(self.count)) - set(self.finished()))

    @property
    def num_parameters(self) -> int:
        """Length P of a snapshot.

        Raises:
            ValueError: no expert is finished yet.
        """
        finished = self.finished()
        if not finished:
            raise ValueError(f"{self.path}: no expert is finished yet")
        return self._checked_size(finished[0])

    def add(self, index: int, snapshots: Tensor, metrics: Mapping[str, Any]) -> None:
        """Store expert ``index``; afterwards it counts as finished.

        Args:
            index: 0 .. count - 1, one of :meth:`missing`.
            snapshots: ``[epochs + 1, P]``, float32 or float64; row 0 is the initialisation.
            metrics: JSON-able; ``"test_accuracy"`` or ``"validation_accuracy"`` is a list of
                percentages, one per epoch.

        Raises:
            IndexError: ``index`` is out of range.
            ValueError: the expert is there already, the shape is wrong, a value is not finite, all
                snapshots are equal, or the metrics are not JSON.
        """
        _check_range("index", index, self.count)
        finished = self.finished()
        if index in finished:
            raise ValueError(f"index: expert {index} is in {self.path} already")
        check_trajectory(snapshots, "snapshots")
        rows, size = snapshots.shape
        wanted = self.num_parameters if finished else size
        if (rows, size) != (self.epochs + 1, wanted):
            raise ValueError(
                f"snapshots: got shape {(rows, size)}; this store takes {(self.epochs + 1, wanted)}"
            )
        metadata = {
            "kind": EXPERT_KIND,
            "schema": SCHEMA,
            "index": index,
            "metrics": dict(metrics),
        }
        save_tensors(self._file(index), {"snapshots": snapshots}, metadata)

    def snapshot(self, index: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
        """The parameters ``[P]`` of expert ``index`` after ``epoch`` epochs; reads only those.

        Raises:
            IndexError: ``index`` or ``epoch`` is out of range.
            ValueError: expert ``index`` is not finished, or its file is damaged.
        """
        _check_range("epoch", epoch, self.epochs + 1)
        with self._opened(index) as (file, _):
            # Copied: the slice is backed by the file, which somebody may truncate later.
            row: Tensor = file.get_slice("snapshots")[epoch].to(device, copy=True)
        return row

    def metrics(self, index: int) -> dict[str, Any]:
        """The metrics stored with expert ``index``; raises as :meth:`snapshot`."""
        with self._opened(index) as (_, metadata):
            return dict(metadata.get("metrics", {}))

    def accuracies(self, index: int) -> list[float]:
        """The accuracy of expert ``index`` in percent, one value per epoch.

        On the test part if that was stored with the expert, else on the validation part.

        Raises:
            ValueError: as :meth:`snapshot`, or no accuracies were stored with it.
        """
        metrics = self.metrics(index)
        values = metrics.get("test_accuracy", metrics.get("validation_accuracy"))
        if not isinstance(values, list):
            raise ValueError(f"{self._file(index)}: holds no accuracies")
        return [float(value) for value in values]

    def _file(self, index: int) -> Path:
        return self.path / f"expert_{index:04d}.safetensors"

    @contextmanager
    def _opened(self, index: int) -> Iterator[tuple[Any, dict[str, Any]]]:
        """The open file of expert ``index``, its header checked, and its metadata."""
        _check_range("index", index, self.count)
        path = self._file(index)
        if not path.is_file():
            raise ValueError(
                f"{self.path}: expert {index} is not finished ({len(self)} of {self.count} are); "
                "go on with train_experts"
            )
        try:
            with safe_open(path, framework="pt") as file:
                metadata = header_metadata(path, file.metadata())
                check_schema(path, metadata, EXPERT_KIND, SCHEMA)
                names = list(file.keys())
                if names != ["snapshots"]:
                    raise ValueError(f"{path}: got the tensors {names}; expected 'snapshots'")
                shape = file.get_slice("snapshots").get_shape()
                if len(shape) != 2 or shape[0] != self.epochs + 1:
                    raise ValueError(
                        f"{path}: got snapshots of shape {tuple(shape)}; the manifest says "
                        f"{self.epochs} epochs, so expected ({self.epochs + 1}, parameters)"
                    )
                if metadata.get("index") != index:
                    raise ValueError(f"{path}: holds expert {metadata.get('index')!r}, not {index}")
                yield file, metadata
        except SafetensorError as error:
            raise ValueError(
                f"{not_safetensors(path, error)}; remove it and train this expert again"
            ) from None

    def _checked_size(self, index: int) -> int:
        with self._opened(index) as (file, _):
            return int(file.get_slice("snapshots").get_shape()[1])


def check_trajectory(snapshots: Tensor, what: str) -> None:
    """Raise ``ValueError`` unless ``snapshots`` is a usable trajectory ``[epochs + 1, P]``."""
    if snapshots.ndim != 2 or snapshots.shape[0] < 2 or snapshots.shape[1] < 1:
        raise ValueError(
            f"{what}: got shape {tuple(snapshots.shape)}; takes (epochs + 1, parameters) with at "
            "least one epoch"
        )
    if snapshots.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{what}: got {snapshots.dtype}; takes torch.float32 or torch.float64")
    for epoch, row in enumerate(snapshots):
        if not bool(torch.isfinite(row).all()):
            raise ValueError(
                f"{what}: the parameters after epoch {epoch} are not finite: this expert diverged; "
                "train it with a smaller learning rate"
            )
    if all(torch.equal(row, snapshots[0]) for row in snapshots[1:]):
        raise ValueError(
            f"{what}: all {len(snapshots)} snapshots are equal, so there is no trajectory to "
            "match. This happens when snapshots are taken with p.detach().cpu() while training on "
            "a CPU (MTT's buffer.py does): .cpu() copies nothing there, so every snapshot refers "
            "to the live parameters and ends up as the last one. The file cannot be repaired. "
            "Train the experts again, with iadd_fast.train_experts or with "
            "p.detach().cpu().clone() in the script"
        )


def _check_range(name: str, value: int, stop: int) -> None:
    if not 0 <= value < stop:
        raise IndexError(f"{name}: got {value}; takes 0 to {stop - 1}")


def _finished(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    names = (_FILE_NAME.fullmatch(entry.name) for entry in folder.iterdir())
    return sorted(int(name[1]) for name in names if name)


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of experts")
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: is no folder of experts (no {MANIFEST}); MTT's replay_buffer_*.pt files "
            "are read by load_mtt_buffers"
        )
    manifest = read_json(existing_file(path))
    if not isinstance(manifest, dict):
        raise ValueError(f"{path}: got a {type(manifest).__name__}; expected a JSON object")
    check_schema(path, manifest, STORE_KIND, SCHEMA)
    for key, kind in _MANIFEST_TYPES.items():
        if not isinstance(manifest.get(key), kind):
            raise ValueError(
                f"{path}: {key}: got {manifest.get(key)!r}; expected a {kind.__name__}"
            )
    for key in ("count", "epochs"):
        if manifest[key] < 1:
            raise ValueError(f"{path}: {key}: got {manifest[key]}; expected at least 1")
    return manifest


def _differences(here: Any, asked: Any, where: str = "") -> Iterator[str]:
    if isinstance(here, dict) and isinstance(asked, dict):
        for key in sorted({*here, *asked}):
            inner = f"{where}.{key}" if where else key
            if key not in here or key not in asked:
                yield f"{inner}: only {'asked for' if key in asked else 'in the folder'}"
            else:
                yield from _differences(here[key], asked[key], inner)
    elif here != asked:
        yield f"{where}: {here!r} in the folder, {asked!r} asked for"
