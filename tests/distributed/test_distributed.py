"""Jobs of several processes (Gloo on this machine's processor) against one process alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import iadd_fast
from iadd_fast.artifacts.files import load_tensors
from iadd_fast.distributed import _attempt, joined
from tests.distributed.worker import EXPERTS, RUNS, STUDENT, distil, small_data

ROOT = Path(__file__).parents[2]


def torchrun(
    processes: int, *arguments: str, restarts: int = 0, gpus: bool = False
) -> subprocess.CompletedProcess[str]:
    """A job of so many processes, which torchrun starts; on the processor, or on GPUs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if not gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=240, env=environment
    )


def job(processes: int, name: str, folder: Path, restarts: int = 0, gpus: bool = False) -> Any:
    worker = str(ROOT / "tests" / "distributed" / "worker.py")
    return torchrun(processes, worker, name, str(folder), restarts=restarts, gpus=gpus)


def one_process(folder: Path, device: str) -> None:
    """What the processes of ``everything`` make together, made by this one."""
    data = small_data()
    iadd_fast.train_experts(
        data, STUDENT, folder / "experts", device=device, progress=False, **EXPERTS
    )
    for name in RUNS:
        distil(data, folder, name, device=device)


@pytest.fixture(scope="module")
def data() -> iadd_fast.Data:
    return small_data()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes, with as many trajectories a step."""
    folder = tmp_path_factory.mktemp("alone")
    one_process(folder, "cpu")
    return folder


@pytest.fixture(scope="module", params=[2, 4])
def together(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """The same by 2 and by 4 processes: (how many, their folder)."""
    folder = tmp_path_factory.mktemp(f"together{request.param}")
    done = job(request.param, "everything", folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return request.param, folder


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_close(folder: Path, other: Path) -> None:
    """Two runs are one run up to float32's rounding; every tensor, loss and accuracy."""
    tensors, metadata = load_tensors(folder / "distilled.safetensors")
    wanted, told = load_tensors(other / "distilled.safetensors")
    assert tensors.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(tensors[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert metadata["lr"] == pytest.approx(told["lr"], rel=1e-5)
    assert metadata["summary"]["iteration"] == told["summary"]["iteration"]
    for row, one in zip(rows(folder), rows(other), strict=True):
        assert row["iteration"] == one["iteration"]
        if one["loss"] is None:
            assert row["loss"] is None
        else:
            assert row["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_experts_are_the_same_bits_whoever_trains_them(
    alone: Path, together: tuple[int, Path]
) -> None:
    """Breaks when an expert depends on its process, is left out, or claims stay in the folder."""
    names = sorted(path.name for path in (alone / "experts").iterdir())
    assert sorted(path.name for path in (together[1] / "experts").iterdir()) == names
    for path in (alone / "experts").glob("expert_*"):
        assert (together[1] / "experts" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", RUNS)
def test_processes_together_make_what_one_makes(
    alone: Path, together: tuple[int, Path], name: str
) -> None:
    """Breaks when a segment or class counts twice or not at all, when a mean is one of means, when
    a policy begins from another segment, or a validation network is another one."""
    assert_close(together[1] / name, alone / name)


def test_one_that_is_asked_to_stop_stops_all(together: tuple[int, Path]) -> None:
    """Breaks when Ctrl-C on one process leaves the others waiting, or they stop at different
    iterations and the checkpoint is of one of them alone."""
    processes, folder = together
    stops = [json.loads((folder / f"stopped{rank}.json").read_text()) for rank in range(processes)]
    assert stops == [4] * processes
    _, metadata = load_tensors(folder / "stopped" / "checkpoint.safetensors")
    assert metadata["iteration"] == 4


def test_processes_that_drift_apart_are_told(together: tuple[int, Path]) -> None:
    """Breaks when different states are averaged on as if they were one."""
    for rank in range(together[0]):
        assert "hold different numbers" in (together[1] / f"drift{rank}.txt").read_text()


def test_another_number_of_processes_goes_on(
    alone: Path, together: tuple[int, Path], data: iadd_fast.Data, tmp_path: Path
) -> None:
    """Breaks when a checkpoint holds what depends on the number of processes."""
    shutil.copytree(together[1] / "experts", tmp_path / "experts")
    shutil.copytree(together[1] / "stopped", tmp_path / "adaptive")
    distil(data, tmp_path, "adaptive", trajectories=None, device="cpu")  # as the run was begun
    assert_close(tmp_path / "adaptive", alone / "adaptive")


def test_a_dead_process_ends_the_job_and_a_restart_finishes_it(
    alone: Path, data: iadd_fast.Data, tmp_path: Path
) -> None:
    """Breaks when the others wait for ever, when the checkpoint is lost, or when a dead process's
    lock keeps the next ones out."""
    for name in ("ends", "restarts"):
        shutil.copytree(alone / "experts", tmp_path / name / "experts")
    done = job(2, "dying", tmp_path / "ends")
    assert done.returncode != 0
    _, metadata = load_tensors(tmp_path / "ends" / "adaptive" / "checkpoint.safetensors")
    assert metadata["iteration"] == 2
    assert not (tmp_path / "ends" / "adaptive" / "distilled.safetensors").exists()

    done = job(2, "dying", tmp_path / "restarts", restarts=1)
    assert done.returncode == 0, done.stderr[-4000:]
    assert_close(tmp_path / "restarts" / "adaptive", alone / "adaptive")
    # What was left lying goes on with one process too.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whose folder it takes over, where that one was killed
        distil(data, tmp_path / "ends", "adaptive", device="cpu")
    assert_close(tmp_path / "ends" / "adaptive", alone / "adaptive")


def test_too_few_trajectories_and_other_commands_are_refused(
    data: iadd_fast.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when a process without a segment waits for one, or each process evaluates alone."""
    from typer.testing import CliRunner

    from iadd_fast.cli import app
    from iadd_fast.distributed import Ranks

    monkeypatch.setattr(Ranks, "current", classmethod(lambda cls: cls(0, 3)))
    with pytest.raises(ValueError, match="trajectories: 2 per outer step for 3 processes"):
        iadd_fast.distill(data, progress=False, trajectories=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    found = CliRunner().invoke(app, ["plan", "digits"])
    assert found.exit_code == 2 and "plan: runs in one process" in found.output


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when two processes share a GPU, which NCCL answers after a while in its own words."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "0"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    told = "--nproc-per-node: got 2; this machine has 1 GPUs, one for each process"
    with pytest.raises(ValueError, match=told), joined():
        raise AssertionError("joined")


def test_every_start_of_a_job_has_a_name_of_its_own_that_all_nodes_share() -> None:
    """Two nodes count their restarts differently, and the store remembers the start before: breaks
    when a process goes by its node's count or takes the last start's name for this one's."""
    store, size = dist.HashStore(), 3  # type: ignore[attr-defined]
    store.set_timeout(timedelta(seconds=20))
    names: list[str] = []
    for start in range(3):
        with ThreadPoolExecutor(size) as pool:
            # The others come first, and find what the last start has left.
            others = [pool.submit(_attempt, store, rank, size) for rank in (1, 2)]
            time.sleep(0.2)
            assert not any(other.done() for other in others)
            first = pool.submit(_attempt, store, 0, size).result()
            assert [other.result() for other in others] == [first, first]
        names.append(first)
        assert len(set(names)) == start + 1
