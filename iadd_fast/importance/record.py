"""What a run writes down of its importance weights: by layer, by filter, and in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from iadd_fast.students import Student

#: Most values kept of one parameter tensor; the filters of a wider one are averaged in equal runs.
FILTERS = 512
_DIGITS = 4


def weight_record(student: Student, weight: Tensor) -> dict[str, Any]:
    """What the weights ``w [P]`` say, JSON-able, with v = w^2::

        layer_weight     layer -> mean of v
        filter_weight    tensor -> mean of v over each of its filters
        filter_run       tensor -> neighbouring filters averaged in one value, where more than 1
        pruned_by_layer  layer -> number of parameters with w = 0

    A filter is one index of the first dimension of a parameter tensor with two or more: an output
    channel of a convolution, a row of a linear layer. Biases and the parameters of norms belong to
    layers only. Of a tensor with more than ``FILTERS`` filters, runs of neighbours are averaged.
    """
    value = weight.detach().double().square()
    dropped = weight.detach() == 0
    filters, runs = filter_means(student, value)
    return {
        "layer_weight": {
            layer: float(torch.cat([value[part] for part in parts]).mean())
            for layer, parts in student.layers().items()
        },
        "filter_weight": filters,
        "filter_run": runs,
        "pruned_by_layer": {
            layer: sum(int(dropped[part].sum()) for part in parts)
            for layer, parts in student.layers().items()
        },
    }


def filter_means(student: Student, values: Tensor) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Means of ``values [P]`` over the filters of each tensor, and the runs that were averaged.

    As ``filter_weight`` and ``filter_run`` of :func:`weight_record`.
    """
    means: dict[str, list[float]] = {}
    runs: dict[str, int] = {}
    for entry in student.parameters:
        if len(entry.shape) < 2:
            continue
        by_filter = values[entry.start : entry.stop].view(entry.shape[0], -1).mean(1)
        run = -(-len(by_filter) // FILTERS)
        if run > 1:
            runs[entry.name] = run
            by_filter = torch.stack([part.mean() for part in by_filter.split(run)])
        means[entry.name] = [_rounded(number) for number in by_filter.tolist()]
    return means, runs


def loss_shares(
    student: Student,
    reached: Sequence[Tensor],
    targets: Sequence[Tensor],
    weights: Sequence[Tensor | None],
) -> dict[str, dict[str, float]]:
    """The share of the matching loss that each layer carries, averaged over segments::

        sum_{p in layer} (w_p (theta_J - target)_p)^2 / sum_p (w_p (theta_J - target)_p)^2

    Args:
        student: the network. reached: theta_J ``[P]`` of each segment. targets: of each segment.
        weights: w ``[P]`` of each segment, None for 1.

    Returns:
        ``loss_share`` and, with w = 1, ``loss_share_unweighted``, each by layer; nothing where a
        distance is 0 or not finite, or there is no segment.
    """
    if not reached:
        return {}
    squared = [
        (theta.detach().double() - target.detach().double()).square()
        for theta, target in zip(reached, targets, strict=True)
    ]
    weighted = [
        error if weight is None else error * weight.detach().double().square()
        for error, weight in zip(squared, weights, strict=True)
    ]
    totals = torch.stack([error.sum() for error in (*squared, *weighted)])
    if not bool((totals.isfinite() & (totals > 0)).all()):
        return {}
    return {
        "loss_share": _by_layer(student, weighted),
        "loss_share_unweighted": _by_layer(student, squared),
    }


def _by_layer(student: Student, errors: Sequence[Tensor]) -> dict[str, float]:
    shares = torch.stack([error / error.sum() for error in errors]).mean(0)
    return {
        layer: _rounded(float(sum(shares[part].sum() for part in parts)))
        for layer, parts in student.layers().items()
    }


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
