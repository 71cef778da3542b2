from __future__ import annotations

from typing import Any

import pytest
import torch

from iadd_fast.artifacts import DistilledSet
from iadd_fast.audit.names import method_name, names_of
from iadd_fast.data.transform import Identity


def made(augment: str | None = "flip", **config: Any) -> DistilledSet:
    return DistilledSet(
        images=torch.zeros(2, 1, 8, 8),
        labels=torch.arange(2),
        lr=0.01,
        class_names=("a", "b"),
        transform=Identity(),
        student_spec={"name": "mlp", "inputs": [1, 8, 8], "classes": 2, "width": 3, "depth": 2},
        augment=augment,
        config=config,
    )


@pytest.mark.parametrize(
    ("distilled", "name"),
    [
        (
            made(importance={"name": "adaptive"}, initial="real"),
            "IADD (adaptive), from real images",
        ),
        (made(importance={"name": "uniform"}, initial="noise"), "MTT (uniform), from noise"),
        (
            made(method="gradient", initial="kmeans"),
            "gradient matching (DSA), from k-means centres",
        ),
        (made(None, method="gradient", initial="noise"), "gradient matching (DC), from noise"),
        (made(importance={"name": "my own"}), "distilled set"),
        (made(), "distilled set"),
    ],
)
def test_a_set_is_called_after_what_made_it(distilled: DistilledSet, name: str) -> None:
    """Breaks when prior art goes under our name, or ours under another's."""
    assert method_name(distilled) == name


def test_sets_of_one_method_have_different_names() -> None:
    """Breaks when one row of a report takes the place of another."""
    one = made(importance={"name": "uniform"}, initial="real")
    other = made(importance={"name": "fisher"}, initial="real")
    assert names_of([one, other, one]) == [
        "MTT (uniform), from real images (1)",
        "Fisher weights (fisher), from real images",
        "MTT (uniform), from real images (2)",
    ]
