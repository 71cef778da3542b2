"""``iadd-fast tune``: search settings of a distillation."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import Field, dataclass, fields, make_dataclass
from pathlib import Path
from typing import Any

from iadd_fast.cli.common import DataOptions, RunOptions, app, data_of, of, part
from iadd_fast.options import Values, command
from iadd_fast.preset import find_preset
from iadd_fast.settings import DistillSettings, Settings, setting
from iadd_fast.tuning import tune
from iadd_fast.tuning.result import BEST, RESULT
from iadd_fast.tuning.run import MINUTES
from iadd_fast.tuning.space import DEFAULTS, POLICIES, SEARCHED


@dataclass(frozen=True)
class TuneOptions(Settings):
    """Of ``tune`` alone."""

    preset: str | None = setting(
        of(tune, "preset"), "published settings such as cifar10-ipc1, to search around"
    )
    out: Path = setting(..., f"folder for {RESULT}, {BEST} and all trials; the same call goes on")
    experts: Path | None = setting(
        of(tune, "experts"),
        "folder of iadd-fast experts, or of MTT's replay_buffer_*.pt; default: trained into "
        "OUT/experts",
    )
    images_per_class: int | None = setting(
        of(tune, "images_per_class"), "synthetic samples per class; default: the preset's, or 1"
    )
    importance: str | None = setting(
        of(tune, "importance"), f"policy; default: {' or '.join(POLICIES)} is searched"
    )
    minutes: float | None = setting(
        of(tune, "minutes"),
        f"time for trials; default: {MINUTES:g}, or no limit where trials is given",
    )
    trials: int | None = setting(
        of(tune, "trials"), "finished trials at which it ends, earlier calls included"
    )


def _unless_given(group: type[Settings], text: Callable[[Field[Any]], str]) -> type[Settings]:
    """The options of ``group``, None where they are not given: what is given is not searched."""
    kinds = typing.get_type_hints(group)
    entries: list[Any] = [
        (
            entry.name,
            kinds[entry.name],
            setting(None if entry.default is not ... else ..., text(entry)),
        )
        for entry in fields(group)
    ]
    return make_dataclass(group.__name__, entries, bases=(Settings,), frozen=True)


def _with_default(entry: Field[Any]) -> str:
    text, default = str(entry.metadata["help"]), DEFAULTS.get(entry.name, entry.default)
    if default is None or default is ...:
        return text
    if isinstance(default, bool):
        default = "on" if default else "off"
    return f"{text} [{default}]"


def _searched(entry: Field[Any]) -> str:
    if entry.name in SEARCHED:
        return f"{entry.metadata['help']}; default: searched"
    return _with_default(entry)


DataFlags = _unless_given(DataOptions, _with_default)
DistillFlags = _unless_given(DistillSettings, _searched)


@command(app, "tune", DataFlags, TuneOptions, RunOptions, DistillFlags, positional=("data",))
def tune_command(values: Values) -> None:
    """Search settings for distill under a time budget."""
    preset = find_preset(values["preset"])
    named = _given(values, DataOptions)
    if preset is not None:
        named = {**preset.data, **named}
    defaults = {entry.name: entry.default for entry in fields(DataOptions)}
    found = tune(
        data_of({**defaults, **named}),
        **part(values, TuneOptions, RunOptions),
        **_given(values, DistillSettings),
    )
    print(found.table())
    print(found.importance_table())
    print(f"search: {found.folder / RESULT}")
    if found.best is None:
        return
    words = [str(named.pop("data"))]
    for name, value in named.items():
        words += ["--" + name.replace("_", "-"), str(value)]
    print(f"best settings: {found.folder / BEST}; its set: {found.folder / str(found.best.set)}")
    print("the same from the command line:")
    print(f"  {found.command(*words)}")


def _given(values: Values, group: type[Settings]) -> Values:
    return {
        entry.name: values[entry.name] for entry in fields(group) if values[entry.name] is not None
    }
