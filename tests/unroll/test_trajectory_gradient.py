"""trajectory_gradient: every engine against the definition, the definition against the formula."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iadd_fast import students
from iadd_fast.augment import Augmentation
from iadd_fast.seeds import derive
from iadd_fast.students import Student
from iadd_fast.unroll import TrajectoryGradient, trajectory_gradient


class Attention(nn.Module):
    """A module no builder knows: patches, one attention layer, tied in and out projections."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 12)
        self.norm = nn.LayerNorm(12)
        self.query = nn.Linear(12, 12, bias=False)
        self.classify = nn.Linear(12, 10)

    def forward(self, images: Tensor) -> Tensor:
        patches = images.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4).flatten(1, 3)
        x = F.gelu(self.embed(patches))
        y = self.norm(x)
        mixed = (self.query(y) @ y.transpose(1, 2) / 12**0.5).softmax(2) @ y
        mixed = mixed + F.linear(x, self.query.weight)
        logits: Tensor = self.classify(mixed.mean(1))
        return logits


def make(name: str) -> tuple[Student, tuple[int, ...]]:
    if name == "convnet":
        shape: tuple[int, ...] = (1, 28, 28)
        return students.convnet(channels=1, classes=10, image_size=28, width=6), shape
    if name == "mlp":
        return students.mlp(inputs=(1, 8, 8), classes=10, width=16), (1, 8, 8)
    if name == "resnet18":
        return students.resnet18(channels=3, classes=10, image_size=16), (3, 16, 16)
    if name == "convnet1d":
        return students.convnet1d(channels=2, classes=10, length=24, width=5), (2, 24)
    return students.from_module(Attention()), (1, 8, 8)


def problem(name: str, soft: bool = False, count: int = 10) -> dict[str, Any]:
    student, shape = make(name)
    draw = torch.Generator().manual_seed(11)
    theta = student.init(1, dtype=torch.float64)
    noise = torch.randn(theta.shape, generator=draw, dtype=torch.float64)
    images = torch.randn((count, *shape), generator=draw, dtype=torch.float64)
    labels = torch.arange(count) % 10
    if soft:
        logits = torch.randn((count, 10), generator=draw, dtype=torch.float64)
        labels = logits.softmax(1)
    return {
        "student": student,
        "theta": theta,
        "target": theta + 0.02 * noise,
        "images": images,
        "labels": labels,
        "lr": torch.tensor(0.01, dtype=torch.float64),
        "steps": 4,
    }


def weight_for(student: Student) -> Tensor:
    draw = torch.Generator().manual_seed(12)
    return torch.rand(student.num_parameters, generator=draw, dtype=torch.float64) + 0.5


def relative_errors(got: TrajectoryGradient, wanted: TrajectoryGradient) -> dict[str, float]:
    errors = {}
    for name in ("loss", "images", "labels", "lr", "weight", "theta"):
        a, b = getattr(got, name), getattr(wanted, name)
        assert (a is None) == (b is None), name
        if a is not None:
            errors[name] = float((a - b).norm() / b.norm())
    return errors


FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "batches": {"batch_size": 4},
    "soft": {"soft": True},
    "weight": {"weight": True},
    "weighted": {"weight": True, "normaliser": "weighted"},
    "augment": {"augment": "dsa"},
    "window": {"window": 2},
    "all": {
        "batch_size": 2,
        "soft": True,
        "weight": True,
        "normaliser": "weighted",
        "augment": "chain:crop_color_rotate",
        "window": 1,
    },
}


SMALL = [(n, f) for n in ("convnet", "mlp", "attention", "convnet1d") for f in FEATURES]


@pytest.mark.parametrize("name, feature", [*SMALL, ("resnet18", "weight"), ("resnet18", "all")])
def test_module_equals_reference_in_float64(name: str, feature: str) -> None:
    """The closed claim of the engine: 1e-10 against full backpropagation, every gradient.

    Breaks when a step of the sweep is dropped, the Hessian product is approximated, an adjoint of
    the augmentation uses other draws than the forward, or the window is off by one.
    """
    options = dict(FEATURES[feature])
    if name == "convnet1d" and "augment" in options:
        options["augment"] = None
    large = name == "resnet18"
    arguments = problem(name, soft=options.pop("soft", False), count=3 if large else 10)
    if large:
        arguments["steps"] = 2
    if options.pop("weight", False):
        options["weight"] = weight_for(arguments["student"])
    wanted = trajectory_gradient(**arguments, **options, seed=4, engine="reference")
    got = trajectory_gradient(**arguments, **options, seed=4, engine="module")
    errors = relative_errors(got, wanted)
    assert max(errors.values()) < 1e-10, errors


