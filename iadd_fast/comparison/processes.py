"""A contender's process seen from its parent."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import iadd_fast

COMMAND = (sys.executable, "-m", "iadd_fast.comparison.worker")
TAIL = 5  # lines of stderr in an error


class ContenderFailed(RuntimeError):
    """A contender raised an error, or its process ended; the message names it and says why."""


class Process:
    """A fresh Python process that answers one request at a time; a context that ends it.

    It leads a process group of its own: Ctrl-C reaches the parent alone, which then ends the
    group, compiler processes included.
    """

    def __init__(self, name: str, command: Sequence[str] = COMMAND) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - open as long as the process
        paths = [str(Path(iadd_fast.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            start_new_session=True,
        )

    def ask(self, do: str, **request: Any) -> Any:
        """Send a request and wait for its answer.

        Raises:
            ContenderFailed: it raised an error, or the process ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ContenderFailed(f"contender {self.name!r}: {self._end()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ContenderFailed(f"contender {self.name!r}: {answer['error']}")
        return answer["answer"]

    def close(self) -> None:
        """End the process and all that it started."""
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):  # all have ended
                os.killpg(self._process.pid, signal.SIGKILL)
        else:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # a request that was never read
                    stream.close()

    def _end(self) -> str:
        code = self._process.wait()
        how = f"its process ended with status {code}"
        if code < 0:
            how = f"its process was ended by {signal.Signals(-code).name}"
            how += " (out of memory?)" if code == -signal.SIGKILL else ""
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()[-TAIL:]
        return f"{how}; it printed: {' | '.join(lines)}" if lines else f"{how} and printed nothing"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
