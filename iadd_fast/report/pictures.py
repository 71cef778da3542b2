"""Samples as pictures: PNG data URIs of images, line plots of series."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Literal

import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from iadd_fast.artifacts import DistilledSet
from iadd_fast.data import Data
from iadd_fast.report import figures

PER_CLASS = 10
IN_ALL = 500


@dataclass(frozen=True)
class Picture:
    """One sample: ``source`` is a data URI, or ``drawing`` an inline SVG; neither: not drawn."""

    alt: str
    source: str = ""
    drawing: Markup | None = None


@dataclass(frozen=True)
class ClassPictures:
    """The pictures of one class."""

    name: str
    pictures: list[Picture]


class Samples:
    """Synthetic and real samples as pictures in data space.

    Images share one scale of grey or colour (:attr:`range`); a series is drawn between its least
    and largest value, which stand beside it.

    Args:
        distilled: the set. data: the data it is shown beside (any normalisation).

    Attributes:
        range: the values drawn as black and as full brightness.
    """

    def __init__(self, distilled: DistilledSet, data: Data | None = None) -> None:
        self._synthetic = distilled.pixels().detach().float().cpu()
        self._data = data
        self.range = value_range(self._synthetic)
        self._drawn = 0

    def synthetic(self, index: int, alt: str) -> Picture:
        """The synthetic sample ``index``."""
        return self._picture(self._synthetic[index], alt)

    def real(self, part: Literal["train", "validation", "test"], index: int, alt: str) -> Picture:
        """The sample ``index`` of a part of the data.

        Raises:
            ValueError: there is no data, or the data has no such part.
        """
        split = None if self._data is None else getattr(self._data, part)
        if self._data is None or split is None:
            raise ValueError(f"data: got none with a {part} part, of which a sample is to be shown")
        image = split.images[index : index + 1].cpu()
        return self._picture(self._data.transform.invert(image)[0].float(), alt)

    def _picture(self, sample: Tensor, alt: str) -> Picture:
        if sample.ndim == 3:
            return Picture(alt, source=png_uri(sample, *self.range))
        if sample.ndim not in (1, 2):
            return Picture(alt)
        self._drawn += 1
        series = sample.reshape(-1, sample.shape[-1])
        drawing = figures.series_lines(series, alt=alt, name=f"sample-{self._drawn}")
        return Picture(alt, drawing=drawing)


def by_class(distilled: DistilledSet, samples: Samples) -> tuple[list[ClassPictures], str]:
    """The samples in data space, class by class, and a sentence on how they are shown.

    At most ``PER_CLASS`` of a class and about ``IN_ALL`` in all (at least one a class, for the
    first ``IN_ALL`` classes). Soft labels belong to the class of their largest entry.
    """
    labels = distilled.labels.detach().cpu()
    if labels.ndim == 2:
        labels = labels.argmax(1)
    shape = tuple(distilled.images.shape[1:])
    if len(shape) > 3:
        return [], f"Samples of shape {shape} are not drawn."
    names = list(distilled.class_names)[:IN_ALL]
    limit = max(1, min(PER_CLASS, IN_ALL // len(names)))
    kind = "image" if len(shape) == 3 else "series"
    classes = []
    for label, name in enumerate(names):
        members = (labels == label).nonzero().flatten().tolist()[:limit]
        drawn = [
            samples.synthetic(index, f"synthetic {kind} {number} of class {name}")
            for number, index in enumerate(members, start=1)
        ]
        classes.append(ClassPictures(name, drawn))
    shown = sum(len(entry.pictures) for entry in classes)
    note = f"{shown:,} of {len(distilled):,} samples, in the space of the original data."
    if kind == "image":
        low, high = samples.range
        note += f" Values are clipped to the range {low:.3g} to {high:.3g}"
        note += "." if (low, high) == (0.0, 1.0) else " (1st to 99th percentile of the set)."
        if shape[0] not in (1, 3, 4):
            note += f" Only the first of {shape[0]} channels is shown."
    else:
        note += " Each is drawn between its least and largest value, which stand at its left."
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
