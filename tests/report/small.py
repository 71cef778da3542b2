"""A set, an evaluation and metrics of a few numbers, and a page read back."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch

from iadd_fast.artifacts import DistilledSet
from iadd_fast.data.transform import Identity
from iadd_fast.evaluation_rows import Evaluation, EvaluationRow

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
