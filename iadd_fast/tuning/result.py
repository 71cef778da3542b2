"""What a search found, as tables, as JSON and as a file of settings."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from iadd_fast.artifacts.files import write_atomically, write_json
from iadd_fast.settings import DistillSettings
from iadd_fast.tuning.space import POLICY_STEP, Space

BEST = "best.toml"
RESULT = "tuning.json"
TOP = 10
DISTILL = DistillSettings().to_dict()
#: Of the normal distribution, for 95 %.
Z = 1.96


@dataclass(frozen=True)
class Tried:
    """One trial.

    Attributes:
        number: from 0; 0 is the defaults, or the preset.
        state: ``"complete"``, ``"pruned"`` (stopped for its low accuracy), ``"diverged"``,
            ``"out of memory"``, or ``"unfinished"``: the same call goes on with it.
        accuracy: mean of the last validations in percent; None where there was none. Of a complete
            trial it is the objective.
        spread: standard deviation between those validations; None for a single one.
        averaged: how many they are.
        seconds: that it took, the training of experts not counted.
        settings: name -> value of what was searched.
        validations: ``(iterations done, accuracy)`` of each.
        set: the distilled set of a complete trial, below the folder of the search.
    """

    number: int
    state: str
    accuracy: float | None
    spread: float | None
    averaged: int
    seconds: float
    settings: dict[str, Any]
    validations: list[tuple[int, float]]
    set: str | None


@dataclass(frozen=True)
class Tuning:
    """A search: its trials, the best of them and which settings mattered.

    Attributes:
        folder: where all of it is.
        trials: in the order in which they began.
        space: what was searched and what stood.
        settings: name -> keyword of :func:`iadd_fast.distill` for the best trial, experts included
            where they are in a folder; empty while no trial is complete.
        importances: ``"final"``: over complete trials, of their accuracy; ``"early"``: over all
            that got so far, of the accuracy at ``"iteration"``, where the first could be pruned;
            ``"diverged"``: over all that have ended, of whether they diverged (1 or 0), None where
            none did. Each as :func:`~iadd_fast.tuning.importances.importances` returns them. None
            where the search was interrupted.
        budget: minutes and trials that were allowed, seconds used by this call and by all trials,
            seconds of training experts in this call, and why it ended.
        validation: samples, networks and epochs of a validation, and how many make an accuracy.
        seed: of every trial and of what is drawn.
        versions: of this package, torch, Python and Optuna.
    """

    folder: Path
    trials: list[Tried]
    space: Space
    settings: dict[str, Any]
    importances: dict[str, Any] | None
    budget: dict[str, Any]
    validation: dict[str, int]
    seed: int
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def ranked(self) -> list[Tried]:
        """The complete trials, best first; of equals the earlier."""
        return ranked(self.trials)

    @property
    def best(self) -> Tried | None:
        """The complete trial of the largest accuracy."""
        return next(iter(self.ranked), None)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of the best accuracy for the number of validation samples, in
        percent: how far another draw of such samples could move it. None while there is none."""
        if self.best is None or self.best.accuracy is None:
            return None
        samples, share = self.validation["samples"], self.best.accuracy / 100
        spare = Z**2 / samples
        centre = share + spare / 2
        half = math.sqrt(spare * (share * (1 - share) + spare / 4))
        low, high = (centre - half) / (1 + spare), (centre + half) / (1 + spare)
        return 100 * max(0.0, low), 100 * min(1.0, high)

    def command(self, *data: str, out: str | Path | None = None) -> str:
        """``iadd-fast distill`` with the best settings, ready for a shell; its defaults left out.

        Args:
            data: the words that name the data, ``"digits"`` or a path and its options.
            out: folder for the set; default: ``best`` below the folder of the search.
        """
        words = ["iadd-fast", "distill", *(data or ("DATA",))]
        words += ["--out", str(self.folder / "best" if out is None else out)]
        for name, value in self.settings.items():
            if name in DISTILL and DISTILL[name] == value:
                continue
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(("--" if value else "--no-") + flag)
            else:
                words += ["--" + flag, str(value)]
        return shlex.join(words)

    def table(self) -> str:
        """The best trials, at most ten, and how far their accuracies can be told apart."""
        best, names = self.ranked, list(self.space.searched)
        rows = [["trial", "accuracy %", "seconds", *names]]
        for trial in best[:TOP]:
            shown = [
                "-" if _is_idle(name, trial.settings) else _text(trial.settings[name])
                for name in names
            ]
            rows.append([str(trial.number), _accuracy(trial), f"{trial.seconds:.1f}", *shown])
        lines = [_aligned(rows)] if best else ["no trial is complete"]
        return "\n".join([*lines, self._counts(), *self._resolution()])

    def importance_table(self) -> str:
        """Which settings mattered, and on how many trials that rests."""
        if self.importances is None:
            return "which settings mattered: not computed, the search was interrupted"
        final, early = self.importances["final"], self.importances["early"]
        iteration = self.importances["iteration"]
        bases = [("at the end", final), (f"after {iteration} iterations", early)]
        if self.importances["diverged"] is not None:
            bases.append(("diverging", self.importances["diverged"]))
        lines = ["which settings mattered: share of the variance between trials, and p"]
        shown = [(title, base) for title, base in bases if base["settings"]]
        if shown:
            shares = [{entry["name"]: entry for entry in base["settings"]} for _, base in shown]
            rows = [["setting", *(title for title, _ in shown)]]
            rows += [[name, *(_share(column[name]) for column in shares)] for name in shares[-1]]
            rows.append(["by chance up to", *(f"{base['chance']:.2f}" for _, base in shown)])
            lines.append(_aligned(rows))
        return "\n".join([*lines, *(f"{title}: {base['note']}" for title, base in bases)])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        best = self.best
        return {
            "best": None if best is None else best.number,
            "settings": self.settings,
            "interval": self.interval,
            "trials": [asdict(trial) for trial in self.trials],
            "searched": {name: kind.to_dict() for name, kind in self.space.searched.items()},
            "fixed": {**self.space.fixed, "importance": self.space.importance},
            "importances": self.importances,
            "budget": self.budget,
            "validation": self.validation,
            "seed": self.seed,
            "versions": self.versions,
        }

    def write(self) -> None:
        """``tuning.json`` and, where a trial is complete, ``best.toml``."""
        write_json(self.folder / RESULT, self.to_dict())
        if self.best is not None:
            text = self.toml()
            write_atomically(self.folder / BEST, lambda path: _write(path, text))

    def toml(self) -> str:
        """The best settings as ``iadd-fast distill --config`` reads them."""
        best = self.best
        head = []
        if best is not None:
            head = [
                f"# trial {best.number} of {len(self.trials)}: validation accuracy "
                f"{_accuracy(best)} %, mean ± standard deviation of {best.averaged} validations"
            ]
        lines = [f"{name} = {_toml(value)}" for name, value in self.settings.items()]
        return "\n".join([*head, *lines]) + "\n"

    def _counts(self) -> str:
        states = [trial.state for trial in self.trials]
        parts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
        return f"{len(states)} trials: {', '.join(parts)}; {self.budget['ended']}"

    def _resolution(self) -> list[str]:
        best, interval = self.best, self.interval
        if best is None or interval is None:
            return []
        samples, networks = self.validation["samples"], self.validation["networks"]
        inside = sum(_number(trial.accuracy) >= interval[0] for trial in self.ranked)
        return [
            f"accuracy: on {samples} validation samples, mean ± standard deviation of the last "
            f"{best.averaged} validations of {networks} networks; one seed per trial",
            f"95 % interval of the best for {samples} samples: {interval[0]:.1f} to "
            f"{interval[1]:.1f}; {inside} of {len(self.ranked)} complete trials are inside",
            "the best of many is flattered by the choice: its set is for iadd-fast evaluate to "
            "measure on the test part",
        ]


def ranked(trials: Sequence[Tried]) -> list[Tried]:
    """The complete ones, best first; of equals the earlier."""
    complete = [trial for trial in trials if trial.state == "complete"]
    return sorted(complete, key=lambda trial: (-_number(trial.accuracy), trial.number))


def _is_idle(name: str, settings: Mapping[str, Any]) -> bool:
    return name == POLICY_STEP and settings["importance"] != "adaptive"


def _number(value: float | None) -> float:
    return -math.inf if value is None else value


def _accuracy(trial: Tried) -> str:
    if trial.accuracy is None:
        return "-"
    return f"{trial.accuracy:.2f}" + ("" if trial.spread is None else f" ± {trial.spread:.2f}")


def _share(entry: Mapping[str, Any]) -> str:
    return f"{entry['share']:.2f} (p {entry['p']:.2f})"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _toml(value: Any) -> str:
    # JSON's texts, numbers, true and false are TOML's.
    return json.dumps(value, ensure_ascii=False)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
