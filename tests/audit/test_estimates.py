"""Intervals over samples and networks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from iadd_fast.audit.estimates import Values, difference, estimate


def outcomes(
    rng: np.random.Generator, networks: int, items: Values, middle: float, spread: float
) -> Values:
    """0 or 1 by network and sample: both a sample and a network shift the log odds."""
    odds = middle + items + spread * rng.standard_normal((networks, 1))
    return (rng.random(odds.shape) < 1.0 / (1.0 + np.exp(-odds))).astype(np.float64)


def true_share(middle: float, items: float, spread: float) -> float:
    rng = np.random.default_rng(9)
    odds = middle + items * rng.standard_normal(400_000) + spread * rng.standard_normal(400_000)
    return float((1.0 / (1.0 + np.exp(-odds))).mean())


def test_one_network_is_clopper_and_pearson() -> None:
    """Breaks when the effective number of samples of one network is not their number."""
    right = np.array([[1.0] * 37 + [0.0] * 13])
    found = estimate(right)
    exact = stats.binomtest(37, 50).proportion_ci(method="exact")
    assert found.value == pytest.approx(0.74)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), rel=0.02)
    assert found.spread is None


def test_all_right_is_not_certain() -> None:
    """Breaks when a variance of 0 gives an interval of width 0."""
    found = estimate(np.ones((3, 8)))
    assert found.high == 1.0
    assert found.low == pytest.approx(0.025 ** (1 / 8))


def test_samples_that_all_networks_share_do_not_count_twice() -> None:
    """Breaks when (network, sample) pairs are taken as independent: the interval shrinks by 2."""
    one = np.random.default_rng(0).integers(0, 2, (1, 400)).astype(np.float64)
    alone, copied = estimate(one), estimate(np.repeat(one, 4, axis=0))
    assert alone.low is not None and alone.high is not None
    assert copied.low is not None and copied.high is not None
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.02)


@pytest.mark.parametrize(("networks", "spread"), [(4, 0.5), (4, 0.0)])
def test_intervals_hold_the_truth(networks: int, spread: float) -> None:
    """Breaks when networks (or samples) are not counted as drawn: then under half would hold it."""
    rng = np.random.default_rng(1)
    shares = true_share(0.7, 1.0, spread), true_share(1.5, 1.0, spread)
    hits = np.zeros(2)
    rounds = 250
    for _ in range(rounds):
        items = rng.standard_normal(500)
        one = outcomes(rng, networks, items, 0.7, spread)
        two = outcomes(rng, networks, items, 1.5, spread)
        first, second = estimate(one), estimate(two)
        gap = difference(second, first, two, one)
        assert first.low is not None and first.high is not None
        assert gap.low is not None and gap.high is not None
        hits += (
            first.low <= shares[0] <= first.high,
            gap.low <= shares[1] - shares[0] <= gap.high,
        )
    assert (hits / rounds > 0.92).all(), hits / rounds


def test_pairs_of_one_group_count_each_network_twice() -> None:
    """Breaks when the variance of a mean over pairs forgets that a network is in many of them."""
    rng = np.random.default_rng(2)
    found, variances = [], []
    apart = 1.0 - np.eye(5)
    for _ in range(400):
        own = rng.normal(0.0, 1.0, 5)
        values = (own[:, None] + own[None])[:, :, None] * apart[:, :, None] * np.ones((5, 5, 20))
        one = estimate(values, np.broadcast_to(apart[:, :, None], values.shape), within=True)
        # shares or not, the value and its variance are the same
        found.append(one.value)
        variances.append(one.variance)
    assert np.mean(variances) == pytest.approx(np.var(found), rel=0.15)


def test_a_ratio_is_that_of_the_sums() -> None:
    """Breaks when a share of a part is a mean of shares, or its interval leaves 0 to 1."""
    of = np.array([[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    values = np.array([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    found = estimate(values, of)
    assert found.value == pytest.approx(0.5)
    assert found.low is not None and found.high is not None
    assert 0.0 <= found.low <= 0.5 <= found.high <= 1.0


def test_the_same_samples_make_a_difference_sharper() -> None:
    """Breaks when the correlation over samples is left out of a difference."""
    rng = np.random.default_rng(3)
    one = (rng.random((1, 1000)) < 0.7).astype(np.float64)
    two = one.copy()
    two[0, :20] = 0.0
    shuffled = two[:, rng.permutation(1000)]
    first = estimate(one)
    paired = difference(first, estimate(two), one, two)
    apart = difference(first, estimate(shuffled), one, shuffled)
    assert paired.low is not None and paired.high is not None
    assert apart.low is not None and apart.high is not None
    assert paired.high - paired.low < 0.4 * (apart.high - apart.low)
    # McNemar's variance of the paired difference
    assert paired.high - paired.low == pytest.approx(2 * 1.96 * np.sqrt(0.014) / 32, rel=0.4)


def test_nothing_is_an_error() -> None:
    """Breaks when an empty group gives NaN."""
    with pytest.raises(ValueError, match="no samples"):
        estimate(np.zeros((2, 0)))
    with pytest.raises(ValueError, match="no samples"):
        estimate(np.zeros((2, 3)), np.zeros((2, 3)))
