"""distill(method="gradient"): DC and DSA."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from iadd_fast import DistillationDiverged, distill, evaluate, load_data, train_experts
from iadd_fast.artifacts import DistilledSet
from iadd_fast.artifacts.files import load_tensors
from iadd_fast.augment import Augmentation
from iadd_fast.data import Data
from iadd_fast.fused import choices
from iadd_fast.gradient_matching import GradientMatching, loops
from iadd_fast.matching import Matcher, matching_distance, matching_distance_gradient
from iadd_fast.ops import use_backend
from iadd_fast.seeds import derive
from iadd_fast.settings import GradientSettings
from iadd_fast.students import Student, convnet, convnet1d, mlp
from iadd_fast.synthetic import initial_images
from iadd_fast.training import train

STUDENT = convnet(channels=1, classes=3, image_size=8, width=4, depth=2)
QUICK: dict[str, Any] = {
    "iterations": 6,
    "image_updates": 2,
    "network_epochs": 2,
    "batch_real": 8,
    "lr_images": 0.5,
    "validation_networks": 1,
    "validation_epochs": 20,
    "validate_every": 2,
    "checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def data() -> Data:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    centres = torch.randn(3, 1, 8, 8, generator=draw)
    images = centres[labels] + 0.8 * torch.randn(90, 1, 8, 8, generator=draw)
    return load_data(images, labels, validation_fraction=0.2, name="blobs")


def quick(data: Data, out: Path | None = None, **change: Any) -> DistilledSet:
    return distill(
        data,
        None,
        2,
        method="gradient",
        student=STUDENT,
        out=out,
        progress=False,
        **(QUICK | change),
    )


def distance_wb(gwr: Tensor, gws: Tensor) -> Tensor:
    """The published distance of one parameter (``utils.py``), branch by branch."""
    shape = gwr.shape
    if len(shape) == 4:
        gwr = gwr.reshape(shape[0], shape[1] * shape[2] * shape[3])
        gws = gws.reshape(shape[0], shape[1] * shape[2] * shape[3])
    elif len(shape) == 3:
        gwr = gwr.reshape(shape[0], shape[1] * shape[2])
        gws = gws.reshape(shape[0], shape[1] * shape[2])
    elif len(shape) == 1:
        return gwr.new_zeros(())
    cosine = (gwr * gws).sum(-1) / (gwr.norm(dim=-1) * gws.norm(dim=-1) + 0.000001)
    return (1 - cosine).sum()


def published(
    student: Student, theta: Tensor, real: tuple[Tensor, Tensor], synthetic: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Loss and gradient for the synthetic images: ``main.py``'s own order, double backward."""
    parameters = {k: v.detach().requires_grad_(True) for k, v in student.unflatten(theta).items()}
    images = synthetic[0].detach().requires_grad_(True)

    def gradients(inputs: Tensor, labels: Tensor, create: bool) -> tuple[Tensor, ...]:
        logits = torch.func.functional_call(student.module, parameters, (inputs,))
        loss = F.cross_entropy(logits, labels)
        return torch.autograd.grad(loss, list(parameters.values()), create_graph=create)

    gw_real = [part.detach().clone() for part in gradients(*real, create=False)]
    gw_syn = gradients(images, synthetic[1], create=True)
    loss = sum((distance_wb(r, s) for r, s in zip(gw_real, gw_syn, strict=True)), torch.zeros(()))
    return loss.detach(), torch.autograd.grad(loss, images)[0]


def batches(shape: tuple[int, ...], classes: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(count, *shape, generator=draw, dtype=torch.float64),
            torch.randint(classes, (count,), generator=draw),
        )
        for count in (7, 3)
    ]


STUDENTS = {
    "depth 1, 8x8": convnet(channels=1, classes=4, image_size=8, width=6, depth=1),
    "depth 2, 9x12": convnet(channels=3, classes=4, image_size=(9, 12), width=5, depth=2),
    "depth 3, 16x16": convnet(channels=3, classes=4, image_size=16, width=6, depth=3),
    "depth 3, 28x28": convnet(channels=1, classes=4, image_size=28, width=4, depth=3),
}
OTHERS = {
    "group norm": convnet(channels=3, classes=4, image_size=8, width=4, depth=2, norm="group"),
    "mlp": mlp(inputs=(1, 6, 6), classes=4, width=8, depth=2),
    "series": convnet1d(channels=2, classes=4, length=16, width=4, depth=2),
}


