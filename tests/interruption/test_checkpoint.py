"""Checkpoints that are torn, on full disks, and in folders nobody can write to."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import iadd_fast
from iadd_fast.artifacts.checkpoint import (
    CHECKPOINT,
    DAMAGED,
    PREVIOUS,
    load_checkpoint,
    save_checkpoint,
)
from iadd_fast.artifacts.files import load_tensors, read_json, save_tensors, write_json
from iadd_fast.experts import validation_fingerprint
from iadd_fast.students import parse_student

RUN: dict[str, Any] = {
    "iterations": 8, "steps": 3, "expert_epochs": 1, "max_start_epoch": 0,
    "checkpoint_every": 2, "validate_every": 4, "validation_networks": 1, "validation_epochs": 5,
    "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> iadd_fast.Data:
    return iadd_fast.load_data("digits")


@pytest.fixture(scope="module")
def experts(data: iadd_fast.Data) -> iadd_fast.Experts:
    return iadd_fast.train_experts(
        data, "convnet:width=4,depth=1", count=1, epochs=1, device="cpu", progress=False
    )


@pytest.fixture(scope="module")
def whole(data: iadd_fast.Data, experts: iadd_fast.Experts) -> iadd_fast.DistilledSet:
    return run(data, experts, None)


def run(
    data: iadd_fast.Data, experts: iadd_fast.Experts, out: Path | None, stop: int | None = None
) -> iadd_fast.DistilledSet:
    """A run to its end, or stopped as by Ctrl-C after so many iterations."""
    done = 0

    def should_stop() -> bool:
        nonlocal done
        done += 1
        return done == stop

    return iadd_fast.distill(
        data, experts, student="convnet:width=4,depth=1", out=out, progress=False,
        should_stop=should_stop, **RUN,
    )  # fmt: skip


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", ["empty", "short", "first bit", "last bit", "gone"])
def test_a_torn_checkpoint_is_passed_over_for_the_one_before_it(
    data: iadd_fast.Data,
    experts: iadd_fast.Experts,
    whole: iadd_fast.DistilledSet,
    tmp_path: Path,
    harm: str,
) -> None:
    """Breaks when no checkpoint is kept beside the last, when a flipped bit of a tensor goes
    unnoticed, or when the damaged one becomes the previous at the next save."""
    with pytest.raises(KeyboardInterrupt):
        run(data, experts, tmp_path, stop=6)
    last = tmp_path / CHECKPOINT
    size = last.stat().st_size
    if harm == "empty":
        last.write_bytes(b"")
    elif harm == "short":
        os.truncate(last, size - 7)
    elif harm == "gone":
        last.unlink()
    else:
        flip(last, 60 if harm == "first bit" else size - 1)
    if harm == "gone":
        found = run(data, experts, tmp_path)
    else:
        with pytest.warns(UserWarning, match=rf"{CHECKPOINT}: is .*goes on from the checkpoint be"):
            found = run(data, experts, tmp_path)
        assert (tmp_path / DAMAGED).is_file()
    assert torch.equal(found.images, whole.images) and found.lr == whole.lr
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == RUN["iterations"]


def test_two_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    """Breaks when a run silently starts anew over hours of work that could be looked at."""
    for value in (1.0, 2.0):
        save_checkpoint(tmp_path, {"x": torch.full((3,), value)}, {})
    for name in (CHECKPOINT, PREVIOUS):
        flip(tmp_path / name, -1)
    with pytest.raises(ValueError, match=rf"no checkpoint .*{CHECKPOINT}.*{PREVIOUS}.*remove them"):
        load_checkpoint(tmp_path)


def test_the_previous_one_is_the_one_before(tmp_path: Path) -> None:
    """Breaks when the two are mixed up, or a leftover of a killed write stays."""
    for value in (1.0, 2.0, 3.0):
        save_checkpoint(tmp_path, {"x": torch.full((3,), value)}, {"value": value})
    (tmp_path / ".checkpoint.0123456789ab.safetensors").write_bytes(b"torn")
    (tmp_path / CHECKPOINT).unlink()
    found = load_checkpoint(tmp_path)
    assert found is not None and found[0]["x"].tolist() == [2.0] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS]


def test_a_disk_that_fills_up_costs_nothing_that_was_saved(
    data: iadd_fast.Data,
    experts: iadd_fast.Experts,
    whole: iadd_fast.DistilledSet,
    tmp_path: Path,
) -> None:
    """Breaks when a write that fails half-way takes the last checkpoint with it, or leaves files.

    A process may write files of so many bytes only: the system refuses the rest as a full disk
    does, in the middle of a write.
    """
    with pytest.raises(KeyboardInterrupt):
        run(data, experts, tmp_path, stop=3)
    number = os.fork()
    if number == 0:
        status = 3
        try:
            warnings.simplefilter("ignore")
            limit = (tmp_path / CHECKPOINT).stat().st_size - 100
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            run(data, experts, tmp_path)
        except OSError as error:
            status = 0 if CHECKPOINT in str(error) and "cannot be written" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 0
    hidden = [path.name for path in tmp_path.rglob(".*") if path.is_file()]
    assert hidden == [".lock"]
    found = run(data, experts, tmp_path)
    assert torch.equal(found.images, whole.images)


def test_too_little_room_is_found_before_the_work(
    data: iadd_fast.Data,
    experts: iadd_fast.Experts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Breaks when hours are spent before a disk is found to be full, or folders are left."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=2000))
    monkeypatch.setattr(
        "iadd_fast.expert_training.train_many", lambda *_, **__: pytest.fail("trained")
    )
    told = r"out: .* has [0-9]+ .iB free; what goes there takes"
    with pytest.raises(ValueError, match=told):
        run(data, experts, tmp_path / "a")
    with pytest.raises(ValueError, match=told):
        iadd_fast.train_experts(data, "mlp", tmp_path / "b", progress=False)


def test_a_folder_that_cannot_be_written_to_is_found_before_the_work(
    data: iadd_fast.Data,
    experts: iadd_fast.Experts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Breaks when the first write comes at the first checkpoint. (The system's own answer is put
    in: permissions do not bind every user.)"""

    def refused(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    monkeypatch.setattr(
        "iadd_fast.expert_training.train_many", lambda *_, **__: pytest.fail("trained")
    )
    told = r"out: .* cannot be written to \(Permission denied\)"
    with pytest.raises(PermissionError, match=told):
        run(data, experts, tmp_path / "a")
    with pytest.raises(PermissionError, match=told):
        iadd_fast.train_experts(data, "mlp", tmp_path / "b", progress=False)
    with pytest.raises(PermissionError, match=told):
        iadd_fast.tune(data, tmp_path / "c", trials=1, progress=False)


def test_a_run_goes_on_with_its_own_experts_alone(
    data: iadd_fast.Data, experts: iadd_fast.Experts, tmp_path: Path
) -> None:
    """Breaks when a run goes on with other experts, or one more of them, as if nothing were: its
    set is then of neither run."""
    with pytest.raises(KeyboardInterrupt):
        run(data, experts, tmp_path, stop=2)
    others = iadd_fast.train_experts(
        data, "convnet:width=4,depth=1", count=1, epochs=1, seed=1, device="cpu", progress=False
    )
    with pytest.raises(ValueError, match="out: .* holds a run with another experts; takes"):
        run(data, others, tmp_path)
    own = experts.snapshot(0, 0), experts.snapshot(0, 1)
    more = iadd_fast.artifacts.MemoryExperts([torch.stack(own), others.trajectories[0]])  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="out: .* holds a run with another experts; takes"):
        run(data, more, tmp_path)
    run(data, experts, tmp_path)


