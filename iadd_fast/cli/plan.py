"""``iadd-fast plan``: what a job will take on this machine, before it is started."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable
from dataclasses import Field, dataclass, fields, make_dataclass
from pathlib import Path
from typing import Any

from iadd_fast.artifacts.files import write_json
from iadd_fast.cli.common import DataOptions, RunOptions, app, of, part
from iadd_fast.data import Data, load_data
from iadd_fast.options import Values, command
from iadd_fast.planning import DataShape, EvaluationSettings, plan
from iadd_fast.preset import find_preset
from iadd_fast.settings import DistillSettings, ExpertSettings, Settings, setting

#: What of the data's options a shape alone has a use for.
SHAPED = ("normalise", "validation_fraction", "test_fraction")


def _named(group: type[Settings], name: Callable[[str], str]) -> type[Settings]:
    """The options of ``group`` under other names, None where they are not given.

    A preset's settings go before the defaults, so that a default must not look as if it was given.
    """
    kinds = typing.get_type_hints(group)
    entries: list[Any] = []
    for entry in fields(group):
        kind = list[str] | None if kinds[entry.name] == tuple[str, ...] else kinds[entry.name]
        entries.append((name(entry.name), kind, setting(None, _help(entry))))
    return make_dataclass(group.__name__, entries, bases=(Settings,), frozen=True)


def _help(entry: Field[Any]) -> str:
    text, default = str(entry.metadata["help"]), entry.default
    if default in (None, ..., ()):
        return text
    if isinstance(default, bool):
        default = "on" if default else "off"
    return f"{text} [{', '.join(default) if isinstance(default, tuple) else default}]"


_DISTILL = {entry.name for entry in fields(DistillSettings)}


def _of_experts(name: str) -> str:
    return f"experts_{name}" if name in _DISTILL else name


def _of_evaluation(name: str) -> str:
    return f"evaluate_{name}"


DataFlags = _named(DataOptions, str)
DistillFlags = _named(DistillSettings, str)
ExpertFlags = _named(ExpertSettings, _of_experts)
EvaluationFlags = _named(EvaluationSettings, _of_evaluation)


@dataclass(frozen=True)
class PlanOptions(Settings):
    """Of ``plan`` alone."""

    samples: int | None = setting(None, "without DATA: training samples, validation included")
    shape: str | None = setting(None, "without DATA: of one sample, such as 3x32x32 or 1x96")
    classes: int | None = setting(None, "without DATA: how many")
    preset: str | None = setting(
        None, "published settings such as cifar10-ipc1, which flags and the file override"
    )
    images_per_class: int | None = setting(
        of(plan, "images_per_class"), "synthetic samples per class; default: the preset's, or 1"
    )
    importance: str = setting(of(plan, "importance"), "policy, as distill takes it")
    minutes: float | None = setting(None, "budget: minutes for everything together")
    memory: float | None = setting(None, "budget: MiB of memory, of the GPU's where it is used")
    disk: float | None = setting(None, "budget: MiB of disk")
    probe_seconds: float = setting(
        of(plan, "probe_seconds"), "seconds of each measurement, unless its steps take longer"
    )
    json: Path | None = setting(None, "file for the result")


@command(
    app,
    "plan",
    DataFlags,
    PlanOptions,
    RunOptions,
    DistillFlags,
    ExpertFlags,
    EvaluationFlags,
    positional=("data",),
)
def plan_command(values: Values) -> None:
    """Predict time, memory and disk of experts, distillation and evaluation."""
    options = part(values, PlanOptions, RunOptions)
    target = options.pop("json")
    shape = [options.pop(name) for name in ("samples", "shape", "classes")]
    found = plan(
        _data_of(values, shape),
        experts=_given(values, ExpertSettings, _of_experts),
        distill=_given(values, DistillSettings, str),
        evaluate=_given(values, EvaluationSettings, _of_evaluation),
        **options,
    )
    print(found.table())
    if target is not None:
        write_json(target, found.to_dict())
        print(f"plan: {target}")


def _data_of(values: Values, shape: list[Any]) -> Data | DataShape:
    given = _given(values, DataOptions, str)
    preset = find_preset(values["preset"])
    given = {**({} if preset is None else preset.data), **given}
    if all(value is None for value in shape):
        if "data" not in given:
            raise ValueError("data: missing; give it, or --samples, --shape and --classes")
        seed = {"seed": given.pop("data_seed")} if "data_seed" in given else {}
        return load_data(given.pop("data"), **seed, **given)
    samples, sides, classes = shape
    _check_shape(given, dict(zip(("samples", "shape", "classes"), shape, strict=True)))
    fractions = {name: given[name] for name in SHAPED if name in given}
    return DataShape.parse(samples, sides, classes, **fractions)


def _check_shape(given: Iterable[str], shape: Values) -> None:
    if "data" in given:
        raise ValueError("data: got it and --samples, --shape or --classes; takes one of both")
    missing = [name for name, value in shape.items() if value is None]
    if missing:
        raise ValueError(f"{missing[0]}: missing; without DATA give --samples, --shape, --classes")
    useless = [name for name in given if name not in SHAPED]
    if useless:
        raise ValueError(f"{useless[0]}: is of DATA, and there is only a shape")


def _given(values: Values, group: type[Settings], name: Callable[[str], str]) -> Values:
    """What was given of ``group``, by the names that it has there."""
    named = {entry.name: values[name(entry.name)] for entry in fields(group)}
    return {key: value for key, value in named.items() if value is not None}