@pytest.mark.parametrize("augment", [None, "dsa", "chain:color_crop_cutout_flip_scale_rotate"])
@pytest.mark.parametrize("name", STUDENTS)
def test_both_engines_are_the_published_computation(
    monkeypatch: pytest.MonkeyPatch, name: str, augment: str | None
) -> None:
    """Breaks on any wrong term: a bias that counts, a row too many, the norm's derivative, a chunk
    lost, activations overwritten, the brightness in the adjoint of the augmentation.

    The images are augmented outside the scripts' computation, by one call for both batches.
    """
    student = STUDENTS[name]
    # Both batches in chunks, the last one smaller.
    monkeypatch.setattr(choices, "samples_at_once", lambda *_: 2)
    theta = student.init(1, dtype=torch.float64)
    real, synthetic = batches(_shape(student), 4)
    families = Augmentation.parse(augment)
    for engine, backend in (("plain", None), ("fused", None), ("fused", "reference")):
        with use_backend(backend):
            matcher = Matcher(student, engine=engine)
            results = [
                matcher.gradient(theta, real, synthetic, families, seed) for seed in (3, 4, 5)
            ]
        for seed, found in zip((3, 4, 5), results, strict=True):
            source = synthetic[0].clone().requires_grad_(True)
            inputs, other = source, real[0]
            if families is not None:
                shared = Augmentation(families.families, families.mode, shared=True)
                inputs, other = shared(source, seed), shared(other, seed)
            loss, gradient = published(student, theta, (other, real[1]), (inputs, synthetic[1]))
            if families is not None:
                (gradient,) = torch.autograd.grad(inputs, source, gradient)
            torch.testing.assert_close(found.loss, loss, rtol=1e-10, atol=0)
            error = (found.images - gradient).norm() / gradient.norm()
            assert float(error) < 1e-10, (engine, backend, seed)


def _shape(student: Student) -> tuple[int, ...]:
    spec = student.spec
    return (spec["channels"], *spec["image_size"])


@pytest.mark.parametrize("name", OTHERS)
def test_any_student_is_matched_by_the_plain_engine(name: str) -> None:
    """Three-dimensional weights, other norms, no norm: breaks when only the ConvNet is right."""
    student = OTHERS[name]
    shape = {"group norm": (3, 8, 8), "mlp": (1, 6, 6), "series": (2, 16)}[name]
    theta = student.init(1, dtype=torch.float64)
    real, synthetic = batches(shape, 4)
    matcher = Matcher(student)
    assert matcher.engine == "plain"
    found = matcher.gradient(theta, real, synthetic)
    loss, gradient = published(student, theta, real, synthetic)
    torch.testing.assert_close(found.loss, loss, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.images, gradient, rtol=1e-10, atol=1e-13)
    with pytest.raises(ValueError, match="engine: got 'fused'; the fused passes take"):
        Matcher(student, engine="fused")


def test_the_distance_and_its_closed_form() -> None:
    """Against the published function and its autograd; rows of zeros (dead filters) included."""
    for student in (*STUDENTS.values(), *OTHERS.values()):
        draw = torch.Generator().manual_seed(7)
        both = torch.randn(2, student.num_parameters, generator=draw, dtype=torch.float64)
        first = next(part for part in student.parameters if len(part.shape) > 1)
        row = (first.stop - first.start) // first.shape[0]
        both[0, first.start : first.start + row] = 0
        both[1, first.start + row : first.start + 2 * row] = 0
        gradient, real = both[0].requires_grad_(True), both[1]
        expected = torch.stack(
            [
                distance_wb(r, g)
                for r, g in zip(
                    student.unflatten(real).values(),
                    student.unflatten(gradient).values(),
                    strict=True,
                )
            ]
        ).sum()
        (slope,) = torch.autograd.grad(expected, gradient)
        loss, direction = matching_distance_gradient(student, gradient.detach(), real)
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(direction, slope, rtol=1e-10, atol=1e-13)
        both_ways = matching_distance(student, gradient, real)
        torch.testing.assert_close(both_ways, expected, rtol=1e-12, atol=0)


def test_the_augmentation_is_siamese() -> None:
    """The batch matched with itself: distance 0 only if both get one draw, whatever their sizes."""
    student = STUDENTS["depth 2, 9x12"]
    theta = student.init(1, dtype=torch.float64)
    (image, label), _ = batches(_shape(student), 4)
    one = image[:1], label[:1]
    many = image[:1].repeat(5, 1, 1, 1), label[:1].repeat(5)
    matcher = Matcher(student)
    dsa, seen = Augmentation.parse("dsa"), set()
    assert dsa is not None
    plain = matcher.gradient(theta, many, (image[1:2], label[:1])).loss
    for seed in range(12):
        seen.add(dsa.chain(seed))
        # What is left is the 1e-6 below the cosines.
        assert float(matcher.gradient(theta, many, one, dsa, seed).loss) < 1e-3 * float(plain)
    assert len(seen) > 3


