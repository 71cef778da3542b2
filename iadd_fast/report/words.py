"""Numbers as a page writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iadd_fast.baselines import BASELINES
from iadd_fast.evaluation import DISTILLED, FULL

NOT_MEASURED = "not measured"
#: Of every interval on the page that does not say otherwise.
CONFIDENCE = 0.95
#: Layers or methods in a plot, at most: more take minutes to draw, and nobody reads them.
DRAWN = 50
METHODS = {
    DISTILLED: "distilled set",
    **dict(zip(BASELINES, ("random real images", "herding", "k-centre"), strict=True)),
    FULL: "full training data",
}


def duration(seconds: float) -> str:
    """Such as 0.35 s, 12.4 s, 5.2 min, 3.1 h."""
    if seconds < 1.0:
        return f"{seconds:.2g} s"
    for unit, size in (("s", 1.0), ("min", 60.0), ("h", 3600.0)):
        if seconds < 100.0 * size or unit == "h":
            return f"{seconds / size:,.1f} {unit}"
    raise AssertionError("unreachable")


def size(count: float) -> str:
    """Such as 2,640 bytes, 1.2 MB (10^6 bytes)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 10 * scale or (unit == "MB" and count >= scale):
            return f"{count / scale:,.1f} {unit}"
    return f"{count:,.0f} bytes"


def interval(ends: Sequence[float] | None, digits: int = 1, sign: str = "") -> str | None:
    """Such as "90.1 to 92.4"; None for None."""
    if ends is None:
        return None
    low, high = ends
    return f"{low:{sign}.{digits}f} to {high:{sign}.{digits}f}"


def ratio(value: float) -> str:
    """Such as "1.53" or "6,000": three digits, all of a whole number above."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def listed(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def count(number: int, noun: str) -> str:
    """ "1 network", "5 networks"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def first(entries: Mapping[str, Any], noun: str) -> tuple[dict[str, Any], str]:
    """The first ``DRAWN`` entries, and the sentence that says so where there are more."""
    if len(entries) <= DRAWN:
        return dict(entries), ""
    shown = dict(list(entries.items())[:DRAWN])
    return shown, f" Drawn are the first {DRAWN} of {len(entries):,} {noun}."


def breakable(name: str) -> str:
    """The name of a network, which a narrow column may break after a comma or colon."""
    return name.replace(",", ",\N{ZERO WIDTH SPACE}").replace(":", ":\N{ZERO WIDTH SPACE}")
