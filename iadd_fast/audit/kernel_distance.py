"""The maximum mean discrepancy of two samples of the same classes, tested by permutations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PERMUTATIONS = 999


@dataclass(frozen=True)
class KernelTest:
    """What :func:`kernel_test` found.

    Attributes:
        statistic: of the samples. null_mean, null_high: mean and 95 % quantile of the statistic
            with memberships permuted. p_value: the share of permutations (the samples themselves
            are one) with a statistic at least as large.
        unbiased: whether the statistic estimates the squared discrepancy without bias.
    """

    statistic: float
    null_mean: float
    null_high: float
    p_value: float
    unbiased: bool


@torch.no_grad()
def kernel_test(
    first: Tensor,
    second: Tensor,
    first_labels: Tensor,
    second_labels: Tensor,
    squared_bandwidth: float,
    generator: torch.Generator,
    permutations: int = PERMUTATIONS,
) -> KernelTest:
    """MMD^2 between two samples in which each class has the same share, and its permutation test.

    Kernel ``k(x, y) = exp(-|x - y|^2 / (2 s^2))``. With class shares ``a_c`` the statistic is
    ``sum_{c, d} a_c a_d (mean k(x_c, x_d) + mean k(y_c, y_d) - 2 mean k(x_c, y_d))`` with means
    over distinct pairs: the unbiased estimate of Gretton et al. (2012, lemma 6), stratified, for
    samples drawn class by class are not draws of their mixture. A class with one sample has no
    distinct pair; that term, a constant under permutation, is then left out and the statistic is
    not an unbiased estimate, but the test stands. Memberships are permuted within classes, which is
    exact where within each class both samples are draws of one distribution.

    Costs ``(n + m)^2 (d + permutations)`` multiplications.

    Args:
        first: ``[n, d]``. second: ``[m, d]``, m a multiple of n. first_labels: int64 ``[n]``.
        second_labels: int64 ``[m]``, each class m / n times as often.
        squared_bandwidth: ``s^2``, above 0. generator: fixes the permutations.

    Raises:
        ValueError: the classes are not matched, or ``squared_bandwidth`` is not above 0.
    """
    n, m = len(first), len(second)
    classes = int(max(first_labels.max(), second_labels.max())) + 1
    counts = first_labels.bincount(minlength=classes)
    if m % n or not torch.equal(counts * (m // n), second_labels.bincount(minlength=classes)):
        raise ValueError("second_labels: takes each class as many times as often as first_labels")
    if not squared_bandwidth > 0:
        raise ValueError(f"squared_bandwidth: got {squared_bandwidth}; takes a number above 0")
    labels = torch.cat([first_labels, second_labels])
    order = labels.argsort(stable=True)  # class after class, in each the first sample first
    points = torch.cat([first, second])[order].double()
    points -= points.mean(0)
    lengths = points.square().sum(1)
    squared = torch.addmm(lengths, points, points.T, alpha=-2.0).add_(lengths[:, None])
    kernel = squared.clamp_min_(0).div_(-2.0 * squared_bandwidth).exp_()
    kernel.fill_diagonal_(0.0)  # pairs are distinct
    sizes = (counts * (1 + m // n)).tolist()
    draws = [
        _memberships(int(c), size, permutations, generator)
        for c, size in zip(counts, sizes, strict=True)
    ]
    statistics = _statistics(kernel, [part.to(kernel.device) for part in draws], counts.tolist())
    found, null = float(statistics[0]), statistics[1:]
    # Rounding must not make a permutation that changes nothing smaller than the samples themselves.
    least = found - 1e-12 * (1.0 + abs(found))
    return KernelTest(
        statistic=found,
        null_mean=float(null.mean()),
        null_high=float(null.quantile(0.95)),
        p_value=(1 + int((null >= least).sum())) / (1 + permutations),
        unbiased=bool((counts[counts > 0] > 1).all()),
    )


def _memberships(count: int, size: int, permutations: int, generator: torch.Generator) -> Tensor:
    """float64 ``[1 + permutations, size]``: 1 for the first sample; the first row is as given."""
    own = (torch.arange(size) < count).double()[None]
    if size == 0:
        return own.expand(1 + permutations, 0)
    ranks = torch.rand(permutations, size, generator=generator).argsort(dim=1)
    return torch.cat([own, (ranks < count).double()])


def _statistics(kernel: Tensor, draws: list[Tensor], counts: list[int]) -> Tensor:
    x = torch.cat(draws, dim=1)
    n = sum(counts)
    m = x.shape[1] - n
    kx = x @ kernel
    xx = (kx * x).sum(1)
    xy = (kx * (1.0 - x)).sum(1)
    yy = kernel.sum() - xx - 2.0 * xy
    within = torch.zeros_like(xx)
    start = 0
    for member, count in zip(draws, counts, strict=True):
        stop = start + member.shape[1]
        block = kernel[start:stop, start:stop]
        other = 1.0 - member
        for side, size, total in ((member, count, n), (other, member.shape[1] - count, m)):
            same = ((side @ block) * side).sum(1)
            if total == n:
                xx = xx - same
            else:
                yy = yy - same
            if size > 1:
                within += (size / total) ** 2 * same / (size * (size - 1))
        start = stop
    return xx / n**2 + yy / m**2 + within - 2.0 * xy / (n * m)