def test_one_outer_step_is_the_documented_one(data: Data) -> None:
    """Rebuilt from ``published`` and ``train``: breaks on a wrong real batch, sign, momentum, order
    of the updates, a network that is not trained or trained once too often, or a wrong mean."""
    options = GradientSettings.of(**QUICK | {"image_updates": 3, "augment": "crop"})
    run = GradientMatching(data, STUDENT, 2, options, None, torch.device("cpu"))
    images, labels = initial_images(data, 2, "real", 0)
    theta = STUDENT.init(derive(0, "network", 0))
    velocity, losses = torch.zeros_like(images), []
    crop = Augmentation(("crop",), shared=True)
    for update in range(3):
        gradients = []
        for label in range(3):
            real = run._real_batch(label, update)
            assert real[1].tolist() == [label] * 8
            own = images[2 * label : 2 * label + 2].requires_grad_(True)
            seed = derive(0, "siamese", update, label, 0)
            inputs = crop(own, seed)
            wanted = torch.full((2,), label)
            loss, gradient = published(
                STUDENT, theta, (crop(real[0], seed), real[1]), (inputs, wanted)
            )
            losses.append(float(loss))
            gradients.append(torch.autograd.grad(inputs, own, gradient)[0])
        velocity = 0.5 * velocity + torch.cat(gradients)
        images = (images - 0.5 * velocity).detach()
        if update < 2:
            theta = train(
                STUDENT, theta, images, labels, lr=0.01, epochs=2,
                augment=Augmentation(("crop",)), seed=derive(0, "training", update, 0),
                engine="plain",
            )  # fmt: skip
    row = run.outer_step()
    torch.testing.assert_close(run.synthetic.images, images, rtol=1e-3, atol=1e-4)
    assert row["loss"] == pytest.approx(sum(losses) / 9, rel=1e-4)
    assert row["lr"] == 0.01


def test_real_batches_are_drawn_anew_without_repetition(data: Data) -> None:
    """The same real images in every update, one of them twice, or more than the class has."""
    options = GradientSettings.of(**QUICK | {"batch_real": 1000})
    run = GradientMatching(data, STUDENT, 2, options, None, torch.device("cpu"))
    images, labels = run._real_batch(1, 0)
    members = data.train.images[data.train.labels == 1]
    assert len(images) == len(members) and bool((labels == 1).all())
    assert torch.equal(images.flatten(1).sum(1).sort().values, members.flatten(1).sum(1).sort()[0])
    assert not torch.equal(images, run._real_batch(1, 1)[0])
    run.iteration = 1
    assert not torch.equal(images, run._real_batch(1, 0)[0])


def test_published_loops() -> None:
    """get_loops of the scripts; no number of our own for what they do not have."""
    none = GradientSettings.of()
    published_loops = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15)}
    for size, expected in (published_loops | {50: (50, 10)}).items():
        assert loops(size, none) == expected
    assert loops(10, GradientSettings.of(network_epochs=0)) == (10, 0)
    assert loops(7, GradientSettings.of(image_updates=2, network_epochs=3)) == (2, 3)
    with pytest.raises(ValueError, match="image_updates: missing; .* 40, 50 .* not for 7"):
        loops(7, none)


def test_digits_are_learned() -> None:
    """DSA and DC, 1 image a class, 40 networks: well above random real images of that size."""
    digits = load_data("digits")
    accuracies: dict[str, float] = {}
    papers: dict[str, dict[str, Any]] = {"dsa": {}, "dc": {"augment": "none", "initial": "noise"}}
    for name, change in papers.items():
        made = distill(
            digits,
            None,
            1,
            method="gradient",
            student="convnet:width=8",
            iterations=40,
            lr_images=0.5,
            batch_real=32,
            validate_every=40,
            validation_networks=1,
            validation_epochs=100,
            progress=False,
            **change,
        )
        assert (made.lr, made.weight) == (0.01, None)
        assert (made.augment is None) == (name == "dc")
        rows = evaluate(
            made,
            digits,
            networks=2,
            epochs=150,
            baselines=("random",),
            full=False,
            augment="dsa",
            progress=False,
        ).rows
        accuracies |= {name: rows[0].mean, f"random beside {name}": rows[1].mean}
    assert accuracies["dsa"] > accuracies["random beside dsa"] + 8, accuracies
    assert accuracies["dc"] > accuracies["random beside dc"] + 8, accuracies


class Stopping(GradientMatching):
    """A run that is told Ctrl-C in its third iteration."""

    def move(self) -> tuple[float, bool]:
        if self.iteration == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return super().move()


