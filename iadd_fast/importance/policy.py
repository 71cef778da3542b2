"""What a policy of importance weights is: one weight per parameter in the matching distance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from iadd_fast import arguments
from iadd_fast.ops.param_distance import Normaliser
from iadd_fast.students import Student
from iadd_fast.unroll import WeightFunction


@dataclass(frozen=True)
class Setting:
    """What a policy may look at before the first outer step.

    Attributes:
        student: the network whose parameters are weighted.
        images, labels: real training samples in the student's input space.
        device, dtype: where the weights live.
        seed: for draws of the policy's own.
    """

    student: Student
    images: Tensor
    labels: Tensor
    device: torch.device
    dtype: torch.dtype
    seed: int


@dataclass(frozen=True)
class Segment:
    """One piece of a teacher's trajectory: ``start = theta_i``, ``target = theta_{i+K}``."""

    expert: int
    start_epoch: int
    start: Tensor
    target: Tensor


class Importance(ABC):
    """A policy: gives the ``w`` of ``||w (theta_J - target)||^2`` and may learn it.

    Life of a policy: :meth:`prepare` once, then every outer step :meth:`weight` for each segment
    and :meth:`update` with the mean gradient of the loss for ``w``.
    """

    #: whether ``w`` also stands in the denominator of the distance
    normaliser: ClassVar[Normaliser] = "weighted"

    @property
    def begun(self) -> bool:
        """False where the next segment decides what the policy begins from.

        Of several processes each then shows it the first segment of the outer step before its own.
        """
        return True

    @abstractmethod
    def prepare(self, setting: Setting) -> None:
        """Allocate what the policy keeps, for the student of ``setting``."""

    @abstractmethod
    def weight(self, segment: Segment) -> Tensor | WeightFunction | None:
        """``w`` for this segment ``[P]``; a function of theta_J; or None for 1."""

    def update(self, gradient: Tensor | None) -> None:  # noqa: B027 - optional for a policy
        """Learn from dL/dw ``[P]``, averaged over the segments of one outer step."""

    def current(self) -> Tensor | None:
        """The persistent ``w`` ``[P]``, or None where a policy keeps none."""
        return None

    def state(self) -> dict[str, Tensor]:
        """Tensors from which :meth:`load_state` continues bit for bit.

        :meth:`update` replaces them and changes none in place: a step that comes to nothing is
        undone with the tensors of before.
        """
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:  # noqa: B027 - optional for a policy
        """Continue from :meth:`state`, after :meth:`prepare`."""

    def describe(self) -> dict[str, Any]:
        """Name and options, JSON-able."""
        options = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        return {"name": type(self).__name__.lower(), **options}


def check_share(name: str, value: float) -> float:
    """``value`` as a float in (0, 1]; ``ValueError`` otherwise."""
    return arguments.number(name, value, above=0, most=1)


def check_bounds(minimum: float, maximum: float) -> tuple[float, float]:
    """Bounds of v that neither vanish nor overflow; ``ValueError`` otherwise."""
    least = arguments.number("minimum", minimum, least=1e-6)
    most = arguments.number("maximum", maximum, most=1e6)
    if least > most:
        raise ValueError(f"minimum, maximum: got {least}, {most}; takes a range")
    return least, most
