"""Engine "module" against "reference": relative error in float64, and peak memory over the steps.

    python bench/unroll_check.py

The errors are of every gradient on four networks, plain and with mini-batches, DSA, soft labels,
weights and a window; the memory is the growth of a fresh process's peak resident set over one call
with a single step. Nothing here depends on timing.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch
from torch import Tensor, nn

from iadd_fast import students, trajectory_gradient
from iadd_fast.students import Student

STEPS = (10, 20, 40)


class GatedUnit(nn.Module):
    """A module of this script's own: two linear maps of patches, one gating the other."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(16, 24)
        self.gate = nn.Linear(16, 24)
        self.norm = nn.LayerNorm(24)
        self.classify = nn.Linear(24, 10)

    def forward(self, images: Tensor) -> Tensor:
        patches = images.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4).flatten(1, 3)
        mixed = self.norm(self.value(patches) * self.gate(patches).sigmoid()).mean(1)
        logits: Tensor = self.classify(mixed)
        return logits


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "ConvNet-3, width 16, 28x28": (
        lambda: students.convnet(channels=1, classes=10, image_size=28, width=16),
        (1, 28, 28),
    ),
    "MLP-3, 28x28": (lambda: students.mlp(inputs=(1, 28, 28), classes=10), (1, 28, 28)),
    "ResNet18, 16x16x3": (
        lambda: students.resnet18(channels=3, classes=10, image_size=16),
        (3, 16, 16),
    ),
    "own module, 28x28": (lambda: students.from_module(GatedUnit), (1, 28, 28)),
}
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "mini-batches": {"batch_size": 4},
    "DSA": {"augment": "dsa"},
    "soft labels": {"soft": True},
    "weights": {"weight": True},
    "window": {"window": 2},
    "all of them": {
        "batch_size": 4,
        "augment": "chain:color_crop_rotate",
        "soft": True,
        "weight": True,
        "normaliser": "weighted",
        "window": 2,
    },
}


def errors(student: Student, shape: tuple[int, ...], options: dict[str, Any]) -> float:
    """Largest relative error of a gradient, float64, 4 steps on 10 images."""
    options = dict(options)
    draw = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=draw, dtype=torch.float64)

    theta = student.init(0, dtype=torch.float64)
    labels = torch.arange(10)
    if options.pop("soft", False):
        labels = normal(10, 10).softmax(1)
    if options.pop("weight", False):
        options["weight"] = normal(theta.numel()).abs() + 0.1
    target, images = theta + 0.02 * normal(theta.numel()), normal(10, *shape)
    results = [
        trajectory_gradient(
            student, theta, target, images, labels, 0.01, steps=4, engine=engine, **options
        )
        for engine in ("module", "reference")
    ]
    worst = 0.0
    for name in ("loss", "images", "labels", "lr", "weight", "theta"):
        got, wanted = (getattr(result, name) for result in results)
        if wanted is not None:
            worst = max(worst, float((got - wanted).norm() / wanted.norm()))
    return worst


MEMORY = """
import sys, torch
from iadd_fast import students, trajectory_gradient
torch.set_num_threads(2)
engine, steps = sys.argv[1], int(sys.argv[2])
student = students.convnet(channels=3, classes=10, image_size=32, width=64)
theta = student.init(0)
target, images, labels = theta + 0.01, torch.randn(10, 3, 32, 32), torch.arange(10)
def call(engine, steps):
    trajectory_gradient(student, theta, target, images, labels, 0.01, steps=steps, engine=engine)
    # Linux; not ru_maxrss, which starts from the parent's own peak.
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
before = call("module", 1)
print(call(engine, steps) - before, student.num_parameters * 4 / 2**20)
"""


def peak(engine: str, steps: int) -> tuple[float, float]:
    """MiB above a one-step call, and MiB of one theta."""
    command = [sys.executable, "-c", MEMORY, engine, str(steps)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(printed[0]), float(printed[1])


def main() -> None:
    """Both tables; exit status 1 when an error is above 1e-10."""
    worst = 0.0
    print("largest relative error of any gradient, module against reference, float64\n")
    print("| network | " + " | ".join(FEATURES) + " |")
    print("|---" * (len(FEATURES) + 1) + "|")
    for name, (build, shape) in NETWORKS.items():
        found = [errors(build(), shape, options) for options in FEATURES.values()]
        worst = max(worst, *found)
        print(f"| {name} | " + " | ".join(f"{error:.1e}" for error in found) + " |", flush=True)
    print("\npeak resident memory above a one-step call, MiB (ConvNet-3, width 64, CIFAR-10 shape,")
    print("10 images)\n\n| engine | " + " | ".join(f"{steps} steps" for steps in STEPS) + " |")
    print("|---" * (len(STEPS) + 1) + "|")
    size = 0.0
    for engine in ("reference", "module"):
        measured = [peak(engine, steps) for steps in STEPS]
        size = measured[0][1]
        print(f"| {engine} | " + " | ".join(f"{value:.0f}" for value, _ in measured) + " |")
    print(f"\none theta is {size:.2f} MiB")
    sys.exit(int(worst > 1e-10))


if __name__ == "__main__":
    main()