@pytest.mark.parametrize("engine", ["reference", "module"])
def test_gradients_equal_finite_differences(engine: str) -> None:
    """Against the loss alone: breaks when both engines share a wrong definition of a gradient."""
    arguments = problem("mlp", soft=True, count=6)
    weight = weight_for(arguments["student"])
    options: dict[str, Any] = {
        "batch_size": 4,
        "seed": 2,
        "augment": "dsa",
        "normaliser": "weighted",
        "engine": engine,
    }
    got = trajectory_gradient(**arguments, **options, weight=weight)
    draw = torch.Generator().manual_seed(5)
    for name, gradient in (
        ("images", got.images),
        ("labels", got.labels),
        ("lr", got.lr),
        ("weight", got.weight),
    ):
        assert gradient is not None
        inputs = {**arguments, "weight": weight}
        direction = torch.randn(gradient.shape, generator=draw, dtype=torch.float64)
        step = 1e-6 * (0.01 if name == "lr" else 1.0)
        ends = []
        for sign in (1, -1):
            moved = {**inputs, name: inputs[name] + sign * step * direction}
            ends.append(float(trajectory_gradient(**moved, **options).loss))
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5), name


def test_loss_and_theta_are_those_of_a_plain_training_loop() -> None:
    """Three lines of SGD and the formula; breaks when the unroll takes other steps."""
    arguments = problem("convnet")
    student, theta = arguments["student"], arguments["theta"].clone()
    for _ in range(4):
        theta.requires_grad_(True)
        loss = F.cross_entropy(student.apply(theta, arguments["images"]), arguments["labels"])
        (gradient,) = torch.autograd.grad(loss, theta)
        theta = (theta - 0.01 * gradient).detach()
    weight = weight_for(student)
    got = trajectory_gradient(**arguments, weight=weight)
    target = arguments["target"]
    wanted = (weight * (theta - target)).square().sum()
    wanted /= (arguments["theta"] - target).square().sum()
    torch.testing.assert_close(got.theta, theta, rtol=1e-12, atol=1e-14)
    assert float(got.loss) == pytest.approx(float(wanted), rel=1e-10)


def test_every_step_has_augmentation_draws_of_its_own() -> None:
    """The unroll by hand with a fresh seed a step; breaks when one draw serves all steps."""
    arguments = problem("mlp")
    student, theta = arguments["student"], arguments["theta"].clone()
    augment = Augmentation.parse("crop")
    assert augment is not None
    for step in range(4):
        inputs = augment(arguments["images"], derive(6, "augment", step))
        theta.requires_grad_(True)
        loss = F.cross_entropy(student.apply(theta, inputs), arguments["labels"])
        (gradient,) = torch.autograd.grad(loss, theta)
        theta = (theta - 0.01 * gradient).detach()
    for engine in ("reference", "module"):
        got = trajectory_gradient(**arguments, augment="crop", seed=6, engine=engine)
        torch.testing.assert_close(got.theta, theta, rtol=1e-12, atol=1e-14)


def test_window_of_all_steps_is_no_window_and_a_short_one_differs() -> None:
    """Breaks when the window truncates at the wrong end."""
    arguments = problem("mlp")
    whole = trajectory_gradient(**arguments)
    same = trajectory_gradient(**arguments, window=9)
    assert max(relative_errors(same, whole).values()) == 0
    last = trajectory_gradient(**arguments, window=1)
    # One step: dL/dlr = -<dL/dtheta_J, g(theta_{J-1})>, computed by hand.
    student, target = arguments["student"], arguments["target"]
    before = trajectory_gradient(**{**arguments, "steps": 3}).theta.requires_grad_(True)
    loss = F.cross_entropy(student.apply(before, arguments["images"]), arguments["labels"])
    (gradient,) = torch.autograd.grad(loss, before)
    lam = 2 * (whole.theta - target) / (arguments["theta"] - target).square().sum()
    assert float(last.lr) == pytest.approx(-float(lam @ gradient), rel=1e-10)
    assert float(last.lr) != pytest.approx(float(whole.lr), rel=1e-3)


def test_batches_visit_every_image_once_per_round() -> None:
    """MTT's order: chunks of a permutation; breaks when sampling is with replacement."""
    arguments = problem("mlp", count=10)
    got = trajectory_gradient(**{**arguments, "steps": 3}, batch_size=4, seed=8)
    assert bool((got.images.flatten(1).norm(dim=1) > 0).all())
    two = trajectory_gradient(**{**arguments, "steps": 2}, batch_size=4, seed=8)
    # The last chunk of ten has two samples and comes first: 2 + 4 of them after two steps.
    assert int((two.images.flatten(1).norm(dim=1) > 0).sum()) == 6


def test_weight_function_sees_the_final_parameters() -> None:
    """Breaks when the function is called before the unroll or its value is differentiated."""
    arguments = problem("mlp")
    seen: list[Tensor] = []

    def mask(theta: Tensor, start: Tensor, target: Tensor) -> Tensor:
        seen.append(theta)
        return ((theta - target).abs() < 0.02).to(theta.dtype)

    for engine in ("reference", "module"):
        got = trajectory_gradient(**arguments, weight=mask, engine=engine)
        fixed = mask(got.theta, arguments["theta"], arguments["target"])
        wanted = trajectory_gradient(**arguments, weight=fixed, engine=engine)
        assert max(relative_errors(got, wanted).values()) == 0
        torch.testing.assert_close(seen[-2], got.theta, rtol=0, atol=0)


