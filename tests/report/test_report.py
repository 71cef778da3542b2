from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from iadd_fast import students
from iadd_fast.artifacts import DistilledSet
from iadd_fast.data.transform import Identity, Standardise
from iadd_fast.evaluation_rows import Evaluation, EvaluationRow
from iadd_fast.report import figures, pictures, write_report
from iadd_fast.report.metrics import read_metrics
from iadd_fast.report.page import verdict

SPEC = {"name": "mlp", "inputs": [1, 4, 4], "classes": 2, "width": 3, "depth": 2}


def small_set(**changes: Any) -> DistilledSet:
    values: dict[str, Any] = {
        "images": torch.linspace(0.0, 1.0, 4 * 16).view(4, 1, 4, 4),
        "labels": torch.tensor([0, 0, 1, 1]),
        "lr": 0.0123,
        "weight": None,
        "class_names": ("cat", "dog"),
        "transform": Identity(),
        "student_spec": SPEC,
        "augment": None,
        "config": {"importance": "adaptive", "outer": {"lr_images": 100.0}},
        "seed": 17,
        "versions": {"torch": "2.13.0"},
        "data_name": "pets",
        "data_fingerprint": "ab" * 32,
        "summary": {"skipped_steps": 3},
    }
    return DistilledSet(**(values | changes))


def small_evaluation() -> Evaluation:
    return Evaluation(
        [
            EvaluationRow("iadd", "mlp", [80.0, 82.0], 1.25, 288, 4),
            EvaluationRow("random", "mlp", [50.0, 54.0], 1.5, 288, 4),
            EvaluationRow("herding", "mlp", [60.0, 62.0], 1.5, 288, 4),
            EvaluationRow("full", "mlp", [97.0, 97.0], 33.0, 72000, 1000),
        ],
        {"data_name": "pets", "epochs": 300, "test_images": 500},
    )


def small_metrics(folder: Path) -> Path:
    path = folder / "metrics.jsonl"
    lines = []
    for iteration in range(40):
        record: dict[str, Any] = {
            "iteration": iteration,
            "loss": None if iteration == 3 else 0.9 - 0.01 * iteration,
            "lr": 0.01,
            "weight_spread": 0.1,
            "seconds": 0.5,
            "validation_accuracy": 60.0 if iteration % 10 == 9 else None,
            "skipped": int(iteration == 3),
        }
        if iteration % 10 == 9:
            record["layer_weight"] = {"layers.0": 1.0 + iteration / 100, "head": 0.75}
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines) + "\n")
    return path


