"""Trials one after another, until one of the ends of a search is reached."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from iadd_fast.interrupt import DelayedInterrupt
from iadd_fast.tuning.result import ranked
from iadd_fast.tuning.storage import ask
from iadd_fast.tuning.trial import Trials, tried

if TYPE_CHECKING:
    import optuna

clock = time.monotonic


class Search:
    """Runs trials until the time is over, enough are finished, or Ctrl-C.

    Attributes:
        ended: why it ended.
        interrupted: whether that was Ctrl-C.
        seconds: that it took.
    """

    def __init__(
        self, study: optuna.Study, runs: Trials, limit: float | None, trials: int | None
    ) -> None:
        self.study = study
        self.runs = runs
        self.limit = limit
        self.trials = trials
        self.ended = ""
        self.interrupted = False
        self.seconds = 0.0
        self._began = clock()

    def run(self, progress: bool) -> None:
        """Start or go on with one trial after another."""
        with DelayedInterrupt() as interrupt, self._bar(progress) as bar:
            while not self._over(interrupt):
                self._trial(bar, interrupt)
        self.seconds = clock() - self._began

    def _over(self, interrupt: DelayedInterrupt) -> bool:
        if self.ended:
            return True
        finished = self._finished()
        if interrupt.requested:
            self.interrupted = True
            self.ended = f"stopped after {finished} trials"
        elif self.trials is not None and finished >= self.trials:
            self.ended = f"ended with {finished} finished trials of {self.trials}"
        elif self._late():
            self.ended = self._time_over()
        return bool(self.ended)

    def _trial(self, bar: Any, interrupt: DelayedInterrupt) -> None:
        trial = ask(self.study, self.runs.space, self.runs.space.fixed["seed"])
        shown = {"trial": str(trial.number), **self._state()}
        iterations = self.runs.space.fixed["iterations"]

        def on_iteration(done: int) -> bool:
            shown["iteration"] = f"{done}/{iterations}"
            bar.set_postfix(shown, refresh=False)
            bar.update(self._progress() - bar.n)
            # A signal before the trial's own loop has come to this one alone.
            return self._late() or interrupt.requested

        def on_validation(accuracy: float) -> None:
            shown["now"] = f"{accuracy:.1f}%"

        try:
            self.runs.run(self.study, trial, on_iteration, on_validation)
        except KeyboardInterrupt as stop:
            self.interrupted = interrupt.requested
            done = str(stop).partition(";")[0] or "stopped"
            self.ended = f"trial {trial.number} {done}" if self.interrupted else self._time_over()

    def _late(self) -> bool:
        return self.limit is not None and clock() - self._began >= self.limit

    def _time_over(self) -> str:
        return f"the time of {(self.limit or 0) / 60:g} minutes is over"

    def _finished(self) -> int:
        return sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))

    def _progress(self) -> float:
        if self.limit is None:
            return self._finished()
        return min(clock() - self._began, self.limit)

    def _state(self) -> dict[str, str]:
        rows = tried(self.study, self.runs.space, self.runs.folder)
        pruned = {"pruned": str(sum(row.state == "pruned" for row in rows))}
        best = next(iter(ranked(rows)), None)
        if best is None:
            return pruned
        return {"best": f"{best.accuracy:.1f}% (trial {best.number})", **pruned}

    def _bar(self, progress: bool) -> tqdm[Any]:
        told = "{n_fmt}/{total_fmt} trials" if self.limit is None else "{elapsed} of "
        if self.limit is not None:
            told += f"{self.limit / 60:g} min"
        return tqdm(
            total=self.trials if self.limit is None else self.limit,
            initial=self._progress() if self.limit is None else 0,
            bar_format="{desc} {percentage:3.0f}%|{bar:20}| " + told + "{postfix}",
            desc="tune",
            miniters=0,
            disable=not progress,
        )
