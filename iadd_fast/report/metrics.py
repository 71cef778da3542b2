"""The course of a distillation run, read from the ``metrics.jsonl`` it wrote."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Metrics:
    """The records of a run in the order of their iterations."""

    records: list[dict[str, Any]]

    def column(self, key: str) -> tuple[list[float], list[float]]:
        """(iterations, values) of the records with a finite number under ``key``."""
        having = [record for record in self.records if math.isfinite(_number(record.get(key)))]
        return [float(record["iteration"]) for record in having], [
            _number(record[key]) for record in having
        ]

    def layer_weights(self) -> tuple[list[float], dict[str, list[float]]]:
        """(iterations, values by layer) of the records that have ``layer_weight``."""
        having = [record for record in self.records if record.get("layer_weight")]
        layers = dict.fromkeys(layer for record in having for layer in record["layer_weight"])
        return [float(record["iteration"]) for record in having], {
            layer: [_number(record["layer_weight"].get(layer)) for record in having]
            for layer in layers
        }


def read_metrics(path: Path | str) -> Metrics:
    """Read ``path``, one JSON object a line, each with an ``"iteration"``.

    Of records of one iteration (a run that was stopped and resumed) the last one counts; a last
    line that was cut off while being written is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not such an object; the error names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"metrics: no file at {path}")
    text = path.read_text(encoding="utf-8")
    records: dict[int, dict[str, Any]] = {}
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            records[int(record["iteration"])] = record
        except (ValueError, TypeError, KeyError):
            if number == len(lines) and not text.endswith("\n"):
                break
            raise ValueError(
                f"metrics: {path}, line {number}: got {line[:60]!r}; "
                'takes a JSON object with an "iteration"'
            ) from None
    return Metrics([records[iteration] for iteration in sorted(records)])


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
