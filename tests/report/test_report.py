"""The page and report.json."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from iadd_fast import students
from iadd_fast.artifacts.files import read_json
from iadd_fast.audit.run import Audit
from iadd_fast.data import Data, Split
from iadd_fast.data.transform import Identity
from iadd_fast.evaluation_rows import Evaluation, EvaluationRow
from iadd_fast.metrics import read_metrics
from iadd_fast.report import write_report
from tests.report.small import SPEC, Page, small_evaluation, small_metrics, small_set


def test_the_tables_hold_the_numbers_of_the_evaluation(tmp_path: Path) -> None:
    """Breaks if a column is filled from another field or a row is lost."""
    path = write_report(tmp_path / "new", small_set(), evaluation=small_evaluation())
    assert path == tmp_path / "new" / "index.html"
    cells = Page(path).cells
    assert ["distilled set", "mlp", "81.00 ± 1.00", "68.29 to 93.71", "2"] in cells
    assert ["full training data", "mlp", "97.00 ± 0.00", "not resolved", "2"] in cells
    assert ["distilled set", "mlp", "1.25", "3.79 %", "4", "288", "250"] in cells
    assert ["full training data", "mlp", "33.00", "100 %", "1,000", "72,000", "1"] in cells


def test_a_saved_evaluation_gives_the_same_page(tmp_path: Path) -> None:
    """Breaks if the JSON form of an evaluation is read differently, or a page is not repeatable."""
    metrics = small_metrics(tmp_path)
    saved = json.loads(json.dumps(small_evaluation().to_dict()))
    one = write_report(tmp_path / "1", small_set(), evaluation=small_evaluation(), metrics=metrics)
    two = write_report(tmp_path / "2", small_set(), evaluation=saved, metrics=metrics)
    assert one.read_bytes() == two.read_bytes()


def test_what_was_not_measured_is_said_and_not_drawn(tmp_path: Path) -> None:
    """Breaks if a missing evaluation, metric, weight or audit is shown as a number or a plot."""
    page = Page(write_report(tmp_path, small_set()))
    assert page.text.count("not measured") == 4  # the three sentences, the break-even
    # accuracy, three parts of the audit, four curves
    assert page.text.count("Not measured") == 8
    assert page.all("svg") == []
    assert "The set holds no weights" in page.text
    assert page.text.count("Not recorded.") == 2
    report = read_json(tmp_path / "report.json")
    for part in ("accuracy", "explanation", "representativeness", "privacy"):
        assert report[part] is None


def test_report_json_holds_the_numbers_of_the_page(tmp_path: Path) -> None:
    """Breaks if a number is formatted for the page only, or the file cannot be read back."""
    metrics = small_metrics(tmp_path)
    command = "iadd-fast report SET --data pets"
    distilled = small_set(summary={"seconds": float("nan"), "skipped": 1})
    write_report(
        tmp_path,
        distilled,
        evaluation=small_evaluation(),
        metrics=metrics,
        report_command=command,
    )
    report = read_json(tmp_path / "report.json")
    assert (report["kind"], report["schema"]) == ("report", 1)
    rows = {row["method"]: row for row in report["accuracy"]["rows"]}
    assert rows["random"]["accuracies"] == [50.0, 54.0] and rows["random"]["mean"] == 52.0
    assert report["run"]["curves"]["loss"]["last"] == pytest.approx(0.51)
    assert report["run"]["curves"]["loss"]["values"][0] == 0.9
    assert report["run"]["importance"]["layers"]["layers.0"] == pytest.approx(1.39)
    origin = report["provenance"]
    assert origin["summary"] == {"seconds": None, "skipped": 1}
    assert report["cost"]["distil_seconds"] is None
    assert origin["report_command"] == command
    assert origin["report_versions"]["numpy"] == np.__version__
    assert origin["threads"] == torch.get_num_threads()
    assert origin["set"]["data_fingerprint"] == "ab" * 32


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
    assert len(page.all("table")) == len(page.all("caption")) > 8
    assert all(image["alt"] for image in page.all("img"))
    assert len(page.all("svg")) == 7
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    ids = re.findall(r'\bid="([^"]+)"', page.source)
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page.source))
    assert {one or other for one, other in references} <= set(ids)


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
        ["processor threads", str(torch.get_num_threads())],
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
    infinite = Evaluation([EvaluationRow("iadd", "mlp", [1.0], float("inf"), 1, 1)])
    with pytest.raises(ValueError, match=r"report.json: cannot be written as JSON"):
        write_report(tmp_path / "out", small_set(), evaluation=infinite)
    assert not (tmp_path / "out").exists()


def test_a_set_of_a_students_own_module_still_gets_its_page(tmp_path: Path) -> None:
    """Breaks if weights of a module that cannot be rebuilt stop the report."""
    distilled = replace(
        small_set(), weight=torch.ones(5), student_spec={"name": "module", "module": "Mine"}
    )
    assert "the layers of the student are not known" in Page(write_report(tmp_path, distilled)).text


def test_an_audit_needs_its_data_and_has_its_own_evaluation(tmp_path: Path) -> None:
    """Breaks if real samples of nothing are to be shown, or two evaluations contradict."""
    measured = Audit(small_evaluation(), {}, {}, {}, {}, {})
    with pytest.raises(ValueError, match="data: got none with an audit"):
        write_report(tmp_path / "out", small_set(), audit=measured)
    split = Split(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]))
    data = Data("pets", split, split, split, ("cat", "dog"), Identity(), "ab" * 32)
    with pytest.raises(ValueError, match="evaluation: got one beside the audit"):
        write_report(
            tmp_path / "out",
            small_set(),
            audit=measured,
            evaluation=small_evaluation(),
            data=data,
        )
    assert not (tmp_path / "out").exists()
