"""Experts on disk: resumable, checked, and read one snapshot at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from iadd_fast.artifacts import Experts, ExpertStore, MemoryExperts
from iadd_fast.artifacts.files import read_json, save_tensors, write_json

OPTIONS: dict[str, Any] = {
    "student_spec": {"name": "mlp", "inputs": [1, 2, 2], "classes": 2, "width": 3, "depth": 1},
    "settings": {"lr": 0.01, "betas": (1, 2), "inner": {"momentum": 0.5}},
    "data_fingerprint": "abc",
    "data_name": "digits",
    "count": 3,
    "epochs": 2,
}


def trajectory(seed: int, epochs: int = 2, size: int = 5) -> Tensor:
    return torch.randn(epochs + 1, size, generator=torch.Generator().manual_seed(seed))


def test_every_snapshot_comes_back_exactly(tmp_path: Path) -> None:
    """Breaks if rows, experts or values are mixed up, or if a GPU row would come back as a view."""
    store = ExpertStore.create(tmp_path / "experts", **OPTIONS)
    trajectories = {index: trajectory(index) for index in (0, 1, 2)}
    for index in (1, 0, 2):
        store.add(index, trajectories[index], {})
    again = ExpertStore.open(tmp_path / "experts")
    assert isinstance(again, Experts)
    assert (len(again), again.epochs, again.num_parameters) == (3, 2, 5)
    for index, expected in trajectories.items():
        for epoch in range(3):
            assert torch.equal(again.snapshot(index, epoch), expected[epoch])
    again.snapshot(0, 0).zero_()
    assert torch.equal(again.snapshot(0, 0), trajectories[0][0])


def test_a_snapshot_is_read_alone(tmp_path: Path) -> None:
    """Breaks if a snapshot holds on to the whole file: 65 MB for each at CIFAR-10 size."""
    store = ExpertStore.create(tmp_path, **OPTIONS)
    store.add(0, trajectory(0), {})
    row = store.snapshot(0, 1)
    assert row.untyped_storage().nbytes() == 5 * 4
    assert row.is_contiguous()


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    """Breaks if an unfinished store cannot be opened, or a finished expert is trained twice."""
    store = ExpertStore.create(tmp_path, **OPTIONS)
    assert (len(store), store.missing()) == (0, [0, 1, 2])
    store.add(1, trajectory(1), {"test_accuracy": [10, 50.5, 60]})
    (tmp_path / ".expert_0000.0123456789ab.safetensors").write_bytes(b"half, from a killed process")
    again = ExpertStore.create(tmp_path, **OPTIONS)
    assert (len(again), again.finished(), again.missing()) == (1, [1], [0, 2])
    assert again.accuracies(1) == [10, 50.5, 60]
    assert again.student_spec == OPTIONS["student_spec"]
    assert again.settings == {"lr": 0.01, "betas": [1, 2], "inner": {"momentum": 0.5}}
    assert (again.data_fingerprint, again.data_name) == ("abc", "digits")
    with pytest.raises(ValueError, match="expert 1 is in .* already"):
        again.add(1, trajectory(2), {})
    assert torch.equal(again.snapshot(1, 2), trajectory(1)[2])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": {**OPTIONS["settings"], "lr": 0.1}}, "settings.lr: 0.01 in the folder, 0.1"),
        ({"settings": {"betas": (1, 2), "inner": {"momentum": 0.5}}}, "settings.lr: only in the"),
        (
            {"settings": {**OPTIONS["settings"], "inner": {"momentum": 0}}},
            "settings.inner.momentum",
        ),
        ({"data_fingerprint": "def"}, "data_fingerprint: 'abc' in the folder, 'def' asked for"),
        ({"count": 4}, "count: 3 in the folder, 4"),
        ({"epochs": 3}, "epochs: 2 in the folder, 3"),
    ],
)
def test_other_settings_do_not_mix(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    """Breaks if experts of different settings or data end up in one store, or the text is vague."""
    ExpertStore.create(tmp_path, **OPTIONS)
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="made in another way") as caught:
        ExpertStore.create(tmp_path, **{**OPTIONS, **change})
    assert named in str(caught.value)
    assert str(caught.value).count(" in the folder") == 1
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_create_refuses_what_it_cannot_use(tmp_path: Path) -> None:
    """Breaks if a typing error only shows after hours of training."""
    for name, value in (("count", 0), ("epochs", 1.5), ("count", True)):
        with pytest.raises(ValueError, match=f"{name}: got {value}"):
            ExpertStore.create(tmp_path / "new", **{**OPTIONS, name: value})
    with pytest.raises(ValueError, match="settings"):
        ExpertStore.create(tmp_path / "new", **{**OPTIONS, "settings": {"x": Path()}})
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="file"):
        ExpertStore.create(tmp_path / "file", **OPTIONS)
    store = ExpertStore.create(tmp_path / "store", **OPTIONS)
    store.add(0, trajectory(0), {})
    (tmp_path / "store" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="1 expert files but no manifest.json"):
        ExpertStore.create(tmp_path / "store", **OPTIONS)


def test_add_refuses_what_would_spoil_the_store(tmp_path: Path) -> None:
    """Breaks if a wrong, diverged or aliased trajectory only fails in distillation."""
    store = ExpertStore.create(tmp_path, **OPTIONS)
    diverged = trajectory(0)
    diverged[2, 3] = math.inf
    for snapshots, text in (
        (trajectory(0, epochs=1), r"got shape \(2, 5\); this store takes \(3, 5\)"),
        (trajectory(0)[0], r"got shape \(5,\)"),
        (trajectory(0).half(), "torch.float16"),
        (diverged, "after epoch 2 are not finite"),
        (trajectory(0)[:1].expand(3, 5), "all 3 snapshots are equal"),
    ):
        with pytest.raises(ValueError, match=text):
            store.add(0, snapshots, {})
    with pytest.raises(ValueError, match="metadata"):
        store.add(0, trajectory(0), {"test_accuracy": torch.ones(2)})
    with pytest.raises(IndexError, match="index: got 3; takes 0 to 2"):
        store.add(3, trajectory(0), {})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["manifest.json"]
    store.add(0, trajectory(0), {})
    with pytest.raises(ValueError, match=r"got shape \(3, 6\); this store takes \(3, 5\)"):
        store.add(1, trajectory(1, size=6), {})


def test_ranges_are_checked(tmp_path: Path) -> None:
    """Breaks if -1 means the last epoch, or an unfinished expert gives a bare file error."""
    store = ExpertStore.create(tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="no expert is finished yet"):
        _ = store.num_parameters
    store.add(1, trajectory(1), {})
    memory = MemoryExperts([trajectory(0)])
    for experts, index, last in ((store, 1, 2), (memory, 0, 0)):
        for epoch in (-1, 3):
            with pytest.raises(IndexError, match=f"epoch: got {epoch}; takes 0 to 2"):
                experts.snapshot(index, epoch)
        for bad in (-1, last + 1):
            with pytest.raises(IndexError, match=f"index: got {bad}; takes 0 to {last}"):
                experts.snapshot(bad, 0)
    with pytest.raises(ValueError, match="expert 0 is not finished .1 of 3 are."):
        store.snapshot(0, 0)
    with pytest.raises(ValueError, match="holds no accuracies"):
        store.accuracies(1)


def test_accuracies_on_either_part(tmp_path: Path) -> None:
    """Breaks if experts whose accuracy was measured on validation data report none."""
    store = ExpertStore.create(tmp_path, **OPTIONS)
    store.add(0, trajectory(0), {"validation_accuracy": [1, 2, 3], "loss": math.nan})
    store.add(1, trajectory(1), {"validation_accuracy": [1, 2, 3], "test_accuracy": [4, 5, 6]})
    assert store.accuracies(0) == [1, 2, 3]
    assert store.accuracies(1) == [4, 5, 6]
    assert math.isnan(store.metrics(0)["loss"])


def test_open_names_what_is_missing_or_damaged(tmp_path: Path) -> None:
    """Breaks if a foreign folder, newer manifest or wrong value surfaces as a KeyError."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ExpertStore.open(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no manifest.json.*load_mtt_buffers"):
        ExpertStore.open(tmp_path)
    ExpertStore.create(tmp_path, **OPTIONS)
    path = tmp_path / "manifest.json"
    good = read_json(path)
    for change, text in (
        ({"schema": 2}, "newer iadd_fast"),
        ({"kind": "cake"}, "holds 'cake'"),
        ({"epochs": None}, "epochs: got None; expected a int"),
        ({"count": 0}, "count: got 0"),
    ):
        write_json(path, {**good, **change})
        with pytest.raises(ValueError, match=text):
            ExpertStore.open(tmp_path)
    path.write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="got a list"):
        ExpertStore.open(tmp_path)


