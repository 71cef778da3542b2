"""How well scores tell members from non-members: AUC and true-positive rates with intervals.

Scores are higher for what an attacker takes to be a member. Every function takes one or more
*instances*: the same non-members (in the same order) scored by other networks, each with members of
its own. A figure is the mean over instances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iadd_fast import seeds

Scores = NDArray[np.float64]
#: Non-members a false-positive rate needs to be resolved, times that rate.
RESOLVED = 10
_DRAWS = 2000


@dataclass(frozen=True)
class Placements:
    """Where each score lies among those of the other side, by instance.

    Attributes:
        members: ``[n_k]`` each: the share of non-members below (ties count half).
        others: ``[M]``: the share of members above, mean over instances.
    """

    members: list[Scores]
    others: Scores

    @property
    def auc(self) -> float:
        """The area under the ROC curve: the mean over instances of the mean placement."""
        return float(np.mean([part.mean() for part in self.members]))

    def minus(self, other: Placements) -> Placements:
        """Placements whose ``auc`` is the difference of two on the same records."""
        members = [a - b for a, b in zip(self.members, other.members, strict=True)]
        return Placements(members, self.others - other.others)

    def variance(self) -> tuple[float, float]:
        """DeLong's variance of ``auc`` over records, and its degrees of freedom.

        ``sum_k var(V10_k) / (n_k K^2) + var(V01) / M`` (DeLong et al. 1988; the same non-members in
        every instance), degrees of freedom after Welch and Satterthwaite.
        """
        count = len(self.members)
        parts = [(part.var(ddof=1) / len(part) / count**2, len(part) - 1) for part in self.members]
        parts.append((self.others.var(ddof=1) / len(self.others), len(self.others) - 1))
        total = float(sum(value for value, _ in parts))
        if total <= 0.0:
            return 0.0, 1.0
        return total, total**2 / float(sum(value**2 / freedom for value, freedom in parts))


def placements(members: Sequence[Scores], others: Sequence[Scores]) -> Placements:
    """Placements of instances: members ``[n_k]`` and non-members ``[M]`` of each.

    Raises:
        ValueError: fewer than two members or non-members.
    """
    if min(len(part) for part in (*members, *others)) < 2:
        raise ValueError("members: takes at least two members and two non-members")
    return Placements(
        [_share_below(x, y) for x, y in zip(members, others, strict=True)],
        np.mean([1.0 - _share_below(y, x) for x, y in zip(members, others, strict=True)], axis=0),
    )


def _share_below(values: Scores, among: Scores) -> Scores:
    ordered = np.sort(among)
    left = np.searchsorted(ordered, values, side="left")
    right = np.searchsorted(ordered, values, side="right")
    return (left + right) / (2.0 * len(ordered))


def auc_interval(placed: Placements, error: float = 0.05) -> tuple[float, float]:
    """A ``1 - error`` interval of ``placed.auc``: DeLong's variance on the logit scale.

    At 0 and 1, where that variance says nothing, and where it is 0: Newcombe's method 5 (2006).
    """
    from scipy import stats

    auc = placed.auc
    variance, freedom = placed.variance()
    if variance == 0.0 or not 1e-12 < auc < 1.0 - 1e-12:
        return _newcombe(auc, sum(len(part) for part in placed.members), len(placed.others), error)
    half = float(stats.t.ppf(1.0 - error / 2, freedom)) * math.sqrt(variance) / (auc * (1.0 - auc))
    middle = math.log(auc / (1.0 - auc))
    low, high = (_logistic(middle + side * half) for side in (-1.0, 1.0))
    return low, high


def difference_interval(difference: Placements, error: float = 0.05) -> tuple[float, float]:
    """A ``1 - error`` interval of a paired difference of AUCs (:meth:`Placements.minus`)."""
    from scipy import stats

    variance, freedom = difference.variance()
    half = float(stats.t.ppf(1.0 - error / 2, freedom)) * math.sqrt(variance)
    return difference.auc - half, difference.auc + half


def _newcombe(auc: float, members: int, others: int, error: float) -> tuple[float, float]:
    """Values whose distance from ``auc`` is z standard errors, with the errors they imply."""
    from scipy import optimize, stats

    z = float(stats.norm.ppf(1.0 - error / 2))
    size = (members + others) / 2.0

    def apart(value: float) -> float:
        spread = (1.0 - value) / (2.0 - value) + value / (1.0 + value)
        squared = value * (1.0 - value) * (1.0 + (size - 1.0) * spread) / (members * others)
        return (auc - value) ** 2 - z**2 * squared

    low = 0.0 if auc <= 0.0 else float(optimize.brentq(apart, 0.0, auc - 1e-9))
    high = 1.0 if auc >= 1.0 else float(optimize.brentq(apart, auc + 1e-9, 1.0))
    return low, high


def tpr_at(
    members: Sequence[Scores],
    others: Sequence[Scores],
    rates: Sequence[float],
    seed: int,
    error: float = 0.05,
) -> list[tuple[float, float, float]]:
    """True-positive rate at each false-positive rate f, with its ``1 - error`` interval.

    The threshold of an instance is the largest that lets at most ``f M`` non-members pass; the rate
    is the share of all members above their threshold. The interval has both sources of error: the
    threshold is drawn as by a bootstrap of the non-members (the index of an order statistic of M
    draws is beta-distributed), and for each of these the members' rate from Jeffreys' posterior,
    which is not of width 0 when no member passes; ends are quantiles over 2000 draws. One draw
    serves all instances, whose non-members are the same.

    Args:
        members, others: as :func:`placements`. rates: false-positive rates f, each below 1.
        seed: fixes the draws.
    """
    ordered_others = [np.sort(part)[::-1] for part in others]
    ordered_members = [np.sort(part) for part in members]
    total = sum(len(part) for part in members)
    size = len(others[0])
    result = []
    for rate in rates:
        passing = math.floor(rate * size + 1e-9)
        draw = np.random.default_rng(seeds.derive(seed, "tpr", f"{rate:.6g}"))
        drawn = np.ceil(size * draw.beta(passing + 1, size - passing, _DRAWS)).astype(np.int64) - 1
        places = np.append(np.clip(drawn, 0, size - 1), passing)
        right = np.zeros(len(places))
        for x, y in zip(ordered_members, ordered_others, strict=True):
            right += len(x) - np.searchsorted(x, y[places], side="right")
        rates_drawn = draw.beta(right[:-1] + 0.5, total - right[:-1] + 0.5)
        low, high = np.quantile(rates_drawn, [error / 2, 1.0 - error / 2])
        value = float(right[-1] / total)
        low, high = (0.0 if value == 0.0 else low), (1.0 if value == 1.0 else high)
        result.append((value, float(min(low, value)), float(max(high, value))))
    return result


def share_interval(share: float, count: float, error: float = 0.05) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share among ``count``, which may be an effective number.

    With an effective number below the actual one this is the interval of Korn and Graubard (1998).
    """
    from scipy import stats

    right = share * count
    low = 0.0 if right <= 0.0 else float(stats.beta.ppf(error / 2, right, count - right + 1))
    high = 1.0 if right >= count else float(stats.beta.ppf(1 - error / 2, right + 1, count - right))
    return low, high


def detectable(members: int, others: int) -> float:
    """The smallest AUC minus 0.5 found with a power of 80 % at 5 %, two-sided.

    ``(z_0.975 + z_0.8) sqrt((n + M + 1) / (12 n M))``: the variance of the Mann-Whitney statistic
    where there is nothing to find.
    """
    from scipy import stats

    z = float(stats.norm.ppf(0.975) + stats.norm.ppf(0.8))
    return z * math.sqrt((members + others + 1) / (12.0 * members * others))


def _logistic(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value)) if value > -700 else 0.0
