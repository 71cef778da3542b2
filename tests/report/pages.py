"""Reports that together show everything a report can: made by the real functions, in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from iadd_fast import seeds
from iadd_fast.artifacts import DistilledSet
from iadd_fast.audit.run import audit
from iadd_fast.data import Data, Split
from iadd_fast.data.transform import Identity
from iadd_fast.distillation import distill
from iadd_fast.evaluation import evaluate
from iadd_fast.experts import train_experts
from iadd_fast.report import write_report

LONG = (
    "Hypertrophicobstructivecardiomyopathysuspectedbutnotconfirmed" * 2,
    "a <b>name</b> & $x_1$",
)
MEASURED: dict[str, Any] = {"networks": 2, "epochs": 3, "full_epochs": 2, "progress": False}


def noisy(shape: tuple[int, ...], names: tuple[str, ...], train: int, validation: int) -> Data:
    """Noise around a pattern of each class; labels in turn."""
    generator = seeds.generator(0, "pages")
    patterns = torch.rand((len(names), *shape), generator=generator)

    def part(count: int) -> Split:
        labels = torch.arange(count) % len(names)
        noise = torch.rand((count, *shape), generator=generator)
        return Split(0.5 * patterns[labels] + 0.5 * noise, labels)

    test = part(3 * len(names) + 60)
    return Data(
        "x-rays, " + "averyveryverylongnameofadataset" * 3,
        part(train),
        part(validation),
        test,
        names,
        Identity(),
        "c0ffee" * 10 + "beef",
    )


def images(folder: Path) -> Path:
    """Two classes of long names, colour images, sets beside, two architectures, a real run."""
    data = noisy((3, 8, 8), LONG, 60, 20)
    student = "convnet:width=4,depth=2"
    experts = train_experts(data, student, folder / "experts", count=1, epochs=2, progress=False)
    settings: dict[str, Any] = {
        "iterations": 4,
        "steps": 2,
        "expert_epochs": 1,
        "max_start_epoch": 1,
        "max_loss": 1e6,
        "validate_every": 2,
        "validation_epochs": 2,
        "progress": False,
    }
    policy = "adaptive:learning_rate=0.1"
    distilled = distill(data, experts, 2, policy, out=folder, **settings)
    uniform = distill(data, experts, 2, importance="uniform", **settings)
    noise = distill(data, experts, 2, initial="noise", **settings)
    beside = {"MTT (uniform), from real images": uniform, "IADD (adaptive), from noise": noise}
    test = data.test
    assert test is not None
    measured = audit(
        distilled,
        data,
        [student, "mlp:width=8,depth=2"],
        beside=beside,
        slices={"hospital with a rather long name": [f"ward {n % 3}" for n in range(len(test))]},
        metrics=folder / "metrics.jsonl",
        **MEASURED,
    )
    return write_report(
        folder,
        distilled,
        audit=measured,
        data=data,
        metrics=folder / "metrics.jsonl",
        report_command="iadd-fast report " + "--slices a/very/long/path/to/a/file.csv " * 4,
    )


def series(folder: Path) -> Path:
    """Forty classes, series, soft labels, one network, no validation part, no run."""
    names = tuple(f"appliance of kind {number}" for number in range(40))
    data = noisy((2, 24), names, 240, 0)
    first = data.train.subset(range(40))
    distilled = DistilledSet(
        images=first.images + 0.01,
        labels=0.9 * torch.eye(40) + 0.1 / 40,
        lr=0.05,
        class_names=names,
        transform=data.transform,
        student_spec={"name": "mlp", "inputs": [2, 24], "classes": 40, "width": 8, "depth": 2},
        data_name=data.name,
        data_fingerprint=data.fingerprint,
    )
    measured = audit(distilled, data, **{**MEASURED, "networks": 1})
    return write_report(folder, distilled, audit=measured, data=data)


def evaluation_only(folder: Path) -> Path:
    """What a report says without an audit."""
    data = noisy((1, 6, 6), ("left", "right"), 40, 0)
    chosen = data.train.subset(range(24))
    distilled = DistilledSet(
        images=chosen.images,
        labels=chosen.labels,
        lr=0.05,
        class_names=data.class_names,
        transform=data.transform,
        student_spec={"name": "mlp", "inputs": [1, 6, 6], "classes": 2, "width": 8, "depth": 2},
        data_name=data.name,
        data_fingerprint=data.fingerprint,
    )
    return write_report(folder, distilled, evaluation=evaluate(distilled, data, **MEASURED))
