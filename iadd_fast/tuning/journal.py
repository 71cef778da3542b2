"""What a journal says of a search, checked: Optuna replays lines whatever their values are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from iadd_fast import arguments
from iadd_fast.tuning.space import Choices, Range, Space

if TYPE_CHECKING:
    import optuna

#: How a trial can have ended.
ENDED = ("complete", "pruned", "diverged", "out of memory")


def distributions(optuna: Any, space: Space) -> dict[str, optuna.distributions.BaseDistribution]:
    """The space in the terms of the module ``optuna``."""
    known = optuna.distributions
    found: dict[str, Any] = {}
    for name, kind in space.searched.items():
        if not isinstance(kind, Range):
            found[name] = known.CategoricalDistribution(kind.values)
        elif kind.whole:
            found[name] = known.IntDistribution(kind.low, kind.high, log=kind.log)
        else:
            found[name] = known.FloatDistribution(kind.low, kind.high, log=kind.log)
    return found


def check_study(study: optuna.Study, settings: Any) -> None:
    """Raise unless ``study`` maximises one number and ``settings`` are those of a search, or None.

    Raises:
        TypeError, ValueError: what is wrong.
    """
    directions = [direction.name for direction in study.directions]
    if directions != ["MAXIMIZE"]:
        raise ValueError(f"directions: got {directions}; takes one search that maximises")
    if settings is None:
        return
    arguments.instance("settings", settings, Mapping, "settings by name")
    for name, value in settings.items():
        if not isinstance(value, Mapping):
            continue
        if "choices" in value:
            choices = arguments.instance(name, value["choices"], list, "a list of choices")
            for entry in choices:
                arguments.text(name, entry)
        elif "low" in value:
            arguments.number(name, value["low"])
            arguments.number(name, value.get("high"))


def check_trial(trial: optuna.trial.FrozenTrial, space: Space, known: Mapping[str, Any]) -> None:
    """Raise unless ``trial`` is one of the search of ``space``, waiting, running or ended.

    Args:
        known: :func:`distributions` of ``space``.

    Raises:
        TypeError, ValueError: what is wrong.
    """
    where = f"trial {trial.number}"
    for name, value in trial.params.items():
        if trial.distributions[name] != known.get(name):
            raise ValueError(f"{where}: got {arguments.shown(name)}, drawn from another range")
        _check_drawn(f"{where}: {name}", value, space.searched[name])
    if trial.state.is_finished() and trial.params.keys() != known.keys():
        raise ValueError(f"{where}: has ended without {', '.join(known.keys() - trial.params)}")
    for step, accuracy in trial.intermediate_values.items():
        arguments.whole(f"{where}: iteration of a validation", step)
        _check_accuracy(f"{where}: validation", accuracy)
    is_complete = trial.state.name == "COMPLETE"
    if is_complete or trial.values is not None:
        if len(arguments.instance(f"{where}: values", trial.values, list, "one number")) != 1:
            raise ValueError(f"{where}: values: got {len(trial.values)}; takes one")
        _check_accuracy(f"{where}: value", trial.values[0])
    if is_complete and not trial.intermediate_values:
        raise ValueError(f"{where}: is complete without a validation")
    arguments.number(f"{where}: seconds", trial.user_attrs.get("seconds", 0.0), least=0)
    if "ended" in trial.user_attrs or trial.state.is_finished():
        arguments.choice(f"{where}: ended", trial.user_attrs.get("ended"), ENDED)
    fixed = trial.system_attrs.get("fixed_params")
    if fixed is None:
        return
    if trial.number == 0 and fixed != space.first:
        raise ValueError(f"{where}: begins with {arguments.shown(fixed)}; takes the first trial")
    arguments.instance(f"{where}: what was drawn", fixed, dict, "a value by each name")
    if fixed.keys() != known.keys():
        raise ValueError(f"{where}: was drawn with {arguments.shown(sorted(fixed))}")
    for name, value in fixed.items():
        _check_drawn(f"{where}: {name}", value, space.searched[name])


def _check_drawn(name: str, value: Any, kind: Range | Choices) -> None:
    if isinstance(kind, Choices):
        arguments.choice(name, value, kind.values)
    elif kind.whole:
        arguments.whole(name, value, int(kind.low), int(kind.high))
    else:
        # A draw is the exponential of a number between logarithms, which is rounded.
        arguments.number(name, value, least=0.999 * kind.low, most=1.001 * kind.high)


def _check_accuracy(name: str, value: Any) -> None:
    arguments.number(name, value, least=0, most=100)
