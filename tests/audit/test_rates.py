from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from iadd_fast.audit.rates import (
    auc_interval,
    detectable,
    difference_interval,
    placements,
    share_interval,
    tpr_at,
)

RNG = np.random.default_rng


def test_auc_is_that_of_scikit_learn_with_ties() -> None:
    """Breaks when ties do not count half, or the two sides are exchanged."""
    rng = RNG(0)
    members, others = rng.integers(2, 9, 70).astype(float), rng.integers(0, 8, 45).astype(float)
    truth = np.r_[np.ones(70), np.zeros(45)]
    placed = placements([members], [others])
    assert placed.auc == pytest.approx(roc_auc_score(truth, np.r_[members, others]), abs=1e-12)
    assert placed.others.mean() == pytest.approx(placed.auc, abs=1e-12)


def test_variance_is_delongs_by_brute_force() -> None:
    """Breaks when a divisor or one of the two components is wrong."""
    rng = RNG(1)
    x, y = rng.normal(0.7, 1.0, 13), rng.normal(0.0, 1.0, 9)
    kernel = np.array([[float(a > b) for b in y] for a in x])
    wanted = kernel.mean(1).var(ddof=1) / 13 + kernel.mean(0).var(ddof=1) / 9
    assert placements([x], [y]).variance()[0] == pytest.approx(wanted, rel=1e-12)


def test_shared_non_members_are_not_counted_as_more() -> None:
    """Breaks when two networks scoring the same records are taken for twice as many records."""
    rng = RNG(2)
    x, y = rng.normal(0.5, 1.0, 50), rng.normal(0.0, 1.0, 40)
    once = placements([x], [y])
    twice = placements([x, x], [y, y])
    assert twice.auc == pytest.approx(once.auc)
    members, others = once.members[0].var(ddof=1) / 50, once.others.var(ddof=1) / 40
    assert twice.variance()[0] == pytest.approx(members / 2 + others)


def test_a_difference_of_equal_scores_has_no_width_and_a_shift_is_found() -> None:
    """Breaks when the difference is not paired: it would be as wide as two single intervals."""
    rng = RNG(3)
    difficulty_x, difficulty_y = rng.normal(0.0, 1.0, 400), rng.normal(0.0, 1.0, 300)
    base = placements([difficulty_x], [difficulty_y])
    low, high = difference_interval(base.minus(base))
    assert low == high == 0.0
    other = placements(
        [difficulty_x + 0.2 + 0.05 * rng.normal(size=400)],
        [difficulty_y + 0.05 * rng.normal(size=300)],
    )
    low, high = difference_interval(other.minus(base))
    single = auc_interval(other)
    assert 0.02 < low < high < 0.10
    assert high - low < (single[1] - single[0]) / 2


@pytest.mark.parametrize(("members", "others"), [(12, 300), (200, 150)])
def test_under_the_null_the_interval_covers_a_half_at_its_nominal_rate(
    members: int, others: int
) -> None:
    """Breaks when the variance or the quantile is off: 95 % of 800 intervals should hold 0.5."""
    rng = RNG(4)
    inside = 0
    for _ in range(800):
        placed = placements([rng.normal(size=members)], [rng.normal(size=others)])
        low, high = auc_interval(placed)
        inside += low <= 0.5 <= high
    assert 0.925 <= inside / 800 <= 0.98


def test_perfect_separation_has_an_interval_that_narrows_with_the_count() -> None:
    """Breaks when a DeLong variance of 0 is believed."""
    few = auc_interval(placements([np.full(5, 1.0)], [np.zeros(50)]))
    many = auc_interval(placements([np.full(500, 1.0)], [np.zeros(5000)]))
    assert few[1] == many[1] == 1.0
    assert 0.6 < few[0] < 0.97 < many[0] < 1.0
    reverse = auc_interval(placements([np.zeros(5)], [np.full(50, 1.0)]))
    assert reverse == pytest.approx((0.0, 1.0 - few[0]), abs=1e-9)


def test_true_positive_rate_is_that_of_scikit_learn() -> None:
    """Breaks when the threshold lets too many non-members pass, or one fewer than allowed."""
    rng = RNG(5)
    members, others = rng.normal(1.0, 1.0, 700), rng.normal(0.0, 1.0, 1000)
    truth = np.r_[np.ones(700), np.zeros(1000)]
    fpr, tpr, _ = roc_curve(truth, np.r_[members, others], drop_intermediate=False)
    rates = [0.001, 0.01, 0.0155, 0.2]
    for rate, (value, low, high) in zip(
        rates, tpr_at([members], [others], rates, seed=0), strict=True
    ):
        assert value == pytest.approx(tpr[fpr <= rate].max())
        assert low <= value <= high


def test_ties_at_the_threshold_do_not_pass() -> None:
    """Breaks when non-members equal to the threshold are let through: the rate would exceed f."""
    others = np.r_[np.ones(50), np.zeros(950)]
    ((value, _, _),) = tpr_at([np.ones(20)], [others], [0.01], seed=0)
    assert value == 0.0


def test_the_interval_of_a_true_positive_rate_covers_it() -> None:
    """Breaks when only the members' error counts: the threshold's is the larger one here."""
    rng = RNG(6)
    truth = float(stats.norm.sf(stats.norm.ppf(0.99) - 2.0))
    inside = 0
    for draw in range(300):
        members, others = rng.normal(2.0, 1.0, 2000), rng.normal(0.0, 1.0, 1000)
        ((_, low, high),) = tpr_at([members], [others], [0.01], seed=draw)
        inside += low <= truth <= high
    assert 0.9 <= inside / 300 <= 0.99


def test_no_true_positive_still_leaves_room() -> None:
    """Breaks when a bootstrap of members that never pass gives the interval [0, 0]."""
    ((value, low, high),) = tpr_at([np.zeros(10)], [np.arange(1.0, 1001.0)], [0.01], seed=0)
    assert value == low == 0.0
    assert 0.15 < high < 0.4


def test_a_share_has_clopper_and_pearsons_interval() -> None:
    """Breaks when the beta quantiles are exchanged; 3 of 10 stands in every table."""
    assert share_interval(0.3, 10) == pytest.approx((0.06674, 0.65245), abs=1e-4)
    assert share_interval(0.0, 10) == pytest.approx((0.0, 0.30850), abs=1e-4)
    assert share_interval(1.0, 10)[1] == 1.0


def test_what_is_said_to_be_detectable_is_found_four_times_of_five() -> None:
    """Breaks when the power is computed of the wrong variance."""
    rng = RNG(7)
    size = 150
    gap = detectable(size, size)
    shift = math.sqrt(2.0) * float(stats.norm.ppf(0.5 + gap))
    found = 0
    for _ in range(400):
        placed = placements([rng.normal(shift, 1.0, size)], [rng.normal(size=size)])
        found += auc_interval(placed)[0] > 0.5
    assert 0.72 <= found / 400 <= 0.88