def test_interrupted_run_continues_to_the_same_bits(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when images, momentum, the best set or a random state is not saved."""
    whole = quick(data, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("iadd_fast.distillation.GradientMatching", Stopping)
        with pytest.raises(KeyboardInterrupt, match="stopped after iteration 3"):
            quick(data, tmp_path / "cut")
    resumed = quick(data, tmp_path / "cut")
    torch.manual_seed(5)
    assert torch.equal(whole.images, resumed.images)
    assert torch.equal(quick(data).images, whole.images)
    assert not torch.equal(quick(data, seed=1).images, whole.images)
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    for a, b in zip(*rows, strict=True):
        assert set(a) >= {"iteration", "loss", "lr", "skipped", "seconds"}
        a.pop("seconds"), b.pop("seconds")
        assert a == b
    validated = [row["iteration"] + 1 for row in rows[0] if "validation_accuracy" in row]
    assert validated == [2, 4, 6]
    loaded = DistilledSet.load(tmp_path / "cut" / "distilled.safetensors")
    assert torch.equal(loaded.images, whole.images)
    assert loaded.config["method"] == "gradient"
    assert loaded.summary.keys() == {"iteration", "validation_accuracy", "skipped", "seconds"}


def test_a_folder_of_another_method_is_refused(data: Data, tmp_path: Path) -> None:
    """Breaks when a run goes on with the images of another method or other settings."""
    quick(data, tmp_path)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    experts = train_experts(data, STUDENT, count=1, epochs=1, progress=False)
    with pytest.raises(ValueError, match="holds a run with another method;"):
        distill(
            data, experts, 2, student=STUDENT, out=tmp_path, progress=False, iterations=1,
            steps=1, expert_epochs=1, max_start_epoch=0,
        )  # fmt: skip
    with pytest.raises(ValueError, match="holds a run with another batch_real;"):
        quick(data, tmp_path, batch_real=9)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize("engine", ["plain", "fused"])
def test_steps_that_are_not_finite_are_skipped(data: Data, tmp_path: Path, engine: str) -> None:
    """A NaN in the images, or an endless run of skips.

    At 1e30 the first update is finite and the later ones are not.
    """
    change = {"max_skips": 3, "iterations": 20, "image_updates": 1}
    with (
        pytest.raises(DistillationDiverged, match="3 outer steps .* lower lr_images .now 1e.3"),
        pytest.warns(UserWarning, match="networks diverged"),
    ):
        quick(data, tmp_path, engine=engine, lr_images=1e30, **change)
    tensors, _ = load_tensors(tmp_path / "checkpoint.safetensors")
    assert torch.equal(tensors["synthetic.images"], initial_images(data, 2, "real", 0)[0])
    assert not bool(tensors["synthetic.velocity"].any())
    options = GradientSettings.of(**QUICK | {"lr_images": 1e30, "engine": engine})
    run = GradientMatching(data, STUDENT, 2, options, None, torch.device("cpu"))
    before = run.synthetic.images
    row = run.outer_step()
    assert (row["loss"], row["skipped"]) == (None, 1)
    assert torch.equal(run.synthetic.images, before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"steps": 3}, TypeError, "steps: is a setting of method 'trajectory'; method 'gradient'"),
        ({"lr_img": 3}, TypeError, "lr_img: no such setting; takes iterations, image_updates"),
        ({"engine": "module"}, ValueError, "engine: got 'module'; takes one of auto, fused, plain"),
        ({"precision": "bfloat16"}, ValueError, "precision: got 'bfloat16'"),
        ({"image_updates": 0}, ValueError, "image_updates: got 0"),
        ({"image_updates": None}, ValueError, "image_updates: missing; published only for 1, 10"),
        ({"batch_real": 0}, ValueError, "batch_real: got 0"),
        ({"lr_net": 0.0}, ValueError, "lr_net: got 0.0"),
        ({"initial": "random"}, ValueError, "initial: got 'random'"),
        ({"augment": "blur"}, ValueError, "augment: got 'blur'"),
        ({"importance": "uniform"}, ValueError, "importance: got 'uniform'; method 'gradient'"),
        ({"method": "dm"}, ValueError, "method: got 'dm'; takes one of trajectory, gradient"),
    ],
)
def test_bad_settings_are_named(
    data: Data, tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    """One error that names the setting, before anything is written."""
    options = {"method": "gradient", "student": STUDENT, **QUICK, **change}
    with pytest.raises(error, match=message):
        distill(data, None, 2, out=tmp_path / "out", progress=False, **options)
    assert not (tmp_path / "out").exists()


def test_trajectory_matching_refuses_settings_of_gradient_matching(data: Data) -> None:
    """Ignored in silence, or an error that does not say who takes it."""
    with pytest.raises(TypeError, match="lr_net: is a setting of method 'gradient'; method 'traj"):
        distill(data, lr_net=0.1)
