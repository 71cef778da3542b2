"""What a plan is given: shapes, settings, the command's flags."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import iadd_fast
from iadd_fast import cli
from iadd_fast.importance import POLICIES, parse_importance
from iadd_fast.planning import DataShape, EvaluationSettings, Plan
from iadd_fast.planning.job import Job, Size
from iadd_fast.settings import DistillSettings, ExpertSettings


@pytest.mark.parametrize(("samples", "fraction"), [(103, 0.1), (40, 0.0), (41, 0.26)])
def test_a_shape_is_split_as_data_is(samples: int, fraction: float) -> None:
    """Another rounding than load_data's: other counts of steps for a shape than for its data."""
    labels = np.arange(samples) % 4
    images = np.zeros((samples, 1, 8, 8), np.float32)
    real = iadd_fast.load_data(
        images, labels, test=images, test_labels=labels, validation_fraction=fraction
    )
    shape = DataShape(samples, (1, 8, 8), 4, validation_fraction=fraction, test_fraction=0.5)
    assert Size.of(shape) == replace(Size.of(real), test=round(samples / 2))


@pytest.mark.parametrize("name", POLICIES)
def test_a_job_crosses_into_another_process(planned: Plan, name: str) -> None:
    """A policy or a setting that the fresh process measures with its default instead."""
    job = replace(
        planned.job,
        importance=parse_importance(name),
        distill=replace(planned.job.distill, soft_labels=True, ema=0.9),
    )
    again = Job.from_dict(json.loads(json.dumps(job.to_dict())))
    assert again.to_dict() == job.to_dict()
    assert again.size == job.size
    assert type(again.importance) is type(job.importance)


def call(**changes: Any) -> Plan:
    return iadd_fast.plan(
        **{"data": DataShape(100, (1, 8, 8), 4), "device": "cpu", "progress": False, **changes}
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"device": "cuda:77"}, "measured on the device that will do the work"),
        ({"minutes": 0}, "minutes: got 0; takes a finite number above 0"),
        ({"memory": float("nan")}, "memory: got nan"),
        ({"probe_seconds": -1}, "probe_seconds: got -1"),
        ({"images_per_class": 24}, "images_per_class: got 24; a class has 23"),
        ({"experts": {"epochs": 3}}, "epochs: got 3; max_start_epoch . expert_epochs is 4"),
        ({"evaluate": {"baselines": ("best",)}}, "baselines: got 'best'"),
        ({"evaluate": {"architectures": ("convent",)}}, "student: got 'convent'"),
        ({"distill": {"steps": 0}}, "steps: got 0"),
        ({"experts": {"precision": "tf32"}}, "precision: got 'tf32', a mode of CUDA devices"),
        ({"preset": "cifar"}, "preset: got 'cifar'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], text: str
) -> None:
    """An error of the probe's process, or none, for what the user gave."""
    monkeypatch.setattr("iadd_fast.planning.run.measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(ValueError, match=text):
        call(**changes)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("1x8x8x8x8",), "shape: got (1, 8, 8, 8, 8)"),
        (("8by8",), "shape: got '8by8'; takes one such as 3x32x32"),
    ],
)
def test_a_shape_that_is_none(arguments: tuple[str], text: str) -> None:
    """A traceback for a mistyped shape."""
    with pytest.raises(ValueError) as refused:
        DataShape.parse(100, *arguments, 4)
    assert text in str(refused.value)


def command(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["plan", *map(str, arguments)])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, planned: Plan) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def record(data: Any, **keywords: Any) -> Plan:
        seen.update(keywords, data=data)
        return planned

    monkeypatch.setattr("iadd_fast.cli.plan.plan", record)
    return seen


SHAPE = ("--samples", 100, "--shape", "1x8x8", "--classes", 4)


def test_the_command_gives_what_was_given(asked: dict[str, Any], tmp_path: Path) -> None:
    """A default that looks like a flag and wins over a preset, or batch sizes mixed up."""
    result = command(
        *SHAPE, "--batch-size", 3, "--experts-batch-size", 8, "--epochs", 9, "--soft-labels",
        "--no-evaluate-full", "--evaluate-epochs", 7, "--evaluate-baselines", "none",
        "--minutes", 5, "--validation-fraction", 0.2, "--json", tmp_path / "plan.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert asked["data"] == DataShape(100, (1, 8, 8), 4, validation_fraction=0.2)
    assert asked["distill"] == {"batch_size": 3, "soft_labels": True}
    assert asked["experts"] == {"batch_size": 8, "epochs": 9}
    assert asked["evaluate"] == {"full": False, "epochs": 7, "baselines": ["none"]}
    assert asked["minutes"] == 5
    assert json.loads((tmp_path / "plan.json").read_text())["fits"] is True
    assert "distillation: outer steps" in result.stdout


def test_a_preset_says_how_the_data_is_normalised(asked: dict[str, Any]) -> None:
    """A plan without the 75 MB of ZCA in the set."""
    assert command(*SHAPE, "--preset", "cifar10-ipc1").exit_code == 0
    assert asked["data"].normalise == "zca"
    assert asked["preset"] == "cifar10-ipc1"


def test_every_setting_has_a_flag() -> None:
    """A setting of a job that plan does not know."""
    text = " ".join(command("--help").stdout.split())
    own = {field.name for field in fields(DistillSettings)}
    names = [field.name for field in fields(DistillSettings)]
    names += [
        f"experts_{field.name}" if field.name in own else field.name
        for field in fields(ExpertSettings)
    ]
    names += [f"evaluate_{field.name}" for field in fields(EvaluationSettings)]
    missing = [name for name in names if f"--{name.replace('_', '-')} " not in text]
    assert missing == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "data: missing; give it, or --samples, --shape and --classes"),
        (("--samples", 100), "shape: missing"),
        (("digits", *SHAPE), "data: got it and --samples"),
        ((*SHAPE, "--image-size", 8), "image_size: is of DATA"),
    ],
)
def test_data_or_a_shape(asked: dict[str, Any], arguments: tuple[object, ...], text: str) -> None:
    """A plan of something else than what was named."""
    result = command(*arguments)
    assert result.exit_code == 2
    assert text in result.stderr
    assert asked == {}
