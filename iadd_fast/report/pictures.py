"""Synthetic samples as pictures: PNG data URIs of images, line plots of series."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from iadd_fast.artifacts import DistilledSet
from iadd_fast.report import figures

PER_CLASS = 10
IN_ALL = 500


@dataclass(frozen=True)
class Picture:
    """One sample: ``source`` is a data URI, or ``drawing`` an inline SVG."""

    alt: str
    source: str = ""
    drawing: Markup | None = None


@dataclass(frozen=True)
class ClassPictures:
    """The pictures of one class."""

    name: str
    pictures: list[Picture]


def by_class(distilled: DistilledSet) -> tuple[list[ClassPictures], str]:
    """The samples in data space, class by class, and a sentence on how they are shown.

    At most ``PER_CLASS`` of a class and about ``IN_ALL`` in all (at least one a class, for the
    first ``IN_ALL`` classes). Soft labels belong to the class of their largest entry.
    """
    samples = distilled.pixels().detach().float().cpu()
    labels = distilled.labels.detach().cpu()
    if labels.ndim == 2:
        labels = labels.argmax(1)
    if samples.ndim not in (3, 4):
        return [], f"Samples of shape {tuple(samples.shape[1:])} are not drawn."
    names = list(distilled.class_names)[:IN_ALL]
    limit = max(1, min(PER_CLASS, IN_ALL // len(names)))
    is_image = samples.ndim == 4
    low, high = value_range(samples)
    classes = []
    shown = 0
    for label, name in enumerate(names):
        members = (labels == label).nonzero().flatten().tolist()[:limit]
        pictures = []
        for number, index in enumerate(members, start=1):
            kind = "image" if is_image else "series"
            alt = f"synthetic {kind} {number} of class {name}"
            if is_image:
                pictures.append(Picture(alt, source=png_uri(samples[index], low, high)))
            else:
                drawing = figures.series_lines(samples[index], alt=alt, name=f"series-{index}")
                pictures.append(Picture(alt, drawing=drawing))
        shown += len(pictures)
        classes.append(ClassPictures(name, pictures))
    note = f"{shown:,} of {len(samples):,} samples, in the space of the original data."
    if is_image:
        note += f" Values are clipped to the range {low:.3g} to {high:.3g}"
        note += "." if (low, high) == (0.0, 1.0) else " (1st to 99th percentile of the set)."
        if samples.shape[1] not in (1, 3, 4):
            note += f" Only the first of {samples.shape[1]} channels is shown."
    return classes, note


def value_range(samples: Tensor) -> tuple[float, float]:
    """(0, 1) for pixels that lie around it, else the 1st and 99th percentile of ``samples``."""
    ordered = samples.flatten().sort().values
    low = float(ordered[int(0.01 * (len(ordered) - 1))])
    high = float(ordered[int(0.99 * (len(ordered) - 1))])
    if low >= -1.0 and 0.25 <= high <= 2.0:
        return 0.0, 1.0
    return (low, high) if high > low else (low, low + 1.0)


def png_uri(image: Tensor, low: float, high: float) -> str:
    """One image ``[C, H, W]`` as a PNG data URI; ``low`` is black and ``high`` full brightness."""
    if image.shape[0] not in (1, 3, 4):
        image = image[:1]
    levels = ((image - low) / (high - low)).clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    pixels = levels[0] if levels.shape[0] == 1 else levels.permute(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
