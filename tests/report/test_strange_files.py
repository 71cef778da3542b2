"""What a stranger may have written beside a set: refused by name, or a page within seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iadd_fast.artifacts.files import read_json
from iadd_fast.evaluation_rows import Evaluation
from iadd_fast.metrics import read_metrics
from iadd_fast.report import figures, write_report
from iadd_fast.report.sections import accuracy
from iadd_fast.report.words import DRAWN
from tests.report.small import Page, small_evaluation, small_set

HUGE = 10**400


def changed(settings: dict[str, Any] | None = None, **row: Any) -> dict[str, Any]:
    """An evaluation with other values in every row, or with other settings."""
    made = small_evaluation().to_dict()
    for entry in made["rows"]:
        entry.update(row)
    return made if settings is None else {**made, "settings": settings}


@pytest.mark.parametrize(
    ("evaluation", "named"),
    [
        (changed(accuracies=[-7.0, 5.0]), "accuracy: got -7.0"),
        (changed(accuracies=[1e20]), "accuracy: got 1e"),
        (changed(accuracies="123"), "accuracies: got '123'"),
        (changed(accuracies=[]), "accuracies: got none"),
        (changed(seconds=-3), "seconds: got -3"),
        (changed(seconds=float("nan")), "seconds: got nan"),
        (changed(seconds=HUGE), "seconds: got 1000"),
        (changed(bytes=0), "bytes: got 0"),
        (changed(images=HUGE), "images: got 1000"),
        (changed(diverged=3), "diverged: got 3"),
        (changed(architecture="x" * 1001), "architecture: got a text of 1,001 letters"),
        (changed(method=7), "method: got 7"),
        (changed({"test_images": "x"}), "test_images: got 'x'"),
        (changed({"epochs": [1]}), r"epochs: got \[1\]"),
        (changed({"device": 5}), "device: got 5"),
        (changed({"seed": float("inf")}), "settings: cannot be written as JSON"),
        ({"rows": small_evaluation().to_dict()["rows"] * 251}, "number of rows: got 1004"),
    ],
)
def test_a_strange_evaluation_is_refused(
    tmp_path: Path, evaluation: dict[str, Any], named: str
) -> None:
    """Breaks if a value reaches the page that no evaluation has, or ends the report from inside."""
    with pytest.raises(ValueError, match=f"evaluation: got something .*{named}"):
        write_report(tmp_path / "out", small_set(), evaluation=evaluation)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "record",
    [
        {"iteration": HUGE, "loss": 1},
        {"iteration": -1},
        {"iteration": 1.5},
        {"iteration": "7"},
        {"loss": 1},
        [1],
        {"iteration": 0, "layer_weight": {"a": "x"}},
        {"iteration": 0, "loss_share": {"a": [1]}},
        {"iteration": 0, "filter_weight": {"a": 1}},
    ],
)
def test_a_strange_record_is_refused(tmp_path: Path, record: Any) -> None:
    """Breaks if a line is believed whose numbers no plot can hold or whose parts are no numbers."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"iteration": 0}) + "\n" + json.dumps(record))
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: got .*takes a JSON object"):
        read_metrics(path)


def test_numbers_beyond_float32_are_gaps(tmp_path: Path) -> None:
    """Breaks if 10^400 or 1e308 ends the page in an OverflowError, or in an axis without length."""
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"iteration": at, "loss": loss, "layer_weight": {"a": weight, "b": 2.0}}
        for at, loss, weight in ((0, 1e308, 1e308), (1, HUGE, -1e308), (2, 0.5, HUGE))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_metrics(path).column("loss") == ([2.0], [0.5])
    summary = {"seconds": HUGE, "expert_seconds": -1}
    write_report(tmp_path, small_set(summary=summary), evaluation=small_evaluation(), metrics=path)
    report = read_json(tmp_path / "report.json")
    assert report["run"]["importance"]["layers"] == {"b": 2.0}
    assert report["run"]["importance"]["courses"] == {"a": [None] * 3, "b": [2.0] * 3}
    assert report["cost"]["distil_seconds"] is None
    assert report["cost"]["expert_seconds"] is None


def test_seconds_that_no_clock_tells_apart_are_equal(tmp_path: Path) -> None:
    """Breaks if 100 s over a saving of 5e-324 s is rounded up to a number of trainings."""
    evaluation = changed(seconds=0)
    evaluation["rows"][3]["seconds"] = 5e-324
    page = write_report(tmp_path, small_set(summary={"seconds": 100.0}), evaluation=evaluation)
    assert "never pays off" in Page(page).text
    cost = read_json(tmp_path / "report.json")["cost"]
    assert cost["break_even"][0]["trainings"] is None
    assert cost["rows"][0]["time_share"] is None


