"""Pictures of samples and plots."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iadd_fast.artifacts import DistilledSet
from iadd_fast.data.transform import Standardise
from iadd_fast.report import drawing, figures, pictures, write_report
from tests.report.small import Page, small_set


def test_pictures_are_in_data_space(tmp_path: Path) -> None:
    """Breaks if the transform is not inverted, or grey levels are stretched image by image."""
    distilled = small_set(
        images=torch.full((4, 1, 4, 4), 2.0),
        transform=Standardise(torch.tensor([0.1]), torch.tensor([0.2])),
    )
    image = Page(write_report(tmp_path, distilled)).all("img")[0]
    payload = str(image["src"]).split(",")[1]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(payload))))
    assert pixels.shape == (4, 4)
    assert set(pixels.flatten().tolist()) == {round(255 * 0.5)}


def test_pictures_keep_channels_and_orientation() -> None:
    """Breaks if channels are mixed up or an image is transposed."""
    image = torch.zeros(3, 2, 4)
    image[0, 0, 3] = 1.0
    image[2, 1, 0] = 0.4
    payload = pictures.png_uri(image, 0.0, 1.0).split(",")[1]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(payload))))
    assert pixels.shape == (2, 4, 3)
    assert pixels[0, 3].tolist() == [255, 0, 0]
    assert pixels[1, 0].tolist() == [0, 0, 102]
    assert int((pixels > 0).sum()) == 2


def test_pixels_far_from_zero_to_one_are_scaled_and_the_page_says_so(tmp_path: Path) -> None:
    """Breaks if pixels of 0..16 are clipped to white at 1."""
    distilled = small_set(images=torch.linspace(0.0, 16.0, 64).view(4, 1, 4, 4))
    low, high = pictures.value_range(distilled.images)
    assert low < 0.3 and high > 15.7
    assert "percentile" in Page(write_report(tmp_path, distilled)).text
    assert pictures.value_range(small_set().images) == (0.0, 1.0)


def by_class(distilled: DistilledSet) -> tuple[list[pictures.ClassPictures], str]:
    return pictures.by_class(distilled, pictures.Samples(distilled))


def test_pictures_stand_under_their_class(tmp_path: Path) -> None:
    """Breaks if samples are shown in storage order; soft labels count by their largest entry."""
    soft = torch.tensor([[0.4, 0.6], [0.7, 0.3], [0.2, 0.8], [0.1, 0.9]])
    classes, note = by_class(small_set(labels=soft))
    assert [(entry.name, len(entry.pictures)) for entry in classes] == [("cat", 1), ("dog", 3)]
    assert classes[0].pictures[0].source == pictures.png_uri(small_set().images[1], 0.0, 1.0)
    assert note.startswith("4 of 4 samples")


def test_many_samples_are_limited_and_the_page_says_how_many(tmp_path: Path) -> None:
    """Breaks if a set of 50 images a class makes a page of thousands of pictures."""
    distilled = small_set(
        images=torch.rand(60, 1, 2, 2), labels=torch.arange(2).repeat_interleave(30)
    )
    page = Page(write_report(tmp_path, distilled))
    assert len(page.all("img")) == 20
    assert "20 of 60 samples" in page.text


def test_series_are_drawn_as_lines(tmp_path: Path) -> None:
    """Breaks if series are written as images or their text speaks of images."""
    distilled = small_set(images=torch.rand(4, 2, 30), student_spec={"name": "convnet1d"})
    page = Page(write_report(tmp_path, distilled))
    assert page.all("img") == []
    assert [svg["aria-label"] for svg in page.all("svg")] == [
        f"synthetic series {number} of class {name}" for name in ("cat", "dog") for number in (1, 2)
    ]
    assert "4 synthetic series" in page.text and "The synthetic series" in page.text


def test_a_series_is_drawn_where_its_values_are() -> None:
    """Breaks if time or values are turned round, or a gap is drawn as a value."""
    series = torch.tensor([[0.0, 1.0, float("nan"), 4.0]])
    drawn = str(figures.series_lines(series, alt="one", name="x"))
    (points,) = re.findall(r'points="([^"]+)"', drawn)
    places = [tuple(map(float, pair.split(","))) for pair in points.split()]
    assert [place[0] for place in places] == pytest.approx([0.0, 53.3, 160.0])
    heights = [place[1] for place in places]
    assert heights[0] == 83.0 and heights[2] == 13.0
    assert heights[1] == pytest.approx(83.0 - 70.0 / 4)
    assert re.findall(r">([^<>]+)</text>", drawn) == ["4", "0"]


def test_colours_stand_out_from_a_light_and_a_dark_page() -> None:
    """Contrast of graphics at least 3 (WCAG 1.4.11): breaks with a yellow line on white."""

    def luminance(colour: tuple[float, ...]) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return float(np.dot([0.2126, 0.7152, 0.0722], parts))

    grounds = [luminance(tuple(c / 255 for c in bytes.fromhex(h))) for h in ("f5f7f9", "1d232a")]
    line = tuple(c / 255 for c in bytes.fromhex(drawing.LINE[1:]))
    for colour in [*drawing.colours(9), line]:
        for ground in grounds:
            light, dark = sorted((luminance(colour), ground), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 3.0
    assert len(set(drawing.colours(9))) == 9


def test_ids_of_a_plot_are_its_own_and_text_is_marked() -> None:
    """Breaks if two plots share an id, a reference dangles, or a style of one reaches the page."""
    plots = [
        str(figures.curve([0, 1], [1.0, 2.0], ylabel="$x_1$", alt="a", name=name))
        for name in ("one", "two")
    ]
    assert plots[0].replace("one-", "two-") == plots[1]
    for name, plot in zip(("one", "two"), plots, strict=True):
        ids = re.findall(r' id="([^"]+)"', plot)
        assert ids and all(identity.startswith(f"{name}-") for identity in ids)
        references = {a or b for a, b in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', plot)}
        assert references == set(ids)
        assert "<style" not in plot and 'class="text"' in plot


def test_thinning_takes_means_and_leaves_gaps_out() -> None:
    """Breaks if long runs are drawn by picking points, or one NaN wipes out its neighbours."""
    x, y = figures.thinned([0, 1, 2, 3, 4], [1.0, 3.0, float("nan"), 8.0, 5.0], limit=3)
    assert x.tolist() == [0.5, 2.5, 4.0]
    assert y.tolist() == [2.0, 8.0, 5.0]