def test_open_checks_the_expert_files(tmp_path: Path) -> None:
    """Breaks if a truncated, renamed or foreign expert file is found only in mid-distillation."""
    ExpertStore.create(tmp_path, **OPTIONS).add(0, trajectory(0), {})
    path = tmp_path / "expert_0000.safetensors"
    good = path.read_bytes()
    (tmp_path / "expert_0001.safetensors").write_bytes(good)
    with pytest.raises(ValueError, match=r"expert_0001.safetensors: holds expert 0, not 1"):
        ExpertStore.open(tmp_path)
    (tmp_path / "expert_0001.safetensors").unlink()
    path.write_bytes(good[:-4])
    with pytest.raises(ValueError, match=r"expert_0000.safetensors.*remove it and train"):
        ExpertStore.open(tmp_path)
    header = {"kind": "expert", "schema": 1, "index": 0, "metrics": {}}
    for tensors, metadata, text in (
        ({"snapshots": trajectory(0, epochs=4)}, header, r"shape \(5, 5\).*2 epochs"),
        ({"theta": trajectory(0)}, header, "expected 'snapshots'"),
        ({"snapshots": trajectory(0)}, {**header, "schema": 9}, "newer iadd_fast"),
        ({"snapshots": trajectory(0)}, {**header, "kind": "distilled set"}, "expected 'expert'"),
    ):
        save_tensors(path, tensors, metadata)
        with pytest.raises(ValueError, match=text):
            ExpertStore.open(tmp_path)
    path.write_bytes(good)
    save_tensors(
        tmp_path / "expert_0001.safetensors",
        {"snapshots": trajectory(1, size=7)},
        {**header, "index": 1},
    )
    with pytest.raises(ValueError, match="different numbers of parameters"):
        ExpertStore.open(tmp_path)


def test_experts_in_memory() -> None:
    """Breaks if rows are mixed up or handed out as views, or misfits are kept."""
    experts = MemoryExperts([trajectory(0), trajectory(1)])
    assert isinstance(experts, Experts)
    assert (len(experts), experts.epochs, experts.num_parameters) == (2, 2, 5)
    assert torch.equal(experts.snapshot(1, 2), trajectory(1)[2])
    experts.snapshot(1, 2).zero_()
    assert torch.equal(experts.snapshot(1, 2), trajectory(1)[2])
    with pytest.raises(ValueError, match="got none"):
        MemoryExperts([])
    with pytest.raises(ValueError, match=r"trajectories\[1\]: got shape \(3, 6\)"):
        MemoryExperts([trajectory(0), trajectory(1, size=6)])
