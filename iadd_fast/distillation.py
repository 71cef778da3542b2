"""``distill``: learn a small synthetic set to train on, by trajectory or gradient matching."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from iadd_fast.artifacts import DistilledSet, Experts
from iadd_fast.data import Data
from iadd_fast.devices import resolve_device
from iadd_fast.distillation_run import Distillation, OnValidation
from iadd_fast.experts import resolve_augment, resolve_student, teachers
from iadd_fast.gradient_matching import GradientMatching
from iadd_fast.importance import Importance, parse_importance
from iadd_fast.preset import Preset, find_preset
from iadd_fast.settings import METHODS, DistillSettings, settings_of
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
        out: folder for ``distilled.safetensors``, ``metrics.jsonl`` and a checkpoint. The same call
            on a folder that holds a checkpoint goes on from it, to the same bits on the same
            machine. None keeps everything in memory.
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
            run of other settings.
        DistillationDiverged: ``max_skips`` steps in a row had a non-finite or too large loss.
        KeyboardInterrupt: Ctrl-C or ``should_stop``; the finished iterations are in the checkpoint.

    Warns:
        UserWarning: the data is normalised in another way than the preset says.
    """
    chosen = find_preset(preset)
    method = _method(method, chosen)
    if chosen is not None:
        chosen.warn_unless_normalised(data.transform.kind)
        settings = {**chosen.values("distill"), **settings}
    if images_per_class is None:
        images_per_class = 1 if chosen is None else chosen.images_per_class
    options = settings_of(method, settings)
    # Before any expert is trained, which may take hours.
    check_images_per_class(data, images_per_class)
    resolve_augment(options.augment, data)
    folder = None if out is None else Path(out)
    where = resolve_device(device)
    run: Distillation
    if not isinstance(options, DistillSettings):
        _check_no_teachers(experts, importance)
        student = resolve_student(student, data, chosen)
        run = GradientMatching(
            data, student, images_per_class, options, folder, where, preset, on_validation
        )
        return run.run(progress, should_stop)
    policy = parse_importance(importance)
    student, experts = teachers(
        data,
        experts,
        student,
        reach=options.max_start_epoch + options.expert_epochs,
        folder=None if folder is None else folder / "experts",
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


def _method(method: str | None, preset: Preset | None) -> str:
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
    if importance != IMPORTANCE:
        raise ValueError(
            f"importance: got {importance!r}; method 'gradient' has none, method 'trajectory' does"
        )
