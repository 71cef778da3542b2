"""A budget, whether a prediction keeps it, and what would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from iadd_fast import arguments
from iadd_fast.fused.network import why_not
from iadd_fast.planning.job import Job
from iadd_fast.planning.measurements import Measurements
from iadd_fast.planning.prediction import EVALUATION, EXPERTS, Prediction, predict
from iadd_fast.planning.writing import MIB, duration, size, totals

Changes = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Budget:
    """The most that a job may take; None for no limit.

    Attributes:
        minutes: of the whole job. memory, disk: in MiB, at the highest.

    Raises:
        ValueError: a limit that is no number above 0.
    """

    minutes: float | None = None
    memory: float | None = None
    disk: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None:
                object.__setattr__(self, name, arguments.number(name, value, above=0))

    @property
    def empty(self) -> bool:
        """Whether there is no limit."""
        return all(value is None for value in vars(self).values())

    def over(self, prediction: Prediction) -> list[str]:
        """The limits that ``prediction`` does not keep, time by the upper end of its range."""
        taken = {
            "minutes": prediction.seconds.high / 60,
            "memory": prediction.memory / MIB,
            "disk": prediction.disk_peak / MIB,
        }
        limits = vars(self)
        return [name for name in taken if limits[name] is not None and taken[name] > limits[name]]


@dataclass(frozen=True)
class Advice:
    """Something that keeps the budget, or the reason why nothing here does.

    Attributes:
        changes: settings of ``experts``, ``distill`` and ``evaluate`` to give instead.
        prediction: with them; None where the budget cannot be kept.
        sentence: both, in words.
    """

    changes: Changes
    prediction: Prediction | None
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        told = None if self.prediction is None else self.prediction.to_dict()
        return {"changes": self.changes, "prediction": told, "sentence": self.sentence}


@dataclass
class Adviser:
    """Looks for settings that keep ``budget``.

    Args:
        job, measured: what is planned. cuda: of the device.
        measure_outer: measures an outer step with another ``memory_budget``.
    """

    job: Job
    measured: Measurements
    budget: Budget
    cuda: bool
    measure_outer: Callable[[Job], Measurements]

    def advice(self) -> list[Advice]:
        """One for each way, the fewest changes first; empty where the job keeps its budget."""
        prediction = self._predict({})
        if not self.budget.over(prediction):
            return []
        changes: Changes = {}
        if self.job.experts.epochs > self.job.reach:
            changes["experts"] = {"epochs": self.job.reach}
            prediction = self._predict(changes)
        for limit, find in (("memory", self._less_memory), ("disk", self._less_disk)):
            if limit in self.budget.over(prediction):
                found = find(changes, prediction)
                if isinstance(found, str):
                    return [Advice({}, None, found)]
                changes = found
                prediction = self._predict(changes)
        if not self.budget.over(prediction):
            return [self._told(changes)]
        return self._less_time(changes)

    def _predict(self, changes: Mapping[str, Mapping[str, Any]]) -> Prediction:
        return predict(self.job.changed(changes), self.measured, cuda=self.cuda)

    def _keeps(self, changes: Changes) -> bool:
        return not self.budget.over(self._predict(changes))

    def _less_memory(self, changes: Changes, prediction: Prediction) -> Changes | str:
        """A ``memory_budget`` for engine fused, measured with it; or why there is none."""
        limit = self.budget.memory
        assert limit is not None
        largest = max(prediction.stages, key=lambda stage: stage.memory)
        before = (
            f"It does not fit into {limit:,g} MiB of memory: {largest.name} takes "
            f"{size(largest.memory)}"
        )
        others = (prediction[EXPERTS], prediction[EVALUATION])
        stuck = [stage for stage in others if stage.memory > limit * MIB]
        if stuck:
            return (
                f"{before}, and {stuck[0].name} {size(stuck[0].memory)}, which no setting of the "
                "distillation makes less; fewer or smaller samples, or a narrower student would."
            )
        wanted = self.job.distill
        fused = why_not(self.job.student) is None and wanted.engine in ("auto", "fused")
        if not fused or wanted.compile:
            return (
                f"{before}. Only engine 'fused' has a memory_budget; a smaller batch_size, fewer "
                "images_per_class or a narrower student take less."
            )
        for budget in self._memory_budgets(changes, limit):
            found = _with(changes, "distill", memory_budget=budget)
            self.measured = self.measure_outer(self.job.changed(found))
            prediction = self._predict(found)
            if "memory" not in self.budget.over(prediction):
                return found
        return (
            f"{before}, and {size(prediction.memory)} with memory_budget 0; fewer images_per_class "
            "or steps, or a narrower student take less."
        )

    def _memory_budgets(self, changes: Changes, limit: float) -> list[int]:
        """What is left beside a step that keeps nothing; then nothing."""
        bare = _with(changes, "distill", memory_budget=0)
        self.measured = self.measure_outer(self.job.changed(bare))
        left = int(limit - self._predict(bare).memory / MIB)
        now = self.job.distill.memory_budget
        left = left if now is None else min(left, now - 1)
        return [left, 0] if left > 0 else [0]

    def _less_disk(self, changes: Changes, prediction: Prediction) -> Changes | str:
        """As many experts as there is room for, or why there is none for one."""
        assert self.budget.disk is not None
        count = self._most(
            self.job.experts.count - 1,
            lambda number: (
                "disk"
                not in self.budget.over(self._predict(_with(changes, "experts", count=number)))
            ),
        )
        if count is None:
            least = self._predict(_with(changes, "experts", count=1))
            return (
                f"It does not fit into {self.budget.disk:,g} MiB of disk: with one expert it takes "
                f"{size(least.disk_peak)}."
            )
        return _with(changes, "experts", count=count)

    def _less_time(self, changes: Changes) -> list[Advice]:
        job = self.job.changed(changes)
        iterations, count = job.distill.iterations, job.experts.count
        found: list[Changes] = []
        fewer = self._most(
            iterations - 1, lambda n: self._keeps(_with(changes, "distill", iterations=n))
        )
        if fewer is not None:
            found.append(_with(changes, "distill", iterations=fewer))
        fewer = self._most(count - 1, lambda n: self._keeps(_with(changes, "experts", count=n)))
        if fewer is not None:
            found.append(_with(changes, "experts", count=fewer))
        lean = _with(changes, "evaluate", full=False)
        if job.evaluation.full and self._keeps(lean):
            found.append(lean)
        if found:
            return [self._told(one) for one in found]

        def share(thousandths: int) -> Changes:
            part = thousandths - 1
            less = _with(lean, "distill", iterations=max(1, iterations * part // 1000))
            return _with(less, "experts", count=max(1, count * part // 1000))

        most = self._most(1000, lambda thousandths: self._keeps(share(thousandths)))
        if most is not None:
            return [self._told(share(most))]
        least = self._predict(share(1))
        longest = max(least.stages, key=lambda stage: stage.seconds.middle)
        return [
            Advice(
                {},
                None,
                f"It does not fit into {self.budget.minutes:,g} min: even {self._words(share(1))} "
                f"it would take {totals(least)}, most of it for {longest.name} "
                f"({duration(longest.seconds.middle)}); a narrower student, fewer epochs or fewer "
                "networks in validation and evaluation take less.",
            )
        ]

    def _most(self, largest: int, keeps: Callable[[int], bool]) -> int | None:
        """The largest number from 1 to ``largest`` that keeps the budget: more takes more."""
        if largest < 1 or not keeps(1):
            return None
        low, high = 1, largest + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if keeps(middle) else (low, middle)
        return low

    def _told(self, changes: Changes) -> Advice:
        prediction = self._predict(changes)
        sentence = f"It would fit {self._words(changes)}: {totals(prediction)}."
        return Advice(changes, prediction, sentence)

    def _words(self, changes: Changes) -> str:
        parts = []
        for stage, settings in changes.items():
            before = {
                "experts": self.job.experts,
                "distill": self.job.distill,
                "evaluate": self.job.evaluation,
            }[stage]
            parts += [
                _words(stage, name, value, getattr(before, name))
                for name, value in settings.items()
                if value != getattr(before, name)
            ]
        return "with " + (" and ".join(parts) if parts else "these settings")


def _with(changes: Changes, stage: str, **values: Any) -> Changes:
    return {**changes, stage: {**changes.get(stage, {}), **values}}


def _words(stage: str, name: str, value: Any, before: Any) -> str:
    if (stage, name) == ("evaluate", "full"):
        return "an evaluation without networks on all training data"
    if (stage, name) == ("experts", "count"):
        return f"{value:,} experts instead of {before:,}" if value != 1 else "one expert"
    if (stage, name) == ("experts", "epochs"):
        return f"experts of {value} epochs instead of {before} (no more are looked at)"
    if before is None:
        return f"{name} {value:,}"
    return f"{name} {value:,} instead of {before:,}"
