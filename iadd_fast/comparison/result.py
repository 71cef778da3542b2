"""What a comparison found: rows, floor, and their table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

BASELINE = "reference"


@dataclass(frozen=True)
class ContenderRow:
    """One contender.

    Attributes:
        name: of the contender.
        milliseconds: median of one outer iteration; None where the gradients are wrong.
        spread: distance of the quartiles, in milliseconds; None with the median.
        rounds: timed iterations.
        peak_mb: peak memory above what was there before, in 10^6 bytes.
        error: the largest of ``errors``.
        errors: gradient -> norm of its difference from float64 over the norm of that.
        failed: why it has no time, or None.
    """

    name: str
    milliseconds: float | None
    spread: float | None
    rounds: int
    peak_mb: float
    error: float
    errors: dict[str, float]
    failed: str | None = None


def make_row(
    name: str,
    seconds: Sequence[float],
    peak_mb: float,
    errors: Mapping[str, float],
    limit: float,
    sensitivity: Mapping[str, float],
) -> ContenderRow:
    """A row; without a time where a gradient is wrong.

    It is where its error is no number, or above both ``limit`` and the ``sensitivity`` of the
    problem: how far the gradient moves in float64 when the images change by ten times the rounding
    of the arithmetic. Of millions of ReLUs a few have inputs so close to zero that float32 and
    float64 pick different derivatives, which moves the gradients by up to 1e-2 and is no fault.
    """
    limits = {part: max(limit, sensitivity[part]) for part in errors}
    # NaN compares as neither above nor below, and counts as wrong.
    wrong = [part for part in errors if not errors[part] <= limits[part]]
    worst = max(errors, key=lambda part: (part in wrong, errors[part]))
    failed = None
    median: float | None = 1e3 * statistics.median(seconds)
    spread: float | None = 0.0
    if len(seconds) > 1:
        low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
        spread = 1e3 * (high - low)
    if wrong:
        failed = (
            f"the gradient of {worst} is off by {errors[worst]:.1e}; at most {limits[worst]:.1e} "
            "is right"
        )
        median = spread = None
    return ContenderRow(
        name, median, spread, len(seconds), peak_mb, errors[worst], dict(errors), failed
    )


def relative_errors(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, float]:
    """Norm of the difference over the norm of what is wanted, of each gradient."""
    return {
        name: float((got[name] - value).norm() / value.norm()) for name, value in wanted.items()
    }


@dataclass(frozen=True)
class Comparison:
    """The result of :func:`iadd_fast.compare`.

    Attributes:
        contenders: one row each, in the order asked for.
        floor: see :mod:`iadd_fast.comparison.floor`.
        problem: the settings, the parameters, which engine gave the float64 gradients ("truth"),
            and how far those move with images that are other by 1e-6 ("sensitivity").
        machine: device, threads, memory and how the memory was measured.
        versions: of this package, torch and Python.
    """

    contenders: tuple[ContenderRow, ...]
    floor: dict[str, float]
    problem: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]

    def __getitem__(self, name: str) -> ContenderRow:
        """The row of a contender; ``KeyError`` where it did not take part."""
        for row in self.contenders:
            if row.name == name:
                return row
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; ``contenders`` is a list of rows. What is not finite becomes None."""
        rows = [asdict(row) for row in self.contenders]
        for row in rows:
            row["errors"] = {part: _finite(value) for part, value in row["errors"].items()}
            row["error"] = _finite(row["error"])
        return {**asdict(self), "contenders": rows}

    def table(self) -> str:
        """The rows, how many times faster and smaller than "reference" each is, and the floor."""
        parts = list(self.contenders[0].errors)
        head = ["contender", "ms per outer step", "spread", "times faster"]
        head += ["peak MB", "times less", *(f"error: {part}" for part in parts)]
        body = [self._cells(row, parts) for row in self.contenders]
        widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
        lines = [self._title(), ""]
        for cells in (head, *body):
            first, *others = (
                cell.ljust(width) if place == 0 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
            )
            lines.append("  ".join([first, *others]))
        lines += [f"{row.name}: NOT RANKED, {row.failed}" for row in self.contenders if row.failed]
        return "\n".join([*lines, "", self._sensitivity_line(), *self._floor_lines()])

    def _title(self) -> str:
        about = self.problem
        return (
            f"ConvNet width {about['width']}, {about['images']} images of {about['channels']}x"
            f"{about['image_size']}x{about['image_size']} ({about['images_per_class']} a class), "
            f"J = {about['steps']}, {about['precision']}, {self.machine['device_name']}, "
            f"{self.machine['threads']} threads; errors against float64 of engine "
            f"{about['truth']!r}"
        )

    def _cells(self, row: ContenderRow, parts: list[str]) -> list[str]:
        slow = next((one for one in self.contenders if one.name == BASELINE), None)
        faster = smaller = "-"
        if slow and slow.milliseconds and row.milliseconds:
            faster = f"{slow.milliseconds / row.milliseconds:.2f}"
        if slow and slow.peak_mb and row.peak_mb:
            smaller = f"{slow.peak_mb / row.peak_mb:.2f}"
        return [
            row.name,
            "failed" if row.milliseconds is None else f"{row.milliseconds:.2f}",
            "-" if row.spread is None else f"{row.spread:.2f}",
            faster,
            f"{row.peak_mb:.1f}",
            smaller,
            *(f"{row.errors[part]:.1e}" for part in parts),
        ]

    def _sensitivity_line(self) -> str:
        moved = self.problem["sensitivity"].items()
        return f"images other by {self.problem['change']:g} move the float64 gradients by " + (
            ", ".join(f"{value:.1e} ({name})" for name, value in moved)
        )

    def _floor_lines(self) -> list[str]:
        found = self.floor
        return [
            f"floor, direct convolutions: {found['milliseconds']:.2f} ms = {found['gflop']:.1f} "
            f"GFLOP at {found['matmul_gflop_s']:.0f} GFLOP/s + {found['gbyte']:.2f} GB at "
            f"{found['copy_gb_s']:.1f} GB/s",
            f"floor, Winograd F(2x2, 3x3): {found['milliseconds_winograd']:.2f} ms, "
            f"{found['gflop_winograd']:.1f} GFLOP",
        ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
