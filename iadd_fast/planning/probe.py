"""Real steps of every kind on made-up samples, timed on this machine, with their peak memory.

Each measurement warms up first. What it then repeats is put into at most seven blocks of equal
length; the seconds of one repetition are a block's mean, so that the families of DSA, which cost
different times, are mixed in each. All of it runs in one process, which had better be a fresh one.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from iadd_fast.artifacts.checkpoint import CHECKPOINT
from iadd_fast.augment import Augmentation
from iadd_fast.baselines import select
from iadd_fast.comparison.memory import MB, PeakMemory
from iadd_fast.fused import choices
from iadd_fast.fused.network import FusedNetwork, why_not
from iadd_fast.importance import Setting, fisher_information
from iadd_fast.metrics import MetricsLog
from iadd_fast.planning.job import Job
from iadd_fast.planning.made_up import made_up_data, made_up_expert, normal, snapshots, split
from iadd_fast.planning.work import Training
from iadd_fast.seeds import derive
from iadd_fast.settings import DistillSettings
from iadd_fast.students import Student
from iadd_fast.synthetic import initial_images
from iadd_fast.training import accuracy, train_many
from iadd_fast.trajectory_matching import TrajectoryMatching
from iadd_fast.unroll import release

BLOCKS = 7
MOST = 500  # repetitions
METRICS = "metrics.jsonl"
TESTED = 1024  # most samples of a test
CHOSEN = 2**22  # most numbers among which the probe of a baseline chooses

Measured = dict[str, Any]
Tick = tuple[float, float]


class Probe:
    """What is measured for a job, one method a kind of step.

    Every method returns a JSON-able dict: ``wall`` and ``processor``, seconds of one repetition by
    block; ``peak`` and ``host_peak``, the bytes of the device and of the process at the highest,
    without the made-up training samples (``host_peak`` is ``peak`` on a CPU).

    Args:
        job: as :meth:`Job.to_dict` gives it, or itself. device: where it will run.
        threads: of torch. seconds: for each measurement, unless a single step takes longer.
        libraries: modules that reading the data loads, and that count in the memory.
    """

    def __init__(
        self,
        job: Job | dict[str, Any],
        device: str,
        threads: int,
        seconds: float,
        libraries: Sequence[str] = (),
    ) -> None:
        for library in libraries:
            importlib.import_module(library)
        torch.set_num_threads(threads)
        self.job = job if isinstance(job, Job) else Job.from_dict(job)
        self.device = torch.device(device)
        self.seconds = seconds

    def training(self, work: dict[str, Any]) -> Measured:
        """An epoch of ``images`` samples, of ``side`` networks together."""
        wanted = Training(**work)
        student = self.job.network(wanted.architecture)
        # Two whole batches and a rest show what a small set costs; a large one is steps alike.
        images = min(wanted.images, wanted.batch_size)
        if wanted.images <= 2 * wanted.batch_size:
            images = wanted.images
        side = self._side_by_side(student, wanted, images)
        made = split(self.job.size.shape, self.job.size.classes, images).to(self.device)
        peak = _Peak(self.device, made.images.nbytes)
        thetas = torch.stack([student.init(seed, self.device) for seed in range(side)])
        ticks: list[Tick] = []

        def tick(network: int, *_: Any) -> None:
            if network == side - 1:
                ticks.append(self._tick())

        def run(epochs: int) -> None:
            ticks.clear()
            train_many(
                student,
                thetas,
                [(made.images, made.labels)],
                seeds=list(range(side)),
                lr=1e-4,
                epochs=epochs,
                batch_size=wanted.batch_size,
                momentum=wanted.momentum,
                weight_decay=wanted.weight_decay,
                augment=Augmentation.parse(wanted.augment),
                precision=wanted.precision,
                at_once=side if self.device.type == "cuda" else None,
                on_epoch=tick,
            )

        # Of the first two epochs one compiles and allocates, on a GPU the other captures.
        run(4)
        needed = ticks[-1][0] - ticks[2][0]
        if needed < self.seconds:
            run(2 + self._repetitions(needed / 2))
        return {**_blocks(ticks[2:]), "images": images, "side": side, **peak.read()}

    def testing(self, architecture: str | None, images: int) -> Measured:
        """A test of one network on ``images`` samples, or on fewer where that is enough."""
        student = self.job.network(architecture)
        images = min(images, TESTED)
        made = split(self.job.size.shape, self.job.size.classes, images).to(self.device)
        peak = _Peak(self.device, made.images.nbytes)
        theta = student.init(0, self.device)
        ticks = self._repeat(lambda: accuracy(student, theta, made.images, made.labels))
        return {**_blocks(ticks), "images": images, **peak.read()}

    def outer(self, distill: dict[str, Any]) -> Measured:
        """An outer step, a checkpoint, and the files of a distillation.

        Its first step takes ``first`` seconds; the files are of the bytes ``expert`` (of two
        snapshots), ``manifest``, ``checkpoint`` and ``set``; the log grows by ``log_row`` an
        iteration and by ``validation_row`` a validation.
        """
        job, size = self.job, self.job.size
        # Nothing depends on how far apart start and target are, or on where in a trajectory.
        options = replace(
            DistillSettings.of(**distill),
            min_start_epoch=0,
            max_start_epoch=0,
            first_max_start_epoch=None,
            expert_epochs=1,
            validation_epochs=2,
        )
        held = min(size.validation, TESTED)
        data = made_up_data(size.shape, size.classes, job.samples, held)
        peak = _Peak(self.device, data.validation.images.nbytes, data.train.images.nbytes)
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            out = Path(folder)
            stack.callback(release, job.student)
            store = made_up_expert(out / "experts", job.student, data)
            row = snapshots(job.student)
            add = self._once(lambda: store.add(0, row, {"validation_accuracy": [0.1, 0.2]}))
            run = TrajectoryMatching(
                data, store, job.student, job.importance, job.images_per_class, options,
                out, self.device,
            )  # fmt: skip
            with MetricsLog(out) as log:

                def step() -> None:
                    log.write(run.outer_step() | {"seconds": time.perf_counter()})

                first = self._once(step)
                ticks = self._repeat(step)
            logged, rows = _bytes_of_log(out), run.iteration
            with MetricsLog(out, rows) as log:
                log.write({"iteration": rows, **run.validate()})
            validation_row = _bytes_of_log(out) - logged
            saving = [self._once(run.save_checkpoint) for _ in range(3)]
            run.result().save(out / "set.safetensors")
            return {
                **_blocks(ticks),
                **peak.read(),
                "first": first,
                "checkpoint_seconds": statistics.median(saving),
                "add_seconds": add,
                "expert": (out / "experts" / "expert_0000.safetensors").stat().st_size,
                "manifest": (out / "experts" / "manifest.json").stat().st_size,
                "checkpoint": (out / CHECKPOINT).stat().st_size,
                "set": (out / "set.safetensors").stat().st_size,
                "log_row": logged / rows,
                "validation_row": validation_row,
            }

    def choosing(self) -> Measured:
        """Choosing the real images of all baselines of the evaluation, out of every class."""
        size, chosen = self.job.size, self.job.evaluation
        members = max(1, size.training // size.classes)
        count = max(self.job.images_per_class, min(members, CHOSEN // size.values))
        features, labels = normal(count, size.values), torch.zeros(count, dtype=torch.int64)
        few = min(2, self.job.images_per_class)
        many = min(8, self.job.images_per_class)
        peak = _Peak(torch.device("cpu"), features.nbytes)

        def seconds(per_class: int) -> float:
            return self._once(
                lambda: [select(name, features, labels, per_class) for name in chosen.baselines]
            )

        seconds(few)
        walls = []
        for _ in range(3):
            one, more = seconds(few), seconds(many)
            each = (more - one) / max(1, many - few)
            one += max(0.0, each) * (self.job.images_per_class - few)
            walls.append(one * size.classes * members / count)
        return {"wall": walls, "processor": walls, **peak.read()}

    def centres(self) -> Measured:
        """The first images as k-means centres, of every class; made-up ones may differ in it."""
        size, job = self.job.size, self.job
        members = max(1, size.train // size.classes)
        count = max(job.images_per_class, min(members, CHOSEN // 4 // size.values))
        data = made_up_data(size.shape, 1, count, 0)
        peak = _Peak(torch.device("cpu"), data.train.images.nbytes)
        walls = []
        for seed in range(2):
            find = functools.partial(initial_images, data, job.images_per_class, "kmeans", seed)
            taken = self._once(find)
            walls.append(taken * size.classes * members / count)
        return {"wall": walls, "processor": walls, **peak.read()}

    def fisher(self) -> Measured:
        """The Fisher information at one segment's target."""
        size = self.job.size
        made = split(size.shape, size.classes, min(size.train, 256))
        peak = _Peak(self.device, made.images.nbytes)
        student, like = self.job.student, torch.empty(0)
        setting = Setting(
            student, made.images, made.labels, self.device, like.dtype, derive(0, "fisher")
        )
        theta = student.init(0, self.device)
        return {**_blocks(self._repeat(lambda: fisher_information(setting, theta))), **peak.read()}

    def _side_by_side(self, student: Student, wanted: Training, images: int) -> int:
        """Networks that :func:`~iadd_fast.training.train_many` trains together here."""
        if self.device.type != "cuda" or why_not(student) is not None:
            return 1
        batch = min(wanted.batch_size, images)
        fill = choices.networks_at_once(FusedNetwork(student), batch, self.device, 4)
        return min(wanted.at_once or fill, wanted.networks)

    def _tick(self) -> Tick:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter(), time.process_time()

    def _once(self, call: Callable[[], object]) -> float:
        began = self._tick()
        call()
        return self._tick()[0] - began[0]

    def _repetitions(self, seconds: float) -> int:
        return max(2, min(MOST, math.ceil(self.seconds / max(seconds, 1e-9))))

    def _repeat(self, call: Callable[[], object]) -> list[Tick]:
        """Warm up, then call for the seconds of a measurement, at least twice."""
        call()
        ticks = [self._tick()]
        while len(ticks) < 3 or (ticks[-1][0] - ticks[0][0] < self.seconds and len(ticks) <= MOST):
            call()
            ticks.append(self._tick())
        return ticks


