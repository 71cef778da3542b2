"""Command-line options made out of settings: one field is one flag and one key of a TOML file."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import Field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import typer

from iadd_fast import arguments
from iadd_fast.comparison import ContenderFailed
from iadd_fast.distillation_run import DistillationDiverged
from iadd_fast.distributed import RankLost, RanksDiffer, joined, started_by_torchrun
from iadd_fast.expert_training import ExpertDiverged
from iadd_fast.preset import find_preset
from iadd_fast.reading import read_text
from iadd_fast.settings import Settings

#: What bad input raises. Anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, TypeError, OSError)

#: Bytes of a TOML file of settings; the parser takes time with the square of its keys.
LARGEST_CONFIG = 2**18
#: Dots of a line, for a key of n of them takes time and memory with the square of n. No setting's
#: name has any.
MOST_DOTS = 100

Values = dict[str, Any]
Job = Literal["experts", "distill", "evaluate"]
CONFIG = typer.Option(
    None,
    "--config",
    metavar="FILE.toml",
    help="values by name, with _ for - (images_per_class = 1); flags win",
)


def command(
    app: typer.Typer,
    name: str,
    *groups: type[Settings],
    positional: tuple[str, ...] = (),
    job: Job | None = None,
    methods: Mapping[str, type[Settings]] | None = None,
    parallel: bool = False,
) -> Callable[[Callable[[Values], None]], Callable[[Values], None]]:
    """Make a function of values the command ``name`` whose options are the fields of ``groups``.

    A field ``images_per_class`` becomes ``--images-per-class`` (or an argument, where it is named
    in ``positional``) of the field's type, with the field's help and default. The function gets
    every field's value by name: of the flag, else of the TOML file, else the default.
    A field whose default is ``...`` has to be given. Where the fields include ``preset`` and one is
    named, its settings for ``job`` and for loading the data go before the defaults.

    ``methods`` are further groups, of which the value of ``method`` (else the preset's, else the
    first) says whose defaults hold; a field of another group alone arrives only where it is given.

    Where ``torchrun`` has started several processes, a ``parallel`` command is one job of them all;
    another one is refused. Errors of the user's making end the command with status 2 and one line,
    Ctrl-C with 130 and the command that goes on.
    """
    methods = methods or {}
    shared = {entry.name: entry for group in groups for entry in fields(group)}
    own = {
        method: {entry.name: entry for entry in fields(group)} for method, group in methods.items()
    }
    known = {**shared, **_joined(own)}
    kinds: dict[str, Any] = {}
    for group in (*groups, *methods.values()):
        kinds |= typing.get_type_hints(group)

    def register(function: Callable[[Values], None]) -> Callable[[Values], None]:
        def run(**given: Any) -> None:
            try:
                values = _merged(given, shared, own, kinds, job)
                if parallel:
                    with joined():
                        function(values)
                elif started_by_torchrun():
                    raise ValueError(f"{name}: runs in one process; torchrun has started several")
                else:
                    function(values)
            except USER_ERRORS as error:
                _fail(error, 2)
            except KeyboardInterrupt as stop:
                if os.environ.get("RANK", "0") != "0":
                    raise typer.Exit(130) from None  # the first process says it for all
                _fail(stop, 130, _same_command() if "out" in known else None)
            except (
                DistillationDiverged,
                ExpertDiverged,
                ContenderFailed,
                RankLost,
                RanksDiffer,
            ) as error:
                _fail(error, 1)

        parameters = [
            inspect.Parameter(
                field,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=_argument(entry) if field in positional else _option(entry),
                annotation=kinds[field] | None,
            )
            for field, entry in known.items()
        ]
        parameters.append(
            inspect.Parameter(
                "config",
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=CONFIG,
                annotation=Path | None,
            )
        )
        run.__doc__ = function.__doc__
        run.__annotations__ = {entry.name: entry.annotation for entry in parameters}
        vars(run)["__signature__"] = inspect.Signature(parameters)
        app.command(name)(run)
        return function

    return register


def read_config(path: Path, known: Mapping[str, Any]) -> Values:
    """The values of a TOML file, checked against ``known``: name -> type.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not TOML, a line has more than ``MOST_DOTS`` dots, a key is unknown (the
            message lists the known ones) or a value is of another type.
    """
    try:
        text = read_text(path, LARGEST_CONFIG)
    except FileNotFoundError:
        raise FileNotFoundError(f"config: no file at {path}") from None
    # Lines as TOML has them: a key cannot go on in another one.
    for number, line in enumerate(text.split("\n"), start=1):
        if (dots := line.count(".")) > MOST_DOTS:
            raise ValueError(
                f"config: {path}, line {number} has {dots:,} dots; takes at most {MOST_DOTS}"
            )
    try:
        values = tomllib.loads(text.replace("\r\n", "\n"))
    except (ValueError, RecursionError, MemoryError) as error:
        reason = str(error)[:200] or type(error).__name__
        raise ValueError(f"config: {path} is not TOML: {reason}") from None
    for name, value in values.items():
        if name not in known:
            raise ValueError(
                f"config: {path} has a key {arguments.shown(name)}; takes "
                f"{', '.join(sorted(known))}"
            )
        values[name] = _typed(f"config: {path}: {name}", value, known[name])
    return values


def _merged(
    given: Values,
    shared: Mapping[str, Field[Any]],
    own: Mapping[str, Mapping[str, Field[Any]]],
    kinds: Mapping[str, Any],
    job: Job | None,
) -> Values:
    config = given.pop("config", None)
    values = {} if config is None else read_config(config, kinds)
    values |= {name: value for name, value in given.items() if value is not None and value != []}
    preset = find_preset(values.get("preset"))
    if preset is not None and job is not None:
        values = {**preset.data, **preset.values(job), **values}
    method = values.get("method", next(iter(own), "") if preset is None else preset.method)
    for name, entry in {**shared, **own.get(method, {})}.items():
        if entry.default is ... and name not in values:
            raise ValueError(f"{name}: missing; give it on the command line or in a --config file")
        values.setdefault(name, entry.default)
    return values


def _joined(own: Mapping[str, Mapping[str, Field[Any]]]) -> dict[str, Field[Any]]:
    """Every field of any method; its help says whose it is, and the defaults where they differ."""
    joined: dict[str, Field[Any]] = {}
    for name in dict.fromkeys(name for entries in own.values() for name in entries):
        having = {method: entries[name] for method, entries in own.items() if name in entries}
        if len({_help(entry) for entry in having.values()}) == 1 and len(having) == len(own):
            joined[name] = next(iter(having.values()))
            continue
        text = "; ".join(f"{method}: {_help(entry)}" for method, entry in having.items())
        entry = copy(next(iter(having.values())))
        entry.default, entry.metadata = None, MappingProxyType({"help": text})
        joined[name] = entry
    return joined


def _typed(where: str, value: Any, kind: Any) -> Any:
    """``value`` as a ``kind``: a whole number will do for a float, a text for a path."""
    choices = [part for part in _parts(kind) if part is not type(None)]
    for choice in choices:
        if typing.get_origin(choice) is list:
            if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
                return value
        elif choice is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return arguments.number(where, value)
        elif choice is Path:
            if isinstance(value, str):
                return Path(value)
        elif isinstance(value, choice) and (choice is bool or not isinstance(value, bool)):
            return value
    names = " or ".join(_kind_name(choice) for choice in choices)
    raise ValueError(f"{where}: got {arguments.shown(value)}; takes {names}")


def _parts(kind: Any) -> tuple[Any, ...]:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return typing.get_args(kind)
    return (kind,)


def _kind_name(kind: Any) -> str:
    if typing.get_origin(kind) is list:
        return "a list of texts"
    return {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        Path: "a path",
    }[kind]


def _option(entry: Field[Any]) -> Any:
    flag = "--" + entry.name.replace("_", "-")
    if entry.type in ("bool", bool):
        flag += "/--no-" + entry.name.replace("_", "-")
    return typer.Option(None, flag, help=_help(entry), show_default=False)


def _argument(entry: Field[Any]) -> Any:
    return typer.Argument(None, metavar=entry.name.upper(), help=_help(entry), show_default=False)


def _help(entry: Field[Any]) -> str:
    # The option's own default is None, which tells a flag that was not given from one that was.
    default, text = entry.default, str(entry.metadata["help"])
    if default is ...:
        return f"{text} [required]"
    if default is None:
        return text
    if isinstance(default, bool):
        default = "on" if default else "off"
    elif isinstance(default, tuple):
        default = ", ".join(default)
    return f"{text} [{default}]"


def _same_command() -> str | None:
    """The command that was given, to give again."""
    program = Path(sys.argv[0])
    if program.name != "iadd-fast" and program.parts[-2:] != ("iadd_fast", "__main__.py"):
        return None  # called from Python
    given = shlex.join(sys.argv[1:])
    if not started_by_torchrun():
        return f"iadd-fast {given}"
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        return f"torchrun --standalone --nproc-per-node={processes} -m iadd_fast {given}"
    return f"torchrun ... -m iadd_fast {given} (on every node, torchrun's own options as before)"


def printable(text: str) -> str:
    """``text`` as one line without what a terminal takes for an order: files can hold anything."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _fail(error: BaseException, status: int, again: str | None = None) -> None:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    print(f"iadd-fast: {printable(text) or type(error).__name__}", file=sys.stderr)
    if again is not None:
        print(f"iadd-fast: to go on: {again}", file=sys.stderr)
    raise typer.Exit(status)
