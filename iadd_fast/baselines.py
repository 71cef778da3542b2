"""Choosing real images: the baselines a distilled set of the same size has to beat.

Every function returns the indices of ``per_class`` images of each class, class-major (all of class
0, then all of class 1, ...), as an int64 tensor on the CPU. ``features`` is any ``[N, ...]`` float
tensor; it is flattened to one vector an image, so transformed pixels can be passed as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from iadd_fast import arguments, seeds

BASELINES = ("random", "herding", "k_center")


def random_indices(labels: Tensor, per_class: int, seed: int = 0) -> Tensor:
    """A uniform draw without repeats of ``per_class`` images of each class."""

    def choose(members: Tensor, label: int) -> Tensor:
        generator = seeds.generator(seed, "baseline", "random", label)
        return members[torch.randperm(len(members), generator=generator)[:per_class]]

    return _per_class(labels, per_class, choose)


def herding_indices(features: Tensor, labels: Tensor, per_class: int) -> Tensor:
    """Herding (Welling 2009; the exemplars of iCaRL, Rebuffi et al. 2017), without repeats.

    With mu the mean feature of a class, the k-th image is the one not chosen so far that minimises
    ``|| mu - (f + sum of the chosen) / k ||``; of equals, the first. Features are not normalised.
    """
    vectors = _vectors(features, labels)

    def choose(members: Tensor, label: int) -> Tensor:
        centred = vectors[members].double()
        centred -= centred.mean(0)
        # || S + c ||^2 with S the sum of the chosen centred features, up to the constant || S ||^2
        squared = centred.square().sum(1)
        total = torch.zeros_like(centred[0])
        free = torch.ones(len(members), dtype=torch.bool)
        chosen = []
        for _ in range(per_class):
            cost = squared + 2.0 * (centred @ total)
            index = int(cost.masked_fill(~free, torch.inf).argmin())
            free[index] = False
            total += centred[index]
            chosen.append(index)
        return members[chosen]

    return _per_class(labels, per_class, choose)


def k_center_indices(features: Tensor, labels: Tensor, per_class: int, seed: int = 0) -> Tensor:
    """Greedy k-centre (farthest-first traversal, Gonzalez 1985), class by class.

    The first centre is the image nearest to the class mean; each next one is the image farthest
    from its nearest centre. The covering radius is at most twice the smallest possible one.
    ``seed`` only decides between images at exactly equal distances.
    """
    vectors = _vectors(features, labels)

    def choose(members: Tensor, label: int) -> Tensor:
        generator = seeds.generator(seed, "baseline", "k_center", label)
        members = members[torch.randperm(len(members), generator=generator)]
        points = vectors[members].double()
        index = int((points - points.mean(0)).square().sum(1).argmin())
        chosen = [index]
        nearest = (points - points[index]).square().sum(1)
        for _ in range(per_class - 1):
            # a chosen image is at distance 0 from itself; -1 keeps it out when only copies are left
            nearest[index] = -1.0
            index = int(nearest.argmax())
            chosen.append(index)
            nearest = torch.minimum(nearest, (points - points[index]).square().sum(1))
        return members[chosen]

    return _per_class(labels, per_class, choose)


def select(name: str, features: Tensor, labels: Tensor, per_class: int, seed: int = 0) -> Tensor:
    """The indices of the baseline called ``name``, one of ``BASELINES``.

    Raises:
        TypeError, ValueError: an argument of another type, shape or range, or a class with fewer
            images than that.
    """
    arguments.choice("baseline", name, BASELINES)
    seed = arguments.whole("seed", seed, -arguments.LARGEST)
    if name == "random":
        return random_indices(labels, per_class, seed)
    if name == "herding":
        return herding_indices(features, labels, per_class)
    return k_center_indices(features, labels, per_class, seed)


def _vectors(features: Tensor, labels: Tensor) -> Tensor:
    arguments.tensor("features", features)
    _check_labels(labels)
    good = features.is_floating_point() and features.ndim >= 2
    if not good or len(features) != len(labels):
        raise ValueError(
            f"features: got {arguments.shown(features)}; takes floats [N, ...] with one row for "
            f"each of the {len(labels)} labels"
        )
    if not bool(features.isfinite().all()):
        raise ValueError("features: got values that are not finite")
    return features.detach().flatten(1).cpu()


def _per_class(labels: Tensor, per_class: int, choose: Callable[[Tensor, int], Tensor]) -> Tensor:
    _check_labels(labels)
    per_class = arguments.whole("per_class", per_class)
    labels = labels.detach().cpu()
    counts = torch.bincount(labels)
    for label, count in enumerate(counts.tolist()):
        if count < per_class:
            raise ValueError(f"per_class: got {per_class}; class {label} has only {count} images")
    return torch.cat(
        [choose((labels == label).nonzero().flatten(), label) for label in range(len(counts))]
    )


def _check_labels(labels: Tensor) -> None:
    arguments.tensor("labels", labels)
    good = labels.dtype in (torch.int64, torch.int32, torch.uint8) and labels.ndim == 1
    if not good or len(labels) == 0 or int(labels.min()) < 0:
        raise ValueError(
            f"labels: got {arguments.shown(labels)}; takes one class number an image from 0 on, at "
            "least one of them"
        )
    if int(labels.max()) >= arguments.MOST:
        raise ValueError(f"labels: got class {int(labels.max())}; takes at most {arguments.MOST:,}")
