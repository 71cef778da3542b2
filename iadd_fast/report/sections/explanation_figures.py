"""The plots of the explainability section."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.colors import TwoSlopeNorm

from iadd_fast.report import drawing
from iadd_fast.report.figures import cut, wrapped

_LEGEND_ENTRIES = 12
#: Order of the parameters -> its name and its place in the colours, None for the text's colour.
ORDERS = {
    "learned": ("learned importance", 0),
    "within_layers": ("chance, within layers", 1),
    "movement": ("size of change", 2),
    "random": ("chance", None),
}


def loss_bars(
    weighted: Mapping[str, float],
    unweighted: Mapping[str, float],
    parameters: Mapping[str, float],
    *,
    alt: str,
    name: str,
) -> Markup:
    """Shares of the matching loss by layer: weighted (bar), unweighted (ring), of P (stroke)."""
    figure, axes = drawing.axes_of(4.6, 1.4 + 0.27 * len(weighted))
    places = np.arange(len(weighted))
    axes.barh(
        places,
        [100 * value for value in weighted.values()],
        color=drawing.LINE,
        height=0.7,
        label="of the loss",
    )
    marks: dict[str, Any] = {"linestyle": "", "color": drawing.INK, "markerfacecolor": "none"}
    for marker, size, label, shares in (
        ("o", 6, "of the loss with weights of 1", unweighted),
        ("|", 11, "of the parameters", parameters),
    ):
        values = [100 * shares.get(layer, np.nan) for layer in weighted]
        axes.plot(values, places, marker=marker, markersize=size, label=label, **marks)
    labels = [wrapped(layer) for layer in weighted]
    axes.set_yticks(places, labels, parse_math=False)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    drawing.label(axes, "share in %", "")
    drawing.legend(figure, axes)
    return drawing.svg(figure, alt, name)


def courses(
    iterations: Sequence[int],
    values: Mapping[str, Sequence[float | None]],
    *,
    ylabel: str,
    alt: str,
    name: str,
) -> Markup:
    """One line a layer over the run, first layer blue, last layer red."""
    figure, axes = drawing.axes_of(4.6, 3.2)
    for (layer, points), colour in zip(values.items(), drawing.colours(len(values)), strict=True):
        y = [np.nan if value is None else value for value in points]
        axes.plot(iterations, y, color=colour, linewidth=1.4, label=cut(layer))
    drawing.label(axes, "iteration", ylabel)
    if len(values) <= _LEGEND_ENTRIES:
        drawing.legend(figure, axes)
    return drawing.svg(figure, alt, name)


def filter_strips(
    iterations: Sequence[int], strips: Mapping[str, Any], *, alt: str, name: str
) -> Markup:
    """A strip for each tensor: filters downwards, the run to the right, mean v as colour.

    Blue is below 1, red above; one scale for all strips.
    """
    fields = {tensor: _field(values) for tensor, values in strips.items()}
    known = np.concatenate([field[np.isfinite(field)] for field in fields.values()])
    norm = _around(1.0, float(known.min()), float(known.max()))
    figure, _ = drawing.axes_of(4.6, 0.8 + 0.85 * len(fields))
    figure.clear()
    grid = figure.subplots(len(fields), squeeze=False)[:, 0]
    drawn = None
    for axes, (tensor, field) in zip(grid, fields.items(), strict=True):
        drawn = axes.imshow(
            field, aspect="auto", interpolation="nearest", cmap="RdYlBu_r", norm=norm
        )
        axes.tick_params(colors=drawing.INK, labelsize=8)
        axes.set_title(cut(tensor), fontsize=8, color=drawing.INK, loc="left", parse_math=False)
        axes.set_yticks([0, len(field) - 1], ["1", str(len(field))])
        axes.set_xticks([])
    places = sorted({0, len(iterations) // 2, len(iterations) - 1})
    grid[-1].set_xticks(places, [str(iterations[place]) for place in places])
    drawing.label(grid[-1], "iteration", "")
    _bar(figure, drawn, list(grid), "mean squared weight")
    return drawing.svg(figure, alt, name)


def influence_map(
    matrix: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    classes: Sequence[str],
    *,
    alt: str,
    name: str,
) -> Markup:
    """Synthetic samples downwards, classes to the right; red helps, blue hurts."""
    field = np.array(matrix, dtype=np.float64)
    largest = float(np.nanmax(np.abs(field))) if np.isfinite(field).any() else 1.0
    figure, axes = drawing.axes_of(4.6, min(9.0, 1.6 + 0.16 * max(len(field), 10)))
    norm = _around(0.0, -largest, largest)
    drawn = axes.imshow(field, aspect="auto", interpolation="nearest", cmap="RdBu_r", norm=norm)
    axes.grid(False)
    step = -(-len(classes) // 20)
    places = range(0, len(classes), step)
    names = [textwrap.shorten(classes[place], 14, placeholder="…") for place in places]
    axes.set_xticks(places, names, rotation=90, parse_math=False)
    step = -(-len(rows) // 30)
    places = range(0, len(rows), step)
    names = [textwrap.shorten(rows[place], 22, placeholder="…") for place in places]
    axes.set_yticks(places, names, parse_math=False)
    drawing.label(axes, "class", "")
    _bar(figure, drawn, [axes], "influence in nats")
    return drawing.svg(figure, alt, name)


def deletion_curves(
    shares: Sequence[float], curves: Mapping[str, Any], *, alt: str, name: str
) -> Markup:
    """Accuracy over the share set back, a line an order, bands of one standard deviation."""
    figure, axes = drawing.axes_of(4.6, 3.6)
    colours = drawing.colours(3)
    x = 100 * np.asarray(shares)
    for order, (label, place) in ORDERS.items():
        colour = drawing.INK if place is None else colours[place]
        mean = np.asarray(curves[order]["mean"])
        spread = curves[order]["spread"]
        if spread is not None:
            around = np.asarray(spread)
            axes.fill_between(
                x, mean - around, mean + around, color=colour, alpha=0.15, linewidth=0
            )
        style = "--" if place is None else "-"
        axes.plot(x, mean, color=colour, linewidth=1.4, linestyle=style, label=label)
    axes.set_ylim(bottom=0)
    drawing.label(axes, "% of the parameters set back", "test accuracy in %")
    drawing.legend(figure, axes)
    return drawing.svg(figure, alt, name)


def _field(values: Sequence[Sequence[float | None] | None]) -> np.ndarray:
    """Filters downwards, the run to the right; empty where the filters are not those of the end."""
    count = len(values[-1] or ())
    empty = [None] * count
    columns = [own if own is not None and len(own) == count else empty for own in values]
    return np.array(columns, dtype=np.float64).T


def _around(middle: float, low: float, high: float) -> TwoSlopeNorm:
    """Colours with their middle at ``middle``, as far to either side."""
    reach = max(middle - low, high - middle, 1e-9)
    return TwoSlopeNorm(middle, middle - reach, middle + reach)


def _bar(figure: Any, drawn: Any, axes: Any, label: str) -> None:
    bar = figure.colorbar(drawn, ax=axes, shrink=0.9, pad=0.02)
    bar.set_label(label, color=drawing.INK, fontsize=8)
    bar.ax.tick_params(colors=drawing.INK, labelsize=7)
    bar.outline.set_edgecolor(drawing.INK)
