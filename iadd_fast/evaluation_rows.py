"""What an evaluation measured: rows of accuracies, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from iadd_fast import arguments


@dataclass
class EvaluationRow:
    """One method on one architecture.

    Attributes:
        method: ``"iadd"`` (the distilled set), ``"random"``, ``"herding"``, ``"k_center"`` or
            ``"full"``.
        accuracies: test accuracy in percent of each network.
        seconds: training seconds of the row's networks, divided by their number.
        bytes: size of the training images and labels. images: their number.
        diverged: networks whose parameters are not finite; they are in ``accuracies`` with 0 %.
    """

    method: str
    architecture: str
    accuracies: list[float]
    seconds: float
    bytes: int
    images: int
    diverged: int = 0

    @property
    def mean(self) -> float:
        """Mean test accuracy in percent."""
        return float(np.mean(self.accuracies))

    @property
    def std(self) -> float:
        """Population standard deviation over the networks (``np.std``, as MTT reports it)."""
        return float(np.std(self.accuracies))


@dataclass
class Evaluation:
    """What :func:`evaluate` measured: one row a method and architecture, and its settings."""

    rows: list[EvaluationRow]
    settings: dict[str, Any] = field(default_factory=dict)

    def row(self, method: str, architecture: str) -> EvaluationRow | None:
        """The row of ``method`` on ``architecture``; None where it was not measured."""
        for row in self.rows:
            if (row.method, row.architecture) == (method, architecture):
                return row
        return None

    @property
    def architectures(self) -> list[str]:
        """The architectures in the order in which they were measured."""
        return list(dict.fromkeys(row.architecture for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; :meth:`from_dict` reads it back (``mean`` and ``std`` are for readers)."""
        rows = [
            {
                "method": row.method,
                "architecture": row.architecture,
                "accuracies": list(row.accuracies),
                "mean": row.mean,
                "std": row.std,
                "seconds": row.seconds,
                "bytes": row.bytes,
                "images": row.images,
                "diverged": row.diverged,
            }
            for row in self.rows
        ]
        return {"rows": rows, "settings": dict(self.settings)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Evaluation:
        """The evaluation that :meth:`to_dict` wrote.

        Raises:
            ValueError: ``value`` is not such a mapping.
        """
        arguments.instance("evaluation", value, Mapping, "what Evaluation.to_dict() gave")
        try:
            rows = [
                EvaluationRow(
                    method=str(row["method"]),
                    architecture=str(row["architecture"]),
                    accuracies=[float(number) for number in row["accuracies"]],
                    seconds=float(row["seconds"]),
                    bytes=int(row["bytes"]),
                    images=int(row["images"]),
                    diverged=int(row.get("diverged", 0)),
                )
                for row in value["rows"]
            ]
            settings = dict(value.get("settings", {}))
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(
                f"evaluation: got something that Evaluation.to_dict() did not write "
                f"({type(error).__name__}: {error})"
            ) from None
        if any(not row.accuracies for row in rows):
            raise ValueError("evaluation: got a row without accuracies; takes at least one network")
        return cls(rows, settings)

    def table(self) -> str:
        """The rows as a plain-text table."""
        head = ("method", "architecture", "accuracy %", "networks", "seconds", "images", "bytes")
        lines = [head] + [
            (
                row.method,
                row.architecture,
                f"{row.mean:.2f} ± {row.std:.2f}"
                + (f" ({row.diverged} diverged)" if row.diverged else ""),
                str(len(row.accuracies)),
                f"{row.seconds:.2f}",
                f"{row.images:,}",
                f"{row.bytes:,}",
            )
            for row in self.rows
        ]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )
