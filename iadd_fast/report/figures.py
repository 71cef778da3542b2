"""The plots of the run and of series, as inline SVG text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup, escape
from torch import Tensor

from iadd_fast.report import drawing

POINTS = 600
SERIES_POINTS = 240
#: Letters in a line of a label beside an axis.
LABEL_WIDTH = 24
#: Values of a row that are drawn as dots, at most.
DOTS = 100
_LABEL_LINES = 4
_LEGEND_ENTRIES = 12


def curve(
    iterations: Sequence[float], values: Sequence[float], *, ylabel: str, alt: str, name: str
) -> Markup:
    """``values`` over ``iterations``; gaps where a value is not finite.

    More than ``POINTS`` values are drawn as means over equal runs of iterations. The axis is
    logarithmic where positive values span more than a factor of 50. ``name`` starts the ids inside
    the SVG and must be unique on the page.
    """
    x, y = thinned(iterations, values)
    figure, axes = drawing.axes_of(4.6, 2.7)
    axes.plot(
        x, y, color=drawing.LINE, linewidth=1.4, marker="o" if len(x) <= 30 else "", markersize=3
    )
    finite = y[np.isfinite(y)]
    if len(finite) and finite.min() > 0 and finite.max() > 50 * finite.min():
        axes.set_yscale("log")
    drawing.label(axes, "iteration", ylabel)
    return drawing.svg(figure, alt, name)


def layer_bars(weights: Mapping[str, float], *, alt: str, name: str) -> Markup:
    """One horizontal bar a layer, first layer on top; a dashed line marks the weight 1 of MTT."""
    figure, axes = drawing.axes_of(4.6, 0.9 + 0.27 * len(weights))
    positions = list(range(len(weights)))
    axes.barh(positions, list(weights.values()), color=drawing.LINE, height=0.7)
    axes.axvline(1.0, color=drawing.INK, linewidth=0.8, linestyle="--")
    labels = [wrapped(label) for label in weights]
    axes.set_yticks(positions, labels, parse_math=False)
    axes.invert_yaxis()
    drawing.label(axes, "mean squared weight", "")
    axes.grid(False, axis="y")
    return drawing.svg(figure, alt, name)


def layer_courses(
    iterations: Sequence[float], courses: Mapping[str, Sequence[float]], *, alt: str, name: str
) -> Markup:
    """The mean squared weight of each layer over the run, first layer blue, last layer red."""
    figure, axes = drawing.axes_of(4.6, 3.2)
    colours = drawing.colours(len(courses))
    for (layer, values), colour in zip(courses.items(), colours, strict=True):
        x, y = thinned(iterations, values)
        axes.plot(x, y, color=colour, linewidth=1.4, label=cut(layer))
    drawing.label(axes, "iteration", "mean squared weight")
    if len(courses) <= _LEGEND_ENTRIES:
        drawing.legend(figure, axes)
    return drawing.svg(figure, alt, name)


def dots(
    labels: Sequence[str],
    values: Sequence[Sequence[float]],
    intervals: Sequence[Sequence[float] | None],
    *,
    marked: Sequence[bool],
    xlabel: str,
    alt: str,
    name: str,
) -> Markup:
    """A row for each label, first on top: its values as dots below their mean and its interval.

    Of more than ``DOTS`` values the first are dots; the mean is of all.
    ``marked`` rows, those the plot is about, take the page's accent colour.
    """
    texts = [wrapped(label) for label in labels]
    lines = sum(max(2, text.count("\n") + 1) for text in texts)
    figure, axes = drawing.axes_of(4.6, 0.7 + 0.17 * lines)
    places = []
    place = 0.0
    for text, own, ends, is_marked in zip(texts, values, intervals, marked, strict=True):
        height = max(2, text.count("\n") + 1)
        place += height / 2
        places.append(place)
        colour = drawing.LINE if is_marked else drawing.INK
        dotted = own[:DOTS]
        below = [place + 0.45] * len(dotted)
        axes.scatter(dotted, below, s=9, color=colour, alpha=0.6, linewidths=0)
        if ends is not None:
            axes.plot(ends, [place, place], color=colour, linewidth=1.6)
        axes.plot([float(np.mean(own))], [place], "D", color=colour, markersize=4.5)
        place += height / 2
    axes.set_yticks(places, texts, parse_math=False)
    axes.set_ylim(place, 0.0)
    axes.margins(x=0.06)
    axes.grid(False, axis="y")
    drawing.label(axes, xlabel, "")
    return drawing.svg(figure, alt, name)


def totals(
    costs: Mapping[str, tuple[float, float]], limit: float, *, marked: str, alt: str, name: str
) -> Markup:
    """Seconds spent after so many trainings, up to ``limit``: (once, for each) of every label."""
    figure, axes = drawing.axes_of(4.6, 2.7)
    for label, (once, each) in costs.items():
        colour, style = (drawing.LINE, "-") if label == marked else (drawing.INK, "--")
        ends = [once, once + limit * each]
        axes.plot([0.0, limit], ends, style, color=colour, linewidth=1.4, label=label)
    axes.set_xlim(0.0, limit)
    axes.set_ylim(bottom=0.0)
    drawing.label(axes, "trainings", "seconds in all")
    drawing.legend(figure, axes)
    return drawing.svg(figure, alt, name)


def series_lines(series: Tensor, *, alt: str, name: str) -> Markup:
    """The channels of one series ``[C, L]`` over time, between their least and largest value.

    Written without matplotlib: a page may hold hundreds of them.
    """
    values = series.double().numpy()
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    width, height, margin = 160.0, 96.0, 13.0
    across = width / max(values.shape[1] - 1, 1)
    down = (height - 2 * margin) / ((high - low) or 1.0)
    lines = []
    for channel, colour in zip(values, drawing.colours(len(values)), strict=True):
        x, y = thinned(list(range(len(channel))), channel.tolist(), SERIES_POINTS)
        kept = np.isfinite(y)
        places = zip(x[kept] * across, height - margin - (y[kept] - low) * down, strict=True)
        points = " ".join(f"{right:.1f},{below:.1f}" for right, below in places)
        stroke = "#" + "".join(f"{round(255 * part):02x}" for part in colour)
        lines.append(f'<polyline points="{points}" stroke="{stroke}"/>')
    text = '<text class="text" fill="currentColor" x="1" y="{y}">{value:.3g}</text>'
    alt = escape(alt)
    return Markup(
        f'<svg id="{name}" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{alt}" '
        f'font-size="10" stroke-width="1.2" stroke-linejoin="round" fill="none">'
        f"<title>{alt}</title>{''.join(lines)}"
        f"{text.format(y=9, value=high)}{text.format(y=height - 4, value=low)}</svg>"
    )


def wrapped(label: str) -> str:
    """``label`` as it stands beside an axis: a few short lines, the rest left out."""
    held = label[: 2 * LABEL_WIDTH * _LABEL_LINES]
    return textwrap.fill(held, LABEL_WIDTH, max_lines=_LABEL_LINES, placeholder="…")


def cut(label: str) -> str:
    """``label`` as it stands in a legend, on one line."""
    most = 2 * LABEL_WIDTH
    return label if len(label) <= most else f"{label[: most - 1]}…"


def thinned(
    iterations: Sequence[float], values: Sequence[float], limit: int = POINTS
) -> tuple[np.ndarray, np.ndarray]:
    """At most ``limit`` points: means over equal runs of neighbours, of what is finite."""
    x = np.asarray(iterations, dtype=np.float64)
    y = np.asarray(values, dtype=np.float64)
    y = np.where(np.isfinite(y), y, np.nan)
    size = math.ceil(len(x) / limit)
    if size <= 1:
        return x, y
    starts = np.arange(0, len(x), size)
    present = np.isfinite(y)
    sums = np.add.reduceat(np.where(present, y, 0.0), starts)
    counts = np.add.reduceat(present.astype(np.float64), starts)
    lengths = np.diff(np.append(starts, len(x)))
    means = np.divide(sums, counts, out=np.full(len(starts), np.nan), where=counts > 0)
    return np.add.reduceat(x, starts) / lengths, means
