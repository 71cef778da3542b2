"""Jobs of several processes with a GPU each (NCCL) against one process alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed.test_distributed import assert_close, job, one_process
from tests.distributed.worker import RUNS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="takes two GPUs")
def test_two_gpus_together_make_what_one_makes(tmp_path: Path) -> None:
    """Breaks when a sum travels by the wrong backend, or a process takes another one's GPU."""
    done = job(2, "everything", tmp_path / "two", gpus=True)
    assert done.returncode == 0, done.stderr[-4000:]
    one_process(tmp_path / "one", "cuda")
    for name in RUNS:
        assert_close(tmp_path / "two" / name, tmp_path / "one" / name)
    names = [path.name for path in (tmp_path / "one" / "experts").glob("expert_*")]
    assert len(names) == 5
    for name in names:
        wanted = (tmp_path / "one" / "experts" / name).read_bytes()
        assert (tmp_path / "two" / "experts" / name).read_bytes() == wanted


def test_more_processes_than_gpus_are_refused(tmp_path: Path) -> None:
    """Breaks when NCCL's own error of duplicate GPUs, or a wait of half an hour, answers."""
    count = torch.cuda.device_count()
    done = job(count + 1, "everything", tmp_path, gpus=True)
    assert done.returncode != 0
    told = f"--nproc-per-node: got {count + 1}; this machine has {count} GPUs, one for each process"
    assert told in done.stderr
