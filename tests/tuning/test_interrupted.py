"""A search that is stopped or killed between what it draws, begins and tells."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import JournalStorage

import iadd_fast
from iadd_fast.artifacts import Experts
from iadd_fast.artifacts.checkpoint import save_checkpoint
from iadd_fast.data import Data
from iadd_fast.distillation_run import Distillation
from iadd_fast.tuning import trial as trial_module
from tests.tuning.test_tuning import data, experts, few_shuffles, quick, told

__all__ = ["data", "experts", "few_shuffles"]  # fixtures


class Killed(BaseException):
    """Stands for a kill: nothing after it runs."""


@pytest.mark.parametrize("at", [1, 3, 6])
def test_a_kill_while_a_trial_is_drawn_changes_nothing_that_is_drawn(
    data: Data,
    experts: Experts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
) -> None:
    """Breaks when what is in the journal already is not drawn again, so that the rest comes from
    other random numbers."""
    whole = quick(data, experts, tmp_path / "whole", trials=2)
    write = JournalStorage.set_trial_param
    written: list[int] = []

    def killed(self: Any, trial_id: int, *rest: Any) -> None:
        write(self, trial_id, *rest)
        written.append(trial_id)
        if written.count(written[0]) < len(written) and written.count(trial_id) == at:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(JournalStorage, "set_trial_param", killed)
        patch.setattr(trial_module, "put_back", lambda *_: None)
        with pytest.raises(Killed):
            quick(data, experts, tmp_path / "killed", trials=2)
    assert told(quick(data, experts, tmp_path / "killed", trials=2)) == told(whole)


def test_ctrl_c_before_a_trials_own_loop_stops_it(
    data: Data,
    experts: Experts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Breaks when a signal during its set-up waits for the end of the whole trial."""
    distill = iadd_fast.distill
    called: list[int] = []

    def interrupted(*given: Any, **options: Any) -> Any:
        called.append(1)
        if len(called) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return distill(*given, **options)

    monkeypatch.setattr(trial_module, "distill", interrupted)
    with pytest.raises(KeyboardInterrupt, match="trial 1 stopped after iteration 1; "):
        quick(data, experts, tmp_path, trials=3)


def test_a_diverged_trial_that_was_killed_before_it_was_told_stays_diverged(
    data: Data,
    experts: Experts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Breaks when it goes on from its last good state, and ends as another than uninterrupted."""
    options: dict[str, Any] = {"max_skips": 2, "max_loss": 1e-30}
    step = Distillation.outer_step
    steps: list[int] = []

    def counted(run: Distillation) -> dict[str, Any]:
        steps.append(run.iteration)
        return step(run)

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    monkeypatch.setattr(Distillation, "outer_step", counted)
    whole = quick(data, experts, tmp_path / "whole", trials=1, **options)
    assert whole.trials[0].state == "diverged"
    with monkeypatch.context() as patch:
        patch.setattr("optuna.Trial.set_user_attr", killed)
        patch.setattr(trial_module, "put_back", lambda *_: None)
        with pytest.raises(Killed):
            quick(data, experts, tmp_path / "killed", trials=1, **options)
    steps.clear()
    assert told(quick(data, experts, tmp_path / "killed", trials=1, **options)) == told(whole)
    assert steps == []


def test_checkpoints_of_finished_trials_go(
    data: Data,
    experts: Experts,
    tmp_path: Path,
) -> None:
    """Killed between the two: breaks when they stay for good; and when a link is followed."""
    quick(data, experts, tmp_path / "tune", trials=1)
    folder = tmp_path / "tune" / "trials" / "0000"
    save_checkpoint(folder, {}, {})
    quick(data, experts, tmp_path / "tune", trials=1)
    assert not (folder / "checkpoint.safetensors").exists()
    folder.rename(tmp_path / "mine")
    save_checkpoint(tmp_path / "mine", {}, {})
    folder.symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="0000: is a link to"):
        quick(data, experts, tmp_path / "tune", trials=1)
    assert (tmp_path / "mine" / "checkpoint.safetensors").exists()
