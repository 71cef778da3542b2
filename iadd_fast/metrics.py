"""The numbers of a run, one JSON object a line, and in TensorBoard where it is installed."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from iadd_fast import arguments
from iadd_fast.artifacts.files import refuse_link, remove_leftovers, write_atomically
from iadd_fast.reading import parse_json, regular_file

#: Bytes of a line; a row of the largest network's layers has some ten thousand.
_LONGEST_LINE = 2**22
#: Above, floats skip whole numbers, and plots are of floats.
_LAST_ITERATION = 2**53
#: Numbers by the names of layers or tensors; ``filter_weight`` has a list of them by each name.
_BY_NAME = ("layer_weight", "pruned_by_layer", "loss_share", "loss_share_unweighted", "filter_run")


class MetricsLog:
    """Appends to ``folder/metrics.jsonl``; a run that continues drops lines past its checkpoint.

    Args:
        folder: the run's folder, or None to keep nothing.
        iteration: first iteration this run will write.

    Raises:
        ValueError: a line of the file to go on with is no record of a run, or the file is a pipe;
            ``folder/tensorboard`` is a link.
    """

    def __init__(self, folder: Path | None, iteration: int = 0) -> None:
        self._file: Any = None
        self._board: Any = None
        if folder is None:
            return
        path = folder / "metrics.jsonl"
        kept = [] if iteration == 0 or not path.exists() else _before(path, iteration)
        has_board = importlib.util.find_spec("tensorboard") is not None
        board = refuse_link(folder / "tensorboard") if has_board else None
        remove_leftovers(path)
        write_atomically(path, lambda temporary: _write_lines(temporary, kept))
        self._file = path.open("a")
        if board is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(board), purge_step=iteration)

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
    """The records of a run in the order of their iterations; None for numbers that are not finite
    in float32."""

    records: list[dict[str, Any]]

    def column(self, key: str) -> tuple[list[float], list[float]]:
        """(iterations, values) of the records with a finite number under ``key``."""
        having = [record for record in self.records if math.isfinite(_number(record.get(key)))]
        return [float(record["iteration"]) for record in having], [
            _number(record[key]) for record in having
        ]

    def last_layer_weights(self) -> dict[str, float]:
        """``layer_weight`` of the last record that has it, NaN for what is not finite."""
        having = [record for record in self.records if record.get("layer_weight")]
        return {k: _number(v) for k, v in having[-1]["layer_weight"].items()} if having else {}

    def layer_weights(self, most: int) -> tuple[list[float], dict[str, list[float]]]:
        """(iterations, values by layer) of the records that have ``layer_weight``.

        Of the first ``most`` layers of the last of them; NaN where a value is not finite.
        """
        having = [record for record in self.records if record.get("layer_weight")]
        layers = list(self.last_layer_weights())[:most]
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
        ValueError: a line is not such an object, or holds weights by layer or filter that are none;
            the error names the line.
    """
    path = arguments.path("metrics", path)
    try:
        records = {record["iteration"]: _finite(record) for _, record in _rows(path)}
    except FileNotFoundError:
        raise FileNotFoundError(f"metrics: no file at {path}") from None
    return Metrics([records[iteration] for iteration in sorted(records)])


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every line of ``path`` with its record, but for a last one that was cut off.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_metrics`.
    """
    regular_file(path)
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            if not line.strip():
                continue
            try:
                text = line.decode("utf-8")
                record = _record(parse_json(text))
            except ValueError as error:
                no_json = isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
                if no_json and not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
                    return
                shown = line.strip()[:60].decode(errors="replace")
                raise ValueError(
                    f"metrics: {path}, line {number}: got {shown!r} "
                    f"({'it is no JSON' if no_json else error}); takes a JSON object with an "
                    f'"iteration", of at most {_LONGEST_LINE:,} bytes'
                ) from None
            yield text.rstrip("\n"), record


def _record(value: Any) -> dict[str, Any]:
    """``value`` as a record of a run; ``ValueError`` with the reason where it is none."""
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    arguments.whole("iteration", value.get("iteration"), 0, _LAST_ITERATION)
    for key in _BY_NAME:
        if not _are_numbers(value.get(key)):
            raise ValueError(f"{key}: takes numbers by name")
    filters = value.get("filter_weight")
    if filters is not None and not (
        isinstance(filters, dict)
        and all(isinstance(entry, list) for entry in filters.values())
        and all(_are_numbers(dict(enumerate(entry))) for entry in filters.values())
    ):
        raise ValueError("filter_weight: takes lists of numbers by name")
    return value


def _are_numbers(values: Any) -> bool:
    """Whether ``values`` are None or a mapping to numbers and None."""
    return values is None or (
        isinstance(values, dict)
        and all(entry is None or isinstance(entry, int | float) for entry in values.values())
    )


def _before(path: Path, iteration: int) -> list[str]:
    """The lines of the iterations before this one."""
    try:
        return [line for line, record in _rows(path) if record["iteration"] < iteration]
    except ValueError as error:
        raise ValueError(f"{error}; remove the file or give another folder") from None


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _finite(value: Any) -> Any:
    """``value`` with None for every number that is not finite in float32."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    if isinstance(value, int | float):
        return value if abs(value) <= arguments.LARGEST_FLOAT else None
    return value


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
