"""Expert trajectories: the parameters of networks trained on real data, one snapshot an epoch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from iadd_fast import arguments
from iadd_fast.artifacts.files import (
    check_schema,
    digest,
    existing_file,
    header_metadata,
    not_safetensors,
    read_json,
    remove_leftovers,
    save_tensors,
    to_json,
    write_json,
)
from iadd_fast.artifacts.trajectories import check_range, check_trajectory
from iadd_fast.artifacts.unfinished import remove_unfinished
from iadd_fast.devices import resolve_device
from iadd_fast.reading import regular_file

MANIFEST = "manifest.json"
#: The setting that says which images were held out.
VALIDATION = "validation"
SCHEMA = 1
STORE_KIND = "experts"
EXPERT_KIND = "expert"
#: Most experts of a store, and most epochs of one.
MOST = 10**6
_FILE_NAME = re.compile(r"expert_([0-9]{4}|[1-9][0-9]{4,6})\.safetensors")
_MANIFEST_TYPES: dict[str, type] = {
    "student_spec": dict,
    "settings": dict,
    "data_fingerprint": str,
    "data_name": str,
    "count": int,
    "epochs": int,
}


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
        path = arguments.path("path", path)
        count = arguments.whole("count", count, most=MOST)
        epochs = arguments.whole("epochs", epochs, most=MOST)
        for name, described in (("student_spec", student_spec), ("settings", settings)):
            arguments.instance(name, described, Mapping, "a mapping")
        arguments.text("data_fingerprint", data_fingerprint)
        arguments.text("data_name", data_name)
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
        if VALIDATION not in here["settings"]:  # a store of an early version
            asked["settings"].pop(VALIDATION, None)
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
        path = arguments.path("path", path)
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
        check_range("index", index, self.count)
        arguments.instance("metrics", metrics, Mapping, "a mapping")
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
            # One for each snapshot, which is what is read at a time.
            "snapshots_sha256": [digest([row]) for row in snapshots],
        }
        save_tensors(self._file(index), {"snapshots": snapshots}, metadata)
        remove_unfinished(self.training_folder(index))

    def training_folder(self, index: int) -> Path:
        """Where expert ``index`` is kept while it is trained."""
        return self.path / f"{self._file(index).stem}.training"

    def claim_name(self, index: int) -> str:
        """Name of the lock that whoever trains expert ``index`` beside others holds."""
        return f".{self._file(index).stem}.lock"

    def remove_claims(self) -> None:
        """Remove the files of those locks, once nobody trains here."""
        for entry in self.path.glob(".expert_*.lock"):
            entry.unlink(missing_ok=True)

    def remove_leftovers(self, indices: Iterable[int]) -> None:
        """Remove what killed processes left half-written of these experts, which nobody writes."""
        for index in indices:
            remove_leftovers(self._file(index))

    def remove_unfinished(self) -> None:
        """Remove what was kept of the finished experts while they were trained."""
        for index in self.finished():
            remove_unfinished(self.training_folder(index))

    def snapshot(self, index: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
        """The parameters ``[P]`` of expert ``index`` after ``epoch`` epochs; reads only those.

        Raises:
            IndexError: ``index`` or ``epoch`` is out of range.
            ValueError: expert ``index`` is not finished, or its file is damaged.
        """
        check_range("epoch", epoch, self.epochs + 1)
        with self._opened(index) as (file, metadata):
            # Copied: the slice is backed by the file, which somebody may truncate later.
            row: Tensor = file.get_slice("snapshots")[epoch].clone()
        written = metadata.get("snapshots_sha256")
        if isinstance(written, list) and written[epoch : epoch + 1] != [digest([row])]:
            raise ValueError(
                f"{self._file(index)}: is damaged (snapshot {epoch} does not fit its checksum); "
                "remove it and train this expert again"
            )
        if not bool(torch.isfinite(row).all()):
            raise ValueError(
                f"{self._file(index)}: snapshot {epoch} holds values that are not finite; remove "
                "it and train this expert again"
            )
        return row.to(resolve_device(device))

    def last_digests(self) -> list[str]:
        """A SHA-256 of each finished expert's last snapshot; as written, so nothing large is read.

        Raises:
            ValueError: as :meth:`snapshot`.
        """
        found = []
        for index in self.finished():
            with self._opened(index) as (_, metadata):
                written = metadata.get("snapshots_sha256")
            if not isinstance(written, list) or len(written) != self.epochs + 1:
                written = [digest([self.snapshot(index, self.epochs)])]  # of an early version
            found.append(str(written[-1]))
        return found

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
        if not isinstance(values, list) or not all(
            isinstance(value, int | float) and 0 <= value <= 100 for value in values
        ):
            raise ValueError(f"{self._file(index)}: holds no accuracies in percent")
        return [float(value) for value in values]

    def _file(self, index: int) -> Path:
        return self.path / f"expert_{index:04d}.safetensors"

    @contextmanager
    def _opened(self, index: int) -> Iterator[tuple[Any, dict[str, Any]]]:
        """The open file of expert ``index``, its header checked, and its metadata."""
        check_range("index", index, self.count)
        path = self._file(index)
        if not path.exists():
            raise ValueError(
                f"{self.path}: expert {index} is not finished ({len(self)} of {self.count} are); "
                "go on with train_experts"
            )
        regular_file(path, within=self.path)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = header_metadata(path, file.metadata())
                check_schema(path, metadata, EXPERT_KIND, SCHEMA)
                names = list(file.keys())
                if names != ["snapshots"]:
                    raise ValueError(f"{path}: got the tensors {names}; expected 'snapshots'")
                values = file.get_slice("snapshots")
                if values.get_dtype() not in ("F32", "F64"):
                    raise ValueError(
                        f"{path}: got snapshots of type {values.get_dtype()}; expected F32 or F64"
                    )
                shape = values.get_shape()
                if len(shape) != 2 or shape[0] != self.epochs + 1:
                    raise ValueError(
                        f"{path}: got snapshots of shape {tuple(shape)}; the manifest says "
                        f"{self.epochs} epochs, so expected ({self.epochs + 1}, parameters)"
                    )
                if metadata.get("index") != index:
                    raise ValueError(f"{path}: holds expert {metadata.get('index')!r}, not {index}")
                if not isinstance(metadata.get("metrics", {}), dict):
                    raise ValueError(f"{path}: metrics: expected a JSON object")
                yield file, metadata
        except SafetensorError as error:
            raise ValueError(
                f"{not_safetensors(path, error)}; remove it and train this expert again"
            ) from None

    def _checked_size(self, index: int) -> int:
        with self._opened(index) as (file, _):
            return int(file.get_slice("snapshots").get_shape()[1])


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
        if isinstance(manifest[key], bool) or not 1 <= manifest[key] <= MOST:
            raise ValueError(f"{path}: {key}: got {manifest[key]}; expected 1 to {MOST:,}")
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
