from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from iadd_fast import evaluation as module
from iadd_fast.artifacts import DistilledSet
from iadd_fast.data import Data, Split
from iadd_fast.data.transform import Identity, Standardise
from iadd_fast.evaluation import evaluate
from iadd_fast.evaluation_networks import TrainedNetworks
from iadd_fast.training import accuracy, train_many

CLASSES = 3
SMALL: dict[str, Any] = {"networks": 2, "epochs": 4, "full_epochs": 2, "progress": False}


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Class c is bright in row c, under noise that leaves some doubt."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(count)
    images = torch.rand(len(labels), 1, 4, 4, generator=generator)
    images[torch.arange(len(labels)), 0, labels] += 0.5
    return images, labels


DATA = Data(
    name="rows",
    train=Split(*samples(8, seed=1)),
    validation=Split(*samples(2, seed=2)),
    test=Split(*samples(10, seed=3)),
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
    data_name="rows",
    data_fingerprint="f" * 64,
)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many networks each call of train_many really trained."""
    seen: list[int] = []

    def counted(student: Any, thetas: Tensor, *rest: Any, **options: Any) -> Tensor:
        seen.append(len(thetas))
        return train_many(student, thetas, *rest, **options)

    monkeypatch.setattr(module, "train_many", counted)
    return seen


def test_a_finished_row_is_not_trained_again(tmp_path: Path, trainings: list[int]) -> None:
    """Breaks when a stopped evaluation starts from nothing, or what was kept gives other rows."""
    fresh = evaluate(SET, DATA, **SMALL)
    trainings.clear()
    evaluate(SET, DATA, baselines=("random",), full=False, keep=tmp_path, **SMALL)
    assert trainings == [2, 2]
    went_on = evaluate(SET, DATA, keep=tmp_path, **SMALL)
    assert trainings == [2, 2, 2, 2, 2]
    assert [row.accuracies for row in went_on.rows] == [row.accuracies for row in fresh.rows]
    again = evaluate(SET, DATA, keep=tmp_path, **SMALL)
    assert len(trainings) == 5
    assert again.to_dict() == went_on.to_dict()


@pytest.mark.parametrize(
    "changes",
    [
        {"set": replace(SET, images=IMAGES + 0.01)},
        {"set": replace(SET, labels=LABELS.flip(0))},
        {"set": replace(SET, lr=0.4)},
        {"epochs": 5},
        {"networks": 3},
        {"seed": 1},
        {"batch_size": 3},
        {"architectures": "mlp:width=9,depth=2"},
    ],
)
def test_a_row_of_something_else_is_trained(
    tmp_path: Path, trainings: list[int], changes: dict[str, Any]
) -> None:
    """Breaks when the networks of another set, rate or protocol pass for these."""
    options: dict[str, Any] = {**SMALL, "baselines": (), "full": False, "keep": tmp_path}
    evaluate(SET, DATA, **options)
    before = len(trainings)
    options |= {name: value for name, value in changes.items() if name != "set"}
    evaluate(changes.get("set", SET), DATA, **options)
    assert len(trainings) == before + 1


def test_a_damaged_file_is_trained_again(tmp_path: Path, trainings: list[int]) -> None:
    """Breaks when half a file stops the evaluation or is taken for networks."""
    options: dict[str, Any] = {**SMALL, "baselines": (), "full": False, "keep": tmp_path}
    first = evaluate(SET, DATA, **options)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    assert evaluate(SET, DATA, **options).rows[0].accuracies == first.rows[0].accuracies
    assert len(trainings) == 2


def test_networks_are_those_of_the_row() -> None:
    """Breaks when the networks handed out are of another method, or their sets of another one."""
    seen: list[TrainedNetworks] = []
    result = evaluate(SET, DATA, on_trained=seen.append, **SMALL)
    assert [entry.method for entry in seen] == [row.method for row in result.rows]
    assert DATA.test is not None
    for entry, row in zip(seen, result.rows, strict=True):
        scores = [
            accuracy(entry.student, theta, DATA.test.images, DATA.test.labels)
            for theta in entry.thetas
        ]
        assert scores == row.accuracies
    by_method = {entry.method: entry for entry in seen}
    assert torch.equal(by_method["iadd"].sets[1][0], SET.images)
    assert len(by_method["full"].sets[0][1]) == 30
    first, second = by_method["random"].sets
    assert not torch.equal(first[0], second[0])


def test_a_set_beside_trains_with_its_own_rate() -> None:
    """Breaks when sets share a learning rate or their rows change places."""
    weak = replace(SET, lr=1e-6)
    options: dict[str, Any] = {**SMALL, "epochs": 30, "baselines": (), "full": False}
    result = evaluate(SET, DATA, beside={"weak": weak}, **options)
    assert [row.method for row in result.rows] == ["iadd", "weak"]
    alone = evaluate(weak, DATA, **options)
    assert result.rows[1].accuracies == alone.rows[0].accuracies
    assert result.rows[0].mean > result.rows[1].mean + 10


@pytest.mark.parametrize(
    ("name", "other", "told"),
    [
        ("random", SET, "taken"),
        ("x", replace(SET, images=IMAGES[..., :3]), "shape"),
        ("x", replace(SET, class_names=("b", "a", "c")), "classes"),
        ("x", replace(SET, data_fingerprint="0" * 64), "fingerprint"),
        ("x", replace(SET, transform=Standardise(torch.zeros(1), torch.ones(1))), "transform"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(
    trainings: list[int], name: str, other: DistilledSet, told: str
) -> None:
    """Breaks when numbers of other data, another space or another order of classes get a row."""
    with pytest.raises(ValueError, match=f"beside: .*{told}"):
        evaluate(SET, DATA, beside={name: other}, **SMALL)
    assert trainings == []


def test_too_little_room_is_found_before_the_work(
    tmp_path: Path, trainings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when the disk is found to be full after an hour, or what is there counts again."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(ValueError, match="keep: .* has [0-9]+ .iB free; what goes there takes"):
        evaluate(SET, DATA, keep=tmp_path / "networks", **SMALL)
    assert trainings == [] and not (tmp_path / "networks").exists()
