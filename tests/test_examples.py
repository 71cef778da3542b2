"""The examples a user starts from: they run, and do what their text says."""

from __future__ import annotations

import importlib
import inspect
import runpy
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import iadd_fast
from iadd_fast.artifacts import DistilledSet
from iadd_fast.artifacts.files import read_json
from iadd_fast.baselines import random_indices
from iadd_fast.data import Data, load_data
from iadd_fast.settings import DistillSettings, ExpertSettings
from iadd_fast.students import parse_student

EXAMPLES = Path(__file__).parent.parent / "examples"


def one_real_image_each(data: Data, student: str) -> DistilledSet:
    """One real image of each class, as a set."""
    chosen = data.train.subset(random_indices(data.train.labels, 1))
    return DistilledSet(
        images=chosen.images,
        labels=chosen.labels,
        lr=0.03125,
        class_names=data.class_names,
        transform=data.transform,
        student_spec=parse_student(student, data.sample_shape, data.num_classes).spec,
        data_fingerprint=data.fingerprint,
    )


def test_a_set_trains_in_an_ordinary_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if as_dataset() does not work in a DataLoader, the test images are in another space,
    or the script trains with a rate of its own."""
    path, rates = tmp_path / "set.safetensors", []
    one_real_image_each(load_data("digits"), "convnet:width=32").save(path)

    class Recorded(torch.optim.SGD):
        def __init__(self, parameters: Any, lr: float, **others: Any) -> None:
            rates.append(lr)
            super().__init__(parameters, lr=lr, **others)

    monkeypatch.setattr(torch.optim, "SGD", Recorded)
    monkeypatch.setattr(sys, "argv", ["train_on_a_set.py", str(path), "digits"])
    runpy.run_path(str(EXAMPLES / "train_on_a_set.py"))
    accuracy = float(capsys.readouterr().out.split()[-2])
    assert 50 < accuracy < 85
    assert rates == [0.03125]


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module ``examples/common.py``, its runs in this process."""
    monkeypatch.syspath_prepend(EXAMPLES)
    module = importlib.import_module("common")
    monkeypatch.setattr(module, "ProcessPoolExecutor", InThisProcess)
    return module


class InThisProcess:
    """A pool that does what it is given at once."""

    def __init__(self, *_: Any) -> None: ...

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*arguments))
        return done


def three_digits(_: Path) -> Data:
    """Digits 0 to 2; of the test part mostly zeros."""
    data = load_data("digits", validation_fraction=0.3)
    pixels, labels = data.transform.invert(data.train.images), data.train.labels
    kept = labels < 3
    few = torch.cat(
        [(labels == label).nonzero()[:count, 0] for label, count in enumerate((8, 2, 2))]
    )
    return load_data(
        pixels[kept], labels[kept], test=pixels[few], test_labels=labels[few], name="three"
    )


def tiny_study(common: ModuleType) -> Any:
    return common.Study(
        load=three_digits,
        student="mlp:width=8,depth=2",
        experts={"count": 1, "epochs": 2},
        distill={
            "iterations": 4,
            "steps": 2,
            "expert_epochs": 1,
            "max_start_epoch": 1,
            "lr_lr": 1e-9,
            "validate_every": 1,
            "validation_epochs": 2,
        },
        sizes={1: {}, 2: {"lr_init": 0.005}},
        image_steps={1: [0.5, 5.0], 2: [0.5]},
        seeds=2,
        evaluate={"networks": 2, "epochs": 3, "full_epochs": 2},
    )


