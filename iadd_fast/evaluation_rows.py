"""What an evaluation measured: rows of accuracies, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from iadd_fast import arguments

#: Rows of an evaluation, and letters of a name in it, that are read back.
_ROWS, _LETTERS = 1000, 1000
#: Settings that a report writes as whole numbers and as texts.
_COUNTS = ("networks", "epochs", "full_epochs", "batch_size", "test_images")
_TEXTS = ("augment", "device", "data_name")


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
            TypeError: ``value`` is no mapping.
            ValueError: it is not one that :meth:`to_dict` wrote: accuracies outside of 0 to 100,
                negative seconds, no bytes or images, more than 1,000 rows, names of more than
                1,000 letters, settings that are no JSON or not of their type.
        """
        arguments.instance("evaluation", value, Mapping, "what Evaluation.to_dict() gave")
        try:
            rows = arguments.instance("rows", value["rows"], list | tuple, "a list")
            arguments.whole("number of rows", len(rows), 0, _ROWS)
            return cls([_row(row) for row in rows], _settings(value.get("settings", {})))
        except (
            AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError
        ) as error:  # fmt: skip
            raise ValueError(
                f"evaluation: got something that Evaluation.to_dict() did not write "
                f"({type(error).__name__}: {error})"
            ) from None

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


def _row(value: Mapping[str, Any]) -> EvaluationRow:
    accuracies = arguments.instance("accuracies", value["accuracies"], list | tuple, "a list")
    if not accuracies:
        raise ValueError("accuracies: got none; takes at least one network")
    return EvaluationRow(
        method=_name("method", value["method"]),
        architecture=_name("architecture", value["architecture"]),
        accuracies=[arguments.number("accuracy", a, least=0, most=100) for a in accuracies],
        seconds=arguments.number("seconds", value["seconds"], least=0),
        bytes=arguments.whole("bytes", value["bytes"]),
        images=arguments.whole("images", value["images"]),
        diverged=arguments.whole("diverged", value.get("diverged", 0), 0, len(accuracies)),
    )


def _name(name: str, value: Any) -> str:
    text = arguments.text(name, value)
    if len(text) > _LETTERS:
        raise ValueError(f"{name}: got a text of {len(text):,} letters; takes at most {_LETTERS:,}")
    return text


def _settings(value: Any) -> dict[str, Any]:
    settings = dict(arguments.instance("settings", value, Mapping, "settings by name"))
    for name in _COUNTS:
        if settings.get(name) is not None:
            arguments.whole(name, settings[name])
    for name in _TEXTS:
        if settings.get(name) is not None:
            _name(name, settings[name])
    try:
        json.dumps(settings, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings: cannot be written as JSON: {error}") from None
    return settings
