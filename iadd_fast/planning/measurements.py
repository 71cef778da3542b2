"""What the probe is asked for a job, and its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from iadd_fast.planning.job import Job
from iadd_fast.planning.work import Training, count_work

Ask = Callable[..., Any]


@dataclass(frozen=True)
class Measurements:
    """What the probe found: of trainings by :meth:`Training.alone`, of tests by architecture.

    ``choosing``, ``centres`` and ``fisher`` are None where the job has no use for them.
    """

    training: Mapping[Training, Mapping[str, Any]]
    testing: Mapping[str | None, Mapping[str, Any]]
    outer: Mapping[str, Any]
    choosing: Mapping[str, Any] | None = None
    centres: Mapping[str, Any] | None = None
    fisher: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "training": [vars(key) | dict(value) for key, value in self.training.items()],
            "testing": [{"architecture": k} | dict(v) for k, v in self.testing.items()],
            "outer": dict(self.outer),
            "choosing": None if self.choosing is None else dict(self.choosing),
            "centres": None if self.centres is None else dict(self.centres),
            "fisher": None if self.fisher is None else dict(self.fisher),
        }


def measure(job: Job, ask: Ask) -> Measurements:
    """Have the probe measure everything that ``job`` does."""
    work, size = count_work(job), job.size
    training: dict[Training, Mapping[str, Any]] = {}
    # Of trainings by equal steps the one with most networks shows how many train side by side.
    for one in sorted(work.trainings, key=lambda training: -training.networks):
        if one.alone() not in training:
            training[one.alone()] = ask("training", work=vars(one))
    testing: dict[str | None, Mapping[str, Any]] = {}
    for architecture in dict.fromkeys((None, *work.evaluation_tests)):
        images = size.test if architecture in work.evaluation_tests else 0
        images = max(images, size.validation if architecture is None else 0)
        if images:
            testing[architecture] = ask("testing", architecture=architecture, images=images)
    chosen = job.evaluation.baselines
    return Measurements(
        training,
        testing,
        choosing=ask("choosing") if {"herding", "k_center"} & set(chosen) else None,
        outer=ask("outer", distill=job.distill.to_dict()),
        fisher=ask("fisher") if work.fisher else None,
        centres=ask("centres") if job.distill.initial == "kmeans" else None,
    )
