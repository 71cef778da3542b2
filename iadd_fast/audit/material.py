"""What every part of an audit measures on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from iadd_fast.artifacts import DistilledSet
from iadd_fast.data import Data, Split
from iadd_fast.evaluation_networks import TrainedNetworks


@dataclass(frozen=True, eq=False)
class Material:
    """A distilled set, the data it stands for and networks trained on either.

    Attributes:
        distilled: the set. data: what it was distilled from, as loaded.
        train, validation, test: the parts of ``data`` in the space of ``distilled`` (its
            transform), on ``device``, in the order of ``data``. Experts saw ``train`` only.
        trained: method -> networks of the set's own architecture, trained on all of it:
            ``"iadd"`` (the set; :data:`iadd_fast.evaluation.DISTILLED`), ``"random"`` (each network
            on a draw of its own of as many real images, out of train and validation together),
            ``"full"`` (:data:`iadd_fast.evaluation.FULL`: all of train and validation), and every
            name of ``beside``.
        beside: other sets of the same data, size and transform, by name.
        device: where everything lies. seed: fixes what is drawn.
    """

    distilled: DistilledSet
    data: Data
    train: Split
    validation: Split
    test: Split
    trained: Mapping[str, TrainedNetworks]
    device: torch.device
    seed: int = 0
    beside: Mapping[str, DistilledSet] = field(default_factory=dict)
