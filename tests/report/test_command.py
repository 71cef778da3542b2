"""The command on a report page really stands for the settings of the set."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from iadd_fast import cli
from iadd_fast.artifacts import DistilledSet
from iadd_fast.data import Identity
from iadd_fast.importance import parse_importance
from iadd_fast.report.command import distill_command
from iadd_fast.settings import DistillSettings, GradientSettings
from iadd_fast.students import parse_student

SETTINGS = {"iterations": 77, "ema": 0.99, "soft_labels": True, "seed": 5, "augment": "crop_flip"}
IMPORTANCE = "prune:threshold=0.4,direction=ascent,granularity=layer"
STUDENT = "convnet:width=7,depth=2,norm=group"


def made(**config: Any) -> DistilledSet:
    return DistilledSet(
        images=torch.zeros(2, 1, 8, 8),
        labels=torch.arange(2),
        lr=0.01,
        class_names=("a", "b"),
        transform=Identity(),
        student_spec=parse_student(STUDENT, (1, 8, 8), 2).spec,
        config=config,
    )


def test_command_gives_the_settings_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read by the command line itself: breaks when an option is lost or of another value."""
    distilled = made(
        images_per_class=3,
        importance=parse_importance(IMPORTANCE).describe(),
        transform="zca",
        **DistillSettings.of(**SETTINGS).to_dict(),
    )
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        "iadd_fast.cli.common.load_data", lambda source, **options: seen.update(data=options)
    )
    monkeypatch.setattr(cli, "distill", lambda data, **options: seen.update(options))
    words = shlex.split(distill_command(distilled))
    assert words[0] == "iadd-fast"
    outcome = CliRunner().invoke(cli.app, words[1:])
    assert outcome.exit_code == 0, outcome.output
    assert seen["images_per_class"] == 3
    assert seen["data"]["normalise"] == "zca"
    for name, value in DistillSettings.of(**SETTINGS).to_dict().items():
        assert seen[name] == value, name
    described = parse_importance(seen["importance"]).describe()
    assert described == parse_importance(IMPORTANCE).describe()
    student = parse_student(seen["student"], (1, 8, 8), 2)
    assert student.spec == distilled.student_spec


def test_command_of_gradient_matching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when the method is lost, a default of the other method hides a value, or the command
    asks for experts or importance, which the method refuses."""
    settings = GradientSettings.of(lr_images=10.0, batch_size=7, image_updates=3, augment="none")
    distilled = made(method="gradient", images_per_class=4, **settings.to_dict())
    seen: dict[str, Any] = {}
    monkeypatch.setattr("iadd_fast.cli.common.load_data", lambda *_, **__: None)
    monkeypatch.setattr(cli, "distill", lambda data, **options: seen.update(options))
    words = shlex.split(distill_command(distilled))
    outcome = CliRunner().invoke(cli.app, words[1:])
    assert outcome.exit_code == 0, outcome.output
    assert (seen["method"], seen["images_per_class"]) == ("gradient", 4)
    assert {name: seen[name] for name in settings.to_dict()} == settings.to_dict()
    assert seen["experts"] is None
    assert "importance" not in distill_command(distilled)


def test_no_command_for_sets_of_another_origin() -> None:
    """A set whose configuration is not distill()'s must not get an invented command."""
    assert distill_command(made(method="other")) == ""
