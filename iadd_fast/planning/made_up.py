"""Data and experts that have nothing but the right shapes, for the probe."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from iadd_fast.artifacts import ExpertStore
from iadd_fast.data import Data
from iadd_fast.data.dataset import Split
from iadd_fast.data.transform import Identity
from iadd_fast.seeds import generator
from iadd_fast.students import Student

SEED = 0
#: Epochs of a made-up expert.
EPOCHS = 1


def made_up_data(shape: tuple[int, ...], classes: int, train: int, validation: int) -> Data:
    """Normal samples of ``shape`` whose labels go round the classes."""
    return Data(
        name="made up",
        train=split(shape, classes, train),
        validation=split(shape, classes, validation),
        test=None,
        class_names=tuple(str(label) for label in range(classes)),
        transform=Identity(),
        fingerprint="0" * 64,
    )


def split(shape: tuple[int, ...], classes: int, count: int) -> Split:
    """``count`` normal samples, float32 ``[count, *shape]``."""
    return Split(normal(count, *shape), torch.arange(count) % classes)


def normal(*shape: int) -> Tensor:
    """float32 on the CPU, the same for the same shape."""
    return torch.randn(shape, generator=generator(SEED, "plan", *shape))


def made_up_expert(folder: Path, student: Student, data: Data) -> ExpertStore:
    """A store for one expert, not yet added, whose trajectory is :func:`snapshots`."""
    return ExpertStore.create(
        folder,
        student_spec=student.spec,
        settings={"lr": 0.01, "augment": "none", "images": len(data.train)},
        data_fingerprint=data.fingerprint,
        data_name=data.name,
        count=1,
        epochs=EPOCHS,
    )


def snapshots(student: Student) -> Tensor:
    """``[2, P]``: initial parameters and others at about 1 % of their size from them."""
    theta = student.init(SEED)
    return torch.stack([theta, theta + 0.01 * normal(len(theta))])
