"""What a plan says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from iadd_fast.planning.budget import Advice, Budget
from iadd_fast.planning.job import Job
from iadd_fast.planning.measurements import Measurements
from iadd_fast.planning.prediction import Prediction
from iadd_fast.planning.writing import size, span, totals


@dataclass(frozen=True)
class Plan:
    """The result of :func:`iadd_fast.plan`.

    Attributes:
        prediction: seconds with their range, bytes of memory and disk of every stage.
        budget: that was given. over: those of its limits (``"minutes"``, ``"memory"``, ``"disk"``)
            that the prediction does not keep.
        advice: what would keep them.
        job: sizes and settings that were planned. measured: what the probe found.
        machine: device, its name and threads. versions: of this package, torch and Python.
        notes: what the reader has to know of this prediction.
    """

    prediction: Prediction
    budget: Budget
    over: tuple[str, ...]
    advice: tuple[Advice, ...]
    job: Job
    measured: Measurements
    machine: dict[str, Any]
    versions: dict[str, str]
    notes: tuple[str, ...] = field(default=())

    @property
    def fits(self) -> bool:
        """Whether the budget is kept, time by the upper end of its range."""
        return not self.over

    def sentences(self) -> list[str]:
        """Whether it fits, what would, and the notes."""
        said = []
        if not self.budget.empty:
            limits = {
                "minutes": (self.budget.minutes, "min"),
                "memory": (self.budget.memory, "MiB of memory"),
                "disk": (self.budget.disk, "MiB of disk"),
            }
            names = self.over or [name for name in limits if limits[name][0] is not None]
            told = " and ".join(f"{limits[name][0]:,g} {limits[name][1]}" for name in names)
            said.append(
                f"It {'fits' if self.fits else 'does not fit'} into {told}: "
                f"{totals(self.prediction)}."
            )
        return [*said, *(one.sentence for one in self.advice), *self.notes]

    def table(self) -> str:
        """One row a stage, the counts below, then the sentences."""
        head = ["stage", "time", "(range)", "peak memory", "disk"]
        rows = []
        for stage in self.prediction.stages:
            rows.append(
                [
                    stage.name,
                    *self._times(span(stage.seconds)),
                    size(stage.memory),
                    size(stage.disk) if stage.disk else "-",
                ]
            )
        whole = self.prediction
        rows.append(
            ["all", *self._times(span(whole.seconds)), size(whole.memory), size(whole.disk)]
        )
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [self._title(), ""]
        for cells in (head, *rows):
            first, *others = (
                cell.ljust(width) if place == 0 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
            )
            lines.append("  ".join([first, *others]))
        lines.append("")
        for stage in self.prediction.stages:
            told = ", ".join(f"{count:,} {what}" for what, count in stage.steps.items())
            lines.append(f"{stage.name}: {told}")
        return "\n".join([*lines, "", *self.sentences()])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able. Seconds, bytes of memory and disk; the budget as it was given."""
        return {
            "prediction": self.prediction.to_dict(),
            "budget": vars(self.budget),
            "fits": self.fits,
            "over": list(self.over),
            "advice": [one.to_dict() for one in self.advice],
            "job": self.job.to_dict(),
            "measured": self.measured.to_dict(),
            "machine": self.machine,
            "versions": self.versions,
            "notes": list(self.notes),
            "sentences": self.sentences(),
        }

    def _title(self) -> str:
        size_of, student = self.job.size, self.job.student
        shape = "x".join(map(str, size_of.shape))
        return (
            f"{size_of.train:,} training samples of {shape} ({size_of.validation:,} more for "
            f"validation, {size_of.test:,} for the test), {size_of.classes} classes, "
            f"{self.job.images_per_class} per class; {student.spec.get('name')} of "
            f"{student.num_parameters:,} parameters; {self.machine['device_name']}, "
            f"{self.machine['threads']} threads"
        )

    @staticmethod
    def _times(text: str) -> tuple[str, str]:
        middle, _, rest = text.partition(" (")
        return middle, f"({rest}"
