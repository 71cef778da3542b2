"""What a set and the log of its run say of the importance weights and of what was pruned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from iadd_fast.artifacts import DistilledSet
from iadd_fast.importance.record import filter_means
from iadd_fast.metrics import Metrics
from iadd_fast.students import Student

#: Most points of the run that are kept by layer and filter, and of the number of pruned weights.
POINTS = 60
COUNTS = 300
_BY_LAYER = ("layer_weight", "pruned_by_layer", "loss_share", "loss_share_unweighted")


def importance(
    distilled: DistilledSet, student: Student | None, metrics: Metrics | None
) -> dict[str, Any]:
    """Importance v = w^2 by layer and by filter, in the set and over the run, JSON-able.

    Args:
        distilled: the set; its weights are those of the iteration that was chosen.
        student: the network the weights belong to; None where it is not known.
        metrics: the log of the run, or None.

    Returns:
        ``kind``: ``"learned"``, ``"mask"`` (weights of 0 and 1), ``"equal"``, or ``"none"``, with
        ``reason`` why. ``layers`` and ``filters``: of the set (None where there are no weights or
        ``student`` is not known). ``course``: over the run, by the keys of
        :func:`iadd_fast.importance.record.weight_record` and
        :func:`iadd_fast.importance.record.loss_shares`, each with its iterations, at most
        ``POINTS`` of those recorded; None for what was not recorded. ``pruned_course``: iterations
        and number of weights that are 0, where it changed, at most ``COUNTS`` of them.
    """
    weight = distilled.weight
    kind, reason = _kind(distilled)
    result: dict[str, Any] = {
        "kind": kind,
        "reason": reason,
        "policy": _policy(distilled),
        "iteration": distilled.summary.get("iteration"),
        "recorded": metrics is not None,
        "parameters": None if student is None else student.num_parameters,
        "pruned": None if weight is None else int((weight == 0).sum()),
        "layers": None,
        "filters": None,
        "course": {} if metrics is None else _course(metrics),
        "pruned_course": None if metrics is None else _pruned_course(metrics),
    }
    if weight is not None and student is not None:
        result["layers"] = _layers(student, weight)
        means, runs = filter_means(student, weight.double().square())
        dropped, _ = filter_means(student, (weight == 0).double())
        result["filters"] = [
            {
                "tensor": name,
                "mean": values,
                "pruned_share": dropped[name],
                "filters_per_value": runs.get(name, 1),
            }
            for name, values in means.items()
        ]
    return result


def _kind(distilled: DistilledSet) -> tuple[str, str]:
    weight = distilled.weight
    if weight is None:
        if distilled.config.get("method") == "gradient":
            return "none", (
                "The set was made by gradient matching, which compares gradients layer by layer "
                "and has no weights of parameters."
            )
        if _policy(distilled) == "uniform":
            return "none", (
                "The set was made by plain trajectory matching (MTT): every parameter counted "
                "the same and there are no weights."
            )
        return "none", "The set holds no weights: every parameter counted the same."
    values = weight.unique()
    if len(values) == 1:
        return "equal", "All weights are equal: every parameter counted the same."
    if len(values) == 2 and float(values[0]) == 0.0:
        return "mask", (
            "The weights are a mask: a parameter counted or it did not. The set holds the mask of "
            "the iteration that was chosen."
        )
    return "learned", ""


def _policy(distilled: DistilledSet) -> str | None:
    described = distilled.config.get("importance")
    if isinstance(described, Mapping):
        described = described.get("name")
    return described if isinstance(described, str) else None


def _layers(student: Student, weight: Tensor) -> list[dict[str, Any]]:
    value = weight.detach().double().square()
    total = float(value.sum())
    rows = []
    for layer, parts in student.layers().items():
        own = torch.cat([value[part] for part in parts])
        ends = torch.quantile(own, torch.tensor([0.05, 0.95], dtype=own.dtype))
        rows.append(
            {
                "layer": layer,
                "parameters": len(own),
                "mean": float(own.mean()),
                "low": float(ends[0]),
                "high": float(ends[1]),
                "share_of_weight": float(own.sum()) / total if total > 0 else None,
                "pruned": int((own == 0).sum()),
            }
        )
    return rows


def _course(metrics: Metrics) -> dict[str, Any]:
    course: dict[str, Any] = {}
    for key in (*_BY_LAYER, "filter_weight"):
        rows = [row for row in metrics.records if isinstance(row.get(key), Mapping) and row[key]]
        if not rows:
            course[key] = None
            continue
        kept = _spread_out(rows, POINTS)
        names = dict.fromkeys(name for row in kept for name in row[key])
        course[key] = {
            "iterations": [int(row["iteration"]) for row in kept],
            "recorded": len(rows),
            "values": {name: [_clean(row[key].get(name)) for row in kept] for name in names},
        }
        if key == "filter_weight":
            course["filter_run"] = dict(kept[-1].get("filter_run") or {})
    return course


def _pruned_course(metrics: Metrics) -> dict[str, Any] | None:
    rows = [row for row in metrics.records if isinstance(row.get("pruned"), int)]
    if not rows:
        return None
    before = [None, *(row["pruned"] for row in rows)]
    ends = (rows[0], rows[-1])
    changed = [
        row for row, last in zip(rows, before, strict=False) if row["pruned"] != last or row in ends
    ]
    kept = _spread_out(changed, COUNTS)
    return {
        "iterations": [int(row["iteration"]) for row in kept],
        "pruned": [row["pruned"] for row in kept],
        "changes": len(changed),
    }


def _spread_out(rows: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most ``most`` of the rows, evenly, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(k * (len(rows) - 1) / (most - 1))] for k in range(most)]


def _clean(value: Any) -> Any:
    if isinstance(value, list):
        return [_clean(entry) for entry in value]
    return value if isinstance(value, int | float) and math.isfinite(value) else None
