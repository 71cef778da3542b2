"""tune: what it searches, how it ends and goes on, what it says about the result."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import signal
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from iadd_fast import cli, tune
from iadd_fast.artifacts import DistilledSet, Experts
from iadd_fast.artifacts.folder_lock import exclusive
from iadd_fast.data import Data, load_data
from iadd_fast.distillation_run import Distillation
from iadd_fast.experts import train_experts
from iadd_fast.settings import DistillSettings
from iadd_fast.tuning import Tuning, trial

STUDENT = "mlp:width=8,depth=2"
ITERATIONS = 6
QUICK: dict[str, Any] = {
    "iterations": ITERATIONS,
    "steps": 2,
    "augment": "none",
    "validate_every": 1,
    "validation_networks": 1,
    "validation_epochs": 3,
    "checkpoint_every": 2,
}
TRIALS = 9


class Untouchable:
    """A test part that nobody may look at."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"the test part was asked for {name}")

    def __len__(self) -> int:
        raise AssertionError("the test part was asked for its size")


@pytest.fixture(scope="module", autouse=True)
def few_shuffles() -> Iterator[None]:
    """A search spends its time on trials; test_importances.py has all the shuffles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("iadd_fast.tuning.importances.SHUFFLES", 2)
        yield


@pytest.fixture(scope="module")
def data() -> Data:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    images = torch.randn(3, 1, 6, 6, generator=draw)[labels]
    images = images + 1.5 * torch.randn(90, 1, 6, 6, generator=draw)
    loaded = load_data(images, labels, validation_fraction=0.3, test_fraction=0.0, name="blobs")
    return dataclasses.replace(loaded, test=Untouchable())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def experts(data: Data) -> Experts:
    return train_experts(
        data, STUDENT, count=2, epochs=4, lr=0.1, batch_size=16, augment="none", progress=False
    )


def quick(data: Data, experts: Experts, out: Path, **change: Any) -> Tuning:
    change = {"trials": TRIALS, **QUICK, **change}
    return tune(data, out, experts, student=STUDENT, progress=False, **change)


@pytest.fixture(scope="module")
def search(data: Data, experts: Experts, tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    """One search, never interrupted; its data's test part is out of bounds."""
    return quick(data, experts, tmp_path_factory.mktemp("search"))


def told(found: Tuning) -> list[dict[str, Any]]:
    """The trials without what depends on the machine."""
    return [
        {name: value for name, value in dataclasses.asdict(row).items() if name != "seconds"}
        for row in found.trials
    ]


