"""From counts and measurements to seconds, bytes of memory and bytes of disk."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from iadd_fast.importance import Fisher
from iadd_fast.planning.job import Job, Size
from iadd_fast.planning.measurements import Measurements
from iadd_fast.planning.work import Training, Work, count_work

FLOAT = 4
CHECKSUM = 68  # bytes of one in a header, in quotes and a comma
LABEL = 8

#: Bytes while a data set of 8-bit pixels is read, for each byte of its float32 samples: the pixels
#: as read, and as float32.
READING = 1.25
#: Numbers that a transform is fitted to at once, in float64; the next of them come beside them.
FITTED = 2**23
#: Matrices of float64 [D, D] while ZCA is fitted to samples of D numbers.
ZCA_MATRICES = 8
#: Copies of an expert's trajectory when it is stored: its snapshots and their stack, then the stack
#: and what is written.
TRAJECTORY_COPIES = 2
#: Bytes for each number of a class's samples while herding or k_center chooses: float32, and three
#: times float64. glibc gives blocks back to the system from 32 MiB on; of smaller ones about twice
#: as much was seen to stay.
CHOOSING, GIVEN_BACK, STAYING = 4 + 3 * 8, 32 * 2**20, 2
#: Bytes of a row of evaluation.json, and of one accuracy in it or in an expert's header.
ROW, ACCURACY = 265, 22

EXPERTS, OUTER, VALIDATIONS, EVALUATION = (
    "experts",
    "distillation: outer steps",
    "distillation: validations",
    "evaluation",
)


@dataclass(frozen=True)
class Range:
    """Seconds: the median over the blocks of a measurement, and the least and largest of them."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, blocks: Sequence[float]) -> Range:
        return cls(min(blocks), statistics.median(blocks), max(blocks))

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.middle + other.middle, self.high + other.high)

    def __mul__(self, times: float) -> Range:
        return Range(self.low * times, self.middle * times, self.high * times)

    def to_dict(self) -> dict[str, float]:
        return {"low": self.low, "middle": self.middle, "high": self.high}


NOTHING = Range(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Stage:
    """What one part of the job takes.

    Attributes:
        seconds: with the range of the probe.
        memory: bytes at the highest, of the process on a CPU, of torch's allocator on a GPU.
        host_memory: of the process.
        disk: bytes that are there in the end. writing: bytes of the largest file that stands there
            twice while it is replaced or renamed.
        steps: what is done how often.
    """

    name: str
    seconds: Range
    memory: int
    host_memory: int
    disk: int
    writing: int
    steps: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "seconds": self.seconds.to_dict()}


