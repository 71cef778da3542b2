"""The files of MTT (Cazenavette et al., 2022) and of the tools that follow its layout."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iadd_fast.artifacts.expert_store import MemoryExperts, check_trajectory
from iadd_fast.artifacts.files import existing_file, write_atomically
from iadd_fast.students import Student

_BUFFER_NAME = re.compile(r"replay_buffer_(\d+)\.pt")


def load_mtt_buffers(path: str | Path, student: Student | None = None) -> MemoryExperts:
    """Expert trajectories from the files that MTT's ``buffer.py`` writes (TESLA, FTD, DATM too).

    A file is a list of trajectories; a trajectory is a list of snapshots, the first one of the
    initialisation and one after each epoch; a snapshot is a list of tensors in
    ``module.parameters()`` order. Each snapshot becomes one float32 row: the tensors flattened and
    concatenated in that order, which is the order of a student's ``theta``.

    Args:
        path: one ``.pt`` file, or a folder of ``replay_buffer_0.pt``, ``replay_buffer_1.pt``, ...
            read in the order of their numbers.
        student: the network the experts are for; every tensor's shape is checked against it.

    Raises:
        FileNotFoundError: there is no such file, or no buffer in the folder.
        ValueError: a file holds anything but tensors in lists (it is loaded with
            ``weights_only=True``, so code in it never runs), has another structure or other shapes,
            holds values that are not finite, or trajectories whose snapshots are all equal. The
            last is what MTT's script writes when it trains on a CPU.
    """
    shapes = None if student is None else [entry.shape for entry in student.parameters]
    trajectories: list[Tensor] = []
    for file in _buffer_files(Path(path)):
        for index, trajectory in enumerate(_list(_load(file), f"{file}", "trajectories")):
            what = f"{file}: trajectory {index}"
            flat, shapes = _flatten(trajectory, what, shapes, student is not None)
            if trajectories and flat.shape != trajectories[0].shape:
                raise ValueError(
                    f"{what}: got {len(flat)} snapshots; the first one has {len(trajectories[0])}"
                )
            check_trajectory(flat, what)
            trajectories.append(flat)
    return MemoryExperts(trajectories)


def save_mtt_set(folder: str | Path, images: Tensor, labels: Tensor, lr: float) -> None:
    """Write a distilled set as ``images_best.pt``, ``labels_best.pt`` and ``lr_best.pt``.

    The layout of MTT, which DC-BENCH, DATM's evaluator and DD-Ranking read as well: plain CPU
    tensors, in the order given (class after class). Each file appears whole or not at all.

    Args:
        folder: made when missing; files of these names in it are replaced.
        images: ``[N, C, ...]`` in the space networks are trained in (normalised or whitened).
        labels: int64 ``[N]``, or soft ones as logits ``[N, classes]`` (DATM's evaluator applies the
            softmax itself).
        lr: the learned learning rate; stored as a float32 tensor without dimensions.

    Raises:
        ValueError: as many labels as images are needed.
    """
    if len(images) != len(labels):
        raise ValueError(f"labels: got {len(labels)} for {len(images)} images")
    files = {
        "images_best.pt": images,
        "labels_best.pt": labels,
        "lr_best.pt": torch.tensor(float(lr)),
    }
    for name, tensor in files.items():
        # Cloned, because torch.save writes the whole memory that a view belongs to.
        plain = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        write_atomically(Path(folder) / name, partial(torch.save, plain))


def _buffer_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [existing_file(path)]
    numbered = [
        (int(name[1]), entry)
        for entry in path.iterdir()
        if (name := _BUFFER_NAME.fullmatch(entry.name))
    ]
    if not numbered:
        raise FileNotFoundError(f"{path}: no replay_buffer_*.pt in this folder")
    return [entry for _, entry in sorted(numbered)]


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        # torch's own text advises weights_only=False, which would run whatever is in the file.
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        reason = (
            f"it refers to {forbidden[1]}, which may run code; only tensors in lists are loaded"
            if forbidden
            else f"it is damaged or no PyTorch file ({type(error).__name__})"
        )
        raise ValueError(f"{path}: refused: {reason}") from None


def _flatten(
    trajectory: Any, what: str, shapes: list[tuple[int, ...]] | None, of_student: bool
) -> tuple[Tensor, list[tuple[int, ...]]]:
    """The trajectory as ``[epochs + 1, P]``, and the shapes of a snapshot's tensors."""
    rows = []
    for epoch, snapshot in enumerate(_list(trajectory, what, "snapshots")):
        tensors = _list(snapshot, f"{what}, snapshot {epoch}", "tensors")
        for tensor in tensors:
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise ValueError(
                    f"{what}, snapshot {epoch}: got {got} among the parameters; takes float tensors"
                )
        found = [tuple(tensor.shape) for tensor in tensors]
        if shapes is None:
            shapes = found
        if found != shapes:
            of = "the student" if of_student else "the first snapshot"
            raise ValueError(f"{what}, snapshot {epoch}: {_first_difference(found, shapes, of)}")
        rows.append(torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors]))
    assert shapes is not None
    return torch.stack(rows), shapes


def _first_difference(
    found: list[tuple[int, ...]], expected: list[tuple[int, ...]], of: str
) -> str:
    if len(found) != len(expected):
        return f"got {len(found)} tensors; {of} has {len(expected)}"
    place = next(i for i in range(len(found)) if found[i] != expected[i])
    return f"tensor {place} has shape {found[place]}; that of {of} has {expected[place]}"


def _list(value: Any, what: str, of: str) -> list[Any]:
    if not isinstance(value, list | tuple) or not value:
        got = "nothing" if isinstance(value, list | tuple) else f"a {type(value).__name__}"
        raise ValueError(f"{what}: got {got}; takes a list of {of}, as MTT's buffer.py writes it")
    return list(value)
