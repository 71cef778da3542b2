"""How much of the real data a distilled set covers in the features of full-data networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iadd_fast import seeds
from iadd_fast.audit import manifold
from iadd_fast.audit.features import features
from iadd_fast.audit.kernel_distance import PERMUTATIONS, KernelTest, kernel_test
from iadd_fast.audit.material import Material
from iadd_fast.data import Split
from iadd_fast.evaluation import FULL

#: Networks whose features are used, at most.
SPACES = 3
#: Neighbours that a ball reaches to, for precision, density and (at most) recall.
K = 5
#: Real samples used, at most: half of them as the reference, half to draw subsets from.
REAL = 6000
#: Synthetic samples used, at most.
SYNTHETIC = 1000
#: Subsets of real samples that stand for a perfect sample.
DRAWS = 100
#: Real samples for each synthetic one in the kernel test, at most.
MATCHED = 10
_KERNEL_SAMPLES = 2000
_FIGURES = ("precision", "density", "recall", "coverage")


@dataclass(frozen=True, eq=False)
class _Plan:
    """Which samples are used, the same in every feature space; indices into the real data.

    draws: rows of ``pool``, one subset of the size and classes of the synthetic samples a row.
    """

    synthetic: Tensor
    reference: Tensor
    pool: Tensor
    draws: list[Tensor]
    matched: Tensor | None


def coverage(material: Material) -> dict[str, Any]:
    """Precision, density, recall and coverage beside those of real subsets, and a kernel test.

    Features are the inputs of the last layer of full-data networks, at most ``SPACES`` of them, so
    that one space does not decide. The real data is training and validation part: all of it or, by
    class shares, ``REAL`` samples; one half is the reference, from the other come ``DRAWS`` random
    subsets with as many samples of each class as the synthetic set: ``perfect`` is the range (2.5 %
    to 97.5 %) of a figure, mean over spaces, over these subsets, and ``below`` the share of them
    with a smaller figure than the synthetic set. Subsets that take most of ``pool`` are alike, and
    the range is then too narrow.

    Balls reach to the ``K``-th neighbour for precision and density; for coverage to the neighbour
    at which a perfect sample is expected to cover half (:func:`manifold.coverage_neighbours`); for
    recall, whose balls are around synthetic samples, to at most one less than there are samples of
    a class, and with one sample a class recall means nothing and is None.

    ``kernel``: :func:`kernel_test` against real samples of the same classes, in each space, with
    the median distance of the reference as the bandwidth.

    Costs ``SPACES`` forward passes over ``REAL + n`` samples and, with F features, at most
    ``SPACES REAL^2 F`` multiplications; distances take ``3 REAL^2`` bytes.

    Returns:
        ``reason``, and None for the figures, where nothing can be measured.
    """
    real = _joined(material.train, material.validation)
    labels = material.distilled.labels
    labels = (labels.argmax(1) if labels.ndim == 2 else labels).cpu()
    plan = _plan(labels, real.labels.cpu(), material.seed)
    result: dict[str, Any] = {
        "synthetic": len(plan.synthetic),
        "synthetic_in_all": len(labels),
        "reference": len(plan.reference),
        "pool": len(plan.pool),
        "real_in_all": len(real),
        "draws": len(plan.draws),
        "figures": None,
        "by_class": None,
        "kernel": None,
        "class_shares": _class_shares(labels, real.labels.cpu(), material.distilled.class_names),
        "reason": None,
    }
    if len(plan.reference) <= K + 1:
        return {**result, "spaces": 0, "reason": "there are too few real samples"}
    k_recall = min(K, len(plan.synthetic) // len(labels.unique()) - 1)
    k_coverage = manifold.coverage_neighbours(len(plan.reference), len(plan.synthetic), K)
    reference_labels = real.labels.cpu()[plan.reference]
    found: list[dict[str, Any]] = []
    tests: list[KernelTest] = []
    trained = material.trained[FULL]
    used = torch.cat([plan.reference, plan.pool])
    images = torch.cat(
        [
            material.distilled.images[plan.synthetic].to(material.device),
            real.images[used.to(material.device)],
        ]
    )
    for number, theta in enumerate(trained.thetas[:SPACES]):
        points = features(trained.student, theta, images).cpu()
        if not bool(torch.isfinite(points).all()):
            continue
        synthetic, known = points[: len(plan.synthetic)], points[len(plan.synthetic) :]
        space = _Space(synthetic, known[: len(plan.reference)], known[len(plan.reference) :])
        found.append(space.figures(plan.draws, k_recall, k_coverage))
        if plan.matched is not None:
            tests.append(
                kernel_test(
                    synthetic,
                    known[plan.matched],
                    labels[plan.synthetic],
                    real.labels.cpu()[used[plan.matched]],
                    space.squared_bandwidth(),
                    seeds.generator(material.seed, "coverage", "permutations", number),
                )
            )
    result["spaces"] = len(found)
    if not found:
        result["reason"] = "no full-data network gives features that are finite"
        return result
    neighbours = {"precision": K, "density": K, "recall": k_recall, "coverage": k_coverage}
    result["figures"] = {name: _figure(name, found, neighbours[name]) for name in _FIGURES}
    result["figures"]["coverage"]["expected"] = manifold.expected_coverage(
        len(plan.reference), len(plan.synthetic), k_coverage
    )
    result["by_class"] = _by_class(found, reference_labels, material.distilled.class_names)
    result["kernel"] = _kernel(tests, plan)
    return result


class _Space:
    """One feature space: synthetic ``[n, F]``, reference ``[M, F]`` and pool ``[Q, F]``."""

    def __init__(self, synthetic: Tensor, reference: Tensor, pool: Tensor) -> None:
        self._synthetic, self._reference, self._pool = synthetic, reference, pool
        self._among = manifold.squared_matrix(reference, reference)

    def squared_bandwidth(self) -> float:
        """The squared median distance of two reference samples; 1 where that is 0."""
        step = -(-len(self._among) // 1000)
        some = self._among[::step, ::step]
        median = float(some[~torch.eye(len(some), dtype=torch.bool)].median())
        return median if median > 0 else 1.0

    def figures(self, draws: Sequence[Tensor], k_recall: int, k_coverage: int) -> dict[str, Any]:
        """Of the synthetic samples (``own``) and of each subset (``draws``)."""
        near = manifold.squared_radii(self._among, K)
        wide = manifold.squared_radii(self._among, k_coverage)

        def of(inside: Tensor, within: Tensor, far: Tensor, among: Tensor | None) -> dict[str, Any]:
            covered = manifold.covered(within)
            recall = None
            if among is not None:
                radii = manifold.squared_radii(among, k_recall)
                recall = manifold.recall(far <= radii[:, None])
            return {
                "precision": manifold.precision(inside),
                "density": manifold.density(inside, K),
                "recall": recall,
                "coverage": float(covered.double().mean()),
                "covered": covered,
            }

        own, pool = (
            manifold.squared_matrix(points, points) if k_recall > 0 and len(points) else None
            for points in (self._synthetic, self._pool)
        )
        subsets = []
        if draws:
            far = manifold.squared_matrix(self._pool, self._reference)
            inside, within = far <= near, far <= wide
            for rows in draws:
                among = None if pool is None else pool[rows][:, rows]
                subsets.append(of(inside[rows], within[rows], far[rows], among))
        far = manifold.squared_matrix(self._synthetic, self._reference)
        return {"own": of(far <= near, far <= wide, far, own), "draws": subsets}


def _plan(labels: Tensor, real_labels: Tensor, seed: int) -> _Plan:
    """Halves of the real samples, by class; a half to draw from holds what a draw needs."""
    generator = seeds.generator(seed, "coverage", "samples")
    classes = int(max(labels.max(), real_labels.max())) + 1
    synthetic = _by_shares(labels, SYNTHETIC, generator)
    wanted = labels[synthetic].bincount(minlength=classes)
    reference, pools = [], []
    chosen = _by_shares(real_labels, REAL, generator)
    for label in range(classes):
        members = chosen[real_labels[chosen] == label]
        members = members[torch.randperm(len(members), generator=generator)]
        drawn_from = min(max(len(members) // 2, int(wanted[label])), max(len(members) - 1, 0))
        pools.append(members[:drawn_from])
        reference.append(members[drawn_from:])
    pool = torch.cat(pools)
    starts = torch.tensor([0, *(len(part) for part in pools)]).cumsum(0)
    draws = []
    if all(len(part) >= count for part, count in zip(pools, wanted.tolist(), strict=True)):
        for _ in range(DRAWS):
            rows = [
                start + torch.randperm(len(part), generator=generator)[:count]
                for start, part, count in zip(
                    starts[:-1].tolist(), pools, wanted.tolist(), strict=True
                )
            ]
            draws.append(torch.cat(rows))
    used = real_labels[torch.cat([*reference, *pools])]
    return _Plan(
        synthetic,
        torch.cat(reference),
        pool,
        draws,
        _matched(wanted, used, generator),
    )


def _by_shares(labels: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """All indices, or about ``most`` of them: of each class the same share, at least one."""
    if len(labels) <= most:
        return torch.arange(len(labels))
    chosen = []
    for label in labels.unique().tolist():
        members = torch.nonzero(labels == label)[:, 0]
        count = max(1, round(most * len(members) / len(labels)))
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen)


def _matched(wanted: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor | None:
    """Rows with each class as many times as often as ``wanted``; None where one is too rare."""
    there = labels.bincount(minlength=len(wanted))
    needed = wanted > 0
    times = min(
        MATCHED,
        int((there[needed] // wanted[needed]).min()),
        max(1, _KERNEL_SAMPLES // int(wanted.sum()) - 1),
    )
    if times < 1:
        return None
    rows = []
    for label, count in enumerate(wanted.tolist()):
        members = torch.nonzero(labels == label)[:, 0]
        rows.append(members[torch.randperm(len(members), generator=generator)[: times * count]])
    return torch.cat(rows)


def _figure(name: str, found: Sequence[dict[str, Any]], k: int) -> dict[str, Any]:
    own = [space["own"][name] for space in found]
    reason = None
    if name == "recall" and k < 1:
        reason = "one sample a class: a ball to the next synthetic sample reaches another class"
        return {"k": None, "value": None, "by_space": None, "perfect": None, "reason": reason}
    subsets = np.array([[draw[name] for draw in space["draws"]] for space in found]).mean(axis=0)
    value = float(np.mean(own))
    return {
        "k": k,
        "value": value,
        "by_space": [float(one) for one in own],
        "perfect": _range(subsets, value),
        "reason": reason,
    }


def _range(draws: np.ndarray, value: float) -> dict[str, float] | None:
    if len(draws) == 0:
        return None
    low, high = np.quantile(draws, [0.025, 0.975])
    return {
        "mean": float(draws.mean()),
        "low": float(low),
        "high": float(high),
        "below": float((draws < value).mean()),
    }


def _by_class(
    found: Sequence[dict[str, Any]], labels: Tensor, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Coverage of each class's own real samples, least first; by the same balls."""
    rows = []
    for label, name in enumerate(class_names):
        members = labels == label
        if not bool(members.any()):
            continue

        def share(covered: Tensor, members: Tensor = members) -> float:
            return float(covered[members].double().mean())

        value = float(np.mean([share(space["own"]["covered"]) for space in found]))
        subsets = np.array(
            [[share(draw["covered"]) for draw in space["draws"]] for space in found]
        ).mean(axis=0)
        rows.append(
            {
                "class": name,
                "count": int(members.sum()),
                "value": value,
                "perfect": _range(subsets, value),
            }
        )
    return sorted(rows, key=lambda row: float(row["value"]))