class Ticking:
    """A clock that goes on by a second whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_accuracy_is_the_mean_of_the_last_three_validations(search: Tuning) -> None:
    """Breaks when the largest or only the last validation counts, or trials are ranked by another
    number than the one that is shown."""
    assert len(search.trials) == TRIALS
    for row in search.trials:
        log = (search.folder / "trials" / f"{row.number:04d}" / "metrics.jsonl").read_text()
        logged = [json.loads(line)["validation_accuracy"] for line in log.splitlines()]
        accuracies = [accuracy for _, accuracy in row.validations]
        # A pruned run ends inside of its last validation, ahead of the log.
        assert accuracies[: len(logged)] == logged
        assert len(logged) >= len(accuracies) - 1
        assert row.accuracy == pytest.approx(statistics.fmean(accuracies[-3:]))
        assert row.spread == pytest.approx(statistics.stdev(accuracies[-3:]))
    complete = [row for row in search.trials if row.state == "complete"]
    assert search.best is not None
    assert search.best.accuracy == max(row.accuracy for row in complete if row.accuracy)


def test_what_lags_behind_the_median_is_pruned(search: Tuning) -> None:
    """Breaks when validations do not reach the pruner, or the wrong ones are pruned."""
    pruned = [row for row in search.trials if row.state == "pruned"]
    assert pruned
    for row in search.trials:
        before = [
            dict(other.validations)
            for other in search.trials[: row.number]
            if other.state == "complete"
        ]
        behind = [
            done
            for done, _ in row.validations
            if 3 <= done < ITERATIONS
            and len(before) >= 5
            and max(a for k, a in row.validations if k <= done)
            < statistics.median(other[done] for other in before)
        ]
        assert (row.state == "pruned") == bool(behind)
        if behind:
            assert row.validations[-1][0] == behind[0]
            assert row.set is None


def test_trial_0_is_the_defaults(search: Tuning) -> None:
    """Breaks when a user cannot see what the search was worth against no search."""
    first = search.trials[0].settings
    assert first["lr_images"] == DistillSettings.lr_images
    assert first["lr_init"] == DistillSettings.lr_init
    assert (first["importance"], first["importance_learning_rate"]) == ("adaptive", 0.01)


def test_what_is_given_stands(search: Tuning) -> None:
    """Breaks when a given setting is searched all the same, or one that is not given is not."""
    assert set(search.space.searched) == {
        "lr_images", "lr_lr", "lr_init", "expert_epochs", "max_start_epoch", "importance",
        "importance_learning_rate",
    }  # fmt: skip
    for row in search.trials:
        if row.set is not None:
            config = DistilledSet.load(search.folder / row.set).config
            assert config["steps"] == QUICK["steps"]
            assert config["lr_images"] == row.settings["lr_images"]
            assert config["max_start_epoch"] == row.settings["max_start_epoch"]
            assert config["importance"]["name"] == row.settings["importance"]
    assert len({row.settings["lr_images"] for row in search.trials}) == TRIALS


def test_resuming_equals_one_call(
    data: Data, experts: Experts, search: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by the clock in a trial, killed after a validation, Ctrl-C: then the same trials.

    Breaks when the sampler's state is lost between calls, a trial that was stopped is drawn again,
    begun anew with half of its validations, left running, or counted twice.
    """
    with monkeypatch.context() as patch:
        patch.setattr("iadd_fast.tuning.search.clock", Ticking())
        stopped = quick(data, experts, tmp_path, minutes=24 / 60, trials=None)
    assert stopped.trials[-1].state == "unfinished"
    assert 0 < len(stopped.trials[-1].validations) < ITERATIONS
    assert (tmp_path / f"trials/{stopped.trials[-1].number:04d}/checkpoint.safetensors").exists()

    step = Distillation.outer_step

    def at(iteration: int, do: Any) -> Any:
        def outer_step(run: Distillation) -> dict[str, Any]:
            if run.iteration == iteration:
                do()
            return step(run)

        return outer_step

    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    with monkeypatch.context() as patch:  # in the fourth iteration, the last checkpoint at two
        patch.setattr(Distillation, "outer_step", at(3, kill))
        patch.setattr(trial, "put_back", lambda *_: None)
        with pytest.raises(Killed):
            quick(data, experts, tmp_path)
    with (tmp_path / "trials.journal").open("a") as journal:
        journal.write('{"op_code": 4, "work')  # what a kill can leave

    def ctrl_c() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    for iteration, message in [
        (2, r"trial \d stopped after iteration 3"),
        (ITERATIONS - 1, r"stopped after \d trials"),  # what was the last one is finished
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(Distillation, "outer_step", at(iteration, ctrl_c))
            with pytest.raises(KeyboardInterrupt, match=f"{message}.* goes on there"):
                quick(data, experts, tmp_path)
        assert json.loads((tmp_path / "tuning.json").read_text())["importances"] is None

    resumed = quick(data, experts, tmp_path)
    assert told(resumed) == told(search)
    assert resumed.settings == search.settings
    assert resumed.importances == search.importances
    assert not list(tmp_path.rglob("checkpoint.safetensors"))


def test_the_time_ends_a_running_trial(
    data: Data, experts: Experts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when time is asked for between trials, or between validations, only."""
    monkeypatch.setattr("iadd_fast.tuning.search.clock", Ticking())
    change = {"validate_every": 5, "iterations": 500}
    found = quick(data, experts, tmp_path, minutes=0.2, trials=None, **change)
    (row,) = found.trials
    assert row.state == "unfinished"
    assert found.best is None and found.settings == {}
    assert not (tmp_path / "best.toml").exists()
    lines = (tmp_path / "trials/0000/metrics.jsonl").read_text().splitlines()
    assert 0 < len(lines) < 12
    assert len(lines) % 5
    assert "time of 0.2 minutes is over" in found.table()
    assert "no trial is complete" in found.table()


def test_another_search_in_the_folder(data: Data, experts: Experts, search: Tuning) -> None:
    """Breaks when trials of two objectives are ranked together, or the message names nothing."""
    before = (search.folder / "trials.journal").read_bytes()
    with pytest.raises(ValueError, match=r"another iterations \(6 there, 7 here\); takes"):
        quick(data, experts, search.folder, iterations=7)
    with pytest.raises(ValueError, match=r"lr_init \(searched from 0.001 to 0.1 there, 0.02 here"):
        quick(data, experts, search.folder, lr_init=0.02)
    held = data.validation.subset(range(20))
    with pytest.raises(ValueError, match="another validation"):
        quick(dataclasses.replace(data, validation=held), experts, search.folder)
    with (
        exclusive(search.folder, "tune"),
        pytest.raises(ValueError, match=r"in use by tune \(process \d+ on "),
    ):
        quick(data, experts, search.folder)
    assert (search.folder / "trials.journal").read_bytes() == before


def test_bad_input_writes_nothing(
    data: Data, experts: Experts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when an error comes after experts are trained, or leaves a folder."""
    out = tmp_path / "out"
    none = dataclasses.replace(data, validation=data.validation.subset([]))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"trials": 0}, "trials: got 0"),
        ({"minutes": -1.0}, "minutes: got -1.0"),
        ({"importance": "adaptiv"}, "importance: got 'adaptiv'"),
        ({"max_start_epoch": 9}, "experts: reach epoch 4; a start at epoch 9"),
        ({"preset": "no"}, "preset: got 'no'"),
        ({"steps": 0}, "steps: got 0"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            quick(data, experts, out, **change)
    with pytest.raises(ValueError, match="data: has no validation part"):
        quick(none, experts, out)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"Optuna 4 or later: pip install 'iadd_fast\[tune\]'"):
        quick(data, experts, out)
    assert not out.exists()