def test_a_run_goes_on_on_its_own_split_alone(tmp_path: Path) -> None:
    """With a test part of its own the data's fingerprint is the same for every split: breaks when
    a run or an expert goes on with images that it was to be validated on."""
    digits = iadd_fast.load_data("digits", normalise="none")
    test = digits.test
    assert test is not None
    whole = digits.all_training()

    def split(seed: int) -> iadd_fast.Data:
        return iadd_fast.load_data(
            whole.images, whole.labels, test=test.images, test_labels=test.labels, seed=seed
        )

    first, other = split(0), split(1)
    assert first.fingerprint == other.fingerprint
    options: dict[str, Any] = {"count": 1, "epochs": 1, "device": "cpu", "progress": False}
    student = "convnet:width=4,depth=1"
    store = iadd_fast.train_experts(first, student, tmp_path / "experts", **options)
    with pytest.raises(ValueError, match="experts: were trained with other images held out"):
        run(other, store, tmp_path / "run")
    with pytest.raises(ValueError, match="made in another way .*settings.validation"):
        iadd_fast.train_experts(other, student, tmp_path / "experts", **options)
    memory = iadd_fast.artifacts.MemoryExperts(
        [torch.stack([store.snapshot(0, 0), store.snapshot(0, 1)])]
    )
    with pytest.raises(KeyboardInterrupt):
        run(first, memory, tmp_path / "run", stop=2)
    with pytest.raises(ValueError, match="out: .* holds a run with another validation; takes"):
        run(other, memory, tmp_path / "run")


