"""One unroll as data: what every engine receives, and what the steps of it see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from iadd_fast import arguments
from iadd_fast.augment import Augmentation
from iadd_fast.seeds import derive, generator
from iadd_fast.students import Student

WeightFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """Checked arguments of :func:`iadd_fast.trajectory_gradient`, without its engine."""

    student: Student
    theta: Tensor
    target: Tensor
    images: Tensor
    labels: Tensor
    lr: Tensor
    steps: int
    weight: Tensor | WeightFunction | None
    normaliser: Literal["start", "weighted"]
    batch_size: int | None
    augment: Augmentation | None
    window: int
    seed: int
    precision: str = "float32"
    memory_budget: int | None = None

    @property
    def soft(self) -> bool:
        """Whether the labels are probabilities ``[N, classes]`` with a gradient of their own."""
        return self.labels.is_floating_point()

    def batches(self) -> list[Tensor | None]:
        """Indices of each step's samples; None is the whole set in order.

        Chunks of a random permutation, drawn again when it is used up, taken from its end: MTT's
        order, so a last chunk may be shorter.
        """
        count, size = self.images.shape[0], self.batch_size
        if size is None or size >= count:
            return [None] * self.steps
        chunks: list[Tensor] = []
        steps: list[Tensor | None] = []
        draw = generator(self.seed, "batches")
        while len(steps) < self.steps:
            if not chunks:
                chunks = list(torch.randperm(count, generator=draw).split(size))
            steps.append(chunks.pop().to(self.images.device))
        return steps

    def augmented(self, inputs: Tensor, step: int) -> Tensor:
        """The chosen samples as inner step ``step`` sees them, differentiable in ``inputs``."""
        if self.augment is None:
            return inputs
        return self.augment(inputs, derive(self.seed, "augment", step))

    def augmentation(self, step: int) -> tuple[tuple[str, ...], int, bool] | None:
        """Families, seed and sharing of what :meth:`augmented` applies; None for nothing."""
        if self.augment is None:
            return None
        seed = derive(self.seed, "augment", step)
        return self.augment.chain(seed), seed, self.augment.shared

    def final_weight(self, theta: Tensor) -> Tensor | None:
        """The weight of the distance once the last parameters are known.

        Raises:
            TypeError, ValueError: the user's function gave something else.
        """
        if not callable(self.weight):
            return self.weight
        with torch.no_grad():
            weight = self.weight(theta.detach(), self.theta, self.target)
        arguments.tensor("weight", weight)
        if (weight.shape, weight.dtype, weight.device) != (theta.shape, theta.dtype, theta.device):
            raise ValueError(
                f"weight: the function gave {arguments.shown(weight)} on {weight.device}; takes "
                f"{theta.dtype} of shape {tuple(theta.shape)} on {theta.device}"
            )
        return weight


@dataclass(frozen=True)
class TrajectoryGradient:
    """The matching loss and its exact gradients.

    Attributes:
        loss: the distance L, a scalar.
        images: dL/dimages, the shape of the images.
        labels: dL/dlabels ``[N, classes]`` for soft labels, else None.
        lr: dL/dlr, a scalar.
        weight: dL/dweight ``[P]``, or None without a weight. For a weight given as a function it
            is the derivative at the value the function returned.
        theta: the student's final parameters theta_J ``[P]``.
    """

    loss: Tensor
    images: Tensor
    labels: Tensor | None
    lr: Tensor
    weight: Tensor | None
    theta: Tensor


def choose(samples: Tensor, batch: Tensor | None) -> Tensor:
    """The rows of ``samples`` in ``batch``; all of them for None."""
    return samples if batch is None else samples[batch]


def step_loss(student: Student, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of one inner step; ``labels`` are class indices or probabilities."""
    return F.cross_entropy(student.apply(theta, images), labels)
