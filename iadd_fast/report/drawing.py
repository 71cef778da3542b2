"""How a plot is drawn as inline SVG text.

Text and axes take the colour of the page (``currentColor``), so a plot is readable on a light and
on a dark page and in print. Equal input gives equal text. Nothing here touches pyplot or its state.
"""

from __future__ import annotations

import colorsys
import io
import re

from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

#: Drawn as the page's own text colour.
INK = "#010203"
#: Of the one line or bar that a plot is about.
LINE = "#3b7dd8"

#: Relative luminance (WCAG) at which a colour has a contrast above 3 with a light and a dark panel.
_LUMINANCE = 0.2
_GROUP = re.compile(r'<g id="text_\d+">')
_ID = re.compile(r' id="([^"]+)"')
_REFERENCE = re.compile(r'(href="#|url\(#)([^")]+)')


def colours(count: int) -> list[tuple[float, float, float]]:
    """From blue to red, all of one luminance that stands out from a light and from a dark page."""
    return [_of_luminance(0.6 * (1.0 - index / max(count - 1, 1))) for index in range(count)]


def axes_of(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty plot of this size in inches, on a transparent ground.

    A panel of the page is as wide as 4.6 inches: text of 8 points is then 9 pixels on a phone.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.subplots()
    axes.patch.set_alpha(0.0)
    axes.set_axisbelow(True)
    axes.grid(True, color=INK, alpha=0.15, linewidth=0.6)
    axes.tick_params(which="both", colors=INK, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))
    return figure, axes


def label(axes: Axes, xlabel: str, ylabel: str) -> None:
    """Name both axes."""
    for name, set_name in ((xlabel, axes.set_xlabel), (ylabel, axes.set_ylabel)):
        set_name(name, color=INK, fontsize=10, parse_math=False)


def legend(figure: Figure, axes: Axes) -> None:
    """The labels of what ``axes`` shows, below the plot."""
    drawn = figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        fontsize=9,
        frameon=False,
        labelcolor=INK,
    )
    for text in drawn.get_texts():
        text.set_parse_math(False)


def svg(figure: Figure, alt: str, name: str) -> Markup:
    """``figure`` as inline SVG; ``name`` starts its ids and must be unique on the page.

    Texts become outlines, so that they are as wide in every browser as they were laid out here;
    each stands in a group of the class ``text``.
    """
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    view_box = re.search(r'viewBox="([^"]+)"', text)
    assert view_box is not None
    body = text[text.index(">", view_box.end()) + 1 :]
    # matplotlib's style sheet would hold for the whole page
    body = re.sub(
        r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL
    )
    body = body.replace("xlink:href", "href").replace(INK, "currentColor")
    body = _GROUP.sub('<g class="text">', body)
    # matplotlib's ids are random and repeat between figures of one page
    used = dict.fromkeys(match.group(2) for match in _REFERENCE.finditer(body))
    names = {identity: f"{name}-{number}" for number, identity in enumerate(used)}
    body = _ID.sub(
        lambda found: f' id="{names[found.group(1)]}"' if found.group(1) in names else "", body
    )
    body = _REFERENCE.sub(lambda found: found.group(1) + names[found.group(2)], body)
    opening = (
        f'<svg viewBox="{view_box.group(1)}" role="img" aria-label="{escape(alt)}" '
        'stroke-linejoin="round" stroke-linecap="butt">'
    )
    return Markup(f"{opening}<title>{escape(alt)}</title>{body}")


def _of_luminance(hue: float) -> tuple[float, float, float]:
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        colour = colorsys.hls_to_rgb(hue, middle, 0.75)
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        low, high = (middle, high) if luminance < _LUMINANCE else (low, middle)
    return colorsys.hls_to_rgb(hue, low, 0.75)
