"""The plots of the privacy section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from iadd_fast.report import drawing


def yardstick_histogram(
    histogram: Mapping[str, Any],
    own: str,
    *,
    xlabel: str,
    alt: str,
    name: str,
    threshold: float | None = None,
) -> Markup:
    """Shares of the set's samples (bars) and of held-out real samples (line) in common bins.

    A dashed line stands at ``threshold``.
    """
    edges = np.asarray(histogram["edges"])
    figure, axes = drawing.axes_of(4.0, 2.5)
    shares = {
        key: np.asarray(histogram["counts"][key]) / max(1, sum(histogram["counts"][key]))
        for key in (own, "held-out")
    }
    axes.stairs(
        100 * shares[own], edges, fill=True, color=drawing.LINE, alpha=0.55, label="synthetic"
    )
    axes.stairs(
        100 * shares["held-out"], edges, color=drawing.INK, linewidth=1.2, label="held-out real"
    )
    if threshold is not None:
        axes.axvline(threshold, color=drawing.INK, linewidth=0.8, linestyle="--")
    drawing.label(axes, xlabel, "% of samples")
    axes.legend(fontsize=8, frameon=False, labelcolor=drawing.INK)
    return drawing.svg(figure, alt, name)


def roc(
    curves: Sequence[tuple[str, Mapping[str, Sequence[float]]]], *, alt: str, name: str
) -> Markup:
    """True over false-positive rate, both logarithmic, with bands of 95 %; dashed: guessing.

    Rates below the smallest of the plot (a tenth of the first false-positive rate) stand on its
    lower edge.
    """
    figure, axes = drawing.axes_of(4.6, 3.4)
    floor = min(curve["fpr"][0] for _, curve in curves) / 10
    colours = drawing.colours(len(curves))
    for (label, curve), colour in zip(curves, colours, strict=True):
        rates = np.asarray(curve["fpr"])
        low, middle, high = (
            np.maximum(np.asarray(curve[key]), floor) for key in ("low", "tpr", "high")
        )
        axes.fill_between(rates, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(rates, middle, color=colour, linewidth=1.4, label=label)
    ends = np.asarray([floor, 1.0])
    axes.plot(ends, ends, color=drawing.INK, linewidth=0.8, linestyle="--", label="guessing")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(min(curve["fpr"][0] for _, curve in curves), 1.0)
    axes.set_ylim(floor, 1.3)
    drawing.label(axes, "false-positive rate", "true-positive rate")
    legend = figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=1,
        fontsize=8,
        frameon=False,
        labelcolor=drawing.INK,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return drawing.svg(figure, alt, name)


def moved(entry: Mapping[str, Any], *, alt: str, name: str) -> Markup:
    """Each sample's distance to its own initial image over that to the nearest other record."""
    figure, axes = drawing.axes_of(4.0, 2.8)
    other, own = np.asarray(entry["nearest_other"]), np.asarray(entry["moved"])
    axes.scatter(other, own, s=14, color=drawing.LINE, alpha=0.7, linewidths=0)
    end = float(max(other.max(), own.max(), 1e-12)) * 1.05
    axes.plot([0, end], [0, end], color=drawing.INK, linewidth=0.8, linestyle="--")
    axes.set_xlim(0, end)
    axes.set_ylim(0, end)
    drawing.label(axes, "nearest other training record", "its own first image")
    return drawing.svg(figure, alt, name)
