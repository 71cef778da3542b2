"""What the report says may differ when it is made again, for whoever has to rely on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from iadd_fast.evaluation_rows import Evaluation
from iadd_fast.machine import machine
from iadd_fast.report import write_report
from iadd_fast.versions import versions
from tests.report.small import Page, small_evaluation, small_set

HERE = machine(torch.device("cpu"))


def sentences(folder: Path, made: Any, seen: Any) -> str:
    """The text of a page on a set made on one machine and measured on another."""
    recorded = versions() if made is None else {**versions(), "machine": made}
    settings = {} if seen is None else {"machine": seen}
    evaluation = Evaluation(small_evaluation().rows, settings)
    return Page(write_report(folder, small_set(versions=recorded), evaluation=evaluation)).text


def test_the_machine_is_told(tmp_path: Path) -> None:
    """Breaks if the page does not say on what the set was made, or of what the bits depend."""
    text = sentences(tmp_path, HERE, HERE)
    assert f"made with torch {torch.__version__} on {HERE['device_name']}" in text
    assert "1 thread, operators in " in text
    assert "The report was measured with the same." in text
    assert "bit for bit" in text and "GPU this is not yet measured" not in text
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["provenance"]["set_versions"]["machine"] == HERE
    assert report["provenance"]["evaluation"]["machine"] == HERE


def test_another_machine_is_named(tmp_path: Path) -> None:
    """Breaks if an auditor with more threads and another backend is told that bits must agree."""
    made = {**HERE, "threads": 8, "backends": {**HERE["backends"], "conv3x3": "far"}}
    text = sentences(tmp_path, made, HERE)
    mine = HERE["backends"]["conv3x3"]
    assert "8 threads" in text
    assert f"measured with threads 1 instead of 8, backends, conv3x3 {mine} instead of far." in text


def test_a_gpu_is_not_yet_measured(tmp_path: Path) -> None:
    """Breaks if bits are promised where nobody has compared them."""
    text = sentences(tmp_path, {**HERE, "device": "cuda"}, HERE)
    assert "On a GPU this is not yet measured." in text
    assert "device cpu instead of cuda" in text


def test_what_is_not_recorded_is_said_to_be_so(tmp_path: Path) -> None:
    """Breaks if a set from elsewhere stops the report, or a machine is made up for it."""
    for number, made in enumerate((None, "a laptop", ["x"])):
        text = sentences(tmp_path / str(number), made, HERE)
        assert "The set does not record the machine it was made on." in text
    text = sentences(tmp_path / "part", {"threads": None, "device": "<b>"}, HERE)
    assert "made with torch" in text and "<b>" in text
