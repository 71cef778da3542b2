"""Texts out of files: shown as they are, never a tag of a page, a path or an order to a screen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from iadd_fast import options
from iadd_fast.artifacts import DistilledSet
from iadd_fast.data import load_data
from iadd_fast.report.page import write_report
from tests.report.small import Page, small_evaluation, small_set
from tests.strangers import building
from tests.strangers.readers import data

NASTY = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
#: Names that mean something to a file system, a page, a terminal or a plot.
NAMES = (
    "../../../etc/passwd",
    "/etc/passwd",
    "C:\\Windows\\win.ini",
    "CON",
    ".",
    "..",
    "",
    " ",
    "x" * 300,
    "a\nb\x1b[31mc\x00d",
    "$\\frac{1}{0}$",
    "{{ 7 * 7 }}",
    "_legend",
    "same",
    "same",
    NASTY,
)


def named(names: tuple[str, ...], **changes: Any) -> DistilledSet:
    count = len(names)
    return small_set(
        images=torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(0)),
        labels=torch.arange(count),
        class_names=names,
        student_spec={"name": "mlp", "inputs": [1, 4, 4], "classes": count, "width": 3, "depth": 2},
        **changes,
    )


def test_a_page_shows_texts_and_runs_none(tmp_path: Path) -> None:
    """Breaks if any text of a file reaches the page unescaped, from whichever of its places."""
    evil = named(
        NAMES,
        data_name=NASTY,
        data_fingerprint=NASTY,
        versions={NASTY: NASTY},
        summary={NASTY: NASTY, "validation_accuracy": NASTY},
        config={
            "method": "trajectory",
            "images_per_class": NASTY,
            "seed": NASTY,
            "importance": {"name": NASTY, NASTY: NASTY},
            NASTY: {NASTY: [NASTY]},
        },
    )
    path = tmp_path / "set.safetensors"
    evil.save(path)
    evaluation = small_evaluation().to_dict()
    for row in evaluation["rows"]:
        row["architecture"] = NASTY
    evaluation["settings"][NASTY] = NASTY
    metrics = tmp_path / "metrics.jsonl"
    rows = [{"iteration": k, "loss": 0.5, "layer_weight": {NASTY: 1.0}, NASTY: k} for k in (0, 1)]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Page(
        write_report(
            tmp_path / "report",
            DistilledSet.load(path),
            evaluation=evaluation,
            metrics=metrics,
            command=NASTY,
            report_command=NASTY,
        )
    )
    assert page.all("script") == []
    assert all(image["src"] != "x" for image in page.all("img"))
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(NASTY) >= 8
    assert "{{ 7 * 7 }}" in page.text
    assert "49" not in page.text.split("{{ 7 * 7 }}")[0][-20:]


@pytest.mark.parametrize(
    "changes",
    [
        {"summary": {"seconds": "long", "skipped": [], "iteration": {}}},
        {"summary": {"seconds": float("nan"), "validation_accuracy": 1e999}},
        {"config": {"method": [], "images_per_class": {}, "seed": None}},
        {"config": {"method": "gradient", "images_per_class": 1, "seed": 0, "iterations": [[]]}},
        {"config": {"importance": "adaptive", "experts": 7, "augment": ["x"]}},
        {"versions": {"iadd_fast": 7, "torch": None}},
        {"config": {"importance": {"name": 7}, "method": "trajectory", "images_per_class": 1}},
    ],
)
def test_a_page_of_a_set_that_says_nonsense_of_itself(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Breaks if a value of another type in a file's description ends the report in a traceback."""
    path = tmp_path / "set.safetensors"
    small_set(**changes).save(path)
    Page(write_report(tmp_path / "report", DistilledSet.load(path)))


def test_a_folder_of_nasty_names_stays_in_its_place(tmp_path: Path) -> None:
    """Breaks if a class's name leaves the folder, is reserved, too long, or one with another's."""
    target = tmp_path / "inner" / "set"
    named(NAMES).to_folder(target)
    folders = [path.name for path in target.iterdir() if path.is_dir()]
    assert len(folders) == len({name.casefold() for name in folders}) == len(NAMES)
    for name in folders:
        assert name[0].isdigit()
        assert len(name) < 60
        assert name.isascii()
        assert all(c.isalnum() or c in "-_" for c in name)
    outside = [path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "inner")]
    assert outside == []
    assert json.loads((target / "metadata.json").read_text())["class_names"] == list(NAMES)
    again = load_data(target, normalise="none", validation_fraction=0, test_fraction=0)
    assert again.train.labels.tolist() == list(range(len(NAMES)))


def test_a_run_without_unicode_is_refused_before_it(tmp_path: Path) -> None:
    """Breaks if a name that no file can hold is found when the results are written, hours later."""
    with pytest.raises(ValueError, match=r"the text '\\ud800' is no valid Unicode"):
        named(("cat", "\ud800"))
    root = building.class_folder(tmp_path / "data")
    (root / "cats").rename(root / "caf\udce9")
    with pytest.raises(ValueError, match=r"name b'caf\\xe9' is no UTF-8 text"):
        data(root)


def test_an_error_gives_no_orders_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if the name of a file clears the user's screen or forges a line of output."""
    with pytest.raises(BaseException):  # noqa: B017 - typer's own
        options._fail(ValueError("a\x1b[2J.png\r\nall is well: \u202egnp"), 2)
    told = capsys.readouterr().err
    assert told == "iadd-fast: a\\x1b[2J.png all is well: \\u202egnp\n"
