"""One small job, planned once for all tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import iadd_fast
from iadd_fast.planning import Plan

STUDENT = "convnet:width=8,depth=2"
EXPERT: dict[str, Any] = {"count": 3, "epochs": 4, "batch_size": 32}
DISTILL: dict[str, Any] = {
    "iterations": 50,
    "steps": 4,
    "expert_epochs": 1,
    "max_start_epoch": 1,
    "validate_every": 20,
    "validation_networks": 2,
    "validation_epochs": 30,
    "checkpoint_every": 20,
}
EVALUATE: dict[str, Any] = {
    "networks": 2,
    "epochs": 50,
    "full_epochs": 3,
    "batch_size": 32,
    "baselines": ("random", "herding"),
}


def made_data() -> iadd_fast.Data:
    draw = np.random.default_rng(0)
    labels = np.arange(220) % 4
    images = draw.random((220, 8, 8), dtype=np.float32) * 0.3
    images[np.arange(220), 2 * labels] += 0.7
    return iadd_fast.load_data(images, labels, name="rows")


@pytest.fixture(scope="session")
def data() -> iadd_fast.Data:
    return made_data()


@pytest.fixture(scope="session")
def planned(data: iadd_fast.Data) -> Plan:
    return iadd_fast.plan(
        data, student=STUDENT, experts=EXPERT, distill=DISTILL, evaluate=EVALUATE,
        probe_seconds=0.3, device="cpu", progress=False,
    )  # fmt: skip
