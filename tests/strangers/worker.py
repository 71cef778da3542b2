"""Opens hostile files in a process of its own, whose memory is limited and which can be stopped."""

from __future__ import annotations

import json
import os
import queue
import re
import resource
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
#: Address space that a reader may take beyond what the imports took: no claim fits in.
ROOM = 3 * 2**29
#: Seconds after which a reader hangs; the slowest takes a tenth of one where the machine is idle.
PATIENCE = 30
#: Seconds for the imports.
START = 300


@dataclass(frozen=True)
class Outcome:
    """What a reader made of a file.

    Attributes:
        name: of the case. error: the type's name, "" for a result. bases: the builtin errors it is
            one of. text: the message, or a short form of the result.
        grown: bytes by which the process grew at most.
    """

    name: str
    error: str
    bases: list[str]
    text: str
    grown: int


def outcomes(folder: Path, names: Sequence[str]) -> Iterator[Outcome]:
    """What the readers make of the cases of these names; one that hangs is given up."""
    left = list(names)
    while left:
        done = 0
        for outcome in _process(folder, left):
            done += 1
            yield outcome
        if done < len(left):
            yield Outcome(left[done], "hangs or dies", [], "", 0)
        left = left[done + 1 :]


def _process(folder: Path, names: Sequence[str]) -> Iterator[Outcome]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.strangers.worker", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert worker.stdin is not None and worker.stdout is not None
    lines: queue.Queue[str] = queue.Queue()
    stdout = worker.stdout

    def forward() -> None:
        for line in stdout:
            lines.put(line)
        lines.put("")

    reader = threading.Thread(target=forward, daemon=True)
    reader.start()
    worker.stdin.write("\n".join(names) + "\n")
    worker.stdin.close()
    try:
        lines.get(timeout=START)
        for _ in names:
            line = lines.get(timeout=PATIENCE)
            if not line:
                return
            yield Outcome(**json.loads(line))
    except queue.Empty:
        return
    finally:
        worker.kill()
        worker.wait()
        reader.join()
        stdout.close()


@contextmanager
def _watched() -> Iterator[dict[str, int]]:
    """Bytes by which the process grows at most (0 where the system does not tell)."""
    told = {"grown": 0}
    status = Path("/proc/self/status")

    def read(field: str) -> int:
        found = re.search(rf"{field}:\s*(\d+) kB", status.read_text()) if status.exists() else None
        return int(found[1]) * 1024 if found else 0

    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = read("VmRSS")
    except OSError:
        before = 0
    yield told
    told["grown"] = max(0, read("VmHWM") - before) if before else 0


def _warm(folder: Path) -> Path:
    from tests.strangers.building import distilled_set

    distilled_set().save(folder / "warm.safetensors")
    return folder / "warm.safetensors"


def main() -> None:
    """Read names of cases, write an outcome for each."""
    from tests.strangers.corpus import CASES
    from tests.strangers.readers import READERS

    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    # What torch imports when it is first used is no claim of a file.
    READERS["set"](_warm(folder))
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, resource.RLIM_INFINITY))
    print("ready", flush=True)
    for line in sys.stdin:
        name = line.rstrip("\n")
        case = CASES[name]
        path = case.build(folder)
        error, bases, text = "", [], ""
        with _watched() as told:
            try:
                result: Any = READERS[case.reader](path)
                text = f"a {type(result).__name__}"
            except BaseException as raised:
                error = type(raised).__name__
                bases = [kind.__name__ for kind in type(raised).__mro__]
                text = str(raised)
        outcome = Outcome(name, error, bases, text, told["grown"])
        print(json.dumps(vars(outcome)), flush=True)


if __name__ == "__main__":
    main()
