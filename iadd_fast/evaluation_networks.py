"""The fresh networks behind a row of an evaluation, kept so that a stopped one goes on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from iadd_fast.artifacts.files import (
    check_schema,
    check_writable,
    load_tensors,
    refuse_link,
    remove_empty,
    remove_leftovers,
    save_tensors,
)
from iadd_fast.artifacts.unfinished import load_unfinished, remove_unfinished, save_unfinished
from iadd_fast.fused.training import State
from iadd_fast.students import Student
from iadd_fast.training_progress import Keeping

KIND = "evaluation networks"
SCHEMA = 1


@dataclass(frozen=True, eq=False)
class TrainedNetworks:
    """Fresh networks of one architecture, trained by one method.

    Attributes:
        method: as in :class:`~iadd_fast.evaluation_rows.EvaluationRow`.
        architecture: the name of the row. student: the network itself.
        thetas: parameters ``[networks, P]``.
        sets: images (in the space of the distilled set) and labels that each network was trained
            on.
        initial: the parameters ``[networks, P]`` they started from; None where not known.
    """

    method: str
    architecture: str
    student: Student
    thetas: Tensor
    sets: Sequence[tuple[Tensor, Tensor]]
    initial: Tensor | None = None


class RowInTraining:
    """The networks of one row while they train, each kept at times in a folder of its own.

    A context around their training, in which Ctrl-C and SIGTERM wait for the epoch that is running.

    Args:
        folder: where those of the row are; None keeps nothing and lets signals through.
        key: what is trained and how (JSON-able).
        name: of the row, for people.

    Attributes:
        begun: states of those that a stopped call has kept, by their number.
        seconds: that the row had trained when it was stopped.
    """

    def __init__(self, folder: Path | None, key: Mapping[str, Any], name: str) -> None:
        self.begun: dict[int, State] = {}
        self.seconds = 0.0
        self._folder = None if folder is None else refuse_link(folder)
        self._key, self._name = key, name
        self._keeping = None if folder is None else Keeping()

    def look(self, initial: Tensor, epochs: int) -> None:
        """Find what is kept of networks that start from ``initial`` ``[networks, P]``."""
        for network, theta in enumerate(initial):
            folder = self._of(network)
            found = None if folder is None else load_unfinished(folder, self._key)
            if found is None:
                continue
            tensors, metadata = found
            done, seconds = metadata.get("epochs"), metadata.get("seconds")
            parts = [tensors.get("theta"), tensors.get("momentum")]
            if (
                all(part is not None and _kind(part) == _kind(theta) for part in parts)
                and isinstance(done, int)
                and 0 < done <= epochs
                and isinstance(seconds, float)
            ):
                self.begun[network] = State(done, tensors["theta"], tensors["momentum"])
                self.seconds = max(self.seconds, seconds)

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        if self._keeping is not None:
            self._keeping.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._keeping is not None:
            self._keeping.__exit__(kind)

    def after_round(self) -> None:
        """For ``on_round``."""
        if self._keeping is not None:
            self._keeping.after_round()

    @property
    def spent_keeping(self) -> float:
        """Seconds of this call that went into files."""
        return 0.0 if self._keeping is None else self._keeping.spent

    def after_epoch(self, network: int, state: State, epochs: int) -> None:
        """For ``on_epoch`` of networks that train for so many ``epochs``."""
        folder = self._of(network)
        if self._keeping is None or folder is None:
            return

        def keep() -> None:
            tensors = {"theta": state.theta, "momentum": state.momentum}
            held = {name: tensor for name, tensor in tensors.items() if tensor is not None}
            seconds = self.seconds + time.perf_counter() - self._started - self.spent_keeping
            save_unfinished(folder, self._key, held, {"epochs": state.epochs, "seconds": seconds})

        name = f"network {network} of {self._name}"
        self._keeping.after_epoch(network, state.epochs, state.epochs == epochs, keep, name)

    def remove(self, networks: int) -> None:
        """Remove what was kept, once the row is."""
        for network in range(networks):
            folder = self._of(network)
            if folder is not None:
                remove_unfinished(folder)
        if self._folder is not None:
            remove_empty([self._folder])

    def _of(self, network: int) -> Path | None:
        return None if self._folder is None else self._folder / f"network_{network:04d}"


def trained_or_kept(
    folder: Path | None,
    key: Mapping[str, Any],
    sets: Sequence[tuple[Tensor, Tensor]],
    name: str,
    train: Callable[[RowInTraining], tuple[Tensor, float]],
) -> tuple[Tensor, float]:
    """Parameters and seconds that ``train`` gives, or those kept in ``folder`` for the same.

    What is the same is decided by ``key`` (JSON-able) and by the very bytes of ``sets``; a file
    that cannot be read is trained again. While it trains, ``train`` keeps each network of the row
    called ``name`` there.
    """
    if folder is None:
        return train(RowInTraining(None, key, name))
    wanted = {**key, "sets": _digest(sets)}
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:32]
    path = folder / f"{digest}.safetensors"
    row = RowInTraining(folder / f"{digest}.training", wanted, name)
    if path.is_file():
        try:
            tensors, metadata = load_tensors(path)
            check_schema(path, metadata, KIND, SCHEMA)
            if metadata["key"] == wanted:
                row.remove(len(sets))
                return tensors["thetas"].to(sets[0][1].device), float(metadata["seconds"])
        except (KeyError, TypeError, ValueError):
            pass  # damaged or of another version: train again
    remove_leftovers(path)
    thetas, seconds = train(row)
    metadata = {"kind": KIND, "schema": SCHEMA, "key": wanted, "seconds": seconds}
    save_tensors(path, {"thetas": thetas}, metadata)
    row.remove(len(thetas))
    return thetas, seconds


def check_room(folder: Path, students: Sequence[Student], networks: int, rows: int) -> None:
    """Raise unless ``folder`` can be written to and has room for so many rows of each student.

    Raises:
        OSError, ValueError: as :func:`~iadd_fast.artifacts.files.check_writable`.
    """
    each = [networks * student.num_parameters * 4 for student in students]
    there = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    # Of the row in training what is kept, what was before it, and the next; each with momentum.
    left = max(0, rows * sum(each) - there)
    check_writable("keep", folder, left + 6 * max(each) if left else 0)


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _digest(sets: Sequence[tuple[Tensor, Tensor]]) -> str:
    digest = hashlib.sha256()
    distinct = {(id(images), id(labels)): (images, labels) for images, labels in sets}
    for pair in distinct.values():
        for tensor in pair:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
