"""What the networks of one method say of the same samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from iadd_fast.audit.features import logits
from iadd_fast.data import Split
from iadd_fast.evaluation_networks import TrainedNetworks

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Outputs:
    """Logits of K networks on N samples.

    Attributes:
        logits: float64 ``[K, N, classes]``; all 0 where a network gave one that is not finite.
        labels: int64 ``[N]``.
        diverged: networks that gave logits that are not finite.
    """

    logits: Numbers
    labels: NDArray[np.int64]
    diverged: int = 0

    @property
    def networks(self) -> int:
        return len(self.logits)

    @property
    def predictions(self) -> NDArray[np.int64]:
        """``[K, N]``: the class of the largest logit."""
        return self.logits.argmax(axis=2)

    @property
    def right(self) -> Numbers:
        """``[K, N]``: 1 where the prediction is the label, else 0.

        0 where all logits are 0, as they are of a network that diverged: no class was predicted.
        """
        return ((self.predictions == self.labels) & self.logits.any(axis=2)).astype(np.float64)


def outputs_of(trained: TrainedNetworks, split: Split) -> Outputs:
    """One forward pass of each network over ``split``."""
    found = torch.stack(
        [logits(trained.student, theta, split.images).double().cpu() for theta in trained.thetas]
    )
    finite = torch.isfinite(found).all(2)
    found[~finite] = 0.0
    return Outputs(
        found.numpy(), split.labels.cpu().numpy().astype(np.int64), int((~finite).any(1).sum())
    )


def log_probabilities(logits: Numbers) -> Numbers:
    """The log-softmax over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Numbers = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
