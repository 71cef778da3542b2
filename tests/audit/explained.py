"""A small set, data and networks that the tests of the explanation measure on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from iadd_fast.artifacts import DistilledSet
from iadd_fast.audit.material import Material
from iadd_fast.data import Data, load_data
from iadd_fast.evaluation import DISTILLED, FULL
from iadd_fast.evaluation_networks import TrainedNetworks
from iadd_fast.seeds import derive
from iadd_fast.students import Student, mlp
from iadd_fast.training import train_many

CLASSES = 3
SHAPE = (1, 4, 4)
STUDENT = mlp(inputs=SHAPE, classes=CLASSES, width=12, depth=2)


def blobs(count: int = 150, validation: float = 0.2) -> Data:
    """Three Gaussian classes in 16 dimensions, with a test part."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    images = centres()[labels] + 0.7 * torch.randn(count, *SHAPE, generator=draw)
    return load_data(
        images[:-60], labels[:-60], test=images[-60:], test_labels=labels[-60:],
        validation_fraction=validation, name="blobs", normalise="none",
    )  # fmt: skip


def centres() -> Tensor:
    """The middle of each class."""
    return torch.randn(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(1))


def distilled_set(data: Data, images: Tensor, labels: Tensor, **change: Any) -> DistilledSet:
    """A set of these samples."""
    values: dict[str, Any] = {
        "images": images,
        "labels": labels,
        "lr": 0.1,
        "class_names": data.class_names,
        "transform": data.transform,
        "student_spec": STUDENT.spec,
        "data_name": data.name,
        "data_fingerprint": data.fingerprint,
    }
    return DistilledSet(**values | change)


def material(
    data: Data, distilled: DistilledSet, student: Student = STUDENT, networks: int = 4
) -> Material:
    """The set beside networks trained on it and on all data for a moment."""
    assert data.test is not None
    first = torch.stack([student.init(derive(0, "test", k)) for k in range(networks)])
    trained = {}
    for method, pair in (
        (DISTILLED, (distilled.images, distilled.labels)),
        (FULL, (data.all_training().images, data.all_training().labels)),
    ):
        thetas = train_many(
            student, first, [pair], seeds=list(range(networks)), lr=0.1, epochs=25, batch_size=32
        )
        trained[method] = TrainedNetworks(method, "mlp", student, thetas, [pair] * networks, first)
    return Material(
        distilled, data, data.train, data.validation, data.test, trained, torch.device("cpu")
    )