def test_runs_that_diverge_are_told_and_are_not_the_best(
    data: Data, experts: Experts, tmp_path: Path
) -> None:
    """Breaks when a diverged run ends the search, or counts as any other does."""
    found = quick(data, experts, tmp_path, trials=2, max_loss=1e-9, max_skips=4)
    assert [row.state for row in found.trials] == ["diverged", "diverged"]
    assert found.best is None
    assert found.importances is not None
    assert found.importances["final"]["trials"] == 0
    assert found.importances["diverged"]["trials"] == 2
    assert "diverging: rests on 2 trials, too few" in found.importance_table()
    assert "2 diverged" in found.table()


@pytest.mark.filterwarnings("ignore:none of the 6 outer steps was of use")
def test_the_command_line_makes_the_best_set_again(tmp_path: Path) -> None:
    """tune on files, then the command it prints, then best.toml: one and the same set.

    Breaks when a setting is lost or rounded on the way, or best.toml is not what distill reads.
    """
    draw = np.random.default_rng(0)
    labels = np.arange(40) % 2
    images = (draw.random((40, 4, 4)) * 0.2).astype(np.float32)
    images[labels == 1, :2] += 0.5
    np.savez(tmp_path / "rows.npz", images=images, labels=labels)
    quiet = ["--no-progress", "--device", "cpu"]
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    out = tmp_path / "tune"
    result = call(
        "tune", tmp_path / "rows.npz", "--out", out, "--trials", 3, "--student", STUDENT,
        "--validation-fraction", 0.25, "--max-start-epoch", 1, "--expert-epochs", 1, *settings,
        *quiet,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads((out / "tuning.json").read_text())
    best = found["trials"][found["best"]]
    wanted = DistilledSet.load(out / best["set"])
    command = shlex.split(result.stdout.splitlines()[-1])
    assert command[:2] == ["iadd-fast", "distill"]
    assert call(*command[1:], *quiet).exit_code == 0
    again = call(
        "distill", tmp_path / "rows.npz", "--validation-fraction", 0.25, "--config",
        out / "best.toml", "--out", tmp_path / "toml", *quiet,
    )  # fmt: skip
    assert again.exit_code == 0, again.output
    for folder in (out / "best", tmp_path / "toml"):
        made = DistilledSet.load(folder / "distilled.safetensors")
        assert torch.equal(made.images, wanted.images)
        assert made.config == wanted.config


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(DistillSettings)])
def test_a_flag_fixes_its_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """Breaks when a flag is missing or dropped, or a default arrives as if it was given."""
    seen: dict[str, Any] = {}

    def record(data: Any, **keywords: Any) -> Any:
        seen.update(keywords)
        raise ValueError("enough")

    monkeypatch.setattr("iadd_fast.cli.tune.tune", record)
    monkeypatch.setattr("iadd_fast.cli.common.load_data", lambda *_, **options: options)
    default = getattr(DistillSettings(), name)
    flag = "--" + name.replace("_", "-")
    value: Any = "noise" if isinstance(default, str) else 1
    words = ["--no-compile"] if name == "compile" else [flag, value]
    if isinstance(default, bool):
        words = [flag.replace("--", "--no-", 1)]
        value = default
    call("tune", "digits", "--out", tmp_path, *words)
    given = {key for key in seen if key in {f.name for f in dataclasses.fields(DistillSettings)}}
    assert given == {name}
    assert seen[name] == value
    assert seen["minutes"] is None and seen["trials"] is None


