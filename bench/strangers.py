"""Opens the hostile files of ``tests/strangers`` and thousands of damaged ones, and says what came.

    python bench/strangers.py                 # each hostile file and its error, as in docs/files.md
    python bench/strangers.py --changes 800   # that many changed files of every format too

The hostile files are read in a process with a limited memory; one that hangs is stopped. The status
is 1 where one was believed, or an error was another than the tests expect.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.strangers.corpus import CASES
from tests.strangers.fuzz import FORMATS, UNSEALED, cases, values
from tests.strangers.worker import Outcome, outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--changes", type=int, default=0, help="changed files of every format")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wrong = hostile(Path(folder) / "hostile")
        for number, name in enumerate([*FORMATS, *UNSEALED] if asked.changes else []):
            wrong += changed(name, asked.changes, Path(folder) / f"changed{number}")
    return min(wrong, 1)


def hostile(folder: Path) -> int:
    """Print the table of hostile files; the number of wrong outcomes."""
    folder.mkdir()
    wrong, most = 0, 0
    print("| file | what comes of it |\n|---|---|")
    for outcome in outcomes(folder, list(CASES)):
        good = is_expected(outcome)
        wrong += not good
        most = max(most, outcome.grown)
        print(f"| {outcome.name} | {'' if good else '**WRONG** '}{told(outcome, folder)} |")
    ran = list(folder.rglob("canary"))
    print(f"\n{len(CASES)} files, {wrong} wrong outcomes, {len(ran)} ran code.")
    print(f"The readers grew by at most {most / 2**20:.0f} MiB.")
    return wrong + len(ran)


def is_expected(outcome: Outcome) -> bool:
    """Whether it is what the tests expect."""
    case = CASES[outcome.name]
    if not case.text:
        return not outcome.error
    return case.error in outcome.bases and case.text in outcome.text


def told(outcome: Outcome, folder: Path) -> str:
    """One line, the folders left out."""
    if not outcome.error:
        return "read"
    text = outcome.text
    for part in sorted((str(path) for path in folder.iterdir()), key=len, reverse=True):
        text = text.replace(f"{part}/", "").replace(part, "FOLDER")
    text = re.sub(" at 0x[0-9a-f]+", "", text)  # the table is the same every time
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return f"{outcome.error}: {text[:160]}{'...' if len(text) > 160 else ''}"


def changed(name: str, count: int, folder: Path) -> int:
    """Print what came of ``count`` changed files of a format; 1 where one is as it must not be."""
    began = time.perf_counter()
    try:
        found = cases(name, count, folder) if name in FORMATS else values(name, folder)
    except AssertionError as error:
        print(f"{name}: **WRONG** {error}")
        return 1
    seconds = time.perf_counter() - began
    print(f"{name}: {found['read']} read, {found['refused']} refused, {seconds:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