class Page(HTMLParser):
    """Collects what the tests look at; fails on tags that do not close."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.cells: list[list[str]] = []
        self.text = ""
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_accuracy_table_holds_the_numbers_of_the_evaluation(tmp_path: Path) -> None:
    """Breaks if a column is filled from another field or a row is lost."""
    path = write_report(tmp_path / "new", small_set(), evaluation=small_evaluation())
    assert path == tmp_path / "new" / "index.html"
    cells = Page(path).cells
    assert ["distilled set", "mlp", "81.00 ± 1.00", "2", "1.25", "4", "288"] in cells
    assert ["full training data", "mlp", "97.00 ± 0.00", "2", "33.00", "1,000", "72,000"] in cells


def test_a_saved_evaluation_gives_the_same_page(tmp_path: Path) -> None:
    """Breaks if the JSON form of an evaluation is read differently, or a page is not repeatable."""
    metrics = small_metrics(tmp_path)
    saved = json.loads(json.dumps(small_evaluation().to_dict()))
    one = write_report(tmp_path / "1", small_set(), evaluation=small_evaluation(), metrics=metrics)
    two = write_report(tmp_path / "2", small_set(), evaluation=saved, metrics=metrics)
    assert one.read_bytes() == two.read_bytes()


def test_the_verdict_compares_with_the_best_baseline_and_the_full_data() -> None:
    """Breaks if the weakest baseline is named, a sign turns round or the spread is left out."""
    first, second, third = verdict(small_set(), small_evaluation())
    assert first == (
        "4 synthetic images (2 per class) bring a fresh mlp to 81.0 % ± 1.0 (2 networks) "
        "on the test part of pets."
    )
    assert second.startswith("That is 20.0 points above") and "herding: 61.0 %" in second
    assert "All 1,000 training images give 97.0 %" in third
    assert "33.0 s instead of 1.2 s" in third
    worse = small_evaluation()
    worse.rows[0] = EvaluationRow("iadd", "mlp", [40.0, 42.0], 1.25, 288, 4)
    assert verdict(small_set(), worse)[1].startswith("That is 20.0 points below")
    level = small_evaluation()
    level.rows[0] = EvaluationRow("iadd", "mlp", [60.0, 64.0], 1.25, 288, 4)
    assert verdict(small_set(), level)[1].startswith("That is within the spread of")


def test_what_was_not_measured_is_said_and_not_drawn(tmp_path: Path) -> None:
    """Breaks if a missing evaluation, metric or weight is shown as a number or an empty plot."""
    page = Page(write_report(tmp_path, small_set()))
    assert page.text.count("not measured") == 3  # the sentences of the verdict
    assert page.text.count("Not measured") == 5  # accuracy, four curves
    assert page.all("svg") == []
    assert "The set holds no weights" in page.text
    assert "Not recorded." in page.text


def test_names_are_escaped_everywhere(tmp_path: Path) -> None:
    """Breaks if a class, data set, layer or command can put markup into the page."""
    nasty = '<script>alert("x")</script>'
    metrics = tmp_path / "metrics.jsonl"
    weights = {nasty: 2.0, "$a$": 1.0}
    records = [{"iteration": i, "loss": 1.0, "layer_weight": weights} for i in range(3)]
    metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    distilled = small_set(class_names=(nasty, "dog"), data_name=nasty, config={nasty: nasty})
    path = write_report(tmp_path, distilled, metrics=metrics, command=f"run {nasty} && x")
    page = Page(path)
    assert page.all("script") == []
    assert "<script" not in page.source
    assert nasty in page.text
    assert page.all("img")[0]["alt"] == f"synthetic image 1 of class {nasty}"


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    """Breaks if a font, script, style or namespace address gets into the page."""
    path = write_report(
        tmp_path, small_set(), evaluation=small_evaluation(), metrics=small_metrics(tmp_path)
    )
    page = Page(path)
    assert re.findall(r"https?://|src=\"//|url\((?!#)|@import", page.source) == []
    assert page.all("link") == [] and page.all("script") == []
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in page.all("img"))


def test_the_page_is_accessible(tmp_path: Path) -> None:
    """Breaks if a picture has no alternative text, a table no caption or an id stands twice."""
    page = Page(
        write_report(
            tmp_path, small_set(), evaluation=small_evaluation(), metrics=small_metrics(tmp_path)
        )
    )
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(image["alt"] for image in page.all("img"))
    assert len(page.all("svg")) == 6
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    ids = re.findall(r'\bid="([^"]+)"', page.source)
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page.source))
    assert {one or other for one, other in references} <= set(ids)


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


def test_pictures_stand_under_their_class(tmp_path: Path) -> None:
    """Breaks if samples are shown in storage order; soft labels count by their largest entry."""
    soft = torch.tensor([[0.4, 0.6], [0.7, 0.3], [0.2, 0.8], [0.1, 0.9]])
    classes, note = pictures.by_class(small_set(labels=soft))
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
    assert "4 synthetic series" in page.text


def test_importance_comes_from_the_end_of_the_run(tmp_path: Path) -> None:
    """Breaks if the first record, or a mean over the run, is shown as the final weight."""
    page = Page(write_report(tmp_path, small_set(), metrics=small_metrics(tmp_path)))
    assert ["layers.0", "1.39"] in page.cells and ["head", "0.75"] in page.cells
    assert "highest in layers.0 (1.39), lowest in head (0.75)" in page.text
    labels = [str(svg["aria-label"]) for svg in page.all("svg")]
    assert "Mean squared weight per layer: layers.0 1.39, head 0.75" in labels


def test_importance_comes_from_the_set_where_there_are_no_metrics(tmp_path: Path) -> None:
    """Breaks if weights are averaged unsquared or over the wrong slices of theta."""
    student = students.build(SPEC)
    weight = torch.ones(student.num_parameters)
    layers = student.layers()
    last = list(layers)[-1]
    for part in layers[last]:
        weight[part] = 3.0
    page = Page(write_report(tmp_path, small_set(weight=weight)))
    assert [last, "9"] in page.cells
    assert [next(iter(layers)), "1"] in page.cells


def test_provenance_and_command(tmp_path: Path) -> None:
    """Breaks if a setting, the fingerprint or the command to reproduce is lost."""
    path = write_report(tmp_path, small_set(), command="iadd-fast distill --seed 17")
    page = Page(path)
    for row in (
        ["data fingerprint (SHA-256)", "ab" * 32],
        ["outer, lr images", "100"],
        ["seed", "17"],
        ["torch", "2.13.0"],
        ["skipped steps", "3"],
        ["learned learning rate alpha", "0.0123"],
    ):
        assert row in page.cells
    assert "iadd-fast distill --seed 17" in page.text


def test_curves_tell_first_and_last_value(tmp_path: Path) -> None:
    """Breaks if a skipped iteration (null loss) stops the report or counts as zero."""
    page = Page(write_report(tmp_path, small_set(), metrics=small_metrics(tmp_path)))
    assert "First 0.9, last 0.51." in page.text
    loss = next(s for s in page.all("svg") if str(s["aria-label"]).startswith("Matching loss"))
    assert "39 values" in str(loss["aria-label"])
    assert "lowest 0.51, highest 0.9" in str(loss["aria-label"])


def test_thinning_takes_means_and_leaves_gaps_out() -> None:
    """Breaks if long runs are drawn by picking points, or one NaN wipes out its neighbours."""
    x, y = figures.thinned([0, 1, 2, 3, 4], [1.0, 3.0, float("nan"), 8.0, 5.0], limit=3)
    assert x.tolist() == [0.5, 2.5, 4.0]
    assert y.tolist() == [2.0, 8.0, 5.0]


def test_metrics_of_a_stopped_and_resumed_run(tmp_path: Path) -> None:
    """Breaks if a repeated iteration is drawn twice or a cut-off last line stops the report."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"iteration": 0, "loss": 3.0}\n{"iteration": 1, "loss": 9.0}\n'
        '{"iteration": 1, "loss": 2.0}\n{"iteration": 2, "lo'
    )
    assert read_metrics(path).column("loss") == ([0.0, 1.0], [3.0, 2.0])


def test_bad_input_is_named_and_leaves_no_page(tmp_path: Path) -> None:
    """Breaks if a wrong file gives a traceback from deep inside, or half a page."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"iteration": 0}\nnonsense\n{"iteration": 2}\n')
    with pytest.raises(ValueError, match=r"bad.jsonl, line 2: got 'nonsense'"):
        write_report(tmp_path / "out", small_set(), metrics=bad)
    with pytest.raises(FileNotFoundError, match="no file at"):
        write_report(tmp_path / "out", small_set(), metrics=tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="evaluation: got something"):
        write_report(tmp_path / "out", small_set(), evaluation={"accuracy": {"iadd": 1}})
    assert not (tmp_path / "out").exists()


def test_a_set_of_a_students_own_module_still_gets_its_page(tmp_path: Path) -> None:
    """Breaks if weights of a module that cannot be rebuilt stop the report."""
    distilled = replace(
        small_set(), weight=torch.ones(5), student_spec={"name": "module", "module": "Mine"}
    )
    assert "the layers of the student are not known" in Page(write_report(tmp_path, distilled)).text
