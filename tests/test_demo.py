from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from iadd_fast import demo
from iadd_fast.artifacts import DistilledSet
from iadd_fast.data.transform import Identity
from iadd_fast.evaluation_rows import Evaluation, EvaluationRow

METHODS = ("iadd", "random", "herding", "k_center", "full")


def rows() -> list[EvaluationRow]:
    return [
        EvaluationRow(name, "convnet", [60.0 + n, 70.0 + n], 0.5 + n, 1000 + n, 10)
        for n, name in enumerate(METHODS)
    ]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The demo with its parts replaced; what ran, in order."""
    ran: list[str] = []

    def train_experts(data: Any, student: Any, out: Path, **settings: Any) -> str:
        ran.append("experts")
        return "experts"

    def distill(data: Any, experts: Any, images_per_class: int, *, out: Path, **_: Any) -> Any:
        ran.append("distill")
        assert images_per_class == 1
        made = DistilledSet(
            images=torch.linspace(0.0, 1.0, 32).view(2, 1, 4, 4),
            labels=torch.tensor([0, 1]),
            lr=demo.DISTILL.get("lr_init", 0.01),
            class_names=("a", "b"),
            transform=Identity(),
            student_spec={"name": "mlp", "inputs": [1, 4, 4], "classes": 2, "width": 3, "depth": 2},
        )
        made.save(out / "distilled.safetensors")
        (out / "metrics.jsonl").write_text('{"iteration": 0, "loss": 1.0}\n')
        return made

    def evaluate(*_: Any, **__: Any) -> Evaluation:
        ran.append("evaluate")
        return Evaluation(rows(), {"networks": 2})

    monkeypatch.setattr(demo, "load_data", lambda source: "data")
    monkeypatch.setattr(demo, "train_experts", train_experts)
    monkeypatch.setattr(demo, "distill", distill)
    monkeypatch.setattr(demo, "evaluate", evaluate)
    return ran


def test_result_holds_every_method_and_nothing_else(
    steps: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number under another method, a fraction for a percentage, or a key too many."""
    demo.run_demo(tmp_path)
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "accuracy": {name: {"mean": 65.0 + n, "std": 5.0} for n, name in enumerate(METHODS)},
        "seconds": {name: 0.5 + n for n, name in enumerate(METHODS)},
        "bytes": {name: 1000 + n for n, name in enumerate(METHODS)},
    }
    shown = capsys.readouterr().out
    assert str(tmp_path / "index.html") in shown
    assert "65.00" in shown
    assert "k-centre" in (tmp_path / "index.html").read_text()


def test_an_evaluation_is_not_done_twice(steps: list[str], tmp_path: Path) -> None:
    """A demo that starts over, or one that shows no result the second time."""
    first = demo.run_demo(tmp_path)
    (tmp_path / "result.json").unlink()
    second = demo.run_demo(tmp_path)
    assert steps.count("evaluate") == 1
    assert second.to_dict() == first.to_dict()
    assert (tmp_path / "result.json").is_file()


@pytest.mark.parametrize("change", ["set", "arguments", "damaged", "other"])
def test_an_old_evaluation_is_not_shown_for_a_new_set(
    steps: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Accuracies of another set, of another protocol or of a broken file on the page."""
    demo.run_demo(tmp_path)
    if change == "set":
        monkeypatch.setattr(demo, "DISTILL", {**demo.DISTILL, "lr_init": 0.5})
    elif change == "arguments":
        monkeypatch.setattr(demo, "EVALUATION", {**demo.EVALUATION, "networks": 99})
    else:
        (tmp_path / "evaluation.json").write_text("[]" if change == "other" else "{")
    demo.run_demo(tmp_path)
    assert steps.count("evaluate") == 2
