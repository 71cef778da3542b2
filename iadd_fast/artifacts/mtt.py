"""The files of MTT (Cazenavette et al., 2022) and of the tools that follow its layout."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iadd_fast import arguments
from iadd_fast.artifacts.files import existing_file, write_atomically
from iadd_fast.artifacts.torch_files import check_held, load_torch
from iadd_fast.artifacts.trajectories import MemoryExperts, check_trajectory
from iadd_fast.students import Student

#: Bytes of buffers from which on converting them is advised.
LARGE = 2**31
_BUFFER_NAME = re.compile(r"replay_buffer_(\d+)\.pt")
#: Epochs up to which a trajectory whose snapshots are one is looked at.
_MOST_EPOCHS = 1000
_IMAGES_NAME = re.compile(r"(?P<before>.*?)images(?P<after>_(best|\d+)\.pt)")
_SET = "images_best.pt or images_N.pt with the labels beside it, or DC's and DSA's res_*.pt"


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
        TypeError: ``student`` is none.
        ValueError: a file holds anything but tensors in lists (it is loaded with
            ``weights_only=True``, so code in it never runs), has another structure or other shapes,
            holds values that are not finite, or trajectories whose snapshots are all equal. The
            last is what MTT's script writes when it trains on a CPU.

    Warns:
        UserWarning: the files take more than 2 GiB; :func:`convert_mtt_buffers` makes a folder of
            them that is read as it is needed.
    """
    _check_student(student)
    size = sum(file.stat().st_size for file in buffer_files(path))
    if size > LARGE:
        warnings.warn(
            f"{path}: {size / 2**30:.1f} GiB of experts are read into memory; iadd-fast import-mtt "
            f"{path} DATA --out FOLDER makes a folder of them once, from which snapshots are read "
            "one by one",
            stacklevel=2,
        )
    return MemoryExperts(list(trajectories_of(path, student)))


def trajectories_of(path: str | Path, student: Student | None = None) -> Iterator[Tensor]:
    """The trajectories of :func:`load_mtt_buffers` one by one; one file at a time is in memory."""
    _check_student(student)
    shapes = None if student is None else [entry.shape for entry in student.parameters]
    snapshots: int | None = None
    for file in buffer_files(path):
        held = _list(load_torch(file), f"{file}", "trajectories")
        _check_copies(held, file)
        for index, trajectory in enumerate(held):
            what = f"{file}: trajectory {index}"
            flat, shapes = _flatten(trajectory, what, shapes, student is not None)
            snapshots = len(flat) if snapshots is None else snapshots
            if len(flat) != snapshots:
                raise ValueError(
                    f"{what}: got {len(flat)} snapshots; the first one has {snapshots}"
                )
            check_trajectory(flat, what)
            yield flat
        del held, trajectory, flat  # before the next file is read


@dataclass(frozen=True, eq=False)
class MTTSet:
    """What a set of MTT's layout holds.

    Attributes:
        images: float ``[N, C, ...]`` in the space networks are trained in.
        labels: int64 ``[N]``, or float probabilities ``[N, classes]``.
        lr: the learning rate, None where no file holds it.
        where: the file of the images.
    """

    images: Tensor
    labels: Tensor
    lr: float | None
    where: Path


def load_mtt_set(path: str | Path, experiment: int = 0) -> MTTSet:
    """A distilled set from the files of MTT, TESLA, FTD, DATM and their kin, or of DC and DSA.

    Soft labels are logits in these files: the softmax is taken, in float64, unless their rows are
    probabilities already (none below 0, sum 1).

    Args:
        path: a folder with ``images_best.pt``; or a file ``images_best.pt``, ``images_N.pt`` or
            ``ema_images_N.pt``. The files ``labels_...`` and, where there is one, ``lr_...`` are
            named alike and lie beside it. Or a file ``res_*.pt`` of DC's or DSA's ``main.py``.
        experiment: which of the sets in a ``res_*.pt``.

    Raises:
        FileNotFoundError: there is no such file, or none of the labels.
        ValueError: the name is another, a file holds something else, or ``experiment`` is no place
            of a set. All are loaded with ``weights_only=True``: code in them never runs.
    """
    path = arguments.path("path", path)
    experiment = arguments.whole("experiment", experiment, least=0)
    if path.is_dir():
        path = _images_file(path)
    match = _IMAGES_NAME.fullmatch(existing_file(path).name)
    if match is None:
        return _load_dc_set(path, experiment)
    if experiment != 0:
        raise ValueError(f"experiment: got {experiment}, but {path} holds one set; takes 0")
    partner = f"{match['before']}{{}}{match['after']}"
    rate = path.with_name(partner.format("lr"))
    labels = path.with_name(partner.format("labels"))
    return MTTSet(
        _images(load_torch(path), str(path)),
        _labels(load_torch(existing_file(labels)), str(labels)),
        _number(load_torch(rate), str(rate)) if rate.is_file() else None,
        path,
    )


