from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from iadd_fast import demo
from iadd_fast.artifacts import DistilledSet
from iadd_fast.audit import Audit
from iadd_fast.data.transform import Identity
from iadd_fast.evaluation_rows import Evaluation, EvaluationRow

METHODS = ("iadd", "random", "herding", "k_center", "full")


def rows() -> list[EvaluationRow]:
    return [
        EvaluationRow(name, "convnet", [60.0 + n, 70.0 + n], 0.5 + n, 1000 + n, 10)
        for n, name in enumerate(METHODS)
    ]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The demo with its parts replaced; what they were given."""
    seen: dict[str, Any] = {"folders": {}}

    def distill(data: Any, experts: Any, images_per_class: int, *, out: Path, **given: Any) -> Any:
        assert images_per_class == 1
        seen["folders"][out] = {"experts": experts, **given}
        policy = {"name": given.get("importance", "adaptive")}
        made = DistilledSet(
            images=torch.linspace(0.0, 1.0, 32).view(2, 1, 4, 4),
            labels=torch.tensor([0, 1]),
            lr=0.01,
            class_names=("a", "b"),
            transform=Identity(),
            student_spec={"name": "mlp", "inputs": [1, 4, 4], "classes": 2, "width": 3, "depth": 2},
            config={"importance": policy, "initial": given.get("initial", "real")}
            | {name: given[name] for name in ("method",) if name in given},
        )
        out.mkdir(parents=True, exist_ok=True)
        (out / "metrics.jsonl").write_text('{"iteration": 0, "loss": 1.0}\n')
        return made

    def audit(distilled: Any, data: Any, **given: Any) -> Audit:
        seen["audit"] = given
        labels = {"iadd": "distilled set", **{name: name for name in given["beside"]}}
        return Audit(Evaluation(rows(), {"networks": 2}), {}, {}, {}, labels, {})

    def write_report(folder: Path, distilled: Any, **given: Any) -> Path:
        seen["report"] = given
        return folder / "index.html"

    monkeypatch.setattr(demo, "load_data", lambda source: "data")
    monkeypatch.setattr(demo, "train_experts", lambda *_, **__: "experts")
    monkeypatch.setattr(demo, "distill", distill)
    monkeypatch.setattr(demo, "audit", audit)
    monkeypatch.setattr(demo, "write_report", write_report)
    return seen


def test_result_holds_every_method_and_nothing_else(
    seen: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
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


def test_the_report_places_every_method_beside_the_set(
    seen: dict[str, Any], tmp_path: Path
) -> None:
    """A method of prior art left out, two under one name, or one in the folder of another."""
    demo.run_demo(tmp_path)
    assert list(seen["audit"]["beside"]) == [
        "MTT (uniform), from real images",
        "parameter pruning (similarity), from real images",
        "gradient matching (DC), from real images",
        "IADD (adaptive), from noise",
        "IADD (adaptive), from k-means centres",
    ]
    folders = seen["folders"]
    assert set(folders) == {tmp_path, *(tmp_path / "beside" / name for name in demo.BESIDE)}
    assert folders[tmp_path / "beside" / "gradient"]["experts"] is None
    assert folders[tmp_path / "beside" / "noise"]["experts"] == "experts"
    assert seen["audit"]["metrics"] == seen["report"]["metrics"] == tmp_path / "metrics.jsonl"
    assert seen["audit"]["keep"] == tmp_path / "networks"


def test_sets_beside_differ_from_the_set_in_one_thing() -> None:
    """A comparison of initialisations or policies that also compares other settings."""
    for name in ("uniform", "similarity", "noise", "kmeans"):
        other = demo.BESIDE[name]
        assert len(other.items() - demo.DISTILL.items()) == 1
        assert demo.DISTILL.items() <= other.items()
