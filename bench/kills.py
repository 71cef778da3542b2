"""Kill experts, distillation and evaluation at random instants and at every step of writing.

    python bench/kills.py                       # 50 random kills, and every step of writing
    python bench/kills.py --kills 10 --seed 1

A child process trains experts, distils and evaluates in one folder, and keeps networks in training
after every epoch. It is killed (SIGKILL: it runs no handler and flushes nothing), started again,
killed again, until it ends by itself. Then its experts, its set and the networks of the evaluation
must be those of a run that was never interrupted, bit for bit, and its log must have every
iteration once with the same losses. Exits with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import iadd_fast
from iadd_fast import training_progress
from iadd_fast.artifacts.files import load_tensors, read_json, write_json

# On the processor: a fork of a process that has used a GPU cannot use it.
EXPERTS: dict[str, Any] = {"count": 3, "epochs": 3, "lr": 0.05, "device": "cpu"}
DISTILL: dict[str, Any] = {
    "iterations": 24, "steps": 5, "expert_epochs": 1, "max_start_epoch": 2,
    "checkpoint_every": 2, "validate_every": 6, "validation_networks": 1, "validation_epochs": 10,
    "device": "cpu",
}  # fmt: skip
EVALUATE: dict[str, Any] = {
    "networks": 2, "epochs": 30, "full_epochs": 3, "baselines": ("random",), "device": "cpu",
}  # fmt: skip
STUDENT = "convnet:width=4,depth=2"


class Kills:
    """One data set, the uninterrupted results, and children to kill."""

    def __init__(self, scratch: Path, data: iadd_fast.Data | None = None) -> None:
        self.scratch = scratch
        self.data = iadd_fast.load_data("digits") if data is None else data
        self.job(scratch / "whole")
        self.wanted = content(scratch / "whole")
        # A child's time: what is done once in a process is done already when it begins.
        began = time.monotonic()
        os.waitpid(self.child(scratch / "timed"), 0)
        self.seconds = time.monotonic() - began

    def job(self, folder: Path) -> None:
        """What is killed: experts, then a distillation and its evaluation, in ``folder``."""
        experts = iadd_fast.train_experts(
            self.data, STUDENT, folder / "experts", progress=False, **EXPERTS
        )
        made = iadd_fast.distill(self.data, experts, out=folder / "run", progress=False, **DISTILL)
        networks = folder / "networks"
        rows = iadd_fast.evaluate(made, self.data, keep=networks, progress=False, **EVALUATE).rows
        write_json(folder / "rows.json", [row.accuracies for row in rows])

    def child(self, folder: Path, before: Callable[[], None] = lambda: None) -> int:
        """Start the job in a process of its own; its number."""
        number = os.fork()
        if number == 0:
            status = 1
            try:
                warnings.simplefilter("ignore")
                # As often as can be: each kill shall find a half-trained network.
                training_progress.KEEP_EVERY, training_progress.SHARE = 0.0, 1.0
                before()
                self.job(folder)
                status = 0
            finally:
                os._exit(status)
        return number

    def at_random(self, kills: int, draw: random.Random) -> tuple[int, list[str]]:
        """Kill so many times, starting again in the same folder: (runs finished, differences)."""
        found: list[str] = []
        runs = done = 0
        while done < kills:
            folder = self.scratch / f"random{runs}"
            runs += 1
            while True:
                number = self.child(folder)
                # Three kills or so a run: each has a chance to land in any part of the job.
                kill = done < kills and ends_later(number, draw.uniform(0, 0.5 * self.seconds))
                if kill:
                    os.kill(number, signal.SIGKILL)
                    os.waitpid(number, 0)
                    done += 1
                    continue
                if not kill and done >= kills:
                    os.waitpid(number, 0)
                break
            found += [f"run {runs}: {line}" for line in differences(content(folder), self.wanted)]
        return runs, found

    def at_every_write(self) -> tuple[int, list[str]]:
        """Kill at a sync or rename of the job, one later each time: (kills, differences)."""
        found: list[str] = []
        folder = self.scratch / "writes"
        kills = 0
        while True:
            # Each child gets one step further than the one before, counted from its own start.
            count = kills + 1
            number = self.child(folder, partial(die_before_write, count))
            _, status = os.waitpid(number, 0)
            if not os.WIFSIGNALED(status):
                break
            kills += 1
        found += differences(content(folder), self.wanted)
        return kills, found


def ends_later(number: int, seconds: float) -> bool:
    """Whether process ``number`` still runs after ``seconds``; where not, it is waited for."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, _ = os.waitpid(number, os.WNOHANG)
        if ended:
            return False
        time.sleep(0.001)
    return True


def die_before_write(count: int) -> None:
    """Make this process kill itself before its ``count``-th sync or rename of a file."""
    left = count

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return called

    vars(os)["fsync"] = dying(os.fsync)
    setattr(Path, "replace", dying(Path.replace))  # noqa: B010 - mypy takes no assignment to it


def content(folder: Path) -> dict[str, Any]:
    """Everything a finished job leaves that has to be the same: tensors, losses, validations."""
    held: dict[str, Any] = {}
    for path in sorted((folder / "experts").glob("expert_*.safetensors")):
        held[path.name] = path.read_bytes()
    made = folder / "run" / "distilled.safetensors"
    if made.is_file():
        tensors, metadata = load_tensors(made)
        held |= tensors
        held["summary"] = {k: v for k, v in metadata["summary"].items() if k != "seconds"}
        held["lr"] = metadata["lr"]
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        held["log"] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    for path in sorted((folder / "networks").glob("*.safetensors")):
        held[path.name] = load_tensors(path)[0]["thetas"]
    if (folder / "rows.json").is_file():
        held["rows"] = read_json(folder / "rows.json")
    hidden = (path.name for path in folder.rglob(".*") if path.is_file() and path.name != ".lock")
    in_training = (path.name for path in folder.rglob("*.training"))
    held["left over"] = sorted([*hidden, *in_training])
    return held


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Names of what is not the same."""
    names = [*wanted, *(name for name in found if name not in wanted)]
    return [
        f"{name} differs" + (f": {found[name]}" if name == "left over" else "")
        for name in names
        if not same(found.get(name), wanted.get(name))
    ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        kills = Kills(Path(scratch))
        print(f"uninterrupted: {kills.seconds:.1f} s")
        runs, found = kills.at_random(given.kills, random.Random(given.seed))
        print(f"{given.kills} kills at random instants over {runs} runs: {len(found)} differences")
        writes, others = kills.at_every_write()
        print(f"{writes} kills before a sync or a rename, one run: {len(others)} differences")
    for line in [*found, *others]:
        print(line)
    return 1 if found or others else 0


if __name__ == "__main__":
    sys.exit(main())
