"""What every process of a job in ``test_distributed.py`` does: ``worker.py NAME FOLDER``."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import iadd_fast
from iadd_fast.distributed import Ranks, joined
from iadd_fast.importance.policy import Segment
from iadd_fast.trajectory_matching import TrajectoryMatching

STUDENT = "convnet:width=4,depth=1"
EXPERTS: dict[str, Any] = {"count": 5, "epochs": 2, "lr": 0.05}
OUTER: dict[str, Any] = {
    "iterations": 6, "validate_every": 3, "validation_networks": 3, "validation_epochs": 5,
    "checkpoint_every": 2,
}  # fmt: skip
MATCHING: dict[str, Any] = {
    **OUTER, "steps": 4, "expert_epochs": 1, "max_start_epoch": 1, "trajectories": 5,
}  # fmt: skip
#: Runs by the folder each goes to.
RUNS: dict[str, dict[str, Any]] = {
    "adaptive": {**MATCHING, "importance": "adaptive:learning_rate=0.1"},
    # Of 4 segments the first process has the first neither of 2 nor of 4.
    "fisher": {
        **MATCHING,
        "importance": "adaptive:initial=fisher",
        "soft_labels": True,
        "trajectories": 4,
    },
    "skipped": {**MATCHING, "importance": "prune:initial=fisher", "trajectories": 4},
    "ranked": {**MATCHING, "importance": "ranked"},
    "uniform": {**MATCHING, "importance": "uniform", "batch_size": 4, "ema": 0.9},
    "gradient": {**OUTER, "method": "gradient", "image_updates": 2, "network_epochs": 1},
}


def small_data() -> iadd_fast.Data:
    """The digits; a function, so that tests and processes have the same."""
    return iadd_fast.load_data("digits")


def distil(data: iadd_fast.Data, folder: Path, name: str, **more: Any) -> iadd_fast.DistilledSet:
    """The run ``name`` in its folder; of ``skipped`` the first step comes to nothing."""
    options = {**RUNS[name], **more}
    experts = None if options.get("method") == "gradient" else folder / "experts"
    student = STUDENT if experts is None else None
    target = TrajectoryMatching._target

    def none_at_first(self: TrajectoryMatching, segment: Segment) -> Tensor:
        found = target(self, segment)
        return torch.full_like(found, torch.nan) if self.iteration == 0 else found

    if name == "skipped":
        TrajectoryMatching._target = none_at_first  # type: ignore[method-assign]
    try:
        return iadd_fast.distill(
            data, experts, student=student, out=folder / name, progress=False, **options
        )
    finally:
        TrajectoryMatching._target = target  # type: ignore[method-assign]


def everything(folder: Path) -> None:
    """All jobs, together with the other processes."""
    data, ranks = small_data(), Ranks.current()
    iadd_fast.train_experts(data, STUDENT, folder / "experts", progress=False, **EXPERTS)
    for name in RUNS:
        made = distil(data, folder, name)
        ranks.check_equal(iadd_fast.artifacts.files.digest([made.images, made.labels]), name)
    # The last process alone is asked to stop after its third iteration: all stop after the fourth.
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == 3 and ranks.rank == ranks.size - 1

    try:
        iadd_fast.distill(
            data, folder / "experts", out=folder / "stopped", progress=False,
            should_stop=should_stop, **RUNS["adaptive"],
        )  # fmt: skip
    except KeyboardInterrupt:
        (folder / f"stopped{ranks.rank}.json").write_text(json.dumps(asked))
    try:
        ranks.check_equal(f"{ranks.rank:064x}", "numbers")
    except RuntimeError as error:
        (folder / f"drift{ranks.rank}.txt").write_text(str(error))
    ranks.wait()


def dying(folder: Path) -> None:
    """A run in which the last process kills itself, the first time it is started."""
    ranks = Ranks.current()

    def die(iteration: int, score: float | None) -> None:
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if first and iteration == 3 and ranks.rank == ranks.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    distil(small_data(), folder, "adaptive", on_validation=die)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined():
        globals()[sys.argv[1]](Path(sys.argv[2]))
