"""The fresh networks behind a row of an evaluation, kept so that a stopped one goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iadd_fast.artifacts.files import check_schema, load_tensors, save_tensors
from iadd_fast.students import Student

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


def trained_or_kept(
    folder: Path | None,
    key: Mapping[str, Any],
    sets: Sequence[tuple[Tensor, Tensor]],
    train: Callable[[], tuple[Tensor, float]],
) -> tuple[Tensor, float]:
    """Parameters and seconds that ``train`` gives, or those kept in ``folder`` for the same.

    What is the same is decided by ``key`` (JSON-able) and by the very bytes of ``sets``; a file
    that cannot be read is trained again.
    """
    if folder is None:
        return train()
    wanted = {**key, "sets": _digest(sets)}
    name = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:32]
    path = folder / f"{name}.safetensors"
    if path.is_file():
        try:
            tensors, metadata = load_tensors(path)
            check_schema(path, metadata, KIND, SCHEMA)
            if metadata["key"] == wanted:
                return tensors["thetas"].to(sets[0][1].device), float(metadata["seconds"])
        except (KeyError, TypeError, ValueError):
            pass  # damaged or of another version: train again
    thetas, seconds = train()
    metadata = {"kind": KIND, "schema": SCHEMA, "key": wanted, "seconds": seconds}
    save_tensors(path, {"thetas": thetas}, metadata)
    return thetas, seconds


def _digest(sets: Sequence[tuple[Tensor, Tensor]]) -> str:
    digest = hashlib.sha256()
    distinct = {(id(images), id(labels)): (images, labels) for images, labels in sets}
    for pair in distinct.values():
        for tensor in pair:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
