"""The numbers of a run, one JSON object a line, and in TensorBoard where it is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self


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
        kept = []
        if path.exists() and iteration > 0:
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    break  # the last line of a run that was killed while writing it
                if row["iteration"] < iteration:
                    kept.append(line + "\n")
        path.write_text("".join(kept))
        self._file = path.open("a")
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=iteration)

    def write(self, row: dict[str, Any]) -> None:
        """Add one row; ``row["iteration"]`` numbers it."""
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
                        self._board.add_scalar(f"{name}/{key}", part, row["iteration"])
                elif value is not None:
                    self._board.add_scalar(name, value, row["iteration"])

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
