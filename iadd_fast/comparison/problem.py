"""What is compared: one outer iteration on a seeded problem, the same in every process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from iadd_fast.arguments import MOST
from iadd_fast.augment import Augmentation
from iadd_fast.seeds import generator
from iadd_fast.settings import Settings, setting
from iadd_fast.students import Student, convnet
from iadd_fast.unroll import TrajectoryGradient, trajectory_gradient

PRECISIONS = ("float32", "tf32", "bfloat16", "float64")
#: Largest relative error of a gradient that still counts as the same gradient, if the problem is
#: not itself more sensitive than that (:func:`iadd_fast.comparison.result.make_row`).
LIMITS = {"float32": 1e-3, "tf32": 3e-2, "bfloat16": 3e-1, "float64": 1e-8}


@dataclass(frozen=True)
class Contender:
    """One way to compute the gradient: keywords of :func:`iadd_fast.trajectory_gradient`."""

    engine: str
    compile: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def keywords(self, precision: str, device: torch.device) -> dict[str, Any]:
        """For a precision; engines without bfloat16 take the fastest that they have."""
        if precision == "bfloat16" and self.engine != "fused":
            precision = "tf32" if device.type == "cuda" else "float32"
        if precision == "float64":  # is the tensors' dtype
            precision = "float32"
        return {
            "engine": self.engine,
            "compile": self.compile,
            "precision": precision,
            **self.options,
        }


CONTENDERS = {
    "reference": Contender("reference"),
    "compiled": Contender("module", compile=True),
    "module": Contender("module"),
    "fused": Contender("fused"),
}


@dataclass(frozen=True)
class CompareSettings(Settings):
    """The problem that is compared on; by default CIFAR-10 at one image a class."""

    channels: int = setting(3, "channels of an image")
    image_size: int = setting(32, "side of an image")
    classes: int = setting(10, "classes")
    width: int = setting(128, "width of the ConvNet")
    depth: int | None = setting(None, "blocks of the ConvNet; default: as the image size asks for")
    images_per_class: int = setting(1, "synthetic images per class")
    steps: int = setting(10, "inner steps J")
    batch_size: int | None = setting(None, "synthetic images per inner step; none: all")
    augment: str = setting("none", "DSA families joined by _, dsa, or none")
    soft_labels: bool = setting(False, "labels with a gradient too")
    weights: bool = setting(False, "importance weights with a gradient too")
    precision: str = setting("float32", "float32, tf32, bfloat16 or float64")
    memory_budget: int | None = setting(None, "MiB of activations that engine fused keeps")
    repeats: int = setting(5, "timed iterations of each contender, at least")
    seconds: float = setting(30.0, "go on with the timed iterations for so long")
    seed: int = setting(0, "fixes the problem")

    def __post_init__(self) -> None:
        self._whole(
            "channels", "image_size", "classes", "width", "depth", "images_per_class", "steps",
            "batch_size", "repeats", most=MOST,
        )  # fmt: skip
        self._whole("seed", "memory_budget", least=0)
        self._number("seconds", above=0)
        self._flag("soft_labels", "weights")
        self._text("augment")
        self._choice("precision", PRECISIONS)
        Augmentation.parse(self.augment)

    @property
    def images(self) -> int:
        """Synthetic images in all."""
        return self.classes * self.images_per_class

    @property
    def change(self) -> float:
        """A relative change of the images ten times the rounding of the arithmetic."""
        return 1e-15 if self.precision == "float64" else 1e-6

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensors; tf32 and bfloat16 are ways to multiply float32."""
        return torch.float64 if self.precision == "float64" else torch.float32

    def student(self) -> Student:
        """The ConvNet.

        Raises:
            ValueError: the image cannot be halved so often.
        """
        return convnet(
            channels=self.channels,
            classes=self.classes,
            image_size=self.image_size,
            width=self.width,
            depth=self.depth,
        )

    def samples(self) -> list[int]:
        """Images in each inner step: of a pass over the set, a shorter batch comes first."""
        count, size = self.images, min(self.batch_size or self.images, self.images)
        rest = [count % size] if count % size else []
        return list(islice(cycle(rest + [size] * (count // size)), self.steps))


@dataclass(frozen=True)
class Iteration:
    """One outer iteration of one contender, ready to be called."""

    student: Student
    arguments: tuple[Tensor, ...]
    keywords: dict[str, Any]

    def __call__(self) -> TrajectoryGradient:
        """Loss and gradients."""
        return trajectory_gradient(self.student, *self.arguments, **self.keywords)


def make_iteration(
    settings: CompareSettings,
    contender: Contender,
    device: torch.device,
    dtype: torch.dtype,
    change: float = 0.0,
) -> Iteration:
    """The problem, drawn in float32 on the CPU, as ``contender`` sees it in ``dtype``.

    With a ``change`` the images are other by that relative amount, at random.
    """
    draw = generator(settings.seed, "compare")

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=draw)

    def there(value: Tensor) -> Tensor:
        return value.to(device, dtype if value.is_floating_point() else value.dtype)

    student = settings.student()
    theta = student.init(settings.seed)
    target = theta + 0.01 * normal(theta.numel())
    images = normal(settings.images, settings.channels, settings.image_size, settings.image_size)
    labels = torch.arange(settings.classes).repeat_interleave(settings.images_per_class)
    soft = normal(settings.images, settings.classes).softmax(1)
    weight = 1 + 0.1 * normal(theta.numel())
    if change:
        images = images.double() * (1 + change * normal(*images.shape).double())
    precision = "float64" if dtype == torch.float64 else settings.precision
    keywords = {
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "augment": settings.augment,
        "seed": settings.seed,
        "weight": there(weight) if settings.weights else None,
        **contender.keywords(precision, device),
    }
    if contender.engine == "fused":
        keywords["memory_budget"] = settings.memory_budget
    drawn = (theta, target, images, soft if settings.soft_labels else labels, torch.tensor(0.01))
    return Iteration(student, tuple(there(value) for value in drawn), keywords)


def gradients(result: TrajectoryGradient) -> Iterator[tuple[str, Tensor]]:
    """Every gradient that there is, by name."""
    for name in ("images", "lr", "labels", "weight"):
        value = getattr(result, name)
        if value is not None:
            yield name, value