@dataclass(frozen=True)
class Prediction:
    """All stages of a job, one after the other."""

    stages: tuple[Stage, ...]

    def __getitem__(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def seconds(self) -> Range:
        return sum((stage.seconds for stage in self.stages), NOTHING)

    @property
    def memory(self) -> int:
        return max(stage.memory for stage in self.stages)

    @property
    def host_memory(self) -> int:
        return max(stage.host_memory for stage in self.stages)

    @property
    def disk(self) -> int:
        """Bytes in the end."""
        return sum(stage.disk for stage in self.stages)

    @property
    def disk_peak(self) -> int:
        """Bytes at the highest, with the second copy of a file that is being written."""
        return self.disk + max(stage.writing for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        return {
            "stages": [stage.to_dict() for stage in self.stages],
            "seconds": self.seconds.to_dict(),
            "memory": self.memory,
            "host_memory": self.host_memory,
            "disk": self.disk,
            "disk_peak": self.disk_peak,
        }


def predict(
    job: Job, measured: Measurements, clock: str = "wall", cuda: bool = False
) -> Prediction:
    """Time, memory and disk of ``job`` where ``measured`` was measured.

    Args:
        job: as it was measured, or with other counts (experts, epochs, iterations, networks).
        measured: of the probe. clock: ``"wall"``, or ``"processor"`` for the seconds of all cores.
        cuda: whether the device is a GPU with memory of its own.
    """
    return _Predictor(job, count_work(job), measured, clock, cuda).prediction()


@dataclass(frozen=True)
class _Predictor:
    job: Job
    work: Work
    measured: Measurements
    clock: str
    cuda: bool

    def prediction(self) -> Prediction:
        return Prediction((self._experts(), self._outer(), self._validations(), self._evaluation()))

    def _experts(self) -> Stage:
        job, work, outer = self.job, self.work, self.measured.outer
        seconds = self._training(work.experts) + self._tests(
            None, work.expert_tests, job.size.validation
        )
        theta = job.student.num_parameters * FLOAT
        trajectory = (job.experts.epochs + 1) * theta
        side = self._side(work.experts)
        vectors = 2 * job.experts.count * theta
        host = _parts(job.size) + (side + TRAJECTORY_COPIES - 1) * trajectory
        held = self._held([work.experts], None if work.expert_tests == 0 else [None])
        # That of the probe, of two snapshots, and a checksum in it for each further one.
        header = outer["expert"] - 2 * theta + CHECKSUM * (job.experts.epochs - 1)
        tests = ACCURACY * (job.experts.epochs + 1)
        file = trajectory + header + tests
        return Stage(
            EXPERTS,
            seconds + Range.of([outer["add_seconds"]]) * job.experts.count,
            *self._memory(held, _bytes(job.size, job.size.training) + vectors, host, vectors),
            disk=job.experts.count * file + outer["manifest"],
            writing=file,
            steps={"training steps": work.experts.steps, "tests": work.expert_tests},
        )

    def _outer(self) -> Stage:
        job, work, measured = self.job, self.work, self.measured
        outer = measured.outer
        step = self._range(outer)
        start = Range.of([max(0.0, outer["first"] - step.middle)])
        seconds = start + step * work.outer_steps
        seconds += Range.of([outer["checkpoint_seconds"]]) * work.checkpoints
        if measured.centres is not None:
            seconds += self._range(measured.centres)
        theta = job.student.num_parameters * FLOAT
        kept = 0
        if measured.fisher is not None:
            seconds += self._range(measured.fisher) * work.fisher
        if isinstance(job.importance, Fisher):
            kept = work.fisher * theta
        peaks = [outer, *filter(None, (measured.fisher, measured.centres))]
        held = tuple(max(found[name] for found in peaks) for name in ("peak", "host_peak"))
        log = outer["log_row"] * work.outer_steps + outer["validation_row"] * work.validation_count
        return Stage(
            OUTER,
            seconds,
            *self._memory(held, kept, _parts(job.size), kept),
            # The last checkpoint and the one before it.
            disk=outer["set"]
            + _transform(job.size)
            + outer["checkpoint"] * min(2, work.checkpoints)
            + math.ceil(log),
            writing=max(outer["checkpoint"], outer["set"] + _transform(job.size)),
            steps={
                "outer steps": work.outer_steps,
                "inner steps": work.inner_steps,
                "checkpoints": work.checkpoints,
            },
        )

    def _validations(self) -> Stage:
        job, work = self.job, self.work
        seconds = self._tests(None, work.validation_tests, job.size.validation)
        trainings = [] if work.validations is None else [work.validations]
        for training in trainings:
            seconds += self._training(training)
        held = self._held(trainings, [None] if trainings else None)
        outer = self.measured.outer
        held = max(held[0], outer["peak"]), max(held[1], outer["host_peak"])
        return Stage(
            VALIDATIONS,
            seconds,
            *self._memory(held, _bytes(job.size, job.size.validation), _parts(job.size), 0),
            disk=0,
            writing=0,
            steps={
                "validations": work.validation_count,
                "training steps": sum(training.steps for training in trainings),
                "tests": work.validation_tests,
            },
        )

    def _evaluation(self) -> Stage:
        job, work, size = self.job, self.work, self.job.size
        chosen = job.evaluation
        seconds = NOTHING
        for training in work.evaluation:
            seconds += self._training(training)
            # One untimed step before each row.
            step = replace(training, networks=1, epochs=1)
            seconds += self._training(step) * (1 / training.batches)
        for architecture, tests in work.evaluation_tests.items():
            seconds += self._tests(architecture, tests, size.test)
        if self.measured.choosing is not None:
            seconds += self._range(self.measured.choosing)
        rows = len(chosen.baselines) + 1
        sets = rows * _bytes(size, job.samples)
        # Training and validation part are put together for the rows that look at both.
        both = _bytes(size, size.training) if chosen.full or chosen.baselines else 0
        joined = both if size.validation else 0
        members = math.ceil(size.training / size.classes) * size.values
        choosing = CHOOSING * members if {"herding", "k_center"} & {*chosen.baselines} else 0
        vectors = (
            2
            * chosen.networks
            * max(job.network(name).num_parameters for name in work.evaluation_tests)
            * FLOAT
        )
        # Real images are chosen before anything is trained.
        held = self._held(work.evaluation, list(work.evaluation_tests) if size.test else None)
        host_held = max(held[1] + vectors, self._base() + choosing)
        if 8 * members < GIVEN_BACK:
            host_held = held[1] + vectors + STAYING * choosing
        device = _bytes(size, size.test) + sets + vectors + (both if chosen.full else 0)
        disk = 2 * ROW + len(work.evaluation_tests) * (rows + chosen.full) * (
            ROW + ACCURACY * chosen.networks
        )
        return Stage(
            EVALUATION,
            seconds,
            *self._memory((held[0], host_held), device, _parts(size) + joined + sets, 0),
            disk=disk,
            writing=disk,
            steps={
                "training steps": sum(
                    training.steps + training.times for training in work.evaluation
                ),
                "tests": sum(work.evaluation_tests.values()),
            },
        )

    def _range(self, found: Mapping[str, Any]) -> Range:
        return Range.of(found[self.clock])

    def _training(self, training: Training) -> Range:
        found = self.measured.training[training.alone()]
        groups = math.ceil(training.networks / min(found["side"], training.networks))
        epochs = training.times * groups * training.epochs
        return self._range(found) * (epochs * training.images / found["images"])

    def _tests(self, architecture: str | None, tests: int, images: int) -> Range:
        if tests == 0 or images == 0:
            return NOTHING
        found = self.measured.testing[architecture]
        return self._range(found) * (tests * images / found["images"])

    def _side(self, training: Training) -> int:
        side: int = self.measured.training[training.alone()]["side"]
        return min(side, training.networks)

    def _held(
        self, trainings: Sequence[Training], tests: Sequence[str | None] | None
    ) -> tuple[int, int]:
        """The highest peaks of device and process among these measurements."""
        found = [self.measured.training[training.alone()] for training in trainings]
        found += [self.measured.testing[name] for name in tests or ()]
        found = found or [self.measured.outer]
        return max(one["peak"] for one in found), max(one["host_peak"] for one in found)

    def _base(self) -> int:
        """Of the process, before it does anything: the lowest of its peaks comes near."""
        found = [*self.measured.training.values(), *self.measured.testing.values()]
        return min(one["host_peak"] for one in found)

    def _memory(self, held: tuple[int, ...], device: int, host: int, both: int) -> tuple[int, int]:
        """Of device and process: what is held, and what the job adds to it on each."""
        reading = self._base() + _reading(self.job.size)
        if self.cuda:
            return held[0] + device, max(reading, held[1] + host)
        process = max(reading, held[1] + host + both)
        return process, process


def _bytes(size: Size, samples: int) -> int:
    """Of float32 samples with their labels."""
    return samples * (size.values * FLOAT + LABEL)


def _parts(size: Size) -> int:
    return _bytes(size, size.training + size.test)


def _reading(size: Size) -> int:
    """While the data is read and its transform is fitted."""
    numbers = size.training * size.values
    # The pixels of the test part wait for the training part.
    test = (READING - 1) / 3 * _bytes(size, size.test)
    fitting = {
        "none": 0,
        "standard": 8 * min(numbers, 2 * FITTED),
        "zca": 8 * (min(numbers, 2 * FITTED) + ZCA_MATRICES * size.values**2),
    }
    return int(READING * _bytes(size, size.training) + test + fitting[size.normalise])


def _transform(size: Size) -> int:
    """Bytes of the transform in a distilled set."""
    numbers = {
        "none": 0,
        "standard": 2 * size.shape[0],
        "zca": size.values + 2 * size.values**2,
    }
    return numbers[size.normalise] * FLOAT