def test_same_seed_same_bits_and_other_seed_other_draws() -> None:
    """Breaks when anything is drawn from a global generator."""
    arguments = problem("convnet")
    first = trajectory_gradient(**arguments, augment="dsa", batch_size=3, seed=1)
    torch.manual_seed(99)
    again = trajectory_gradient(**arguments, augment="dsa", batch_size=3, seed=1)
    assert max(relative_errors(again, first).values()) == 0
    other = trajectory_gradient(**arguments, augment="dsa", batch_size=3, seed=2)
    assert float((other.images - first.images).norm()) > 0


def test_inputs_are_left_alone_and_carry_no_graph() -> None:
    """Breaks when an engine writes into its arguments or returns tensors that hold a graph."""
    arguments = problem("mlp")
    arguments["images"].requires_grad_(True)
    copies = {k: v.detach().clone() for k, v in arguments.items() if isinstance(v, Tensor)}
    for engine in ("reference", "module"):
        got = trajectory_gradient(**arguments, augment="dsa", engine=engine)
        assert not got.images.requires_grad and not got.theta.requires_grad
        for name, copy in copies.items():
            assert torch.equal(arguments[name].detach(), copy), name
    assert arguments["images"].grad is None


def test_channels_last_images_give_the_same_gradient() -> None:
    """One channel laid out channels-last once made group_norm's tangent fail."""
    for channels in (1, 3):
        student = students.convnet(channels=channels, classes=10, image_size=8, width=4)
        theta = student.init(0, dtype=torch.float64)
        images = torch.randn(10, 8, 8, channels, dtype=torch.float64).permute(0, 3, 1, 2)
        plain = images.clone(memory_format=torch.contiguous_format)
        both = [
            trajectory_gradient(
                student, theta, theta + 0.01, x, torch.arange(10), 0.01, steps=2, engine="module"
            )
            for x in (images, plain)
        ]
        assert max(relative_errors(both[0], both[1]).values()) < 1e-12


def test_compiled_module_equals_reference() -> None:
    """The compiled sweep is the same function; breaks on a wrong trace or a stale cache."""
    arguments = problem("mlp", soft=True)
    wanted = trajectory_gradient(**arguments, engine="reference")
    got = trajectory_gradient(**arguments, engine="module", compile=True)
    assert max(relative_errors(got, wanted).values()) < 1e-10


MEMORY = """
import torch
from iadd_fast import students, trajectory_gradient
torch.set_num_threads(1)
student = students.convnet(channels=1, classes=10, image_size=28, width=16)
theta = student.init(0)
images, labels = torch.randn(20, 1, 28, 28), torch.arange(20) % 10

def peak(engine, steps):
    trajectory_gradient(
        student, theta, theta + 0.01, images, labels, 0.01, steps=steps, engine=engine
    )
    # VmHWM, not ru_maxrss: that one starts from the parent's own peak.
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

peak("module", 3)
base = peak("module", 4)
print(peak("module", 16) - base, peak("reference", 16) - base)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's VmHWM")
def test_memory_of_module_does_not_grow_with_steps() -> None:
    """Peak resident memory of a fresh process, 12 steps more: breaks when a step's graph is kept.

    12 thetas are 0.5 MB; one step's graph is several. The reference in the same process shows that
    the measure would see it.
    """
    run = subprocess.run(
        [sys.executable, "-c", MEMORY],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        # Freed tensors go back to the system at once: otherwise the heap's gaps add up to 10 MB.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "32768"},
    )
    module, reference = map(float, run.stdout.split())
    assert module < 3, f"module grew by {module} MB"
    assert reference > 40, f"reference grew by {reference} MB only: the measure sees nothing"


@pytest.mark.parametrize(
    "change, named",
    [
        ({"theta": torch.zeros(3, dtype=torch.float64)}, "theta"),
        ({"target": torch.zeros(3, dtype=torch.float64)}, "target"),
        ({"images": torch.zeros(10, 1, 8, 8)}, "images"),
        ({"labels": torch.zeros(10, dtype=torch.int32)}, "labels"),
        ({"labels": torch.zeros(9, dtype=torch.int64)}, "labels"),
        ({"lr": torch.ones(2)}, "lr"),
        ({"steps": 0}, "steps"),
        ({"window": 0}, "window"),
        ({"batch_size": -1}, "batch_size"),
        ({"weight": torch.ones(2, dtype=torch.float64)}, "weight"),
        ({"normaliser": "end"}, "normaliser"),
        ({"augment": "blur"}, "augment"),
        ({"engine": "fast"}, "engine"),
        ({"engine": "reference", "compile": True}, "compile"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], named: str) -> None:
    """Breaks when a wrong argument runs into a torch error, or into a silent broadcast."""
    arguments = problem("mlp")
    with pytest.raises(ValueError, match=rf"^{named}:"):
        trajectory_gradient(**{**arguments, **change})


def test_equal_start_and_target_is_refused() -> None:
    """The trap of expert files whose snapshots are all equal: 0/0, not a gradient of NaN."""
    arguments = problem("mlp")
    with pytest.raises(ValueError, match="target: equals theta"):
        trajectory_gradient(**{**arguments, "target": arguments["theta"].clone()})
