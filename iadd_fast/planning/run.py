"""``plan``: what a distillation will take on this machine, before it is started."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from iadd_fast import arguments
from iadd_fast.comparison.processes import Process
from iadd_fast.comparison.run import machine
from iadd_fast.data import Data
from iadd_fast.devices import resolve_device
from iadd_fast.distillation import IMPORTANCE
from iadd_fast.fused.precision import check_tf32
from iadd_fast.importance import Importance
from iadd_fast.planning.budget import Adviser, Budget
from iadd_fast.planning.job import DataShape, Job, make_job
from iadd_fast.planning.measurements import Measurements, measure
from iadd_fast.planning.prediction import predict
from iadd_fast.planning.probe import Probe
from iadd_fast.planning.result import Plan
from iadd_fast.students import Student
from iadd_fast.versions import versions

COMMAND = (sys.executable, "-m", "iadd_fast.planning.worker")
#: What reading data may load: the job's own process will load it too.
LIBRARIES = ("sklearn.datasets", "PIL.Image")
#: Processor seconds in a second below which the processors were busy with something else.
BUSY = 0.8
#: Times its median that a block took from which on the range is called wide.
UNSTEADY = 1.5


def plan(
    data: Data | DataShape,
    *,
    student: Student | str | None = None,
    images_per_class: int | None = None,
    importance: str | Importance = IMPORTANCE,
    preset: str | None = None,
    experts: Mapping[str, Any] | None = None,
    distill: Mapping[str, Any] | None = None,
    evaluate: Mapping[str, Any] | None = None,
    minutes: float | None = None,
    memory: float | None = None,
    disk: float | None = None,
    device: torch.device | str | None = None,
    probe_seconds: float = 1.0,
    progress: bool = True,
) -> Plan:
    """Predict time, memory and disk of experts, distillation and evaluation on this machine.

    Real steps of every kind (a teacher's, an outer step, a validation's and an evaluation's, tests)
    run on made-up samples of the data's shape in a fresh process, after warming up. The counts of
    the job (epochs x batches, J, validations x networks x epochs, ...) are exact; seconds are

        sum over the kinds of step of (count x median of the blocks of its measurement)

    and their range is that of the least and the largest block. Memory is the highest resident set
    of the fresh process (on a GPU: what torch's allocator had handed out, and the process beside
    it) plus what the job holds and the probe does not: all samples as float32, vectors of every
    network, snapshots. Disk is the bytes of experts, set, checkpoint and log; headers are as long
    as the probe's own. Reading the data, or fitting a ZCA to it, is in the memory and not in the
    time.

    Args:
        data: real data, or its size.
        student, images_per_class, importance, preset: as :func:`iadd_fast.distill` takes them.
        experts: fields of :class:`~iadd_fast.settings.ExpertSettings`; ``epochs`` is by default
            what the distillation reaches, as where it trains its own.
        distill: fields of :class:`~iadd_fast.settings.DistillSettings` (method ``"trajectory"``).
        evaluate: fields of :class:`~iadd_fast.planning.EvaluationSettings`.
        minutes: that everything together may take. memory, disk: in MiB, at the highest.
        device: the one that will do the work; default: CUDA where there is one.
        probe_seconds: of each of about six measurements, unless its steps take longer.
        progress: show a bar.

    Returns:
        The prediction and, where it does not keep the budget, settings that do.

    Raises:
        TypeError, ValueError: as the jobs raise them for these settings; a budget that is no number
            above 0; a device that is not here, since a plan is measured on the one that does the
            work.
        ContenderFailed: the settings do not run here, for example for want of memory.
    """
    arguments.instance("data", data, Data | DataShape, "data from load_data, or a DataShape")
    arguments.instance("progress", progress, bool, "True or False")
    for name, given in (("experts", experts), ("distill", distill), ("evaluate", evaluate)):
        if given is not None:
            arguments.instance(name, given, Mapping, "settings by name")
    job = make_job(
        data, student, images_per_class, importance, experts or {}, distill or {},
        evaluate or {}, preset,
    )  # fmt: skip
    budget = Budget(minutes, memory, disk)
    probe_seconds = arguments.number("probe_seconds", probe_seconds, above=0)
    where = _device(device)
    like = torch.empty(0, device=where)
    for precision in (job.experts.precision, job.evaluation.precision):
        check_tf32(precision, like)
    cuda = where.type == "cuda"
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(desc="plan", unit="measurement", disable=not progress))
        loaded = [name for name in LIBRARIES if isinstance(data, Data) and name in sys.modules]
        ask = _asker(job, where, probe_seconds, loaded, stack, bar)
        measured = measure(job, ask)

        def measure_outer(other: Job) -> Measurements:
            return replace(measured, outer=ask("outer", distill=other.distill.to_dict()))

        prediction = predict(job, measured, cuda=cuda)
        adviser = Adviser(job, measured, budget, cuda, measure_outer)
        advice = adviser.advice()
    return Plan(
        prediction=prediction,
        budget=budget,
        over=tuple(budget.over(prediction)),
        advice=tuple(advice),
        job=job,
        measured=measured,
        machine=machine(where),
        versions=versions(),
        notes=tuple(_notes(job, measured, cuda)),
    )


def _device(device: torch.device | str | None) -> torch.device:
    try:
        return resolve_device(device)
    except ValueError as error:
        raise ValueError(
            f"{error}; a plan is measured on the device that will do the work: make it there"
        ) from None


def _asker(
    job: Job,
    device: torch.device,
    seconds: float,
    libraries: list[str],
    stack: ExitStack,
    bar: Any,
) -> Callable[..., Any]:
    """Asks a probe in a fresh process, or one in this where only it knows network and policy."""
    settings: dict[str, Any] = {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "libraries": libraries,
    }
    answer: Callable[..., Any]
    if job.described:
        process = stack.enter_context(Process("plan", COMMAND))
        process.ask("begin", job=job.to_dict(), **settings)
        answer = process.ask
    else:
        probe = Probe(job, **settings)

        def answer(do: str, **request: Any) -> Any:
            return getattr(probe, do)(**request)

    def ask(do: str, **request: Any) -> Any:
        bar.set_postfix_str(do)
        found = answer(do, **request)
        bar.update()
        return found

    return ask


def _notes(job: Job, measured: Measurements, cuda: bool) -> list[str]:
    notes = ["Reading the data is in the memory and not in the time."]
    blocks = [block for found in measured.training.values() for block in found["wall"]]
    own = [block for found in measured.training.values() for block in found["processor"]]
    share = sum(own) / sum(blocks)
    if not cuda and share < BUSY:
        notes.append(
            f"The machine was busy: the probe got {share:.0%} of a processor. The times are those "
            "of a busy machine; plan again when it is idle."
        )
    ranges = [
        max(found["wall"]) / statistics.median(found["wall"])
        for found in (*measured.training.values(), measured.outer)
    ]
    if max(ranges) > UNSTEADY:
        notes.append(
            f"Equal steps took up to {max(ranges):.1f} times their median: the range is wide."
        )
    if not job.size.validation:
        notes.append(
            "There is no validation part, so nothing is trained to choose the best iteration."
        )
    if cuda:
        notes.append(
            "Networks train side by side; a group that is not full is counted as a full one."
        )
    return notes
