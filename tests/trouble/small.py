"""The smallest data, students and experts on which trouble shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from iadd_fast.artifacts import DistilledSet, MemoryExperts
from iadd_fast.data import Data, load_data
from iadd_fast.students import Student, convnet, mlp

ENGINES = ("reference", "module", "fused")
CLASSES = 3
CONVNET = convnet(channels=1, classes=CLASSES, image_size=8, width=4, depth=2)
MLP = mlp(inputs=(1, 8, 8), classes=CLASSES, width=6, depth=2)

#: A run of seconds: three inner steps, one validation network of two epochs.
QUICK: dict[str, Any] = {
    "iterations": 4,
    "steps": 3,
    "expert_epochs": 1,
    "max_start_epoch": 1,
    "augment": "none",
    "validation_networks": 1,
    "validation_epochs": 2,
    "validate_every": 1,
    "checkpoint_every": 1,
    "progress": False,
}


def draw(seed: int = 0) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def blobs(count: int = 30, **options: Any) -> Data:
    """Images of three classes around three centres."""
    labels = torch.arange(count) % CLASSES
    centres = torch.randn(CLASSES, 1, 8, 8, generator=draw())
    images = centres[labels] + 0.5 * torch.randn(count, 1, 8, 8, generator=draw(1))
    return load_data(images, labels, name="blobs", **{"validation_fraction": 0.2, **options})


def trajectory(student: Student, epochs: int = 2, length: float = 0.01) -> MemoryExperts:
    """One made-up expert: an initialisation and random steps from it."""
    steps = torch.randn(epochs, student.num_parameters, generator=draw(2)) * length
    start = student.init(0)
    return MemoryExperts([torch.stack([start, *(start + steps.cumsum(0))])])


def one_of_each(data: Data, student: Student = CONVNET, lr: float = 0.05) -> DistilledSet:
    """The first training image of every class, as if it were distilled."""
    first = [data.train.images[data.train.labels == label][0] for label in range(CLASSES)]
    return DistilledSet(
        images=torch.stack(first),
        labels=torch.arange(CLASSES),
        lr=lr,
        class_names=data.class_names,
        transform=data.transform,
        student_spec=student.spec,
        data_name=data.name,
        data_fingerprint=data.fingerprint,
    )


def samples(scale: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Six images and their labels."""
    images = torch.randn(6, 1, 8, 8, generator=draw(3), dtype=torch.float64) * scale
    return images.to(dtype), torch.arange(6) % CLASSES