def save_mtt_set(folder: str | Path, images: Tensor, labels: Tensor, lr: float) -> None:
    """Write a distilled set as ``images_best.pt``, ``labels_best.pt`` and ``lr_best.pt``.

    The layout of MTT, which DC-BENCH, DATM's evaluator and DD-Ranking read as well: plain CPU
    tensors, in the order given (class after class). Each file appears whole or not at all.

    Args:
        folder: made when missing; files of these names in it are replaced.
        images: ``[N, C, ...]`` in the space networks are trained in (normalised or whitened).
        labels: int64 ``[N]``, or soft ones as logits ``[N, classes]`` (DATM's evaluator applies the
            softmax itself).
        lr: the learned learning rate; stored as a float64 tensor without dimensions.

    Raises:
        TypeError: images or labels are no tensor.
        ValueError: as many labels as images are needed; or ``lr`` is no number.
    """
    arguments.tensor("images", images)
    arguments.tensor("labels", labels)
    rate = arguments.number("lr", lr)
    if len(images) != len(labels):
        raise ValueError(f"labels: got {len(labels)} for {len(images)} images")
    files = {
        "images_best.pt": images,
        "labels_best.pt": labels,
        "lr_best.pt": torch.tensor(rate, dtype=torch.float64),
    }
    for name, tensor in files.items():
        # Cloned, because torch.save writes the whole memory that a view belongs to.
        plain = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        write_atomically(arguments.path("folder", folder) / name, partial(torch.save, plain))


def is_buffer(path: Path) -> bool:
    """Whether ``path`` is named as a buffer, or is a folder that holds one."""
    found = path.iterdir() if path.is_dir() else [path]
    return any(_BUFFER_NAME.fullmatch(entry.name) for entry in found)


def buffer_files(path: str | Path) -> list[Path]:
    """The buffer at ``path``, or those in that folder in the order of their numbers.

    Raises:
        FileNotFoundError: there is none.
    """
    path = arguments.path("path", path)
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


def _check_student(student: Any) -> None:
    arguments.instance("student", student, Student | None, "a Student or None")


def _images_file(folder: Path) -> Path:
    best = folder / "images_best.pt"
    if best.is_file():
        return best
    found = sorted(entry.name for entry in folder.glob("*.pt"))
    if not found:
        raise FileNotFoundError(f"{folder}: no .pt file in this folder; takes {_SET}")
    shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
    raise ValueError(f"{folder}: has no images_best.pt; name one of its files: {shown}")


def _load_dc_set(path: Path, experiment: int) -> MTTSet:
    content = load_torch(path)
    sets = content.get("data") if isinstance(content, Mapping) else None
    if not isinstance(sets, list) or not sets:
        raise ValueError(f"{path}: is no distilled set; takes {_SET}")
    if experiment >= len(sets):
        raise ValueError(
            f"experiment: got {experiment}; takes 0 to {len(sets) - 1}, for {path} holds "
            f"{len(sets)} sets"
        )
    where = f"{path}: data[{experiment}]"
    if not isinstance(sets[experiment], list | tuple) or len(sets[experiment]) != 2:
        raise ValueError(f"{where}: is no pair of images and labels; takes {_SET}")
    images, labels = sets[experiment]
    return MTTSet(_images(images, where), _labels(labels, where), None, path)


def _images(value: Any, where: str) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise ValueError(f"{where}: got {_kind(value)}; takes a float tensor of images")
    return value.detach().contiguous()


def _labels(value: Any, where: str) -> Tensor:
    if isinstance(value, Tensor):
        value = value.detach()
        if value.dtype == torch.int64 and value.ndim == 1:
            return value
        if value.is_floating_point() and value.ndim == 2:
            exact = value.double()
            are_probabilities = bool((exact >= 0).all() and ((exact.sum(1) - 1).abs() < 1e-3).all())
            return value if are_probabilities else exact.softmax(1).to(value.dtype)
    raise ValueError(
        f"{where}: got {_kind(value)}; takes labels torch.int64 (N,) or soft ones as logits, "
        "floats (N, classes)"
    )


def _number(value: Any, where: str) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{where}: got {_kind(value)}; takes one number, the learning rate")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{where}: got a whole number beyond all floats") from None


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def _check_copies(trajectories: list[Any], file: Path) -> None:
    """Raise ``ValueError`` where the trajectories, flattened, would be more than ``file`` holds."""
    try:
        check_held(_tensors(trajectories), file)
    except ValueError:
        first = trajectories[0]
        if 1 < len(first) <= _MOST_EPOCHS and _is_same_memory(first[0], first[1]):
            row, _ = _flatten(first[:1], f"{file}: trajectory 0", None, False)
            check_trajectory(row.expand(len(first), -1), f"{file}: trajectory 0")
        raise


def _tensors(trajectories: list[Any]) -> Iterator[Tensor]:
    """The tensors of all snapshots, up to the first thing that is of another kind."""
    for trajectory in trajectories:
        if not isinstance(trajectory, list | tuple) or not trajectory:
            return
        for snapshot in trajectory:
            if not isinstance(snapshot, list | tuple) or not snapshot:
                return
            for tensor in snapshot:
                if not isinstance(tensor, Tensor):
                    return
                yield tensor


def _is_same_memory(one: Any, other: Any) -> bool:
    places = [
        [tensor.data_ptr() for tensor in snapshot if isinstance(tensor, Tensor)]
        for snapshot in (one, other)
        if isinstance(snapshot, list | tuple)
    ]
    return len(places) == 2 and places[0] == places[1]


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