def test_a_study_runs_from_data_to_its_table(
    common: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Breaks if the image step is not the best on validation, a seed or policy is left out, the
    full data is trained on once per size, or a second call does everything again."""
    monkeypatch.setattr(
        sys, "argv", ["example.py", "--data", "x", "--out", str(tmp_path), "--workers", "1"]
    )
    scores = {(1, 0.5): 40.0, (1, 5.0): 60.0, (2, 0.5): 50.0}
    monkeypatch.setattr(common, "validation", lambda *call: scores[call[-2:]])
    common.main(tiny_study(common), "An example.")
    first = capsys.readouterr().out
    rows = read_json(tmp_path / "table.json")
    runs = {(row["size"], row["method"], row["seed"]) for row in rows if "seed" in row}
    assert runs == {
        (size, method, seed)
        for size in (1, 2)
        for method in common.POLICIES.values()
        for seed in (0, 1)
    }
    chosen = {(row["size"], row["image_step"], row["lr"] < 0.007) for row in rows if "seed" in row}
    assert chosen == {(1, 5.0, False), (2, 0.5, True)}, "the step, or a size's own setting"
    real = [(row["size"], row["method"]) for row in rows if "seed" not in row]
    assert sorted(real) == sorted(
        [(size, name) for size in (1, 2) for name in ("random", "herding", "k_center")]
        + [(2, "full")]
    )
    assert all(len(row["accuracies"]) == len(row["balanced"]) == 2 for row in rows)

    def no_more(*_: Any, **__: Any) -> None:
        raise AssertionError("done again")

    monkeypatch.setattr(iadd_fast, "distill", no_more)
    monkeypatch.setattr(iadd_fast, "evaluate", no_more)
    common.main(tiny_study(common), "An example.")
    second = capsys.readouterr().out
    assert (
        first.split("finished")[0].split("|", 1)[1] == second.split("finished")[0].split("|", 1)[1]
    )


def test_the_step_is_chosen_by_the_second_half_of_the_run(
    common: ModuleType, tmp_path: Path
) -> None:
    """Breaks if the best single validation decides, which favours steps that only add noise."""
    study = tiny_study(common)
    iadd_fast.train_experts(
        three_digits(tmp_path), study.student, tmp_path / "experts", progress=False, **study.experts
    )
    got = common.validation(study, tmp_path, tmp_path, 1, 5.0)
    lines = (tmp_path / "1-uniform-step5-seed0" / "metrics.jsonl").read_text().splitlines()
    measured = [float(line.split('"validation_accuracy": ')[1].split(",")[0].rstrip("}"))
                for line in lines if "validation_accuracy" in line]  # fmt: skip
    assert len(measured) >= 4
    assert got == pytest.approx(np.mean(measured[len(measured) // 2 :]))


def test_balanced_accuracy_counts_every_class_alike(
    common: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if the column repeats the accuracy: a network that always says 0 is right for 8 of 12
    test images here, and for one class of three."""
    study, data = tiny_study(common), three_digits(tmp_path)
    distilled = one_real_image_each(data, study.student)
    zeros = torch.zeros(12, dtype=torch.int64)
    monkeypatch.setattr(common, "predictions", lambda *_: zeros)
    (row,) = common.measured(study, distilled, data, baselines=(), full=False)
    assert row["balanced"] == pytest.approx([100 / 3, 100 / 3])


def test_the_table_joins_the_networks_of_all_seeds(common: ModuleType) -> None:
    """Breaks if the spread is that of the seeds' means, or one of two seeds is shown."""
    run = {"size": 1, "method": "uniform (MTT)", "samples": 3, "lr": 0.5, "minutes": 2.0}
    rows = [
        {**run, "seed": 0, "accuracies": [50.0, 60.0], "balanced": [10.0, 20.0]},
        {**run, "seed": 1, "accuracies": [70.0, 80.0], "balanced": [30.0, 40.0], "lr": 1.0},
        {"size": 2, "method": "full", "samples": 5232, "accuracies": [90.0], "balanced": [80.0]},
        {"size": 2, "method": "random", "samples": 6, "accuracies": [30.0], "balanced": [20.0]},
    ]
    lines = common.table(rows).splitlines()[2:]
    assert lines == [
        "| 1 | uniform (MTT) | 65.00 ± 11.18 | 25.00 ± 11.18 | 4 | 55.0, 75.0 | 0.7500 | 2.0 |",
        "| 2 | real: random | 30.00 ± 0.00 | 20.00 ± 0.00 | 1 |  |  |  |",
        "|  | all real samples (5,232) | 90.00 ± 0.00 | 80.00 ± 0.00 | 1 |  |  |  |",
    ]


@pytest.mark.parametrize("name", ["pneumonia", "electric_devices"])
def test_the_settings_of_the_studies_exist(common: ModuleType, name: str) -> None:
    """Breaks if a setting is renamed: the example would fail after its experts are trained."""
    study = importlib.import_module(name).STUDY
    experts = ExpertSettings.of(**study.experts)
    for changed in study.sizes.values():
        settings = DistillSettings.of(**{**study.distill, **changed})
    assert settings.max_start_epoch + settings.expert_epochs <= experts.epochs
    assert study.evaluate.keys() <= inspect.signature(iadd_fast.evaluate).parameters.keys()
    shape = (1, 28, 28) if name == "pneumonia" else (1, 96)
    assert parse_student(study.student, shape, 2).spec["width"] == 32
