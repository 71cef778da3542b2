"""Ctrl-C and SIGTERM on the command line."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from iadd_fast import training_progress
from iadd_fast.artifacts.files import load_tensors

DISTILL = [
    "distill", "digits", "--student", "convnet:width=4,depth=1", "--iterations", "500",
    "--steps", "2",
    "--expert-epochs", "1", "--max-start-epoch", "0", "--validate-every", "500",
    "--checkpoint-every", "400", "--validation-networks", "1", "--no-progress", "--device", "cpu",
]  # fmt: skip
EXPERTS = [
    "experts", "digits", "--student", "convnet:width=4,depth=1", "--count", "2",
    "--epochs", "2000", "--no-progress", "--device", "cpu",
]  # fmt: skip


def command_line(arguments: list[str], out: Path, log: Path) -> int:
    """``iadd-fast`` in a process of its own, which keeps experts every epoch; its number."""
    number = os.fork()
    if number == 0:
        status = 99
        try:
            from iadd_fast.cli import main

            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = log.open("a", buffering=1)
            sys.argv = ["iadd-fast", *arguments, "--out", str(out)]
            training_progress.KEEP_EVERY, training_progress.SHARE = 0.0, 1.0
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 98
        finally:
            os._exit(status)
    return number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_iteration_is_finished_and_the_command_that_goes_on_is_told(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Breaks when a signal loses iterations (the next checkpoint is far), leaves a traceback, or a
    scheduler's SIGTERM is no Ctrl-C."""
    out, log = tmp_path / "a folder", tmp_path / "log"
    child = command_line(DISTILL, out, log)
    metrics = out / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), log.read_text()
        time.sleep(0.005)
    os.kill(child, number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    first, second = log.read_text().splitlines()
    _, metadata = load_tensors(out / "checkpoint.safetensors")
    done = metadata["iteration"]
    assert first == f"iadd-fast: stopped after iteration {done}; the same call goes on there"
    assert second.startswith("iadd-fast: to go on: iadd-fast distill digits --student convnet:wid")
    assert second.endswith(f"--out '{out}'")
    assert len(metrics.read_text().splitlines()) == done


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_epoch_of_an_expert_is_finished_and_the_command_that_goes_on_is_told(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Breaks when an hour's expert is lost with a signal, or nobody says how to go on."""
    out, log = tmp_path / "a folder", tmp_path / "log"
    child = command_line(EXPERTS, out, log)
    kept = out / "expert_0000.training" / "checkpoint.safetensors"
    while not kept.exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0), log.read_text()
        time.sleep(0.005)
    os.kill(child, number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    first, second = log.read_text().splitlines()
    tensors, _ = load_tensors(kept)
    done = len(tensors["snapshots"]) - 1
    told = f"iadd-fast: stopped after epoch {done} of expert 0; the same call goes on there"
    assert first == told
    assert second.startswith("iadd-fast: to go on: iadd-fast experts digits --student convnet:wid")
    assert second.endswith(f"--out '{out}'")
