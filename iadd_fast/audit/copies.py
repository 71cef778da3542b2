"""How near synthetic samples lie to the records they were made from, and to records held out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iadd_fast import seeds
from iadd_fast.audit.neighbours import nearest, squared_distances
from iadd_fast.audit.rates import share_interval

#: Space -> what a distance in it is.
SPACES = {
    "pixels": "Euclidean distance of the transformed values",
    "correlation": "sqrt(2 (1 - r)), r the correlation of the values: ignores brightness, contrast",
    "features": "Euclidean distance of what enters the last linear layer of a full-data network",
}
#: Quantile of the distances of held-out records below which a sample counts as a copy.
QUANTILE = 0.01
YARDSTICK = 1_000
COMPARED = 10_000
DRAWS = 10
EXCHANGES = 200
BINS = 40


@dataclass(frozen=True, eq=False)
class Space:
    """The records in one space.

    Attributes:
        name: of :data:`SPACES`.
        train, held: vectors ``[N, F]`` and ``[M, F]``.
        train_labels, held_labels: their classes, int64 on the same device.
        train_index: the place of each row of ``train`` in the training part, int64 on the CPU.
    """

    name: str
    train: Tensor
    held: Tensor
    train_labels: Tensor
    held_labels: Tensor
    train_index: Tensor


@dataclass(frozen=True, eq=False)
class Distances:
    """Of some samples to their neighbours in one space, float64 or int64 ``[n]`` on the CPU.

    Attributes:
        closest: distance to the closest training record. record: its place in the training part.
        ratio: of it to the distance of the second closest.
        held: distance to the closest held-out record.
    """

    closest: NDArray[np.float64]
    record: NDArray[np.int64]
    ratio: NDArray[np.float64]
    held: NDArray[np.float64]


def distances_to(samples: Tensor, space: Space) -> Distances:
    """Distance to the closest record and nearest-neighbour ratio of ``samples`` ``[n, F]``."""
    values, indices = (part.cpu() for part in nearest(samples, space.train, 2))
    held, _ = nearest(samples, space.held)
    second = values[:, 1].numpy()
    ratio = np.divide(values[:, 0].numpy(), second, out=np.ones_like(second), where=second > 0)
    return Distances(
        closest=values[:, 0].numpy(),
        record=space.train_index[indices[:, 0]].numpy(),
        ratio=ratio,
        held=held[:, 0].cpu().numpy(),
    )


def yardstick(space: Space, seed: int) -> Distances:
    """The same of held-out real records (at most 1,000, drawn), each held out of its own search.

    ``held`` is their distance to the closest *other* held-out record.
    """
    drawn = torch.randperm(len(space.held), generator=seeds.generator(seed, "yardstick"))
    samples = space.held[drawn[:YARDSTICK].sort().values.to(space.held.device)]
    found = distances_to(samples, space)
    others, _ = nearest(samples, space.held, min(2, len(space.held)))
    return Distances(found.closest, found.record, found.ratio, others[:, -1].cpu().numpy())


def share_nearer_to_train(samples: Tensor, space: Space, seed: int) -> dict[str, Any]:
    """How many of ``samples`` ``[n, F]`` lie nearer to training than to held-out records.

    Both sides have equally many records of every class (at most 10,000 in all), drawn ten times
    where one side has more; a tie counts half. 0.5 is expected of samples that know neither side,
    if both are of one distribution. Where training is r times as large, a copied record is among
    those compared in one draw of r only, and copies alone give ``(1 + 1 / r) / 2``: single copies
    are what the distance to the closest record is for.

    Returns:
        ``value``: the mean share over draws. ``interval``: 95 %, Korn and Graubard's, with
        ``effective_samples = n^2 / sum_j m_j^2``, m_j the number of samples that share the nearest
        record j. ``expected``: 95 % range of one draw's share when nothing leaks, by exchanging the
        sides of the nearest records at random. ``compared``: records on each side.
    """
    n, size = len(samples), len(space.train)
    records = torch.cat([space.train, space.held])
    draws = [
        _equal_draw(space, seeds.derive(seed, "equal draw", draw)) for draw in range(_draws(space))
    ]
    nearer = torch.empty(len(draws), n, dtype=torch.float64)
    winner = torch.empty(len(draws), n, dtype=torch.int64)
    for rows, squared in squared_distances(samples, records):
        for draw, (of_train, of_held) in enumerate(draws):
            train = squared[:, of_train].min(1)
            held = squared[:, size:][:, of_held].min(1)
            first, tie = train.values < held.values, train.values == held.values
            nearer[draw, rows] = (first.double() + 0.5 * tie.double()).cpu()
            winner[draw, rows] = torch.where(
                first, of_train[train.indices], size + of_held[held.indices]
            ).cpu()
    draw_shares = nearer.mean(1)
    rng = np.random.default_rng(seeds.derive(seed, "exchange"))
    effective, exchanged = [], []
    for row in winner.numpy():
        shared = np.unique(row, return_counts=True)[1].astype(np.float64)
        effective.append(n**2 / float((shared**2).sum()))
        sides = rng.integers(0, 2, size=(EXCHANGES, len(shared)))
        exchanged.append(sides @ shared / n)
    value, count = float(draw_shares.mean()), float(np.mean(effective))
    low, high = np.quantile(np.concatenate(exchanged), [0.025, 0.975])
    return {
        "value": value,
        "interval": list(share_interval(value, count)),
        "expected": [float(low), float(high)],
        "samples": n,
        "effective_samples": count,
        "compared": len(draws[0][0]),
        "draws": len(draws),
    }


def _class_counts(space: Space) -> tuple[Tensor, Tensor, Tensor]:
    """Records of each class in training and held out, and how many of each are compared."""
    classes = int(max(space.train_labels.max(), space.held_labels.max())) + 1
    train = torch.bincount(space.train_labels.cpu(), minlength=classes)
    held = torch.bincount(space.held_labels.cpu(), minlength=classes)
    both = torch.minimum(train, held)
    if int(both.sum()) > COMPARED:
        both = torch.minimum(both, (both * COMPARED / both.sum()).round().long().clamp_min(1))
    return train, held, both


def _draws(space: Space) -> int:
    train, held, both = _class_counts(space)
    present = both > 0
    whole = torch.equal(train[present], both[present]) and torch.equal(held[present], both[present])
    return 1 if whole else DRAWS


def _equal_draw(space: Space, seed: int) -> tuple[Tensor, Tensor]:
    """Indices into ``train`` and into ``held``: equally many of each class."""
    counts = _class_counts(space)[2].tolist()
    sides = []
    for name, labels in (("train", space.train_labels), ("held", space.held_labels)):
        known = labels.cpu()
        chosen = []
        for label, count in enumerate(counts):
            members = torch.nonzero(known == label)[:, 0]
            draw = seeds.generator(seed, name, label)
            chosen.append(members[torch.randperm(len(members), generator=draw)[:count]])
        sides.append(torch.cat(chosen).to(labels.device))
    return sides[0], sides[1]


def peak_signal_to_noise(samples: Tensor, records: Tensor, peak: float) -> list[float | None]:
    """``10 log10(peak^2 / mean squared difference)`` in dB of each pair; None for equal ones."""
    squared = (samples.double() - records.double()).flatten(1).square().mean(1).tolist()
    return [10.0 * math.log10(peak**2 / value) if value > 0 else None for value in squared]


def summary(values: NDArray[np.float64]) -> dict[str, float]:
    """Least, 5th percentile, median, 95th percentile and largest."""
    names = ("least", "low", "median", "high", "largest")
    found = np.quantile(values, [0.0, 0.05, 0.5, 0.95, 1.0])
    return {name: float(value) for name, value in zip(names, found, strict=True)}


def histograms(groups: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Counts of each group in 40 equal bins from 0 (or the least value) to the largest of all."""
    together = np.concatenate(list(groups.values()))
    low, high = min(0.0, float(together.min())), float(together.max())
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    counts = {name: np.histogram(values, edges)[0].tolist() for name, values in groups.items()}
    return {"edges": edges.tolist(), "counts": counts}
