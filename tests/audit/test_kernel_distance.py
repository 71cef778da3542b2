"""The kernel distance and its permutation test."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from iadd_fast.audit.kernel_distance import kernel_test

CLASSES = 3


def drawn(counts: list[int], seed: int, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Samples of each class around a centre of its own, in no order of the classes."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=draw)]
    points = torch.randn(len(labels), 2, generator=draw) + 3.0 * labels[:, None]
    points[:, 0] += shift
    return points, labels


def by_pairs(x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, squared: float) -> float:
    """The definition: class by class, mean kernels over distinct pairs, weighted by shares."""

    def mean(a: Tensor, b: Tensor, same: bool) -> float:
        values = [
            math.exp(-float((p - q).square().sum()) / (2 * squared))
            for i, p in enumerate(a)
            for j, q in enumerate(b)
            if not (same and i == j)
        ]
        return sum(values) / len(values)

    total = 0.0
    for c in range(CLASSES):
        for d in range(CLASSES):
            weight = float((x_labels == c).double().mean() * (x_labels == d).double().mean())
            xc, xd, yc, yd = (
                x[x_labels == c],
                x[x_labels == d],
                y[y_labels == c],
                y[y_labels == d],
            )
            terms = mean(xc, xd, c == d) + mean(yc, yd, c == d) - 2 * mean(xc, yd, False)
            total += weight * terms
    return total


def test_statistic_is_the_definition() -> None:
    """Breaks when diagonals enter, pairs of a class are weighted otherwise or labels are mixed."""
    x, x_labels = drawn([2, 3, 4], 0)
    y, y_labels = drawn([4, 6, 8], 1, shift=0.5)
    found = kernel_test(x, y, x_labels, y_labels, 1.7, torch.Generator().manual_seed(0), 9)
    assert found.unbiased
    assert found.statistic == pytest.approx(by_pairs(x, y, x_labels, y_labels, 1.7), rel=1e-6)


@pytest.mark.parametrize("counts", [[3, 3, 3], [1, 1, 1]])
def test_level_and_mean_where_there_is_no_difference(counts: list[int]) -> None:
    """Breaks when permutations leave classes, or p is not one of the permutations' ranks."""
    matched = [4 * count for count in counts]
    rounds = 300
    found = []
    for seed in range(rounds):
        x, x_labels = drawn(counts, 2 * seed)
        y, y_labels = drawn(matched, 2 * seed + 1)
        draw = torch.Generator().manual_seed(seed)
        found.append(kernel_test(x, y, x_labels, y_labels, 2.0, draw, 99))
    p = torch.tensor([one.p_value for one in found])
    assert 0.02 <= float((p <= 0.05).double().mean()) <= 0.09
    assert 0.42 <= float((p <= 0.5).double().mean()) <= 0.58
    statistics = torch.tensor([one.statistic for one in found])
    if counts[0] > 1:
        assert abs(float(statistics.mean())) < 3 * float(statistics.std()) / math.sqrt(rounds)
    else:
        assert not found[0].unbiased


def test_a_difference_is_found() -> None:
    """Breaks when the test looks at the wrong tail: also with one sample a class."""
    for counts in ([5, 5, 5], [1, 1, 1]):
        x, x_labels = drawn(counts, 7, shift=-4.0)
        y, y_labels = drawn([10 * count for count in counts], 8)
        found = kernel_test(x, y, x_labels, y_labels, 2.0, torch.Generator().manual_seed(0))
        assert found.p_value <= 0.02
        assert found.statistic > found.null_high > found.null_mean


def test_classes_have_to_match() -> None:
    """Breaks when other class shares go unnoticed: the test would then find those."""
    x, x_labels = drawn([2, 2, 2], 0)
    y, y_labels = drawn([2, 2, 2], 1)
    draw = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="second_labels"):
        kernel_test(x, y, x_labels, y_labels.roll(1) * 0, 1.0, draw)
    with pytest.raises(ValueError, match="squared_bandwidth"):
        kernel_test(x, y, x_labels, y_labels, 0.0, draw)
