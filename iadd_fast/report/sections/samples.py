"""The synthetic samples in data space."""

from __future__ import annotations

from typing import Any

from iadd_fast.artifacts import DistilledSet
from iadd_fast.report import pictures


def measure(distilled: DistilledSet, samples: pictures.Samples) -> dict[str, Any]:
    """How many of what, and the range of values that pictures show."""
    return {
        "samples": len(distilled),
        "per_class": distilled.images_per_class,
        "shape": list(distilled.images.shape[1:]),
        "shown_range": list(samples.range) if distilled.images.ndim == 4 else None,
    }


def view(distilled: DistilledSet, samples: pictures.Samples) -> dict[str, Any]:
    """The pictures, class by class."""
    classes, note = pictures.by_class(distilled, samples)
    most = max((len(entry.pictures) for entry in classes), default=0)
    if distilled.images.ndim != 4:
        least = "11rem" if most == 1 else "20rem"
    else:
        least = "7.5rem" if most == 1 else "20rem"
    return {"title": title(distilled), "note": note, "classes": classes, "least": least}


def title(distilled: DistilledSet) -> str:
    """The heading of the section."""
    return f"The synthetic {'images' if distilled.images.ndim == 4 else 'series'}"
