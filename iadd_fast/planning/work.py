"""How much of everything the three jobs do, counted and not estimated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from iadd_fast.evaluation import MOMENTUM, WEIGHT_DECAY
from iadd_fast.importance import Fisher
from iadd_fast.planning.job import Job, default_of
from iadd_fast.training import train_many

DISTILLED = 1  # rows of an evaluation that are the distilled set's


@dataclass(frozen=True)
class Training:
    """Networks that train together on sets of one size, ``times`` over.

    Attributes:
        architecture: of an evaluation, or None for the student.
        images: of a set. batch_size: of a step; the last one of an epoch may be smaller.
        augment: as text. at_once: networks side by side on a GPU, or None for as many as fill it.
    """

    architecture: str | None
    images: int
    batch_size: int
    momentum: float
    weight_decay: float
    augment: str | None
    precision: str
    at_once: int | None = None
    networks: int = 1
    epochs: int = 1
    times: int = 1

    @property
    def batches(self) -> int:
        """Steps of an epoch of one network."""
        return math.ceil(self.images / self.batch_size)

    @property
    def steps(self) -> int:
        """Of all networks together."""
        return self.times * self.networks * self.epochs * self.batches

    def alone(self) -> Training:
        """One network for one epoch: what two trainings of equal steps have in common."""
        return replace(self, networks=1, epochs=1, times=1)


@dataclass(frozen=True)
class Work:
    """The counts of one job's stages.

    Attributes:
        experts, validations: their training.
        expert_tests: times an expert is tested on the validation part; the first is before its
            first epoch. validation_tests: times a network of a validation is.
        outer_steps, inner_steps: of the distillation, the latter over all trajectories.
        validation_count, checkpoints: of the distillation.
        fisher: times the Fisher information is expected to be computed for a new segment.
        evaluation: training of every row of an evaluation. evaluation_tests: by architecture.
    """

    experts: Training
    expert_tests: int
    outer_steps: int
    inner_steps: int
    validation_count: int
    validations: Training | None
    validation_tests: int
    checkpoints: int
    fisher: int
    evaluation: tuple[Training, ...]
    evaluation_tests: dict[str | None, int]

    @property
    def trainings(self) -> list[Training]:
        """Every one of them."""
        more = [] if self.validations is None else [self.validations]
        return [self.experts, *more, *self.evaluation]


def count_work(job: Job) -> Work:
    """Count what ``job`` does."""
    size, taught, wanted = job.size, job.experts, job.distill
    every = wanted.validate_every or max(1, wanted.iterations // 10)
    validations = math.ceil(wanted.iterations / every)
    tested = size.validation > 0
    experts = Training(
        architecture=None,
        images=size.train,
        batch_size=taught.batch_size,
        momentum=taught.momentum,
        weight_decay=taught.weight_decay,
        augment=_text(job, "experts"),
        precision=taught.precision,
        at_once=taught.at_once,
        networks=taught.count,
        epochs=taught.epochs,
    )
    validation = Training(
        architecture=None,
        images=job.samples,
        batch_size=default_of(train_many, "batch_size"),
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        augment=_text(job, "distill"),
        precision="tf32" if wanted.precision == "tf32" else "float32",
        networks=wanted.validation_networks,
        epochs=wanted.validation_epochs,
        times=validations,
    )
    return Work(
        experts=experts,
        expert_tests=taught.count * (taught.epochs + 1) if tested else 0,
        outer_steps=wanted.iterations,
        inner_steps=wanted.iterations * (wanted.trajectories or 1) * wanted.steps,
        validation_count=validations,
        validations=validation if tested else None,
        validation_tests=validations * wanted.validation_networks if tested else 0,
        checkpoints=math.ceil(wanted.iterations / wanted.checkpoint_every),
        fisher=_segments(job) if isinstance(job.importance, Fisher) else 0,
        evaluation=tuple(_evaluation(job)),
        evaluation_tests=dict.fromkeys(_architectures(job), _tests(job)),
    )


def _evaluation(job: Job) -> Iterator[Training]:
    chosen = job.evaluation
    for architecture in _architectures(job):
        small = Training(
            architecture=architecture,
            images=job.samples,
            batch_size=chosen.batch_size,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            augment=_text(job, "evaluation"),
            precision=chosen.precision,
            networks=chosen.networks,
            epochs=chosen.epochs,
            times=DISTILLED + len(chosen.baselines),
        )
        yield small
        if chosen.full:
            yield replace(small, images=job.size.training, epochs=chosen.full_epochs, times=1)


def _architectures(job: Job) -> tuple[str | None, ...]:
    return job.evaluation.architectures or (None,)


def _tests(job: Job) -> int:
    chosen = job.evaluation
    return chosen.networks * (DISTILLED + len(chosen.baselines) + int(chosen.full))


def _segments(job: Job) -> int:
    """Different (expert, start epoch) pairs that the draws of a run are expected to meet."""
    wanted = job.distill
    pairs = job.experts.count * (wanted.max_start_epoch - wanted.min_start_epoch + 1)
    draws = wanted.iterations * (wanted.trajectories or 1)
    return math.ceil(pairs * (1.0 - (1.0 - 1.0 / pairs) ** draws))


def _text(job: Job, stage: str) -> str | None:
    families = job.augmentation(stage)
    return None if families is None else str(families)