def test_a_row_without_bytes_has_no_ratio(tmp_path: Path) -> None:
    """Breaks if the verdict formats a ratio that there is not."""
    evaluation = small_evaluation()
    evaluation.rows[0].bytes = 0
    text = Page(write_report(tmp_path, small_set(), evaluation=evaluation)).text
    assert "on 0 instead of 72,000 bytes." in text


def test_many_layers_are_listed_and_the_first_drawn(tmp_path: Path) -> None:
    """Breaks if 12,000 layers are drawn, which takes minutes, or the page hides that some are not.

    Also if every layer of any record has a course: a small file of other names in each line would
    then take all of the memory.
    """
    layers = {f"layer{number}": 1.5 for number in range(DRAWN + 10)}
    path = tmp_path / "metrics.jsonl"
    records = [{"iteration": at, "layer_weight": {f"only{at}": 1.0}} for at in range(3)]
    records.append({"iteration": 3, "layer_weight": layers})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    page = Page(write_report(tmp_path, small_set(), metrics=path))
    assert page.text.count(f"Drawn are the first {DRAWN} of {DRAWN + 10} layers.") == 2
    assert [f"layer{DRAWN + 9}", "1.5"] in page.cells
    drawn = [str(svg["aria-label"]) for svg in page.all("svg")]
    assert f"layer{DRAWN - 1} 1.5" in drawn[0] and f"layer{DRAWN} 1.5" not in drawn[0]
    importance = read_json(tmp_path / "report.json")["run"]["importance"]
    assert importance["layers"] == layers
    assert list(importance["courses"]) == list(layers)[:DRAWN]


def test_many_architectures_methods_and_networks_are_not_all_drawn(tmp_path: Path) -> None:
    """Breaks if the time and size of a page grow with every architecture, method or network."""
    row = small_evaluation().to_dict()["rows"][0]
    rows = [{**row, "architecture": f"net{number}"} for number in range(accuracy.PLOTS + 1)]
    rows += [{**row, "architecture": "net0", "method": f"m{number}"} for number in range(DRAWN)]
    rows[0]["accuracies"] = [50.0, 60.0] * 5 * figures.DOTS
    path = write_report(tmp_path, small_set(), evaluation={"rows": rows, "settings": {}})
    page = Page(path)
    assert len(page.all("svg")) == accuracy.PLOTS
    assert f"Drawn are the first {accuracy.PLOTS} of {accuracy.PLOTS + 1} networks." in page.text
    assert f"Drawn are the first {DRAWN} of {DRAWN + 1} methods." in page.text
    assert page.text.count(f"Dots are the first {figures.DOTS} networks.") == 1
    cells = [cell[:2] for cell in page.cells]
    assert ["distilled set", f"net{accuracy.PLOTS}"] in cells and [f"m{DRAWN - 1}", "net0"] in cells
    said = str(page.all("svg")[0]["aria-label"])
    assert f"m{DRAWN - 2} " in said and f"m{DRAWN - 1} " not in said
    first = page.source[page.source.index("<svg") : page.source.index("</svg>")]
    assert first.count("<use") < 6 * figures.DOTS  # one is a dot, a mean or a tick


def test_a_long_name_takes_a_few_lines() -> None:
    """Breaks if a name of 80,000 letters makes a plot as high, or a short one is cut."""
    assert figures.wrapped("x" * 80_000).count("\n") == 3
    assert figures.wrapped("x" * 80_000).endswith("…")
    assert figures.wrapped("layers.0.weight") == figures.cut("layers.0.weight")
    assert len(figures.cut("x" * 80_000)) == 48


def test_a_good_evaluation_is_read_as_it_was_written() -> None:
    """Breaks if a check refuses or changes what an evaluation holds, its bounds included."""
    made = changed(accuracies=[0.0, 100], seconds=0, diverged=1)
    made["settings"] = {"full_epochs": None, "augment": None, "epochs": 300, "device": "cpu"}
    read = Evaluation.from_dict(made)
    assert read.settings == made["settings"]
    assert read.to_dict()["rows"] == [{**row, "mean": 50.0, "std": 50.0} for row in made["rows"]]
