"""distill: its outer step, its choice of the best iteration, resuming, divergence."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from iadd_fast import DistillationDiverged, distill, train_experts, trajectory_gradient
from iadd_fast.artifacts import DistilledSet, Experts, ExpertStore, MemoryExperts
from iadd_fast.artifacts.files import load_tensors
from iadd_fast.data import Data, load_data
from iadd_fast.experts import resolve_augment
from iadd_fast.importance import Adaptive, parse_importance
from iadd_fast.seeds import derive
from iadd_fast.settings import DistillSettings
from iadd_fast.students import Student, mlp
from iadd_fast.synthetic import SyntheticSet, initial_images
from iadd_fast.trajectory_matching import TrajectoryMatching as Distillation

STUDENT = mlp(inputs=(1, 6, 6), classes=3, width=8, depth=2)
QUICK: dict[str, Any] = {
    "iterations": 6,
    "steps": 3,
    "expert_epochs": 1,
    "max_start_epoch": 1,
    "lr_images": 2.0,
    "augment": "crop",
    "validation_networks": 1,
    "validation_epochs": 20,
    "validate_every": 2,
    "checkpoint_every": 2,
}


def make_data(count: int = 90, seed: int = 0) -> Data:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.randn(3, 1, 6, 6, generator=draw)
    images = centres[labels] + 0.8 * torch.randn(count, 1, 6, 6, generator=draw)
    return load_data(images, labels, validation_fraction=0.2, name="blobs")


@pytest.fixture(scope="module")
def data() -> Data:
    return make_data()


@pytest.fixture(scope="module")
def experts(data: Data) -> Iterator[Experts]:
    yield train_experts(
        data, STUDENT, count=3, epochs=3, lr=0.1, batch_size=16, augment="none", progress=False
    )


def quick(
    data: Data, experts: Experts | None, out: Path | None = None, **change: Any
) -> DistilledSet:
    importance = change.pop("importance", "adaptive:learning_rate=0.1")
    return distill(
        data, experts, 1, importance, student=STUDENT, out=out, progress=False, **(QUICK | change)
    )


def test_one_outer_step_is_the_documented_update(data: Data, experts: Experts) -> None:
    """The first step rebuilt from trajectory_gradient: breaks on a wrong sign, draw or weight."""
    options = DistillSettings.of(**QUICK | {"trajectories": 2, "momentum": 0.5})
    policy = Adaptive(learning_rate=0.1)
    run = Distillation(data, experts, STUDENT, policy, 1, options, None, torch.device("cpu"))
    images, labels = initial_images(data, 1, "real", 0)
    segments = [run._draw_segment(k) for k in range(2)]
    results = [
        trajectory_gradient(
            STUDENT, piece.start, piece.target, images, labels, 0.01, steps=3,
            weight=torch.ones(STUDENT.num_parameters), normaliser="weighted", augment="crop",
            seed=derive(0, "inner", 0, k), engine="reference",
        )
        for k, piece in enumerate(segments)
    ]  # fmt: skip
    row = run.outer_step()
    mean = (results[0].images + results[1].images) / 2
    torch.testing.assert_close(run.synthetic.images, images - 2.0 * mean, rtol=1e-4, atol=1e-6)
    d_lr = (results[0].lr + results[1].lr) / 2
    assert float(run.synthetic.lr) == pytest.approx(0.01 - 1e-5 * float(d_lr), rel=1e-5)
    assert row["loss"] == pytest.approx(float(results[0].loss + results[1].loss) / 2, rel=1e-4)
    assert row["weight_spread"] > 0


def test_distillation_lowers_the_matching_loss(data: Data, experts: Experts) -> None:
    """Breaks when the images move up the loss or the gradient is of something else."""
    options = DistillSettings.of(**QUICK | {"iterations": 60, "augment": "none", "lr_lr": 1e-3})
    policy = parse_importance("uniform")
    run = Distillation(data, experts, STUDENT, policy, 1, options, None, torch.device("cpu"))
    losses = [run.outer_step()["loss"] for _ in range(60)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_same_seed_same_bits_and_other_seed_other_set(data: Data, experts: Experts) -> None:
    """Breaks when anything is drawn outside the seed's streams."""
    first = quick(data, experts)
    torch.manual_seed(5)
    again = quick(data, experts)
    assert torch.equal(first.images, again.images) and first.lr == again.lr
    assert first.weight is not None and again.weight is not None
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(quick(data, experts, seed=1).images, first.images)


