"""Means over networks and samples with intervals that count both as drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iadd_fast.audit.rates import share_interval

Values = NDArray[np.float64]
ERROR = 0.05


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval of 95 %.

    Attributes:
        value: the mean. low, high: the interval's ends; None where it cannot be known.
        spread: standard deviation over the networks; None for one network, or for pairs of them.
        variance: of the mean.
    """

    value: float
    low: float | None
    high: float | None
    spread: float | None
    variance: float

    def to_dict(self, scale: float = 1.0) -> dict[str, Any]:
        """``value``, ``low``, ``high`` and ``spread`` times ``scale`` (100 for percent)."""
        parts = {name: getattr(self, name) for name in ("value", "low", "high", "spread")}
        return {name: None if one is None else float(one) * scale for name, one in parts.items()}


def estimate(
    values: Values, of: Values | None = None, *, share: bool = True, within: bool = False
) -> Estimate:
    """``sum(values) / sum(of)`` with an interval over samples and over networks.

    Samples and networks are two crossed clusters. The variance is
    ``var(over samples) / N + sum over groups of networks var(over networks) / K`` of the linearised
    values ``u = (values - ratio of) / mean(of)``, each term a variance of means over all else; the
    part that belongs to single (network, sample) pairs is counted twice, so the interval errs on
    the wide side (Cameron, Gelbach and Miller 2011, without the term they subtract). Quantiles are
    Student's with the degrees of freedom of Welch and Satterthwaite, which makes intervals from two
    networks wide. With one network, or one pair of one group, the interval is over samples only:
    for these networks.

    Args:
        values: ``[K, N]``, network by sample; or ``[K, L, N]`` for pairs out of two groups of
            networks, or with ``within`` out of one, ``[K, K, N]``.
        of: of the same shape: what each value is a part of; default: ones.
        share: values are parts of ``of``: the interval is Korn and Graubard's (1998), Clopper and
            Pearson's at the effective number of samples, and is not of width 0 where all are right.
            Else ``value +- t sqrt(variance)``.
        within: pairs are of networks of one group; ``of`` is 0 for a network with itself. The
            variance over networks is then the jackknife's, which leaves a network out of all pairs.

    Raises:
        ValueError: there are no samples, or ``of`` sums to 0.
    """
    from scipy import stats

    values = np.asarray(values, np.float64)
    of = np.ones_like(values) if of is None else np.asarray(of, np.float64)
    if values.size == 0 or not of.sum() > 0:
        raise ValueError("values: got no samples; takes at least one")
    value = float(values.sum() / of.sum())
    u = (values - value * of) / of.mean()
    axes = tuple(range(u.ndim - 1))
    groups = [u.mean(axis=tuple(a for a in range(u.ndim) if a != axis)) for axis in axes]
    if within:
        k = len(values)
        groups = [2.0 * (k - 1) / (k - 2) * groups[0]] if k > 2 else []
    parts = [
        (float(part.var(ddof=1)) / len(part), len(part) - 1)
        for part in (u.mean(axis=axes), *groups)
        if len(part) > 1
    ]
    variance = sum(part for part, _ in parts)
    spread = None
    totals = of.sum(axis=-1)
    if len(axes) == 1 and np.count_nonzero(totals) > 1:
        spread = float((values.sum(axis=1)[totals > 0] / totals[totals > 0]).std(ddof=1))
    if variance > 1e-18:
        freedom = variance**2 / sum(part**2 / free for part, free in parts)
        t = float(stats.t.ppf(1.0 - ERROR / 2, freedom))
    else:
        variance, t = 0.0, math.inf
    if share:
        count = float(of.mean(axis=axes).sum() / of.mean(axis=axes).max())
        low, high = _share_ends(value, count, count * len(values), variance, t)
        return Estimate(value, low, high, spread, variance)
    if variance == 0.0:
        only = None if u.shape[-1] < 2 else value
        return Estimate(value, only, only, spread, variance)
    half = t * math.sqrt(variance)
    return Estimate(value, value - half, value + half, spread, variance)


def _share_ends(
    value: float, count: float, most: float, variance: float, t: float
) -> tuple[float, float]:
    """Korn and Graubard: the effective number is ``p (1 - p) / variance (t_(n - 1) / t)^2``."""
    from scipy import stats

    effective = count
    if variance > 0.0 and 0.0 < value < 1.0 and count > 1.0:
        known = float(stats.t.ppf(1.0 - ERROR / 2, count - 1.0))
        effective = min(value * (1.0 - value) / variance * (known / t) ** 2, most)
    low, high = share_interval(value, effective, ERROR)
    return min(low, value), max(high, value)


def difference(one: Estimate, other: Estimate, first: Values, second: Values) -> Estimate:
    """``one - other`` for shares on the same samples, by the two intervals and their correlation.

    MOVER (Zou and Donner 2008; for Wilson's intervals it is Newcombe's tenth method, 1998):
    ``low = d - sqrt(a^2 - 2 r a b + b^2)`` with ``a = p1 - low1`` and ``b = high2 - p2``, ``high``
    likewise; r is the correlation of the two means over the samples.

    Args:
        one, other: :func:`estimate` with ``share``. first, second: their ``[K, N]`` and ``[L, N]``.
    """
    means = np.stack([first.mean(axis=0), second.mean(axis=0)])
    count = means.shape[1]
    r = 0.0
    if count > 1 and one.variance > 0 and other.variance > 0:
        shared = float(np.cov(means)[0, 1]) / count
        r = min(max(shared / math.sqrt(one.variance * other.variance), -1.0), 1.0)
    d = one.value - other.value
    assert one.low is not None and one.high is not None
    assert other.low is not None and other.high is not None

    def away(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2.0 * r * a * b + b * b, 0.0))

    low = d - away(one.value - one.low, other.high - other.value)
    high = d + away(one.high - one.value, other.value - other.low)
    variance = one.variance + other.variance - 2.0 * r * math.sqrt(one.variance * other.variance)
    return Estimate(d, max(low, -1.0), min(high, 1.0), None, max(variance, 0.0))
