"""Every way the package opens a file, as a function of the path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from iadd_fast.artifacts import DistilledSet, ExpertStore, load_mtt_buffers
from iadd_fast.artifacts.checkpoint import load_checkpoint
from iadd_fast.artifacts.files import read_json
from iadd_fast.artifacts.folder_lock import exclusive
from iadd_fast.audit.slices import read_slices
from iadd_fast.data import Data, load_data
from iadd_fast.evaluation_rows import Evaluation
from iadd_fast.metrics import Metrics, MetricsLog, read_metrics
from iadd_fast.options import read_config
from tests.strangers.building import SHAPE


def experts(path: Path) -> tuple[list[float], list[list[float]]]:
    """All of a store: what is missing, every snapshot, the accuracies."""
    store = ExpertStore.open(path)
    store.missing()
    snapshots = [
        store.snapshot(index, epoch).tolist()
        for index in store.finished()
        for epoch in range(store.epochs + 1)
    ]
    return [value for index in store.finished() for value in store.accuracies(index)], snapshots


def data(path: Path) -> Data:
    return load_data(path, normalise="none", validation_fraction=0, test_fraction=0)


def metrics(path: Path) -> Metrics:
    course = read_metrics(path)
    course.column("loss")
    course.layer_weights(50)
    return course


def lock(path: Path) -> None:
    with exclusive(path, "a test"):
        pass


def log(path: Path) -> None:
    """Go on with a run's log, which is written."""
    with MetricsLog(path, 1) as opened:
        opened.write({"iteration": 1})


def journal(path: Path) -> Any:
    from iadd_fast.tuning.space import Space
    from iadd_fast.tuning.storage import open_study

    return open_study(path, {}, Space({}, {}, {}, None, 0), None)


def mtt_set(path: Path) -> DistilledSet:
    images = np.arange(4 * 48, dtype=np.uint8).reshape(4, *SHAPE)
    pets = load_data(images, [0, 0, 1, 1], validation_fraction=0, test_fraction=0)
    return DistilledSet.from_mtt(path, pets, "mlp:width=3", lr=0.1, augment=None)


READERS: dict[str, Callable[[Path], Any]] = {
    "set": DistilledSet.load,
    "experts": experts,
    "checkpoint": load_checkpoint,
    "json": read_json,
    "evaluation": lambda path: Evaluation.from_dict(read_json(path)),
    "metrics": metrics,
    "log": log,
    "lock": lock,
    "journal": journal,
    "config": lambda path: read_config(path, {"iterations": int, "name": str}),
    "slices": lambda path: read_slices(path, 4),
    "buffers": load_mtt_buffers,
    "mtt set": mtt_set,
    "data": data,
}