def _kernel(tests: Sequence[KernelTest], plan: _Plan) -> dict[str, Any] | None:
    """The tests of all spaces; ``largest_p`` is valid for the claim that all of them differ."""
    if not tests or plan.matched is None:
        return None
    unbiased = all(test.unbiased for test in tests)
    return {
        "real": len(plan.matched),
        "permutations": PERMUTATIONS,
        "unbiased": unbiased,
        "by_space": [
            {
                "mmd2": test.statistic if test.unbiased else None,
                "statistic": test.statistic,
                "null_mean": test.null_mean,
                "null_high": test.null_high,
                "p_value": test.p_value,
            }
            for test in tests
        ],
        "largest_p": max(test.p_value for test in tests),
    }


def _class_shares(
    labels: Tensor, real_labels: Tensor, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    counts = [one.bincount(minlength=len(class_names)).tolist() for one in (labels, real_labels)]
    return [
        {
            "class": name,
            "synthetic": own / len(labels),
            "real": theirs / len(real_labels),
        }
        for name, own, theirs in zip(class_names, *counts, strict=True)
    ]


def _joined(train: Split, validation: Split) -> Split:
    if len(validation) == 0:
        return train
    return Split(
        torch.cat([train.images, validation.images]),
        torch.cat([train.labels, validation.labels]),
    )
