"""The plots of the report, as inline SVG text.

Text and axes take the colour of the page (``currentColor``), so a plot is readable on a light and
on a dark page and in print. Equal input gives equal text. Nothing here touches pyplot or its state.
"""

from __future__ import annotations

import colorsys
import io
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from torch import Tensor

POINTS = 600
_INK = "#010203"
_LINE = "#3b7dd8"
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
    figure, axes = _axes(4.6, 2.7)
    axes.plot(x, y, color=_LINE, linewidth=1.4, marker="o" if len(x) <= 30 else "", markersize=3)
    finite = y[np.isfinite(y)]
    if len(finite) and finite.min() > 0 and finite.max() > 50 * finite.min():
        axes.set_yscale("log")
    _label(axes, "iteration", ylabel)
    return _svg(figure, alt, name)


def layer_bars(weights: Mapping[str, float], *, alt: str, name: str) -> Markup:
    """One horizontal bar a layer, first layer on top; a dashed line marks the weight 1 of MTT."""
    figure, axes = _axes(4.6, 0.9 + 0.27 * len(weights))
    positions = list(range(len(weights)))
    axes.barh(positions, list(weights.values()), color=_LINE, height=0.7)
    axes.axvline(1.0, color=_INK, linewidth=0.8, linestyle="--")
    axes.set_yticks(positions, list(weights))
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.invert_yaxis()
    _label(axes, "mean squared weight", "")
    axes.grid(False, axis="y")
    return _svg(figure, alt, name)


def layer_courses(
    iterations: Sequence[float], courses: Mapping[str, Sequence[float]], *, alt: str, name: str
) -> Markup:
    """The mean squared weight of each layer over the run, first layer blue, last layer red."""
    figure, axes = _axes(4.6, 3.2)
    colours = _colours(len(courses))
    for (layer, values), colour in zip(courses.items(), colours, strict=True):
        x, y = thinned(iterations, values)
        axes.plot(x, y, color=colour, linewidth=1.4, label=layer)
    _label(axes, "iteration", "mean squared weight")
    if len(courses) <= _LEGEND_ENTRIES:
        legend = figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            fontsize=8,
            frameon=False,
            labelcolor=_INK,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    return _svg(figure, alt, name)


def series_lines(series: Tensor, *, alt: str, name: str) -> Markup:
    """The channels of one series ``[C, L]`` over time."""
    figure, axes = _axes(3.2, 1.9)
    for channel, colour in zip(series.tolist(), _colours(len(series)), strict=True):
        axes.plot(channel, color=colour, linewidth=1.2)
    _label(axes, "time step", "")
    return _svg(figure, alt, name)


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


def _colours(count: int) -> list[tuple[float, float, float]]:
    """From blue to red at a lightness that stands out from a light and from a dark page."""
    return [
        colorsys.hls_to_rgb(0.6 * (1.0 - index / max(count - 1, 1)), 0.5, 0.65)
        for index in range(count)
    ]


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.subplots()
    axes.patch.set_alpha(0.0)
    axes.grid(True, color=_INK, alpha=0.15, linewidth=0.6)
    axes.tick_params(colors=_INK, labelsize=8)
    for side, spine in axes.spines.items():
        spine.set_color(_INK)
        spine.set_visible(side in ("left", "bottom"))
    return figure, axes


def _label(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel, color=_INK, fontsize=9)
    axes.set_ylabel(ylabel, color=_INK, fontsize=9)


def _svg(figure: Figure, alt: str, name: str) -> Markup:
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    view_box = re.search(r'viewBox="([^"]+)"', text)
    assert view_box is not None
    body = text[text.index(">", view_box.end()) + 1 :]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href", "href").replace(_INK, "currentColor")
    # matplotlib's ids are random and repeat between figures of one page
    for number, identity in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]+)"', body))):
        pattern = rf'(id="|href="#|url\(#){re.escape(identity)}(?=["\)])'
        body = re.sub(pattern, rf"\g<1>{name}-{number}", body)
    opening = f'<svg viewBox="{view_box.group(1)}" role="img" aria-label="{escape(alt)}">'
    return Markup(opening + f"<title>{escape(alt)}</title>" + body)
