from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from iadd_fast import evaluation
from iadd_fast.artifacts import DistilledSet
from iadd_fast.audit import audit
from iadd_fast.audit import run as module
from iadd_fast.audit.material import Material
from iadd_fast.data import Data, Split
from iadd_fast.data.transform import Identity, Standardise
from iadd_fast.students import convnet
from iadd_fast.training import accuracy

CLASSES = 3
SMALL: dict[str, Any] = {"networks": 2, "epochs": 5, "full_epochs": 3, "progress": False}


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Class c is bright in row c, under noise that leaves some doubt."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(count)
    images = torch.rand(len(labels), 1, 4, 4, generator=generator)
    images[torch.arange(len(labels)), 0, labels] += 0.5
    return images, labels


DATA = Data(
    name="rows",
    train=Split(*samples(12, seed=1)),
    validation=Split(*samples(4, seed=2)),
    test=Split(*samples(20, seed=3)),
    class_names=("a", "b", "c"),
    transform=Identity(),
    fingerprint="f" * 64,
)
IMAGES, LABELS = samples(2, seed=4)
SET = DistilledSet(
    images=IMAGES,
    labels=LABELS,
    lr=0.5,
    class_names=DATA.class_names,
    transform=Identity(),
    student_spec={"name": "mlp", "inputs": [1, 4, 4], "classes": CLASSES, "width": 8, "depth": 2},
    config={"importance": {"name": "uniform"}, "steps": 5},
    data_name="rows",
    data_fingerprint="f" * 64,
)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The parts replaced; what they were given."""
    seen: dict[str, Any] = {}

    def explain(material: Material, metrics: Any) -> dict[str, Any]:
        seen.update(material=material, metrics=metrics)
        return {"part": "explanation"}

    def represent(material: Material, slices: Any) -> dict[str, Any]:
        assert material is seen["material"]
        seen["slices"] = slices
        return {"part": "representativeness"}

    def privacy(material: Material) -> dict[str, Any]:
        assert material is seen["material"]
        return {"part": "privacy"}

    monkeypatch.setattr(module, "explain", explain)
    monkeypatch.setattr(module, "represent", represent)
    monkeypatch.setattr(module, "privacy", privacy)
    return seen


def test_the_parts_measure_on_the_networks_of_the_evaluation(seen: dict[str, Any]) -> None:
    """Breaks when a part gets networks of another method or architecture, or parts change places.

    The networks of ``mlp:width=9,depth=2`` are trained too, and must not be the ones measured on.
    """
    other = replace(SET, lr=0.1)
    result = audit(
        SET,
        DATA,
        ["mlp", "mlp:width=9,depth=2"],
        beside={"weak": other},
        slices={"site": ["x"] * 60},
        **SMALL,
    )
    material: Material = seen["material"]
    assert list(material.trained) == ["iadd", "random", "full", "weak"]
    assert DATA.test is not None
    for method, networks in material.trained.items():
        assert networks.method == method
        row = result.evaluation.row(method, "mlp")
        assert row is not None
        assert row.accuracies == [
            accuracy(networks.student, theta, DATA.test.images, DATA.test.labels)
            for theta in networks.thetas
        ]
    assert seen["slices"] == {"site": ["x"] * 60}
    written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert [written[part]["part"] for part in ("explanation", "representativeness", "privacy")] == [
        "explanation",
        "representativeness",
        "privacy",
    ]
    assert written["labels"] == {"iadd": "distilled set: MTT (uniform)", "weak": "weak"}
    assert len(written["evaluation"]["rows"]) == 2 * 6


def test_parts_of_the_data_come_in_the_space_of_the_set(seen: dict[str, Any]) -> None:
    """Breaks when distances are measured between images of two normalisations."""
    shifted = Standardise(torch.tensor([0.5]), torch.tensor([2.0]))
    moved: dict[str, Any] = {
        name: Split(shifted.apply(getattr(DATA, name).images), getattr(DATA, name).labels)
        for name in ("train", "validation", "test")
    }
    audit(SET, replace(DATA, transform=shifted, **moved), **SMALL)
    material: Material = seen["material"]
    for name in ("train", "validation", "test"):
        expected = getattr(DATA, name)
        assert torch.allclose(getattr(material, name).images, expected.images, atol=1e-6)
        assert torch.equal(getattr(material, name).labels, expected.labels)


def test_a_stopped_audit_goes_on(
    seen: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when the same call trains every network again."""
    first = audit(SET, DATA, keep=tmp_path, **SMALL)

    def trained_again(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(evaluation, "train_many", trained_again)
    again = audit(SET, DATA, keep=tmp_path, **SMALL)
    assert again.to_dict() == first.to_dict()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"beside": {"x": replace(SET, images=IMAGES[:3], labels=LABELS[:3])}},
            "beside: 'x' has 3",
        ),
        ({"slices": {"site": ["x"] * 59}}, "slices: 'site'"),
        ({"slices": {"class": ["x"] * 60}}, "slices: "),
        ({"slices": {"site": [10**400] + [1] * 59}}, "slices: 'site' cannot be read"),
        ({"metrics": "no/metrics.jsonl"}, "metrics: no file"),
    ],
)
def test_bad_arguments_are_named_before_any_training(
    seen: dict[str, Any], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], told: str
) -> None:
    """Breaks when an hour of training goes before an error in an argument."""
    monkeypatch.setattr(module, "evaluate", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        audit(SET, DATA, **SMALL, **changes)


def test_a_whole_audit_is_json_and_repeatable() -> None:
    """Breaks when a part holds NaN, an array or a draw without a seed, or fails on a small set."""
    # a ConvNet, whose influence the fused engine finds in a tenth of the time
    student = convnet(channels=1, classes=CLASSES, image_size=8, width=4, depth=1)
    larger: dict[str, Any] = {
        name: Split(getattr(DATA, name).images.repeat(1, 1, 2, 2), getattr(DATA, name).labels)
        for name in ("train", "validation", "test")
    }
    data = replace(DATA, **larger)
    distilled = replace(SET, images=IMAGES.repeat(1, 1, 2, 2), student_spec=student.spec)
    first, again = (audit(distilled, data, **SMALL).to_dict() for _ in range(2))
    for result in (first, again):
        for row in result["evaluation"]["rows"]:
            row.pop("seconds")
    assert json.dumps(first, allow_nan=False) == json.dumps(again, allow_nan=False)
    assert 0.0 <= first["representativeness"]["overall"]["accuracy"]["full"]["value"] <= 100.0
