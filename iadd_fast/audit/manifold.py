"""Precision, recall, density and coverage of a sample, from squared distances in a feature space.

Every set of points is taken for the union of balls around its points that reach to their k-th
neighbour (Kynkaanniemi et al. 2019, "Improved precision and recall metric for assessing generative
models"; Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative models").
"""

from __future__ import annotations

import torch
from torch import Tensor

from iadd_fast.audit.neighbours import squared_distances


def squared_matrix(queries: Tensor, records: Tensor) -> Tensor:
    """All squared distances of ``[n, d]`` to ``[N, d]``: float32 ``[n, N]``."""
    return torch.cat([part for _, part in squared_distances(queries, records)])


def squared_radii(distances: Tensor, k: int) -> Tensor:
    """The squared distance of each point to its k-th nearest other: ``[N, N]`` to ``[N]``.

    Raises:
        ValueError: ``k`` is not from 1 to N - 1.
    """
    if not 1 <= k < len(distances):
        raise ValueError(f"k: got {k} for {len(distances)} points; takes 1 to one less than these")
    others = distances.clone().fill_diagonal_(float("inf"))
    return others.kthvalue(k, dim=1).values


def precision(inside: Tensor) -> float:
    """The share of synthetic points within the ball of any real point.

    Args:
        inside: bool ``[n, N]``: which synthetic point lies in the ball of which real point, that is
            squared distances ``<=`` squared radii of the real points ``[N]``.
    """
    return float(inside.any(1).double().mean())


def density(inside: Tensor, k: int) -> float:
    """``1 / (k n) sum`` over synthetic points of how many real balls they lie in.

    Its expectation is about 1 for real points. ``inside`` as for :func:`precision`, with balls that
    reach to the ``k``-th neighbour.
    """
    return int(inside.sum()) / (k * len(inside))


def covered(inside: Tensor) -> Tensor:
    """Bool ``[N]``: real points whose own ball has a synthetic point in it.

    The mean is the coverage. ``inside`` as for :func:`precision`.
    """
    return inside.any(0)


def recall(inside: Tensor) -> float:
    """The share of real points within the ball of any synthetic point.

    Args:
        inside: bool ``[n, N]``: which real point lies in the ball of which synthetic point, that is
            squared distances ``<=`` squared radii of the synthetic points ``[n, 1]``.
    """
    return float(inside.any(0).double().mean())


def expected_coverage(real: int, synthetic: int, k: int) -> float:
    """The mean coverage of ``synthetic`` fresh draws from the distribution of the ``real``.

    A ball stays empty where the k nearest of the N - 1 + n others are all real:
    ``1 - prod_{j < k} (N - 1 - j) / (N - 1 + n - j)`` (Naeem et al., lemma 2).
    """
    empty = 1.0
    for j in range(k):
        empty *= (real - 1 - j) / (real - 1 + synthetic - j)
    return 1.0 - empty


def coverage_neighbours(real: int, synthetic: int, least: int = 5) -> int:
    """The smallest k from ``least`` at which :func:`expected_coverage` is one half or more.

    With few synthetic points the balls have to be wide for any to hold one: with 10 for 4,000 real
    at k = 5 a perfect sample would cover 1 %, which tells nothing from nothing.
    """
    for k in range(least, real):
        if expected_coverage(real, synthetic, k) >= 0.5:
            return k
    return real - 1
