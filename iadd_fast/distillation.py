"""``distill``: learn a small synthetic set to train on, by trajectory or gradient matching."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from iadd_fast import arguments
from iadd_fast.artifacts import DistilledSet, Experts
from iadd_fast.artifacts.checkpoint import shared_checkpoint
from iadd_fast.artifacts.files import check_writable, refuse_link
from iadd_fast.artifacts.folder_lock import exclusive
from iadd_fast.data import Data
from iadd_fast.devices import resolve_device
from iadd_fast.distillation_run import Distillation, OnValidation
from iadd_fast.distributed import Ranks
from iadd_fast.experts import resolve_augment, resolve_student, teachers
from iadd_fast.gradient_matching import GradientMatching
from iadd_fast.importance import Importance, parse_importance
from iadd_fast.preset import Preset, find_preset
from iadd_fast.run_state import config_of
from iadd_fast.settings import METHODS, DistillSettings, ExpertSettings, settings_of
from iadd_fast.students import Student
from iadd_fast.synthetic import check_images_per_class
from iadd_fast.trajectory_matching import TrajectoryMatching

IMPORTANCE = "adaptive"


def distill(
    data: Data,
    experts: Experts | str | Path | None = None,
    images_per_class: int | None = None,
    importance: str | Importance = IMPORTANCE,
    *,
    method: str | None = None,
    student: Student | str | None = None,
    out: str | Path | None = None,
    preset: str | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    on_validation: OnValidation | None = None,
    should_stop: Callable[[], bool] | None = None,
    **settings: Any,
) -> DistilledSet:
    """Distil ``data`` into ``images_per_class`` synthetic samples of every class.

    ``method="trajectory"``: every outer step draws a teacher and a start epoch, trains a student
    from there on the synthetic set for J steps, measures the weighted distance to the teacher K
    epochs later, and moves images, alpha, importance weights (and soft labels) along its exact
    gradient (MTT, arXiv 2203.11932; IADD, 2401.15863). ``method="gradient"``: every outer step
    takes a fresh network and moves the images so that, class by class, the network's gradient on
    them points where that on real images does (DC, 2006.05929; DSA, 2102.08259). The best iteration
    is chosen by fresh networks on the validation part of the training data; the test set is never
    looked at.

    Where ``torch.distributed`` has been begun (``torchrun`` on the command line), the processes
    divide the teacher segments of an outer step (gradient matching: the classes) and the validation
    networks, and average by one all-reduce: the result is that of one process with as many
    ``trajectories`` up to rounding. ``out`` has to be one folder for all of them. A policy of your
    own has to be a function of the segments and mean gradients alone for that.

    Args:
        data: from :func:`iadd_fast.load_data`.
        experts: teachers, or the folder of an earlier :func:`~iadd_fast.train_experts`, or MTT's
            ``replay_buffer_*.pt`` (a file, or the folder that holds them); None trains them (into
            ``out/experts`` where ``out`` is given) up to the last epoch reached.
        images_per_class: synthetic samples per class; default: the preset's, else 1.
        importance: a policy or its text (:func:`iadd_fast.importance.parse_importance`):
            ``"adaptive"``, ``"uniform"`` (MTT), ``"paper"``, ``"prune"``, ``"similarity"``,
            ``"ranked"``, ``"fisher"``. Method ``"gradient"`` has neither experts nor importance.
        method: ``"trajectory"`` or ``"gradient"``; default: the preset's, else ``"trajectory"``.
        student: the network; default: the experts' own, else the ConvNet of the data's shape.
        out: folder for ``distilled.safetensors``, ``metrics.jsonl`` and the last two checkpoints.
            The same call on a folder that holds a checkpoint goes on from it, to the same bits on
            the same machine, also on another number of processes (up to rounding). One run at a
            time works in a folder. None keeps everything in memory.
        preset: a name of :func:`iadd_fast.presets`, whose settings (its experts' too, where they
            are trained here) hold where none is given.
        device: default: CUDA where there is one.
        progress: show a bar with loss, alpha, weight spread and seconds per iteration.
        on_validation: called after every validation with the iterations done and the accuracy in
            percent (None where the data has no validation part); what it raises ends the run.
        should_stop: asked after every iteration; once true, the run stops there as Ctrl-C does.
        **settings: fields of :class:`~iadd_fast.settings.DistillSettings`, or for method
            ``"gradient"`` of :class:`~iadd_fast.settings.GradientSettings`.

    Returns:
        The set of the best iteration.

    Raises:
        TypeError, ValueError: an unknown setting or preset or one of another method, a value out of
            range, experts that do not fit the student, the data or the schedule, or ``out`` holds a
            run of other settings, is in use by another run or has too little room.
        OSError: ``out`` cannot be written to.
        RankLost: another process of the job has ended.
        DistillationDiverged: ``max_skips`` steps in a row had a non-finite or too large loss.
        KeyboardInterrupt: Ctrl-C or ``should_stop``; the finished iterations are in the checkpoint.

    Warns:
        UserWarning: the data is normalised in another way than the preset says; no outer step was
            of use.
    """
    arguments.instance("data", data, Data, "data from load_data")
    arguments.instance("progress", progress, bool, "True or False")
    folder = None if out is None else arguments.path("out", out)
    for name, called in (("on_validation", on_validation), ("should_stop", should_stop)):
        if called is not None:
            arguments.instance(name, called, Callable, "a function or None")
    chosen = find_preset(preset)
    method = _method(method, chosen)
    if chosen is not None:
        chosen.warn_unless_normalised(data.transform.kind)
        settings = {**chosen.values("distill"), **settings}
    if images_per_class is None:
        images_per_class = 1 if chosen is None else chosen.images_per_class
    images_per_class = arguments.whole("images_per_class", images_per_class)
    options = settings_of(method, settings)
    # Before any expert is trained, which may take hours.
    check_images_per_class(data, images_per_class)
    resolve_augment(options.augment, data)
    where = resolve_device(device)
    ranks = Ranks.current()
    if isinstance(options, DistillSettings):
        policy = parse_importance(importance)
    else:
        _check_no_teachers(experts, importance)
    needed = 0
    if isinstance(options, DistillSettings) and experts is None:
        network = resolve_student(student, data, chosen)
        reach = options.max_start_epoch + options.expert_epochs
        needed = room(data, network, images_per_class, reach, chosen, folder)
    with exclusive(folder, "distill") if folder is not None and ranks.first else nullcontext():
        if folder is not None and ranks.first:
            check_writable("out", folder, needed)
        run: Distillation
        if not isinstance(options, DistillSettings):
            student = resolve_student(student, data, chosen)
            run = GradientMatching(
                data, student, images_per_class, options, folder, where, preset, on_validation
            )
            return run.run(progress, should_stop)
        options = _with_trajectories(options, folder, ranks)
        student, experts = teachers(
            data,
            experts,
            student,
            reach=options.max_start_epoch + options.expert_epochs,
            folder=None if folder is None else refuse_link(folder / "experts"),
            device=where,
            progress=progress,
            augment=options.augment,
            seed=options.seed,
            preset=chosen,
        )
        run = TrajectoryMatching(
            data,
            experts,
            student,
            policy,
            images_per_class,
            options,
            folder,
            where,
            preset,
            on_validation,
        )
        return run.run(progress, should_stop)


def room(
    data: Data,
    student: Student,
    images_per_class: int,
    reach: int,
    preset: Preset | None,
    folder: Path | None,
) -> int:
    """About the bytes that experts up to epoch ``reach`` and the checkpoints after them take."""
    values = images_per_class * data.num_classes * math.prod(data.sample_shape)
    # Four checkpoints (this one, that before, the next, the result) of three states each; a policy
    # keeps up to three numbers a parameter.
    checkpoints = 4 * 3 * 4 * (values + 3 * student.num_parameters)
    taught = ExpertSettings.of(**({} if preset is None else preset.values("experts")))
    experts = taught.count * (reach + 1) * 4 * student.num_parameters
    there = (
        0
        if folder is None
        else sum(
            path.stat().st_size
            for found in ("experts/expert_*.safetensors", "checkpoint*.safetensors")
            for path in folder.glob(found)
        )
    )
    return max(0, checkpoints + experts - there)


def _with_trajectories(
    options: DistillSettings, folder: Path | None, ranks: Ranks
) -> DistillSettings:
    """With how many segments an outer step has: as given, as the run was begun, one a process."""
    count = options.trajectories
    if count is None:
        found = None if folder is None else shared_checkpoint(folder, ranks)
        saved = {} if found is None else config_of(found[1])
        begun = saved.get("trajectories")
        count = begun if isinstance(begun, int) else ranks.size
    if count < ranks.size:
        raise ValueError(
            f"trajectories: {count} per outer step for {ranks.size} processes; takes at least as "
            "many as there are processes, or fewer processes"
        )
    return dataclasses.replace(options, trajectories=count)


def _method(method: str | None, preset: Preset | None) -> str:
    if method is not None:
        arguments.choice("method", method, METHODS)
    if preset is None:
        return next(iter(METHODS)) if method is None else method
    if method not in (None, preset.method):
        raise ValueError(
            f"method: got {method!r}; preset {preset.name!r} is for method {preset.method!r}"
        )
    return preset.method


def _check_no_teachers(experts: Experts | str | Path | None, importance: str | Importance) -> None:
    if experts is not None:
        raise ValueError("experts: method 'gradient' takes none; it matches gradients of real data")
    if not isinstance(importance, str) or importance != IMPORTANCE:
        raise ValueError(
            f"importance: got {arguments.shown(importance)}; method 'gradient' has none, method "
            "'trajectory' does"
        )
