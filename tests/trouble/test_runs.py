"""Runs in trouble: what is skipped, undone, saved and said; diverging experts and validations."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from iadd_fast import (
    DistillationDiverged,
    DistilledSet,
    ExpertDiverged,
    distill,
    load_data,
    train_experts,
    validation,
)
from iadd_fast import training as training_module
from iadd_fast.artifacts import ExpertStore, MemoryExperts
from iadd_fast.artifacts.files import load_tensors
from iadd_fast.fused.training import State
from iadd_fast.importance import Uniform, parse_importance
from iadd_fast.settings import DistillSettings
from iadd_fast.students import Student, mlp
from iadd_fast.synthetic import initial_images
from iadd_fast.training import accuracy, train
from iadd_fast.trajectory_matching import TrajectoryMatching
from tests.trouble.small import CONVNET, ENGINES, MLP, QUICK, blobs, trajectory

SETTINGS = {name: value for name, value in QUICK.items() if name != "progress"}


def run_of(student: Student, importance: str = "uniform", **change: Any) -> TrajectoryMatching:
    options = DistillSettings.of(**SETTINGS | change)
    policy = parse_importance(importance)
    return TrajectoryMatching(
        blobs(), trajectory(student), student, policy, 1, options, None, torch.device("cpu")
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_images_thrown_far_out_are_not_kept(engine: str) -> None:
    """One finite step of size 1e30, and the images are such that every later loss is of no use.

    On dead planes engine fused found a loss of 1 and the run went on to its end.
    """
    run = run_of(CONVNET, engine=engine, lr_images=1e30)
    rows = [run.outer_step() for _ in range(3)]
    assert [row["skipped"] for row in rows] == [0, 1, 2]
    assert [row["loss"] is None for row in rows] == [False, True, True]


def test_a_step_whose_result_is_not_finite_is_undone() -> None:
    """Loss and gradients are finite, images + momentum are not: they were kept, validated and, by
    the luck of class 0, the best; saving failed at the end of the run."""
    run = run_of(MLP, importance="adaptive", lr_images=3e38)
    before, weight = run.synthetic.images, run.importance.current()
    run.synthetic._velocity["images"] = torch.full_like(before, 1e3)
    row = run.outer_step()
    assert row["loss"] is not None and row["skipped"] == 1
    assert torch.equal(run.synthetic.images, before)
    after = run.importance.current()
    assert weight is not None and after is not None and torch.equal(after, weight)


def diverging(folder: Path | None, iterations: int, **change: Any) -> DistilledSet:
    return distill(
        blobs(),
        trajectory(CONVNET),
        1,
        student=CONVNET,
        out=folder,
        **QUICK | {"iterations": iterations, "lr_images": 1e30, "max_skips": 3} | change,
    )


@pytest.mark.filterwarnings("ignore:1 of 1 validation networks diverged")
def test_what_a_diverged_run_says_and_leaves(tmp_path: Path) -> None:
    """The message: iteration, loss, last useful step, what to lower, what is where. The files: the
    state before the last useful step, and the best validated set, which was not to be had."""
    with pytest.raises(DistillationDiverged) as raised:
        diverging(tmp_path, 50, validate_every=1, lr_init=0.02)
    said = str(raised.value)
    for words in (
        "3 outer steps in a row were skipped (last loss not finite) at iteration 4",
        "the last useful one was iteration 1",
        "lower lr_images (now 1e+30), lr_lr (1e-05) or lr_init (0.02), or raise max_loss (5)",
        f"the last good state is in {tmp_path / 'checkpoint.safetensors'}",
    ):
        assert words in said
    images, _ = initial_images(blobs(), 1, "real", 0)
    tensors, _ = load_tensors(tmp_path / "checkpoint.safetensors")
    assert torch.equal(tensors["synthetic.images"], images)
    assert not (tmp_path / "distilled.safetensors").exists()  # no network stayed finite on any


def test_a_diverged_run_leaves_its_best_set(tmp_path: Path) -> None:
    """Hours of useful steps before it diverged: the best set was in the checkpoint alone."""
    with pytest.raises(DistillationDiverged, match=r"the best set so far \(iteration 2, validat"):
        diverging(tmp_path, 50, lr_images=1.0, max_loss=1e-9, validate_every=2)
    best = DistilledSet.load(tmp_path / "distilled.safetensors")
    assert best.summary["iteration"] == 2


def test_a_resumed_run_diverges_to_the_same_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last good state was not in the checkpoint: a run that went on during its skips was put
    back to where it began anew, its first images."""
    move = TrajectoryMatching.move

    def spoiled(self: TrajectoryMatching) -> tuple[float, bool]:
        return move(self) if self.iteration < 3 else (float("nan"), False)

    monkeypatch.setattr(TrajectoryMatching, "move", spoiled)
    with pytest.raises(DistillationDiverged):
        diverging(tmp_path / "whole", 50, lr_images=1.0)
    asked = iter([False, False, False, True])
    with pytest.raises(KeyboardInterrupt):
        diverging(tmp_path / "parts", 50, lr_images=1.0, should_stop=lambda: next(asked))
    with pytest.raises(DistillationDiverged):
        diverging(tmp_path / "parts", 50, lr_images=1.0)
    whole, parts = (
        load_tensors(tmp_path / name / "checkpoint.safetensors")[0] for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("student", [CONVNET, MLP], ids=["fused", "plain"])
def test_the_accuracy_of_a_diverged_network_is_zero(student: Student) -> None:
    """argmax of NaN is the first NaN: class 0, a third of the images "right"."""
    data = blobs()
    theta = torch.full((student.num_parameters,), torch.nan)
    assert accuracy(student, theta, data.train.images, data.train.labels) == 0.0
    theta = student.init(0)
    theta[-1] = torch.inf  # the bias of the last class: larger than all others, and no probability
    assert accuracy(student, theta, data.train.images, data.train.labels) == 0.0


def test_a_validation_never_picks_a_network_that_diverged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks diverge at the first validation and at the last: the one between is the result.

    Breaks when a score of 0 (or of class 0) is better than none, or ties with a worse one.
    """
    scores = iter([None, 0.0, None])

    def scored(*_: Any) -> Tensor:
        score = next(scores)
        return torch.tensor([[score or 0.0], [float(score is not None)]], dtype=torch.float64)

    monkeypatch.setattr(validation, "_scores", scored)
    with pytest.warns(
        UserWarning, match="1 of 1 validation networks diverged after iteration [13]"
    ):
        best = distill(
            blobs(), trajectory(MLP), 1, student=MLP, **QUICK | {"iterations": 3, "lr_images": 1e-3}
        )
    assert best.summary["iteration"] == 2


def test_validations_that_all_diverge_give_no_set(tmp_path: Path) -> None:
    """An alpha that J steps bear and 300 epochs do not: the set of the first validation came out
    as the best, with the accuracy of class 0."""
    with (
        pytest.warns(UserWarning, match="1 of 1 validation networks diverged"),
        pytest.raises(DistillationDiverged, match="no network trained on the set stayed finite"),
    ):
        diverging(tmp_path, 2, lr_images=1e-3, lr_init=1e30, max_loss=1e38, max_skips=20)
    assert (tmp_path / "checkpoint.safetensors").exists()


def test_an_expert_is_stopped_in_the_epoch_in_which_it_diverges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was trained to its last epoch and refused when stored. The one before it is kept."""
    epochs: list[tuple[int, int]] = []
    train_many = training_module.train_many

    def spoiled(*given: Any, on_epoch: Any, **options: Any) -> Tensor:
        def told(network: int, state: State) -> None:
            epochs.append((network, state.epochs))
            bad = (network, state.epochs) == (1, 2)
            lost = replace(state, theta=torch.full_like(state.theta, torch.nan))
            on_epoch(network, lost if bad else state)

        return train_many(*given, on_epoch=told, **options)

    monkeypatch.setattr("iadd_fast.expert_training.train_many", spoiled)
    with pytest.raises(ExpertDiverged, match=r"expert 1 diverged in epoch 2: .* lower lr \(now 0"):
        train_experts(blobs(), MLP, tmp_path, count=3, epochs=50, augment="none", progress=False)
    assert epochs[-1] == (1, 2)
    assert ExpertStore.open(tmp_path).finished() == [0]


@pytest.mark.parametrize("student", [CONVNET, MLP], ids=["fused", "plain"])
def test_an_expert_diverges_by_itself(student: Student) -> None:
    """The same without a hand: at a learning rate of 1e30 the second epoch starts from nothing."""
    with pytest.raises(ExpertDiverged, match="expert 0 diverged in epoch [12]: .* images"):
        train_experts(blobs(), student, count=1, epochs=9, lr=1e30, augment="none", progress=False)


def test_an_expert_that_does_not_move_is_refused() -> None:
    """Steps below the rounding: a day of training, then 'MTT's buffer.py copies nothing'."""
    with pytest.raises(ValueError, match="lr: got 1e-12; expert 0 has not moved by more than"):
        train_experts(blobs(), MLP, count=1, epochs=9, lr=1e-12, augment="none", progress=False)


def test_segments_in_which_the_teacher_stands_still_are_skipped() -> None:
    """One such epoch ended a run of hours with 'target equals theta'."""
    experts = trajectory(MLP, 2).trajectories[0]
    standing = MemoryExperts([torch.stack([experts[0], experts[1], experts[1]])])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        made = distill(blobs(), standing, 1, student=MLP, **QUICK | {"iterations": 8})
    drawn = [warning for warning in seen if "stands still from epoch 1 to 2" in str(warning)]
    assert 0 < len(drawn) < 8
    assert made.summary["skipped"] == len(drawn)


def test_the_least_distillation() -> None:
    """One step, window, batch, image a class, expert and epoch; two classes."""
    data = blobs(30).train
    student = mlp(inputs=(1, 8, 8), classes=2, width=4, depth=2)
    keep = data.labels < 2
    two = load_data(data.images[keep], data.labels[keep], test_fraction=0.2)
    experts = train_experts(two, student, count=1, epochs=1, augment="none", progress=False)
    made = distill(
        two, experts, 1, student=student,
        **QUICK | {"iterations": 1, "steps": 1, "window": 1, "batch_size": 1, "max_start_epoch": 0},
    )  # fmt: skip
    assert made.images.shape == (2, 1, 8, 8) and made.summary["skipped"] == 0
    assert not torch.equal(made.images, initial_images(two, 1, "real", 0)[0])


def test_training_on_one_image() -> None:
    """A batch of one: instance norm needs no second sample, and the image is learned."""
    data = blobs().train
    image, label = data.images[:1], data.labels[:1]
    theta = train(CONVNET, CONVNET.init(0), image, label, lr=0.1, epochs=30, batch_size=1)
    assert accuracy(CONVNET, theta, image, label) == 100.0


class Spy(Uniform):
    """Counts the steps that it is told of."""

    updates = 0

    def update(self, gradient: Tensor | None) -> None:
        self.updates += 1


@pytest.mark.parametrize("lr", [1e6, 1e30])
def test_a_policy_learns_nothing_from_a_skipped_step(lr: float) -> None:
    """NaN in a policy's weights outlives the step that brought it."""
    spy = Spy()
    run = run_of(CONVNET, lr_init=lr)
    run.importance = spy
    assert run.outer_step()["loss"] is None
    assert spy.updates == 0


@pytest.mark.filterwarnings("ignore:1 of 1 validation networks diverged")
@pytest.mark.parametrize("iterations", [4, 50])
def test_a_diverged_run_that_is_called_again_says_the_same(tmp_path: Path, iterations: int) -> None:
    """Also where it diverged in its last iteration: breaks when the second call makes one more
    step, or returns a set as if all were well."""
    options: dict[str, Any] = {"validate_every": 1, "lr_init": 0.02}
    for call in range(2):
        with pytest.raises(DistillationDiverged, match="3 outer steps in a row") as raised:
            diverging(tmp_path, iterations, **options)
        assert ("last loss" in str(raised.value)) == (call == 0)
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_run_of_which_no_step_was_of_use_says_so(tmp_path: Path) -> None:
    """Fewer steps than max_skips, all skipped: breaks when the images that it began with are
    handed out as its result without a word."""
    images, _ = initial_images(blobs(), 1, "real", 0)
    for _ in range(2):
        with pytest.warns(UserWarning, match="none of the 2 outer steps was of use, and the set"):
            made = diverging(tmp_path, 2, max_loss=1e-30, max_skips=9, lr_images=1.0)
        assert torch.equal(made.images, images)


def test_experts_of_another_dtype_are_refused_before_the_work() -> None:
    """Breaks at the first segment of such an expert, under the images' name."""
    rows = trajectory(MLP).trajectories[0]
    with pytest.raises(ValueError, match=r"experts: hold torch.float64; the data's images are"):
        distill(blobs(), MemoryExperts([rows.double()]), 1, student=MLP, **QUICK)
    with pytest.raises(ValueError, match=r"trajectories\[1\]: got torch.float64; the first"):
        MemoryExperts([rows, rows.double()])
