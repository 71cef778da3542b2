"""Experts and evaluation networks stopped, killed or damaged in the middle of training."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import iadd_fast
from iadd_fast import evaluation, expert_training, training_progress
from iadd_fast.artifacts.checkpoint import CHECKPOINT, PREVIOUS
from iadd_fast.artifacts.files import load_tensors, save_tensors
from iadd_fast.fused.training import State
from iadd_fast.interrupt import DelayedInterrupt
from iadd_fast.training import train_many

STUDENT = "convnet:width=4,depth=1"
EXPERTS: dict[str, Any] = {
    "count": 2, "epochs": 5, "lr": 0.05, "momentum": 0.5, "device": "cpu", "progress": False,
}  # fmt: skip
EVALUATE: dict[str, Any] = {
    "networks": 2, "epochs": 6, "full_epochs": 3, "baselines": (), "device": "cpu",
    "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> iadd_fast.Data:
    digits = iadd_fast.load_data("digits")
    return dataclasses.replace(
        digits,
        train=digits.train.subset(range(200)),
        validation=digits.validation.subset(range(30)),
    )


class Training:
    """Stands in for ``train_many``: says which epochs were trained, and does something after one.

    Attributes:
        epochs: (network, epoch) of all that were trained.
    """

    def __init__(self, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.epochs: list[tuple[int, int]] = []
        self.at: tuple[int, int] | None = None
        self.do: Callable[[], None] = lambda: None
        monkeypatch.setattr(module, "train_many", self)

    def __call__(self, *given: Any, on_epoch: Any, **options: Any) -> Tensor:
        def told(network: int, state: State) -> None:
            self.epochs.append((network, state.epochs))
            if (network, state.epochs) == self.at:
                self.at = None
                self.do()
            on_epoch(network, state)

        return train_many(*given, on_epoch=told, **options)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks are kept after every epoch."""
    monkeypatch.setattr(training_progress, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(training_progress, "SHARE", 1.0)


def snapshots(store: iadd_fast.Experts) -> list[Tensor]:
    return [store.snapshot(index, epoch) for index in range(2) for epoch in range(6)]


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class Killed(BaseException):
    """Stands for a kill: nothing after it runs."""


def kill() -> None:
    raise Killed


def test_ctrl_c_finishes_the_epoch_of_an_expert_and_the_next_call_goes_on_in_it(
    data: iadd_fast.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when the expert begins anew, an epoch is trained twice, or its bits are others."""
    whole = iadd_fast.train_experts(data, STUDENT, tmp_path / "whole", **EXPERTS)
    training = Training(expert_training, monkeypatch)
    training.at, training.do = (1, 3), interrupt
    folder = tmp_path / "stopped"
    told = "stopped after epoch 3 of expert 1; the same call goes on there"
    with pytest.raises(KeyboardInterrupt, match=told):
        iadd_fast.train_experts(data, STUDENT, folder, **EXPERTS)
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == [
        "expert_0000.safetensors", "expert_0001.training", "manifest.json",
    ]  # fmt: skip
    training.epochs.clear()
    found = iadd_fast.train_experts(data, STUDENT, folder, **EXPERTS)
    assert training.epochs == [(0, 4), (0, 5)]
    for got, want in zip(snapshots(found), snapshots(whole), strict=True):
        assert torch.equal(got, want)
    assert found.metrics(1) == whole.metrics(1)  # type: ignore[attr-defined]
    assert not (folder / "expert_0001.training").exists()


def test_a_distillation_that_trains_its_experts_is_stopped_with_them(
    data: iadd_fast.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the last epoch of the last expert: breaks when the distillation goes on."""
    training = Training(expert_training, monkeypatch)
    training.at, training.do = (9, 2), interrupt
    options: dict[str, Any] = {
        "iterations": 2, "steps": 2, "expert_epochs": 1, "max_start_epoch": 1,
        "validation_networks": 1, "validation_epochs": 2, "device": "cpu", "progress": False,
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt, match=r"stopped after epoch 2 of expert 9"):
        iadd_fast.distill(data, student=STUDENT, out=tmp_path, **options)
    assert not (tmp_path / "distilled.safetensors").exists()


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("damage", ["the newest", "both"])
def test_a_killed_expert_goes_on_from_what_is_whole(
    data: iadd_fast.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Breaks when a torn part is trained on, stops the job, or is passed over in silence."""
    whole = iadd_fast.train_experts(data, STUDENT, tmp_path / "whole", **EXPERTS)
    training = Training(expert_training, monkeypatch)
    training.at, training.do = (0, 4), kill
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        iadd_fast.train_experts(data, STUDENT, folder, **EXPERTS)
    kept = folder / "expert_0000.training"
    for name in [CHECKPOINT] if damage == "the newest" else [CHECKPOINT, PREVIOUS]:
        file = kept / name
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    training.epochs.clear()
    told = "before it" if damage == "the newest" else "this network begins anew"
    with pytest.warns(UserWarning, match=told):
        found = iadd_fast.train_experts(data, STUDENT, folder, **EXPERTS)
    # The newest was of epoch 3, the one before it of epoch 2.
    assert training.epochs[0] == ((0, 3) if damage == "the newest" else (0, 0))
    for got, want in zip(snapshots(found), snapshots(whole), strict=True):
        assert torch.equal(got, want)
    assert not kept.exists()


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, _: tensors.pop("snapshots"),
        lambda tensors, _: tensors.pop("momentum"),
        lambda tensors, _: tensors.update(momentum=tensors["momentum"][1:]),
        lambda tensors, _: tensors.update(snapshots=tensors["snapshots"][:, 1:]),
        lambda tensors, _: tensors.update(snapshots=tensors["snapshots"].double()),
        lambda tensors, _: tensors.update(snapshots=tensors["snapshots"][0]),
        lambda tensors, _: tensors.update(snapshots=tensors["snapshots"].repeat(3, 1)),
        lambda tensors, _: tensors["snapshots"][2].fill_(torch.nan),
        lambda _, metadata: metadata.update(accuracies="all"),
        lambda _, metadata: metadata.update(accuracies=[1.0]),
        lambda _, metadata: metadata.update(key={"expert": 7}),
        lambda _, metadata: metadata.update(kind="expert"),
        lambda _, metadata: metadata.update(schema=99),
    ],
)
def test_a_part_of_something_else_is_not_gone_on_from(
    data: iadd_fast.Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[dict[str, Tensor], dict[str, Any]], None],
) -> None:
    """A stranger's folder: breaks when what is in it ends in a traceback or in an expert."""
    training = Training(expert_training, monkeypatch)
    training.at, training.do = (0, 4), kill
    options = {**EXPERTS, "count": 1}
    with pytest.raises(Killed):
        iadd_fast.train_experts(data, STUDENT, tmp_path, **options)
    kept = tmp_path / "expert_0000.training"
    tensors, metadata = load_tensors(kept / CHECKPOINT)
    change(tensors, metadata)
    save_tensors(kept / CHECKPOINT, tensors, metadata)
    training.epochs.clear()
    other = metadata["key"] == {"expert": 7}
    if other:
        iadd_fast.train_experts(data, STUDENT, tmp_path, **options)
    else:
        with pytest.warns(UserWarning, match="begins anew"):
            iadd_fast.train_experts(data, STUDENT, tmp_path, **options)
    assert training.epochs == [(0, epoch) for epoch in range(6)]
    assert not kept.exists()


def test_parts_of_finished_experts_go(data: iadd_fast.Data, tmp_path: Path) -> None:
    """Killed between the two: breaks when the part stays beside the expert for good."""
    options = {**EXPERTS, "count": 1}
    iadd_fast.train_experts(data, STUDENT, tmp_path, **options)
    kept = tmp_path / "expert_0000.training"
    save_tensors(kept / CHECKPOINT, {"snapshots": torch.zeros(2, 3)}, {})
    iadd_fast.train_experts(data, STUDENT, tmp_path, **options)
    assert not kept.exists()


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("end", [interrupt, kill], ids=["Ctrl-C", "killed"])
@pytest.mark.parametrize("at", [(0, 3), (1, 2), (1, 6)])
def test_an_evaluation_goes_on_within_a_network(
    data: iadd_fast.Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[], None],
    at: tuple[int, int],
) -> None:
    """Breaks when finished networks of an unfinished row, or the epochs of the one in training,
    are lost, or when the row's accuracies are others."""
    distilled = made(data)
    want = iadd_fast.evaluate(distilled, data, **EVALUATE).rows
    training = Training(evaluation, monkeypatch)
    training.at, training.do = at, end
    network, epoch = at
    with pytest.raises(KeyboardInterrupt if end is interrupt else Killed) as stop:
        iadd_fast.evaluate(distilled, data, keep=tmp_path, **EVALUATE)
    if end is interrupt:
        told = f"stopped after epoch {epoch} of network {network} of iadd on "
        assert str(stop.value).startswith(told)
        assert str(stop.value).endswith("; the same call goes on there")
    training.epochs.clear()
    got = iadd_fast.evaluate(distilled, data, keep=tmp_path, **EVALUATE).rows
    assert [row.accuracies for row in got] == [row.accuracies for row in want]
    # The epoch after which it was killed is not kept yet.
    kept = epoch if end is interrupt else epoch - 1
    first = [*range(kept + 1, 7)]
    rest = [] if network == 1 else [*range(7)]
    assert training.epochs[: len(first) + len(rest)] == [
        *((network, e) for e in first), *((1, e) for e in rest),
    ]  # fmt: skip
    assert not [*tmp_path.glob("*.training")]


def made(data: iadd_fast.Data) -> iadd_fast.DistilledSet:
    """The first image of each class."""
    labels = data.train.labels
    chosen = torch.stack([(labels == label).nonzero()[0, 0] for label in range(10)])
    experts = iadd_fast.train_experts(
        data, STUDENT, count=1, epochs=1, device="cpu", progress=False
    )
    distilled = iadd_fast.distill(
        data, experts, student=STUDENT, iterations=1, steps=1, expert_epochs=1, max_start_epoch=0,
        validation_networks=1, validation_epochs=1, device="cpu", progress=False,
    )  # fmt: skip
    return dataclasses.replace(distilled, images=data.train.images[chosen], lr=0.05)


class Clock:
    """Stands in for ``time``; keeping takes a second, an epoch what the test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_networks_are_kept_every_half_minute_but_for_two_hundredths_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Breaks when hours pass between two parts, or writing large networks takes the time."""
    clock = Clock()
    monkeypatch.setattr(training_progress, "time", clock)
    kept: list[float] = []

    def keep(seconds: float) -> Callable[[], None]:
        def write() -> None:
            kept.append(clock.now - 100.0)
            clock.now += seconds

        return write

    with training_progress.Keeping() as keeping:
        for epoch in range(13):
            keeping.after_epoch(0, epoch, epoch == 12, keep(0.0), "a network")
            clock.now += 10.0
    assert kept == [30.0, 60.0, 90.0, 120.0]
    kept.clear()
    clock.now = 100.0
    with training_progress.Keeping() as keeping:
        for epoch in range(31):
            keeping.after_epoch(0, epoch, False, keep(2.0), "a network")
            clock.now += 10.0
    # Two seconds in a hundred, no more.
    assert kept == [30.0, 102.0, 204.0, 306.0]


def test_networks_side_by_side_are_all_kept_before_the_job_stops() -> None:
    """The signal comes between two of a GPU's networks: breaks when those before it lose their
    epoch."""
    kept: list[tuple[int, int]] = []
    with (
        pytest.raises(KeyboardInterrupt, match="stopped after epoch 3 of network 2;"),
        training_progress.Keeping() as keeping,
    ):
        for epoch in range(5):
            for network in range(3):
                if (network, epoch) == (1, 2):
                    interrupt()
                keeping.after_epoch(
                    network, epoch, False, lambda: kept.append((network, epoch)),  # noqa: B023
                    f"network {network}",
                )  # fmt: skip
            keeping.after_round()
    assert kept == [(0, 3), (1, 3), (2, 3)]


def test_a_group_that_was_begun_is_kept_whole_again(
    data: iadd_fast.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three side by side, stopped twice: breaks when only the first of those that go on is kept."""
    training = Training(expert_training, monkeypatch)
    options = {**EXPERTS, "count": 3, "at_once": 3}
    for epoch in (2, 4):
        training.at, training.do = (0, epoch), interrupt
        with pytest.raises(KeyboardInterrupt, match=f"stopped after epoch {epoch} of expert 2"):
            iadd_fast.train_experts(data, STUDENT, tmp_path, **options)
        for index in range(3):
            folder = tmp_path / f"expert_{index:04d}.training"
            assert len(load_tensors(folder / CHECKPOINT)[0]["snapshots"]) == epoch + 1


def test_a_signal_while_the_last_network_is_kept_ends_the_job(
    data: iadd_fast.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when the signal is lost, and what would follow runs as if nobody had asked."""
    add = iadd_fast.ExpertStore.add

    def interrupted(self: Any, index: int, *rest: Any) -> None:
        if index == 1:
            interrupt()
        add(self, index, *rest)

    monkeypatch.setattr(iadd_fast.ExpertStore, "add", interrupted)
    with pytest.raises(KeyboardInterrupt, match="stopped; the same call goes on there"):
        iadd_fast.train_experts(data, STUDENT, tmp_path, **EXPERTS)
    assert len(iadd_fast.ExpertStore.open(tmp_path)) == 2


def test_a_signal_during_training_is_told_to_whoever_delays_it() -> None:
    """Breaks when a loop around the training (a search's) goes on after its Ctrl-C."""
    with DelayedInterrupt() as around:
        with training_progress.Keeping():
            interrupt()
        assert around.requested
