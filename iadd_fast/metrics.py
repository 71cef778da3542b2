"""The numbers of a run, one JSON object a line, and in TensorBoard where it is installed."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from iadd_fast import arguments
from iadd_fast.artifacts.files import remove_leftovers, write_atomically
from iadd_fast.reading import parse_json, regular_file

#: Bytes of a line; a row of the largest network's layers has some ten thousand.
_LONGEST_LINE = 2**22


class MetricsLog:
    """Appends to ``folder/metrics.jsonl``; a run that continues drops lines past its checkpoint.

    Args:
        folder: the run's folder, or None to keep nothing.
        iteration: first iteration this run will write.
    """

    def __init__(self, folder: Path | None, iteration: int = 0) -> None:
        self._file: Any = None
        self._board: Any = None
        if folder is None:
            return
        path = folder / "metrics.jsonl"
        kept = [] if iteration == 0 or not path.exists() else _before(path, iteration)
        remove_leftovers(path)
        write_atomically(path, lambda temporary: _write_lines(temporary, kept))
        self._file = path.open("a")
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=iteration)

    def write(self, row: dict[str, Any]) -> None:
        """Add one row; ``row["iteration"]`` numbers it. Lists go into the file only."""
        if self._file is None:
            return
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                if name == "iteration":
                    continue
                if isinstance(value, dict):
                    for key, part in value.items():
                        if not isinstance(part, list):
                            self._board.add_scalar(f"{name}/{key}", part, row["iteration"])
                elif value is not None:
                    self._board.add_scalar(name, value, row["iteration"])

    def sync(self) -> None:
        """Have what was written on the disk, whatever happens to the machine."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


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
    path = arguments.path("metrics", path)
    try:
        regular_file(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"metrics: no file at {path}") from None
    records: dict[int, dict[str, Any]] = {}
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            if not line.strip():
                continue
            try:
                record = _record(line)
                records[int(record["iteration"])] = record
            except (ValueError, TypeError, KeyError, OverflowError):
                if not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
                    break
                shown = line.strip()[:60].decode(errors="replace")
                raise ValueError(
                    f"metrics: {path}, line {number}: got {shown!r}; "
                    'takes a JSON object with an "iteration", of at most '
                    f"{_LONGEST_LINE:,} bytes"
                ) from None
    return Metrics([records[iteration] for iteration in sorted(records)])


def _record(line: bytes) -> dict[str, Any]:
    record = parse_json(line.decode("utf-8"))
    if not isinstance(record, dict) or not isinstance(record.get("layer_weight") or {}, dict):
        raise ValueError("no record of a run")
    return record


def _before(path: Path, iteration: int) -> list[str]:
    """The lines of the iterations before this one."""
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break  # the last line of a run that was killed while writing it
        if row["iteration"] < iteration:
            kept.append(line)
    return kept


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(line + "\n" for line in lines))


def _number(value: Any) -> float:
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.nan
