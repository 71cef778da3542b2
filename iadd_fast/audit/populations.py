"""Who is a member of what: the records that membership inference is measured on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iadd_fast import seeds
from iadd_fast.audit.material import Material
from iadd_fast.audit.neighbours import find, identities

MEMBERS = 5_000
NON_MEMBERS = 10_000


@dataclass(frozen=True, eq=False)
class Records:
    """The records that are scored: some of training and validation, then some of the test part.

    Attributes:
        real: places in training and validation together, int64 ``[R]`` on the CPU, ascending.
        others: places in the test part, int64 ``[M]``: the non-members.
        drawn: positions in ``real`` of the members drawn from the training part.
        subsets: positions in ``real`` of what each network of "random" was trained on.
        held: bool ``[K, R + M]``: whether that network's subset held the record.
        duplicates: test records left out, because training or validation has the very same values.
    """

    real: Tensor
    others: Tensor
    drawn: NDArray[np.int64]
    subsets: list[NDArray[np.int64]]
    held: NDArray[np.bool_]
    duplicates: int

    def positions(self, places: Tensor) -> NDArray[np.int64]:
        """Where in ``real`` these places of training and validation stand."""
        return torch.searchsorted(self.real, places).numpy()


def records_of(material: Material, initial: list[Tensor]) -> Records:
    """Draw what is scored.

    Non-members are test records (at most 10,000, drawn), less those whose very values are also in
    training or validation. Members are drawn from the training part (at most 5,000), as many of
    each class as the non-members' proportions ask for, which may take up to half of them: the same
    for students of the distilled sets and of the full data. The subsets of "random" and the images
    of ``initial`` (places in the training part) are scored as well.

    Raises:
        ValueError: a subset of "random" is not of this data.
    """
    everything = torch.cat([material.train.images, material.validation.images])
    (of_real,) = identities(everything)
    new = unseen_test(material)
    order = torch.randperm(len(new), generator=seeds.generator(material.seed, "non-members"))
    others = new[order[:NON_MEMBERS]].sort().values
    drawn = _matched(material.train.labels.cpu(), material.test.labels.cpu()[others], material.seed)
    pairs = material.trained["random"].sets
    subsets = [find(images, everything, "trained['random']").unique() for images, _ in pairs]
    real = torch.cat([drawn, *subsets, *initial]).unique()
    held = torch.zeros(len(subsets), len(real) + len(others), dtype=torch.bool)
    for network, subset in enumerate(subsets):
        held[network, : len(real)] = torch.isin(of_real[real], of_real[subset])

    def at(places: Tensor) -> NDArray[np.int64]:
        return torch.searchsorted(real, places).numpy()

    return Records(
        real=real,
        others=others,
        drawn=at(drawn),
        subsets=[at(subset) for subset in subsets],
        held=held.numpy(),
        duplicates=len(material.test) - len(new),
    )


def unseen_test(material: Material) -> Tensor:
    """Places of the test records whose very values are in neither training nor validation."""
    everything = torch.cat([material.train.images, material.validation.images])
    of_real, of_test = identities(everything, material.test.images)
    return torch.nonzero(~torch.isin(of_test, of_real))[:, 0]


def _matched(train: Tensor, others: Tensor, seed: int) -> Tensor:
    """Places in ``train`` in the class proportions of ``others``, as far as each class reaches.

    Up to half of the members are given up for that.
    """
    classes = int(max(train.max(), others.max())) + 1
    counts = torch.bincount(train, minlength=classes).double()
    shares = torch.bincount(others, minlength=classes).double() / len(others)
    reach = float((counts / shares)[shares > 0].min())
    largest = min(MEMBERS, len(train))
    total = min(largest, max(reach, largest / 2))
    chosen = []
    for label, share in enumerate(shares.tolist()):
        members = torch.nonzero(train == label)[:, 0]
        draw = seeds.generator(seed, "members", label)
        order = torch.randperm(len(members), generator=draw)
        chosen.append(members[order[: round(total * share)]])
    return torch.cat(chosen).sort().values


def imbalance(members: Tensor, others: Tensor, classes: int) -> float:
    """Half the summed difference of class shares (total variation): 0 for equal proportions."""
    shares = [
        torch.bincount(labels, minlength=classes).double() / max(1, len(labels))
        for labels in (members, others)
    ]
    return float((shares[0] - shares[1]).abs().sum() / 2)