class Stopping(MemoryExperts):
    """Experts that press Ctrl-C when the given number of snapshots has been read."""

    def __init__(self, experts: Experts, after: int) -> None:
        trajectories = [
            torch.stack([experts.snapshot(i, e) for e in range(experts.epochs + 1)])
            for i in range(len(experts))
        ]
        super().__init__(trajectories)
        self.left = after

    def snapshot(self, index: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return super().snapshot(index, epoch, device)


@pytest.mark.parametrize("importance", ["adaptive:learning_rate=0.1", "paper", "prune:every=2"])
def test_interrupted_run_continues_to_the_same_bits(
    data: Data, experts: Experts, tmp_path: Path, importance: str
) -> None:
    """Ctrl-C in the third iteration, then the same call; every kind of state is in play.

    Breaks when momentum, weights, EMA, soft labels, the best set or a random state is not saved.
    """
    options: dict[str, Any] = {"soft_labels": True, "ema": 0.9, "importance": importance}
    whole = quick(data, experts, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt, match="stopped after iteration 3"):
        quick(data, Stopping(experts, after=6), tmp_path / "cut", **options)
    resumed = quick(data, experts, tmp_path / "cut", **options)
    assert torch.equal(whole.images, resumed.images)
    assert torch.equal(whole.labels, resumed.labels) and whole.lr == resumed.lr
    assert whole.weight is not None and resumed.weight is not None
    assert torch.equal(whole.weight, resumed.weight)
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    for a, b in zip(*rows, strict=True):
        a.pop("seconds"), b.pop("seconds")
        assert a == b
    # A finished run is returned as it is.
    assert torch.equal(quick(data, experts, tmp_path / "cut", **options).images, whole.images)


def test_folder_of_another_run_is_refused(data: Data, experts: Experts, tmp_path: Path) -> None:
    """Breaks when a run silently goes on with the images of other settings."""
    quick(data, experts, tmp_path)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds a run with another lr_images"):
        quick(data, experts, tmp_path, lr_images=3.0)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_best_iteration_is_chosen_on_validation(
    data: Data, experts: Experts, tmp_path: Path
) -> None:
    """The result is the set of the best validated iteration, not the last one."""
    result = quick(data, experts, tmp_path, lr_images=20.0, iterations=10)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = {
        row["iteration"] + 1: row["validation_accuracy"]
        for row in rows
        if "validation_accuracy" in row
    }
    assert set(scores) == {2, 4, 6, 8, 10}
    best = max(scores, key=lambda it: (scores[it], -it))
    assert result.summary["iteration"] == best
    assert result.summary["validation_accuracy"] == scores[best]
    shorter = quick(data, experts, lr_images=20.0, iterations=best)
    assert torch.equal(result.images, shorter.images)


def test_the_test_set_is_never_touched(data: Data, experts: Experts) -> None:
    """Another test set, or none, must give the same bits."""
    expected = quick(data, experts).images
    without = Data(
        name=data.name,
        train=data.train,
        validation=data.validation,
        test=None,
        class_names=data.class_names,
        transform=data.transform,
        fingerprint=data.fingerprint,
    )
    assert torch.equal(quick(without, experts).images, expected)


def test_bad_steps_are_skipped_counted_and_stop_the_run(
    data: Data, experts: Experts, tmp_path: Path
) -> None:
    """Breaks when a NaN reaches the images, or an endless run of skips goes unnoticed."""
    with pytest.raises(DistillationDiverged, match="4 outer steps in a row .* lower lr_images"):
        quick(data, experts, tmp_path, max_loss=1e-9, max_skips=4, iterations=50)
    with (
        pytest.raises(DistillationDiverged, match="the last good state is in"),
        pytest.warns(UserWarning, match="1 of 1 validation networks diverged"),
    ):
        # The first step is finite and throws the images far out; all later losses are of no use.
        quick(data, experts, tmp_path / "far", lr_images=1e30, max_skips=3, iterations=50)
    tensors, _ = load_tensors(tmp_path / "far" / "checkpoint.safetensors")
    assert torch.equal(tensors["synthetic.images"], initial_images(data, 1, "real", 0)[0])
    options = DistillSettings.of(**QUICK | {"lr_init": 1e18})
    policy = parse_importance("uniform")
    run = Distillation(data, experts, STUDENT, policy, 1, options, None, torch.device("cpu"))
    before = run.synthetic.images.clone()
    row = run.outer_step()
    assert row["skipped"] == 1 and torch.equal(run.synthetic.images, before)


def test_alpha_stays_positive(data: Data) -> None:
    """A gradient that would throw alpha below zero halves it (MTT's goes negative)."""
    images, labels = initial_images(data, 1, "noise", 0)
    synthetic = SyntheticSet(images, labels, 3, DistillSettings.of(lr_lr=1.0))
    still = torch.zeros_like(images)
    for gradient, factor in ((1e6, 0.5), (-1e9, 2.0)):
        before = float(synthetic.lr)
        synthetic.step(still, torch.tensor(gradient), None)
        assert float(synthetic.lr) == pytest.approx(factor * before)


def test_soft_labels_move_along_the_logits_gradient(data: Data) -> None:
    """Against autograd through the softmax; breaks when the chain rule is dropped."""
    images, labels = initial_images(data, 1, "noise", 0)
    settings = DistillSettings.of(soft_labels=True, lr_labels=0.5)
    synthetic = SyntheticSet(images, labels, 3, settings)
    assert synthetic.logits is not None
    assert synthetic.labels.argmax(1).tolist() == [0, 1, 2]
    direction = torch.randn(3, 3)
    logits = synthetic.logits.clone().requires_grad_(True)
    (logits.softmax(1) * direction).sum().backward()
    assert logits.grad is not None
    synthetic.step(torch.zeros_like(images), torch.tensor(0.0), direction)
    torch.testing.assert_close(synthetic.logits, (logits - 0.5 * logits.grad).detach())


def test_first_images_come_from_the_right_place(data: Data) -> None:
    """real: training images of the class; kmeans: their mean for one centre; noise: standard."""
    images, labels = initial_images(data, 2, "real", 3)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    for image, label in zip(images, labels, strict=True):
        members = data.train.images[data.train.labels == label]
        assert bool((members == image).flatten(1).all(1).any())
    assert not torch.equal(images[0], images[1])
    centres, _ = initial_images(data, 1, "kmeans", 0)
    for label in range(3):
        mean = data.train.images[data.train.labels == label].mean(0)
        torch.testing.assert_close(centres[label], mean, rtol=1e-4, atol=1e-5)
    noise, _ = initial_images(data, 200, "noise", 0)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    with pytest.raises(ValueError, match="images_per_class: got 1000; class '0' has"):
        initial_images(data, 1000, "real", 0)


def test_start_window_grows() -> None:
    """DATM's expanding window: breaks when the growth is off by one or never ends."""
    settings = DistillSettings.of(
        iterations=100, first_max_start_epoch=1, max_start_epoch=4, growth_iterations=30
    )
    ends = [settings.last_start_epoch(i) for i in (0, 9, 10, 20, 29, 30, 99)]
    assert ends == [1, 1, 2, 3, 3, 4, 4]


def test_start_epochs_cover_the_window(data: Data, experts: Experts) -> None:
    """Every start epoch of the window is drawn, none outside, and target is K later."""
    options = DistillSettings.of(**QUICK | {"min_start_epoch": 1, "max_start_epoch": 2})
    policy = parse_importance("uniform")
    run = Distillation(data, experts, STUDENT, policy, 1, options, None, torch.device("cpu"))
    seen = set()
    for iteration in range(40):
        run.iteration = iteration
        piece = run._draw_segment(0)
        seen.add((piece.expert, piece.start_epoch))
        expected = experts.snapshot(piece.expert, piece.start_epoch + 1)
        assert torch.equal(piece.target, expected)
    assert seen == {(e, s) for e in range(3) for s in (1, 2)}


@pytest.mark.parametrize("importance", ["uniform", "similarity", "ranked:share=0.3", "fisher"])
def test_every_policy_runs_and_weights_the_result(
    data: Data, experts: Experts, importance: str
) -> None:
    """The artifact carries the policy's weight; breaks when it is not the one that was used."""
    result = quick(data, experts, importance=importance, initial="kmeans")
    if importance == "uniform":
        assert result.weight is None
        return
    assert result.weight is not None
    if importance.startswith("ranked"):
        assert float(result.weight.mean()) == pytest.approx(0.3, abs=0.01)
    assert result.config["importance"]["name"] == importance.split(":")[0]


def test_experts_are_trained_when_none_are_given(data: Data, tmp_path: Path) -> None:
    """Only the epochs the schedule reaches, in out/experts, used again by the next call."""
    result = quick(data, None, tmp_path, importance="uniform", max_loss=1e6)
    store = ExpertStore.open(tmp_path / "experts")
    assert store.epochs == 2 and len(store) == 10
    change: dict[str, Any] = {**QUICK, "max_loss": 1e6}
    again = distill(data, tmp_path / "experts", 1, "uniform", progress=False, **change)
    assert torch.equal(again.images, result.images)


def test_experts_resume_to_the_same_trajectories(data: Data, tmp_path: Path) -> None:
    """Two of four experts deleted and trained again: same bits, snapshots not aliases."""
    options: dict[str, Any] = {"count": 4, "epochs": 2, "progress": False, "batch_size": 32}
    first = train_experts(data, STUDENT, tmp_path / "a", **options)
    expected = [first.snapshot(i, e) for i in range(4) for e in range(3)]
    assert not torch.equal(expected[0], expected[1]), "snapshots share one storage"
    for index in (1, 3):
        next((tmp_path / "a").glob(f"*{index}.safetensors")).unlink()
    again = train_experts(data, STUDENT, tmp_path / "a", **options)
    got = [again.snapshot(i, e) for i in range(4) for e in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    memory = train_experts(data, STUDENT, **options)
    assert torch.equal(memory.snapshot(2, 2), expected[2 * 3 + 2])
    with pytest.raises(ValueError):
        train_experts(data, STUDENT, tmp_path / "a", **options | {"lr": 0.5})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"iterations": 0}, "iterations: got 0"),
        ({"lr_images": -1.0}, "lr_images: got -1.0"),
        ({"momentum": 1.0}, "momentum: got 1.0"),
        ({"ema": 1.5}, "ema: got 1.5"),
        ({"initial": "random"}, "initial: got 'random'"),
        ({"max_start_epoch": 3}, "experts: reach epoch 3; max_start_epoch .* is 4"),
        ({"min_start_epoch": 2}, "min_start_epoch: got 2"),
        ({"augment": "blur"}, "augment: got 'blur'"),
        ({"importance": "best"}, "importance: got 'best'"),
        ({"engine": "fast"}, "engine: got 'fast'"),
    ],
)
def test_bad_settings_are_named(
    data: Data, experts: Experts, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """One error that names the setting, before anything is written."""
    with pytest.raises(ValueError, match=message):
        quick(data, experts, tmp_path / "out", **change)
    assert not (tmp_path / "out" / "checkpoint.safetensors").exists()


def test_bad_settings_are_found_before_experts_are_trained(data: Data, tmp_path: Path) -> None:
    """Hours of expert training must not end in a message about a misspelt option."""
    for change in ({"engine": "fast"}, {"augment": "blur"}, {"initial": "random"}):
        with pytest.raises(ValueError, match=next(iter(change))):
            quick(data, None, tmp_path / "out", **change)
    with pytest.raises(ValueError, match="images_per_class: got 1000; class '0' has"):
        distill(data, None, 1000, "uniform", student=STUDENT, out=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_unknown_setting_lists_the_known_ones(data: Data, experts: Experts) -> None:
    """A misspelt keyword must not be ignored."""
    with pytest.raises(TypeError, match="lr_img: no such setting; takes iterations, steps"):
        quick(data, experts, lr_img=3)


def test_mtt_buffers_are_experts(data: Data, experts: Experts, tmp_path: Path) -> None:
    """A folder of MTT's files gives the set that the same trajectories give from memory."""
    trajectories = [
        [
            [part.clone() for part in STUDENT.unflatten(experts.snapshot(index, epoch)).values()]
            for epoch in range(experts.epochs + 1)
        ]
        for index in range(len(experts))
    ]
    torch.save(trajectories, tmp_path / "replay_buffer_0.pt")
    got = distill(data, tmp_path, 1, "uniform", student=STUDENT, progress=False, **QUICK)
    assert torch.equal(got.images, quick(data, experts, importance="uniform").images)


def test_experts_that_do_not_fit_are_refused(data: Data, experts: Experts, tmp_path: Path) -> None:
    """Another student, or experts of other data: an error, not a wrong set."""
    other: Student = mlp(inputs=(1, 6, 6), classes=3, width=9, depth=2)
    with pytest.raises(ValueError, match="experts: have 323 parameters; the student"):
        distill(data, experts, student=other, progress=False, **QUICK)
    draw = make_data(seed=0)
    zca = load_data(
        draw.transform.invert(draw.train.images), draw.train.labels, normalise="zca", name="blobs"
    )
    train_experts(zca, STUDENT, tmp_path / "zca", count=1, epochs=2, progress=False)
    plain = Data(**{**vars(zca), "transform": draw.transform})
    with pytest.raises(ValueError, match="experts: were trained on images normalised by 'zca'"):
        distill(plain, tmp_path / "zca", progress=False, **QUICK)
    elsewhere = make_data(seed=1)
    train_experts(elsewhere, STUDENT, tmp_path, count=1, epochs=2, progress=False)
    with pytest.raises(ValueError, match="experts: were trained on 'blobs' with fingerprint"):
        distill(data, tmp_path, progress=False, **QUICK)


def test_auto_augmentation_suits_the_data(data: Data) -> None:
    """DSA for images, nothing for series; breaks when a series is augmented as an image."""
    assert str(resolve_augment("auto", data)) == "color_crop_cutout_flip_scale_rotate"
    series = load_data(torch.randn(30, 2, 16), torch.arange(30) % 3)
    assert resolve_augment("auto", series) is None
    with pytest.raises(ValueError, match="augment: got 'crop'; series"):
        resolve_augment("crop", series)
