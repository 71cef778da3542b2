"""A run's checkpoint: written whole, checked by its checksum, the one before it kept."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from iadd_fast.artifacts.files import (
    check_schema,
    load_tensors,
    remove_leftovers,
    save_tensors,
)
from iadd_fast.distributed import Ranks
from iadd_fast.reading import regular_file

CHECKPOINT = "checkpoint.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"
#: The name a damaged checkpoint is put away under.
DAMAGED = "checkpoint.damaged.safetensors"
KIND = "checkpoint"
SCHEMA = 1


def save_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write the checkpoint of the run in ``folder``; the one that was there becomes the previous.

    At every instant one of the two is whole on the disk: the new one is written under another name
    and synced before the old one moves.
    """
    save_tensors(
        folder / CHECKPOINT,
        tensors,
        {"kind": KIND, "schema": SCHEMA, **metadata},
        previous=folder / PREVIOUS,
    )


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and metadata of the newest whole checkpoint in ``folder``; None where there is none.

    A damaged one is put away as ``checkpoint.damaged.safetensors`` and the previous one taken; what
    killed processes left half-written is removed. Needs
    :func:`~iadd_fast.artifacts.folder_lock.exclusive`.

    Raises:
        ValueError: none of those that are there can be read, or one is of a newer schema.

    Warns:
        UserWarning: a damaged checkpoint was passed over.
    """
    found, reasons = newest_checkpoint(folder)
    if found is None and reasons:
        raise ValueError(
            f"out: no checkpoint in {folder} can be read ({'; '.join(reasons)}); remove them to "
            "start anew, or give another folder"
        )
    return found


def newest_checkpoint(
    folder: Path,
) -> tuple[tuple[dict[str, Tensor], dict[str, Any]] | None, list[str]]:
    """:func:`load_checkpoint`, and why those before the one that is given cannot be read.

    Raises:
        ValueError: one is of a newer schema.

    Warns:
        UserWarning: a damaged checkpoint was passed over for the one before it.
    """
    remove_leftovers(folder / CHECKPOINT)
    reasons: list[str] = []
    for name in (CHECKPOINT, PREVIOUS):
        path = folder / name
        if not path.is_file():
            continue
        try:
            found = load_tensors(regular_file(path, within=folder))
        except ValueError as error:
            reasons.append(str(error))
            continue
        check_schema(path, found[1], KIND, SCHEMA)
        if reasons:
            # Away with it: the next save must not make it the previous one.
            (folder / CHECKPOINT).replace(folder / DAMAGED)
            warnings.warn(
                f"{reasons[0]}; it is kept as {DAMAGED}, and the run goes on from the checkpoint "
                "before it",
                stacklevel=2,
            )
        return found, reasons
    return None, reasons


def shared_checkpoint(
    folder: Path, ranks: Ranks
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What :func:`load_checkpoint` gives the first process, on all of them.

    Raises:
        ValueError: as :func:`load_checkpoint`.
    """
    found = load_checkpoint(folder) if ranks.first else None
    if ranks.size == 1:
        return found
    told = ranks.from_first(None if found is None else json.dumps(found[1]).encode())
    if told is None:
        return None
    content = ranks.from_first(None if found is None else safetensors.torch.save(found[0]))
    return safetensors.torch.load(content or b""), json.loads(told)


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a run that will not go on."""
    for name in (CHECKPOINT, PREVIOUS, DAMAGED):
        (folder / name).unlink(missing_ok=True)
