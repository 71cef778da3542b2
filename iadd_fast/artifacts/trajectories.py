"""What experts are to a distillation, and those held in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from numbers import Integral
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from iadd_fast import arguments
from iadd_fast.artifacts.files import digest
from iadd_fast.devices import resolve_device


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
        ValueError: there is none, the shapes or dtypes differ, a value is not finite, or all
            snapshots of a trajectory are equal.
    """

    def __init__(self, trajectories: Sequence[Tensor]) -> None:
        arguments.instance("trajectories", trajectories, Sequence, "a list of tensors")
        if not trajectories:
            raise ValueError("trajectories: got none; takes at least one")
        self.trajectories = [
            arguments.tensor(f"trajectories[{index}]", trajectory).detach().cpu()
            for index, trajectory in enumerate(trajectories)
        ]
        shape = tuple(self.trajectories[0].shape)
        for index, trajectory in enumerate(self.trajectories):
            what = f"trajectories[{index}]"
            check_trajectory(trajectory, what)
            if tuple(trajectory.shape) != shape:
                raise ValueError(
                    f"{what}: got shape {tuple(trajectory.shape)}; the first one has {shape}"
                )
            if trajectory.dtype != self.trajectories[0].dtype:
                raise ValueError(
                    f"{what}: got {trajectory.dtype}; the first one has "
                    f"{self.trajectories[0].dtype}"
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
        check_range("index", index, len(self))
        check_range("epoch", epoch, self.epochs + 1)
        return self.trajectories[index][epoch].to(resolve_device(device), copy=True)

    def last_digests(self) -> list[str]:
        """A SHA-256 of each expert's last snapshot."""
        return [digest([trajectory[-1]]) for trajectory in self.trajectories]


def fingerprint_of(experts: Experts) -> str:
    """How many experts of how many epochs, and a SHA-256 over what each ends with."""
    own = getattr(experts, "last_digests", None)
    ends = (
        own()
        if own
        else [digest([experts.snapshot(k, experts.epochs)]) for k in range(len(experts))]
    )
    found = hashlib.sha256("".join(ends).encode()).hexdigest()
    return f"{len(experts)} of {experts.epochs} epochs, {found[:16]}"


def check_trajectory(snapshots: Tensor, what: str) -> None:
    """Raise ``ValueError`` unless ``snapshots`` is a usable trajectory ``[epochs + 1, P]``."""
    arguments.tensor(what, snapshots)
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


def check_range(name: str, value: int, stop: int) -> None:
    """Raise ``IndexError`` unless ``0 <= value < stop``, ``TypeError`` where it is no number."""
    arguments.instance(name, value, Integral, "a whole number")
    if isinstance(value, bool) or not 0 <= value < stop:
        raise IndexError(f"{name}: got {arguments.shown(value)}; takes 0 to {stop - 1}")