class _Peak:
    """Highest memory of device and process since its making, without made-up samples.

    Args:
        on_device, on_host: samples that are held there; on a CPU both are the same memory.
    """

    def __init__(self, device: torch.device, on_device: int, on_host: int = 0) -> None:
        cpu = torch.device("cpu")
        self.host = PeakMemory(cpu)
        if device.type == "cpu":
            self.device, on_device = self.host, on_device + on_host
            on_host = on_device
        else:
            self.device = PeakMemory(device)
        self.parts = {"peak": (self.device, on_device), "host_peak": (self.host, on_host)}

    def read(self) -> dict[str, int]:
        """In bytes."""
        return {
            name: int(memory.before + memory.megabytes() * MB) - without
            for name, (memory, without) in self.parts.items()
        }


def _blocks(ticks: list[Tick]) -> dict[str, list[float]]:
    """Mean seconds of one repetition, by block, on the wall's clock and the processor's."""
    count = len(ticks) - 1
    blocks = min(BLOCKS, count)
    edges = [round(number * count / blocks) for number in range(blocks + 1)]
    return {
        name: [
            (ticks[end][clock] - ticks[begin][clock]) / (end - begin)
            for begin, end in itertools.pairwise(edges)
        ]
        for clock, name in enumerate(("wall", "processor"))
    }


def _bytes_of_log(folder: Path) -> int:
    files = [folder / METRICS, *(folder / "tensorboard").glob("*")]
    return sum(path.stat().st_size for path in files)
