"""The samples of every inner step as the student sees them, and the way back for their gradients.

Augmentation is linear but for the brightness, and a step's draws follow from its seed: the adjoint
is applied to the step's gradient without keeping anything. DSA draws one family per step on the
host, which a captured graph cannot; there all steps' inputs are made before the graph runs, and
their gradients are pulled back after it ("staged").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from iadd_fast.ops.backends import implementation
from iadd_fast.unroll.problem import Problem


class StepInputs:
    """Static buffers for the synthetic set, for one step's inputs and for the set's gradients.

    Attributes:
        sizes: samples of each inner step.
    """

    def __init__(
        self, problem: Problem, working: torch.dtype, *, staged: bool | None = None
    ) -> None:
        images, labels = problem.images, problem.labels
        self.images, self.labels = torch.empty_like(images), torch.empty_like(labels)
        self.d_images = torch.empty_like(images)
        self.d_labels = torch.empty_like(labels) if problem.soft else None
        batches = problem.batches()
        self.batches = [None if batch is None else torch.empty_like(batch) for batch in batches]
        self.sizes = [len(images) if batch is None else len(batch) for batch in batches]
        augmented = problem.augment is not None
        self.staged = augmented and images.is_cuda if staged is None else staged
        rows = problem.steps if self.staged else 1
        channels, height, width = images.shape[1:]
        shape = (rows, max(self.sizes), height, width, channels)
        # Channels last, as the convolutions take them.
        self.inputs = images.new_empty(shape, dtype=working).permute(0, 1, 4, 2, 3)
        self.cotangents = images.new_empty(rows, max(self.sizes), channels, height, width)
        self.label_cotangents = (
            None if self.d_labels is None else labels.new_empty(max(self.sizes), labels.shape[1])
        )
        self._augment: Any = implementation("diff_augment", images)
        self._chains: list[Any] = []

    def load(self, problem: Problem) -> None:
        """Copy a problem of the same shape in."""
        self.images.copy_(problem.images)
        self.labels.copy_(problem.labels)
        for mine, batch in zip(self.batches, problem.batches(), strict=True):
            if mine is not None and batch is not None:
                mine.copy_(batch)
        self._chains = [problem.augmentation(step) for step in range(problem.steps)]
        if self.staged:
            for step in range(problem.steps):
                self._make(step, self.inputs[step])

    def of(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels of an inner step, valid until the next call."""
        batch, size = self.batches[step], self.sizes[step]
        labels = self.labels if batch is None else self.labels.index_select(0, batch)
        if self.staged:
            return self.inputs[step, :size], labels
        self._make(step, self.inputs[0])
        return self.inputs[0, :size], labels

    def _make(self, step: int, out: Tensor) -> None:
        batch = self.batches[step]
        images = self.images if batch is None else self.images.index_select(0, batch)
        if self._chains[step] is not None:
            images = self._augment.diff_augment(images, *self._chains[step])
        out[: len(images)].copy_(images)

    def clear(self) -> None:
        """Begin a sweep."""
        self.d_images.zero_()
        if self.d_labels is not None:
            self.d_labels.zero_()

    def collect(
        self, step: int, begin: int, end: int, inputs: Tensor, labels: Tensor | None
    ) -> None:
        """Take the derivatives for some of a step's inputs and labels."""
        self.cotangents[step if self.staged else 0, begin:end].copy_(inputs)
        if self.label_cotangents is not None and labels is not None:
            self.label_cotangents[begin:end].copy_(labels)

    def pull_back(self, step: int, lr: Tensor) -> None:
        """Subtract ``lr`` times what was collected for a step from the set's gradients."""
        if self.staged:
            self.cotangents[step].mul_(lr)
        else:
            self._pull_back_images(step, self.cotangents[0], lr)
        if self.d_labels is not None and self.label_cotangents is not None:
            self._subtract(self.d_labels, step, self.label_cotangents[: self.sizes[step]], lr)

    def results(self, first: int) -> tuple[Tensor, Tensor | None]:
        """Copies of the gradients for images and labels, after steps ``first`` and later."""
        if self.staged:
            one = self.images.new_ones(())
            for step in range(first, len(self.sizes)):
                self._pull_back_images(step, self.cotangents[step], one)
        return self.d_images.clone(), None if self.d_labels is None else self.d_labels.clone()

    def _pull_back_images(self, step: int, cotangent: Tensor, lr: Tensor) -> None:
        cotangent = cotangent[: self.sizes[step]]
        if self._chains[step] is not None:
            cotangent = self._augment.diff_augment_adjoint(cotangent, *self._chains[step])
        self._subtract(self.d_images, step, cotangent, lr)

    def _subtract(self, total: Tensor, step: int, part: Tensor, lr: Tensor) -> None:
        batch = self.batches[step]
        if batch is None:
            total.addcmul_(part, lr, value=-1)
        else:
            # A batch holds each sample once, so no two rows of the index meet.
            rows = total.index_select(0, batch).addcmul_(part, lr, value=-1)
            total.index_copy_(0, batch, rows)
