"""Accuracy: every method on every architecture, and which differences exceed their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iadd_fast.evaluation import DISTILLED
from iadd_fast.evaluation_rows import Evaluation, EvaluationRow
from iadd_fast.report import figures
from iadd_fast.report.words import (
    CONFIDENCE,
    DRAWN,
    METHODS,
    breakable,
    count,
    interval,
    listed,
)

#: Adjusted probability below which a difference is said to exceed its uncertainty.
LEVEL = 1.0 - CONFIDENCE
#: Architectures with a plot, at most.
PLOTS = 12
COLUMNS = [
    ("method", False),
    ("network", False),
    ("mean ± standard deviation", True),
    ("95 % interval of the mean", True),
    ("networks", True),
]
COMPARISON_COLUMNS = [
    ("against", False),
    ("network", False),
    ("difference of the means", True),
    ("95 % interval", True),
    ("p", True),
    ("p, adjusted", True),
    ("finding", False),
]


def measure(evaluation: Evaluation, labels: Mapping[str, str]) -> dict[str, Any]:
    """Means with their uncertainty, and the distilled set against every other method.

    The interval of a mean is Student's t over networks (n - 1 degrees of freedom, the standard
    deviation with n - 1); ``std`` is the population standard deviation, as MTT reports it. The n-th
    networks of two methods started from the same parameters, so a difference is that of pairs
    (Student's t of the n differences); rows of different length are compared by Welch's t.
    ``p_adjusted`` is Holm's over all comparisons (Holm, Scand. J. Statist. 6, 1979); ``exceeds``
    says whether it is below 5 %, None where it cannot be told.

    Args:
        evaluation: what was measured. labels: method -> what the page calls it.

    Returns:
        JSON-able ``rows``, ``comparisons``, ``confidence`` and the evaluation's ``settings``.
    """
    rows: list[dict[str, Any]] = [
        {
            "method": row.method,
            "label": labels.get(row.method, METHODS.get(row.method, row.method)),
            "architecture": row.architecture,
            "mean": row.mean,
            "std": row.std,
            "interval": mean_interval(row.accuracies),
            "networks": len(row.accuracies),
            "accuracies": list(row.accuracies),
        }
        for architecture in evaluation.architectures
        for row in evaluation.rows
        if row.architecture == architecture
    ]
    comparisons = []
    for entry in rows:
        own = evaluation.row(DISTILLED, entry["architecture"])
        other = evaluation.row(entry["method"], entry["architecture"])
        if own is None or other is None or own is other:
            continue
        named = {key: entry[key] for key in ("method", "label", "architecture")}
        comparisons.append({**named, **_compared(own, other)})
    _adjust(comparisons)
    return {
        "rows": rows,
        "comparisons": comparisons,
        "confidence": CONFIDENCE,
        "settings": dict(evaluation.settings),
    }


def mean_interval(values: Sequence[float]) -> list[float] | None:
    """Student's t interval of a mean of percentages, within 0 to 100.

    None of fewer than two values, or of equal ones.
    """
    from scipy import stats

    if len(values) < 2 or min(values) == max(values):
        return None
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    mean = float(np.mean(values))
    return [max(mean - half, 0.0), min(mean + half, 100.0)]


def _compared(own: EvaluationRow, other: EvaluationRow) -> dict[str, Any]:
    from scipy import stats

    paired = len(own.accuracies) == len(other.accuracies)
    result: dict[str, Any] = {
        "difference": own.mean - other.mean,
        "paired": paired,
        "interval": None,
        "p": None,
        "reason": None,
    }
    if min(len(own.accuracies), len(other.accuracies)) < 2:
        result["reason"] = "one network shows no spread"
        return result
    if paired:
        differences = np.subtract(own.accuracies, other.accuracies)
        spread = float(np.std(differences))
    else:
        spread = own.std + other.std
    if spread < 1e-9:
        result["reason"] = "all pairs differ by the same"
        return result
    if paired:
        test = stats.ttest_1samp(differences, 0.0)
    else:
        test = stats.ttest_ind(own.accuracies, other.accuracies, equal_var=False)
    ends = test.confidence_interval(CONFIDENCE)
    result["interval"] = [float(ends.low), float(ends.high)]
    result["p"] = float(test.pvalue)
    return result


def _adjust(comparisons: list[dict[str, Any]]) -> None:
    tested = sorted((entry for entry in comparisons if entry["p"] is not None), key=_p)
    reached = 0.0
    for place, entry in enumerate(tested):
        reached = max(reached, min(1.0, (len(tested) - place) * entry["p"]))
        entry["p_adjusted"] = reached
    for entry in comparisons:
        adjusted = entry.setdefault("p_adjusted", None)
        entry["exceeds"] = None if adjusted is None else adjusted < LEVEL


def _p(entry: Mapping[str, Any]) -> float:
    return entry["p"]


def view(measured: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of :func:`measure`."""
    rows, comparisons = measured["rows"], measured["comparisons"]
    return {
        "sentences": findings(comparisons),
        "plots": _plots(rows),
        "columns": COLUMNS,
        "rows": [
            [
                row["label"],
                breakable(row["architecture"]),
                f"{row['mean']:.2f} ± {row['std']:.2f}",
                interval(row["interval"], 2) or "not resolved",
                str(row["networks"]),
            ]
            for row in rows
        ],
        "marked": [place for place, row in enumerate(rows) if row["method"] == DISTILLED],
        "comparison_columns": COMPARISON_COLUMNS,
        "comparisons": [
            [
                entry["label"],
                breakable(entry["architecture"]),
                f"{entry['difference']:+.2f}",
                interval(entry["interval"], 2, "+") or "not resolved",
                "not resolved" if entry["p"] is None else f"{entry['p']:.2g}",
                "not resolved" if entry["p"] is None else f"{entry['p_adjusted']:.2g}",
                _finding(entry),
            ]
            for entry in comparisons
        ],
        "notes": _notes(measured),
    }


def findings(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each architecture: above what, below what, and what cannot be told."""
    sentences = []
    for architecture in dict.fromkeys(entry["architecture"] for entry in comparisons):
        own = [entry for entry in comparisons if entry["architecture"] == architecture]
        above = [_named(e) for e in own if e["exceeds"] and e["difference"] > 0]
        below = [_named(e) for e in own if e["exceeds"] and e["difference"] < 0]
        level = [_named(e) for e in own if not e["exceeds"]]
        parts = []
        if above:
            parts.append(f"above {listed(above)}")
        if below:
            parts.append(f"below {listed(below)}")
        text = f"On {architecture} the distilled set is " + " and ".join(parts) if parts else ""
        if level and text:
            text += f"; no difference is shown from {listed(level)}"
        elif level:
            text = f"On {architecture} no difference is shown from {listed(level)}"
        sentences.append(text + ".")
    return sentences


def _named(entry: Mapping[str, Any]) -> str:
    return f"{entry['label']} ({entry['difference']:+.1f} points)"


def _finding(entry: Mapping[str, Any]) -> str:
    if entry["exceeds"] is None:
        return f"cannot be told: {entry['reason']}"
    if not entry["exceeds"]:
        return "no difference shown"
    return "the set is above" if entry["difference"] > 0 else "the set is below"


def _plots(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    plots = []
    for place, architecture in enumerate(_architectures(rows)[:PLOTS]):
        methods = [row for row in rows if row["architecture"] == architecture]
        own = methods[:DRAWN]
        alt = f"Test accuracy on {architecture}: " + ", ".join(
            f"{row['label']} {row['mean']:.1f} %"
            + (f" ({interval(row['interval'])})" if row["interval"] else "")
            for row in own
        )
        figure = figures.dots(
            [row["label"] for row in own],
            [row["accuracies"] for row in own],
            [row["interval"] for row in own],
            marked=[row["method"] == DISTILLED for row in own],
            xlabel="test accuracy in %",
            alt=alt,
            name=f"accuracy-{place}",
        )
        note = "Each dot is one network; above them their mean and its 95 % interval."
        if any(row["networks"] > figures.DOTS for row in own):
            note += f" Dots are the first {figures.DOTS} networks."
        if len(methods) > DRAWN:
            note += f" Drawn are the first {DRAWN} of {len(methods):,} methods."
        plots.append({"title": f"On {architecture}", "figure": figure, "note": note})
    return plots


def _architectures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["architecture"] for row in rows))


def _notes(measured: Mapping[str, Any]) -> list[str]:
    settings = measured["settings"]
    parts = []
    if settings.get("epochs"):
        parts.append(f"{settings['epochs']} epochs")
    if settings.get("full_epochs"):
        parts.append(f"{settings['full_epochs']} for the full data")
    if "augment" in settings:
        parts.append(f"augmentation {settings['augment'] or 'none'}")
    if settings.get("test_images"):
        parts.append(f"{settings['test_images']:,} test samples, tested once at the end")
    if settings.get("device"):
        parts.append(f"trained on {settings['device']}")
    compared = sum(entry["p"] is not None for entry in measured["comparisons"])
    adjusted = (
        f" p is adjusted for {count(compared, 'comparison')} by Holm's method, and a difference "
        "counts where the adjusted p is below 0.05."
    )
    drawn = len(_architectures(measured["rows"]))
    return [
        *([f"Drawn are the first {PLOTS} of {drawn:,} networks."] if drawn > PLOTS else []),
        *(["The same protocol for every row: " + "; ".join(parts) + "."] if parts else []),
        "The standard deviation is that of the population (as MTT reports it). The n-th "
        "networks of two rows start from the same parameters, so a difference is that of such "
        "pairs, with Student's t." + (adjusted if compared else ""),
        "The uncertainty is that of other initial parameters and orders of batches (for random "
        "real images, of their draw too). It does not cover another test part, or another run of "
        "the distillation.",
    ]
