"""Distilled sets and experts: what can be made can be saved, and loads back equal; nothing else is.

Each test breaks when a field of another type or range is taken and found out by who loads the file,
when a save that is refused leaves something behind, or when a value comes back other than it was.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from iadd_fast import DistilledSet, ExpertStore
from iadd_fast.artifacts import MemoryExperts
from tests.properties.strategies import (
    Refused,
    anything,
    bits,
    normal,
    odd,
    odd_tensors,
    result_of,
    small_set,
    small_student,
    strided,
)

FIELDS = (
    "images", "labels", "lr", "weight", "class_names", "transform", "student_spec", "augment",
    "config", "seed", "versions", "data_name", "data_fingerprint", "summary",
)  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
@given(value=anything())
def test_one_odd_field(name: str, value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Breaks when a set that can be made cannot be saved, or loads back as another one."""
    made = result_of(lambda: small_set(**{name: value}), value)
    if isinstance(made, Refused):
        return
    path = tmp_path_factory.mktemp("set") / "set.safetensors"
    saved = result_of(lambda: made.save(path), value)
    if isinstance(saved, Refused):
        assert name in ("student_spec", "config", "versions", "summary"), f"found out late: {saved}"
        assert not list(path.parent.iterdir())
        return
    equal(DistilledSet.load(path), made)


def equal(one: DistilledSet, other: DistilledSet) -> None:
    """Every value the same bits, every attribute the same."""
    for name in ("images", "labels", "weight"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.dtype == theirs.dtype
            assert ours.shape == theirs.shape
            assert torch.equal(bits(ours), bits(theirs))
    for name in ("lr", "class_names", "augment", "seed", "data_name", "data_fingerprint"):
        assert getattr(one, name) == getattr(other, name)
    assert one.transform.kind == other.transform.kind


@given(data=st.data())
def test_saved_sets_load_back_equal(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Breaks when strides, soft labels, weights or the name of a class do not survive the file."""
    draw = data.draw
    count = draw(st.integers(1, 5))
    dtype = draw(st.sampled_from((torch.float32, torch.float64)))
    images = draw(strided(normal(count, 1, 4, 4, dtype=dtype)))
    labels = torch.arange(count) % 2
    if draw(st.booleans()):
        labels = normal(count, 2).softmax(1)
    weight = normal(small_student("mlp").num_parameters) if draw(st.booleans()) else None
    text = st.text(st.characters(codec="utf-8"), max_size=20)
    made = result_of(
        lambda: small_set(
            images=images,
            labels=draw(strided(labels)),
            weight=weight,
            class_names=draw(st.tuples(text, text)),
            data_name=draw(text),
            lr=draw(st.floats(1e-30, 1e30)),
            seed=draw(st.integers(0, 2**63 - 1)),
            config={"text": draw(text), "list": [1, None, {"a": 0.5}]},
        ),
        images,
    )
    assert not isinstance(made, Refused), made
    path = tmp_path_factory.mktemp("set") / "set.safetensors"
    made.save(path)
    back = DistilledSet.load(path)
    equal(back, made)
    assert back.config == made.config
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@given(path=odd, pixel_range=odd)
def test_odd_paths_and_ranges(
    path: Any,
    pixel_range: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Breaks when a number is a file descriptor or a path of nothing is this folder."""
    made, folder = small_set(), tmp_path_factory.mktemp("odd")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        calls = [lambda: DistilledSet.load(path), lambda: ExpertStore.open(path)]
        if not isinstance(path, str | Path) or path == "":
            calls += [lambda: made.save(path), lambda: made.to_folder(path)]
            calls += [lambda: made.to_parquet(path), lambda: made.to_mtt(path)]
        for call in calls:
            assert isinstance(result_of(call), Refused)
        assert not list(folder.iterdir())
        for call in (
            lambda: made.to_folder(folder / "folder", pixel_range),
            lambda: made.to_parquet(folder / "file.parquet", pixel_range),
        ):
            if isinstance(result_of(call), Refused):
                assert not list(folder.iterdir())


@given(trajectories=st.one_of(odd, st.lists(odd_tensors(), max_size=2)))
def test_memory_experts(trajectories: Any) -> None:
    """Breaks when a trajectory that does not move, or of integers, is an expert."""
    assert isinstance(result_of(lambda: MemoryExperts(trajectories)), Refused)


@given(data=st.data(), index=odd, epoch=odd, device=anything())
def test_snapshots(data: st.DataObject, index: Any, epoch: Any, device: Any) -> None:
    """Breaks when -1, True or 0.5 is an epoch, or a snapshot is a view into the expert."""
    trajectory = data.draw(strided(normal(3, 5)))
    experts = MemoryExperts([trajectory])
    for call in (
        lambda: experts.snapshot(index, 0),
        lambda: experts.snapshot(0, epoch),
        lambda: experts.snapshot(0, 1, device),
    ):
        got = result_of(call, trajectory)
        if not isinstance(got, Refused):
            assert got.shape == (5,)
            got += 1  # a copy: the expert stays as it is
    assert torch.equal(experts.snapshot(0, 2), trajectory.detach()[2])


CREATE: dict[str, Any] = {
    "student_spec": small_student("mlp").spec, "settings": {"lr": 0.1}, "data_fingerprint": "0",
    "data_name": "small", "count": 2, "epochs": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", CREATE)
@given(value=odd)
def test_store(name: str, value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Breaks when a store that can be made cannot be opened, or a refused one leaves a folder."""
    folder = tmp_path_factory.mktemp("store") / "experts"
    made = result_of(lambda: ExpertStore.create(folder, **{**CREATE, name: value}))
    if isinstance(made, Refused):
        assert not folder.exists()
        return
    assert ExpertStore.open(folder).count == made.count


@given(index=odd, snapshots=anything(), metrics=odd)
def test_store_add(
    index: Any, snapshots: Any, metrics: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Breaks when an expert is stored that cannot be read back."""
    store = ExpertStore.create(tmp_path_factory.mktemp("store"), **CREATE)
    fine = normal(2, small_student("mlp").num_parameters)
    cases: list[Any] = [(index, fine, {}), (0, snapshots, {}), (1, fine, metrics)]
    for arguments in cases:
        added = result_of(partial(store.add, *arguments), snapshots)
        if not isinstance(added, Refused):
            assert isinstance(arguments[1], Tensor)
    for done in store.finished():
        assert torch.equal(store.snapshot(done, 1), fine[1])
