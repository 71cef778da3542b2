"""The plots of the representativeness section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from iadd_fast.report import drawing
from iadd_fast.report.sections.representativeness_texts import group

#: Longest name of a group that a plot writes out.
LONGEST = 34


def intervals(rows: Sequence[Mapping[str, Any]], *, alt: str, name: str) -> Markup:
    """Accuracy of full-data (ring) and distilled networks (dot) with intervals, a row a group."""
    figure, axes = drawing.axes_of(4.6, 1.0 + 0.34 * len(rows))
    for method, colour, offset, filled in (
        ("full", drawing.INK, -0.16, False),
        ("distilled", drawing.LINE, 0.16, True),
    ):
        found = [row["accuracy"][method] for row in rows]
        places = np.arange(len(rows)) + offset
        axes.hlines(
            places,
            [one["low"] for one in found],
            [one["high"] for one in found],
            color=colour,
            linewidth=1.2,
        )
        axes.plot(
            [one["value"] for one in found],
            places,
            linestyle="",
            marker="o",
            markersize=4,
            color=colour,
            markerfacecolor=colour if filled else "none",
            label="full data" if method == "full" else "distilled set",
        )
    axes.set_yticks(range(len(rows)), [_short(group(row)) for row in rows])
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    drawing.label(axes, "accuracy in %", "")
    drawing.legend(figure, axes)
    return drawing.svg(figure, alt, name)


def reliability(bins: Sequence[Mapping[str, Any]], *, alt: str, name: str) -> Markup:
    """Accuracy over confidence with intervals; a dashed line where both are equal."""
    figure, axes = drawing.axes_of(4.6, 3.2)
    axes.plot([0, 1], [0, 1], color=drawing.INK, linewidth=0.8, linestyle="--")
    x = [one["confidence"] for one in bins]
    found = [one["accuracy"] for one in bins]
    axes.vlines(
        x,
        [one["low"] for one in found],
        [one["high"] for one in found],
        color=drawing.LINE,
        linewidth=1.2,
    )
    axes.plot(
        x, [one["value"] for one in found], color=drawing.LINE, linewidth=1.2, marker="o", ms=4
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    drawing.label(axes, "confidence", "share right")
    return drawing.svg(figure, alt, name)


def disagreements(
    matrix: Sequence[Sequence[float]], class_names: Sequence[str], *, alt: str, name: str
) -> Markup:
    """Samples by both predictions where they differ; larger numbers on a stronger ground."""
    counts = np.array(matrix, dtype=np.float64)
    np.fill_diagonal(counts, 0.0)
    figure, axes = drawing.axes_of(4.6, 4.2)
    most = max(float(counts.max()), 1e-9)
    for row, column in zip(*np.nonzero(counts), strict=True):
        value = float(counts[row, column])
        axes.fill_between(
            [column - 0.5, column + 0.5],
            row - 0.5,
            row + 0.5,
            color=drawing.LINE,
            alpha=0.6 * value / most,
            linewidth=0,
        )
        if value >= 0.05:
            axes.text(
                column,
                row,
                f"{value:.0f}" if value >= 9.5 else f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=8,
                color=drawing.INK,
            )
    names = [_short(one, 12) for one in class_names]
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(False)
    drawing.label(axes, "predicted by a distilled network", "by a full-data network")
    return drawing.svg(figure, alt, name)


def _short(text: str, longest: int = LONGEST) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
