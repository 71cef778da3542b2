"""Experts that train together: each as if alone, and stored when it is finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from iadd_fast import expert_training as module
from iadd_fast import students, train_experts
from iadd_fast.artifacts import ExpertStore
from iadd_fast.augment import Augmentation
from iadd_fast.data import Data, Split
from iadd_fast.data.transform import Identity
from iadd_fast.seeds import derive
from iadd_fast.training import accuracy, train

STUDENT = students.convnet(channels=1, classes=3, image_size=(8, 8), width=8, depth=2)
OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 16, "lr": 0.05, "progress": False}


def split(count: int, seed: int) -> Split:
    draw = torch.Generator().manual_seed(seed)
    return Split(torch.randn(count, 1, 8, 8, generator=draw), torch.arange(count) % 3)


DATA = Data(
    name="noise",
    train=split(40, 0),
    validation=split(12, 1),
    test=None,
    class_names=("a", "b", "c"),
    transform=Identity(),
    fingerprint="f" * 64,
)


def test_how_many_train_at_once_changes_neither_experts_nor_folder(tmp_path: Path) -> None:
    """Breaks when an expert depends on those beside it, or a folder refuses another at_once."""
    alone = [
        train_experts(DATA, STUDENT, count=1 + k, at_once=1, **OPTIONS).snapshot(k, 2)
        for k in range(3)
    ]
    train_experts(DATA, STUDENT, tmp_path, count=3, at_once=3, **OPTIONS)
    (tmp_path / "expert_0001.safetensors").unlink()
    store = train_experts(DATA, STUDENT, tmp_path, count=3, at_once=2, **OPTIONS)
    assert all(torch.equal(store.snapshot(k, 2), alone[k]) for k in range(3))
    assert isinstance(store, ExpertStore)
    assert all(len(store.accuracies(k)) == 3 for k in range(3))


def test_an_expert_is_stored_when_it_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the second one trains: breaks when the first is lost with it, or half of the
    second is taken for one."""
    done = []

    def interrupted(*arguments: Any) -> float:
        done.append(1)
        if len(done) == 5:  # three of the first expert, then the start and one epoch
            raise KeyboardInterrupt
        return accuracy(*arguments)

    monkeypatch.setattr(module, "accuracy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_experts(DATA, STUDENT, tmp_path, count=3, **OPTIONS)
    assert ExpertStore.open(tmp_path).finished() == [0]


def test_experts_are_those_of_the_plain_loop() -> None:
    """From their own seeds, with every setting; breaks when one is lost on the way to training."""
    settings: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.01, "decay": True}
    got = train_experts(DATA, STUDENT, count=2, seed=3, augment="crop_flip", **OPTIONS | settings)
    for k in range(2):
        seed = derive(3, "expert", k)
        start = STUDENT.init(derive(seed, "initial"))
        want = train(
            STUDENT, start, DATA.train.images, DATA.train.labels, lr=0.05, epochs=2, batch_size=16,
            augment=Augmentation.parse("crop_flip"), seed=seed, engine="plain", **settings,
        )  # fmt: skip
        assert torch.equal(got.snapshot(k, 0), start)
        assert float((got.snapshot(k, 2) - want).norm() / (want - start).norm()) < 1e-5