def test_what_early_versions_left_is_gone_on_from(
    data: iadd_fast.Data,
    experts: iadd_fast.Experts,
    whole: iadd_fast.DistilledSet,
    tmp_path: Path,
) -> None:
    """Their checkpoints and stores say nothing of experts and split: breaks when they are lost."""
    with pytest.raises(KeyboardInterrupt):
        run(data, experts, tmp_path / "run", stop=2)
    path = tmp_path / "run" / CHECKPOINT
    tensors, metadata = load_tensors(path)
    for name in ("experts", "validation"):
        del metadata["config"][name]
    save_tensors(path, tensors, metadata)
    assert torch.equal(run(data, experts, tmp_path / "run").images, whole.images)
    options: dict[str, Any] = {"count": 2, "epochs": 1, "device": "cpu", "progress": False}
    store = tmp_path / "experts"
    iadd_fast.train_experts(data, "mlp:width=4", store, **options)
    manifest = read_json(store / "manifest.json")
    del manifest["settings"]["validation"]
    write_json(store / "manifest.json", manifest)
    (store / "expert_0001.safetensors").unlink()
    assert len(iadd_fast.train_experts(data, "mlp:width=4", store, **options)) == 2


def test_a_store_with_gaps_is_refused_before_the_work(data: iadd_fast.Data, tmp_path: Path) -> None:
    """A killed job of several processes leaves such: breaks in the middle of a distillation."""
    options: dict[str, Any] = {"count": 3, "epochs": 1, "device": "cpu", "progress": False}
    student = "convnet:width=4,depth=1"
    store = iadd_fast.train_experts(data, student, tmp_path / "experts", **options)
    (tmp_path / "experts" / "expert_0001.safetensors").unlink()
    with pytest.raises(ValueError, match="experts: .* lacks expert 1 before others; finish them"):
        run(data, store, None)


def test_room_for_the_checkpoints_is_looked_for_before_the_experts_are_trained(
    data: iadd_fast.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when the experts of hours fit on the disk and what follows them does not."""
    options: dict[str, Any] = {
        "out": tmp_path,
        "student": "mlp:width=500",
        "progress": False,
        **RUN,
    }
    usage, free = shutil.disk_usage(tmp_path), 0
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=free))
    monkeypatch.setattr(
        "iadd_fast.expert_training.train_many", lambda *_, **__: pytest.fail("trained")
    )
    network = parse_student("mlp:width=500", data.sample_shape, 10)
    # Ten experts of two snapshots, and three more that one in training takes: these fit.
    free = (10 + 4) * 2 * 4 * network.num_parameters
    with pytest.raises(ValueError, match=r"out: .* has [0-9]+ MiB free; what goes there takes"):
        iadd_fast.distill(data, **options)
    assert not (tmp_path / "experts").exists()


def test_a_run_that_fitted_when_it_began_is_gone_on_with(
    data: iadd_fast.Data,
    experts: iadd_fast.Experts,
    whole: iadd_fast.DistilledSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Breaks when the room that its own checkpoints take is asked for again."""
    usage, free = shutil.disk_usage(tmp_path), 0
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=free))
    with pytest.raises(ValueError, match="what goes there takes") as refused:
        run(data, experts, tmp_path)
    free = 2**10 * (1 + int(str(refused.value).split()[-2]))
    with pytest.raises(KeyboardInterrupt):
        run(data, experts, tmp_path, stop=5)
    free -= sum(path.stat().st_size for path in tmp_path.glob("checkpoint*"))
    for _ in range(2):  # to its end, and once more
        assert torch.equal(run(data, experts, tmp_path).images, whole.images)
        free -= (tmp_path / "distilled.safetensors").stat().st_size


def test_the_split_is_known_by_its_rows_and_not_by_rounding(data: iadd_fast.Data) -> None:
    """A whitening transform rounds by the number of threads: breaks when experts of another
    process are refused for that."""
    held = data.validation
    rounded = dataclasses.replace(held, images=held.images + 1e-7)
    other = dataclasses.replace(data, validation=rounded)
    assert validation_fingerprint(other) == validation_fingerprint(data)
    fewer = dataclasses.replace(data, validation=held.subset(range(len(held) - 1)))
    assert validation_fingerprint(fewer) != validation_fingerprint(data)
    seeds = [iadd_fast.load_data("digits", seed=seed) for seed in (0, 1)]
    first, second = map(validation_fingerprint, seeds)
    assert first != second
