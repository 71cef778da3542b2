"""``tune``: search settings of a distillation on validation accuracy."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from iadd_fast import arguments
from iadd_fast.artifacts import Experts, ExpertStore
from iadd_fast.artifacts.files import check_writable, refuse_link
from iadd_fast.artifacts.folder_lock import exclusive
from iadd_fast.artifacts.trajectories import fingerprint_of
from iadd_fast.data import Data
from iadd_fast.devices import resolve_device
from iadd_fast.distillation import room
from iadd_fast.experts import resolve_augment, resolve_student, teachers, validation_fingerprint
from iadd_fast.importance import parse_importance
from iadd_fast.preset import Preset, find_preset
from iadd_fast.students import Student
from iadd_fast.synthetic import check_images_per_class
from iadd_fast.tuning.importances import importances
from iadd_fast.tuning.result import Tried, Tuning, ranked
from iadd_fast.tuning.search import Search
from iadd_fast.tuning.space import Space, make_space
from iadd_fast.tuning.storage import import_optuna, open_study, quiet
from iadd_fast.tuning.trial import AVERAGED, Trials, mean_of_last, tidy, tried
from iadd_fast.versions import versions

if TYPE_CHECKING:
    import optuna

MINUTES = 30.0
#: Complete trials before any is pruned.
UNPRUNED = 5


def tune(
    data: Data,
    out: str | Path,
    experts: Experts | str | Path | None = None,
    images_per_class: int | None = None,
    importance: str | None = None,
    *,
    minutes: float | None = None,
    trials: int | None = None,
    student: Student | str | None = None,
    preset: str | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Tuning:
    """Search learning rates, J, K, start window and importance for a distillation of ``data``.

    Every trial is a :func:`~iadd_fast.distillation.distill` with settings drawn by Optuna's
    multivariate TPE (Bergstra et al., NeurIPS 2011) from the space of
    :func:`~iadd_fast.tuning.space.make_space`; trial 0 is the defaults, or the preset. Settings
    that are given stand and are not searched.

    The objective is the accuracy on the validation part, mean of the last three validations of a
    run (of ten, unless ``validate_every`` says otherwise) of four fresh networks each: not the
    largest, which noise would choose. All trials have one seed, so that they differ by their
    settings alone: the same first images, segments and validation networks. The test part is never
    looked at. A trial whose best validation so far is below the median of the complete trials at
    the same iteration is pruned (Optuna's ``MedianPruner``), from its third validation on and once
    five are complete.

    Experts are trained once, as far as the space reaches, and shared by all trials.

    Args:
        data: from :func:`iadd_fast.load_data`, with a validation part.
        out: folder for the search: ``trials.journal`` (Optuna's), ``experts/``, ``trials/`` with
            the run of each, ``tuning.json`` and ``best.toml``. The same call on it goes on: what is
            finished stays, a trial that was stopped or killed continues from its checkpoint.
        experts: as :func:`~iadd_fast.distillation.distill` takes them; their last epoch limits K
            and the start window.
        images_per_class: synthetic samples per class; default: the preset's, else 1.
        importance: the policy of all trials, as text; None searches.
        minutes: of this call, asked after every iteration: a running trial is stopped too. Training
            experts is not counted. Default: 30, or no limit where ``trials`` is given.
        trials: finished trials at which the search ends, those of earlier calls included. Equal
            seeds and no ``minutes`` give equal results, whatever the interruptions.
        student, preset, device: as ``distill`` takes them; the space is around the preset.
        progress: show a bar.
        **settings: fields of :class:`~iadd_fast.settings.DistillSettings`, which stand.

    Returns:
        The trials, best settings and importances, also written to ``out``.

    Raises:
        TypeError, ValueError: as ``distill``; Optuna is missing; no validation part; ``out`` holds
            a search of other settings, or another run holds it.
        KeyboardInterrupt: Ctrl-C, after the iteration that is running; the same call goes on there.
    """
    optuna = import_optuna()
    arguments.instance("data", data, Data, "data from load_data")
    arguments.instance("progress", progress, bool, "True or False")
    folder = arguments.path("out", out)
    limit = _seconds(minutes, trials)
    chosen = find_preset(preset)
    if chosen is not None:
        if chosen.method != "trajectory":
            raise ValueError(
                f"preset: {chosen.name!r} is for method {chosen.method!r}; the settings of method "
                "'trajectory' are searched"
            )
        chosen.warn_unless_normalised(data.transform.kind)
    if len(data.validation) == 0:
        raise ValueError(
            "data: has no validation part, on which settings are chosen; load it with a "
            "validation_fraction above 0"
        )
    if images_per_class is None:
        images_per_class = 1 if chosen is None else chosen.images_per_class
    images_per_class = arguments.whole("images_per_class", images_per_class)
    check_images_per_class(data, images_per_class)
    if importance is not None:
        parse_importance(arguments.text("importance", importance))
    where = resolve_device(device)
    network, given = _given_experts(data, experts, student, where, chosen)
    space = make_space(
        settings,
        None if chosen is None else chosen.values("distill"),
        importance,
        data.num_classes * images_per_class,
        None if given is None else given.epochs,
    )
    resolve_augment(space.fixed["augment"], data)
    asked = _identity(data, network, images_per_class, space, given)
    iterations = space.fixed["iterations"]
    every = space.fixed["validate_every"] or max(1, iterations // 10)
    early = min(AVERAGED * every, iterations)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED, n_warmup_steps=early)
    with quiet(optuna), exclusive(folder, "tune"):
        needed = 0
        if given is None:
            needed = room(data, network, images_per_class, space.reach, chosen, folder)
        check_writable("out", folder, needed)
        study = open_study(folder, asked, space, pruner)
        tidy(folder, study)
        began = time.monotonic()
        if given is None:
            network, given = teachers(
                data,
                None,
                network,
                reach=space.reach,
                folder=refuse_link(folder / "experts"),
                device=where,
                progress=progress,
                augment=space.fixed["augment"],
                seed=space.fixed["seed"],
                preset=chosen,
            )
        trained = time.monotonic() - began
        runs = Trials(data, given, network, images_per_class, space, folder, where)
        search = Search(study, runs, limit, trials)
        search.run(progress)
        found = tried(study, space, folder)
        result = Tuning(
            folder=folder,
            trials=found,
            space=space,
            settings=_best_keywords(found, study, runs, experts, student),
            importances=None if search.interrupted else _importances(study, found, space, early),
            budget={
                "minutes": None if limit is None else limit / 60,
                "trials": trials,
                "seconds": search.seconds,
                "seconds_of_all_trials": sum(trial.seconds for trial in found),
                "seconds_of_experts": trained,
                "ended": search.ended,
            },
            validation={
                "samples": len(data.validation),
                "networks": space.fixed["validation_networks"],
                "epochs": space.fixed["validation_epochs"],
                "averaged": AVERAGED,
            },
            seed=space.fixed["seed"],
            versions={**versions(), "optuna": optuna.__version__},
        )
        result.write()
    if search.interrupted:
        raise KeyboardInterrupt(f"{search.ended}; the same call on {folder} goes on there")
    return result


def _seconds(minutes: float | None, trials: int | None) -> float | None:
    """The time limit of this call; None for none."""
    if trials is not None:
        arguments.whole("trials", trials)
    if minutes is None:
        return MINUTES * 60 if trials is None else None
    return arguments.number("minutes", minutes, above=0) * 60


def _given_experts(
    data: Data,
    experts: Experts | str | Path | None,
    student: Student | str | None,
    device: torch.device,
    preset: Preset | None,
) -> tuple[Student, Experts | None]:
    """The student, and the experts where they are given: checked against the data."""
    if experts is None:
        return resolve_student(student, data, preset), None
    return teachers(
        data,
        experts,
        student,
        reach=1,
        folder=None,
        device=device,
        progress=False,
        augment="none",
        seed=0,
        preset=preset,
    )


def _identity(
    data: Data, student: Student, images_per_class: int, space: Space, experts: Experts | None
) -> dict[str, Any]:
    """Everything on which the accuracy of a trial depends, JSON-able: settings by their names."""
    values = {
        "data": data.fingerprint,
        "normalise": data.transform.kind,
        "validation": validation_fingerprint(data),
        "student": student.spec,
        "experts": "trained here" if experts is None else fingerprint_of(experts),
        "images_per_class": images_per_class,
        "importance": space.importance,
        **space.fixed,
        **{name: kind.to_dict() for name, kind in space.searched.items()},
        "first trial": space.first,
    }
    same: dict[str, Any] = json.loads(json.dumps(values))
    return same


def _best_keywords(
    found: list[Tried],
    study: optuna.Study,
    runs: Trials,
    experts: Experts | str | Path | None,
    student: Student | str | None,
) -> dict[str, Any]:
    """What ``distill`` takes to make the best trial's set again."""
    best = next(iter(ranked(found)), None)
    if best is None:
        return {}
    keywords: dict[str, Any] = {}
    if isinstance(experts, str | Path):
        keywords["experts"] = str(experts)
    elif isinstance(runs.experts, ExpertStore):
        keywords["experts"] = str(runs.experts.path)
    if isinstance(student, str):
        keywords["student"] = student
    keywords["images_per_class"] = runs.images_per_class
    return keywords | runs.space.keywords(study.get_trials(deepcopy=False)[best.number].params)


def _importances(
    study: optuna.Study, found: list[Tried], space: Space, iteration: int
) -> dict[str, Any]:
    """At the end, at ``iteration`` and, where some did, for diverging: each with its trials."""
    drawn = {trial.number: trial.params for trial in study.get_trials(deepcopy=False)}
    final = [
        (drawn[trial.number], trial.accuracy)
        for trial in found
        if trial.state == "complete" and trial.accuracy is not None
    ]
    early = [
        (drawn[trial.number], mean_of_last(dict(trial.validations), iteration)[0])
        for trial in found
        if any(done == iteration for done, _ in trial.validations)
    ]
    ended = [trial for trial in found if trial.state != "unfinished"]
    diverged = [(drawn[trial.number], float(trial.state == "diverged")) for trial in ended]
    seed = space.fixed["seed"]
    return {
        "iteration": iteration,
        "final": importances(space, final, seed),
        "early": importances(space, early, seed),
        "diverged": importances(space, diverged, seed) if any(d for _, d in diverged) else None,
    }