def test_the_result_says_on_what_it_rests(search: Tuning) -> None:
    """Breaks when the printed numbers lack their counts, or tuning.json those that are printed."""
    table, shares = search.table(), search.importance_table()
    complete = sum(row.state == "complete" for row in search.trials)
    assert f"{TRIALS} trials: {complete} complete" in table
    assert f"rests on {complete} trials for 7 settings" in shares
    assert f"after 3 iterations: rests on {TRIALS} trials" in shares
    assert "27 validation samples" in table
    assert search.best is not None and search.best.accuracy is not None
    assert search.interval is not None
    low, high = search.interval
    # Wilson's interval is where the accuracy is 1.96 standard errors away.
    for end in (low / 100, high / 100):
        error = math.sqrt(end * (1 - end) / 27)
        assert abs(end - search.best.accuracy / 100) == pytest.approx(1.96 * error)
    saved = json.loads((search.folder / "tuning.json").read_text())
    assert saved["trials"] == json.loads(json.dumps([dataclasses.asdict(r) for r in search.trials]))
    assert saved["importances"] == search.importances
    assert saved["versions"]["optuna"]
    assert isinstance(search.settings, dict) and "experts" not in search.settings


def test_own_experts_reach_as_far_as_the_space(data: Data, tmp_path: Path) -> None:
    """Breaks when every trial trains experts, or those of the first are too short for a later."""
    change: dict[str, Any] = {"trials": 2, "expert_epochs": 1, "max_loss": 1e6, **QUICK}
    found = tune(data, tmp_path, student=STUDENT, progress=False, max_start_epoch=2, **change)
    manifest = json.loads((tmp_path / "experts/manifest.json").read_text())
    assert manifest["epochs"] == found.space.reach == 3
    assert not list((tmp_path / "trials").rglob("manifest.json"))
    assert found.settings["experts"] == str(tmp_path / "experts")


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
