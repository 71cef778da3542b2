"""A checkpoint that somebody else made, whole by its checksum: gone on from, or one error."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import iadd_fast
from iadd_fast.artifacts.checkpoint import CHECKPOINT, PREVIOUS
from iadd_fast.artifacts.files import load_tensors, save_tensors

Change = Callable[[dict[str, Tensor], dict[str, Any]], object]
RUN: dict[str, Any] = {
    "iterations": 3, "steps": 2, "expert_epochs": 1, "max_start_epoch": 0, "validate_every": 1,
    "validation_networks": 1, "validation_epochs": 1, "checkpoint_every": 1, "augment": "none",
    "soft_labels": True, "ema": 0.9, "max_loss": 1e6, "student": "mlp:width=4,depth=2",
    "device": "cpu",
    "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[iadd_fast.Data, Path]:
    """Data, and the folder of a run that was stopped after two iterations."""
    folder = tmp_path_factory.mktemp("begun")
    draw = torch.Generator().manual_seed(0)
    data = iadd_fast.load_data(torch.rand(60, 1, 4, 4, generator=draw), torch.arange(60) % 2)
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == 2

    with pytest.raises(KeyboardInterrupt):
        iadd_fast.distill(data, out=folder, should_stop=should_stop, **RUN)
    return data, folder


def metadata(**changes: Any) -> Change:
    return lambda _, told: told.update(changes)


def tensor(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    return lambda tensors, _: tensors.update({name: change(tensors[name])})


CHANGES: dict[str, Change] = {
    "nothing": lambda *_: None,
    **{f"no {name}": lambda _, told, name=name: told.pop(name)  # type: ignore[misc]
       for name in ("iteration", "skipped", "skips_in_a_row", "seconds", "best", "config")},
    "configuration of a list": metadata(config=[]),
    "iteration of a text": metadata(iteration="1"),
    "iteration below 0": metadata(iteration=-3),
    "iteration beyond the run": metadata(iteration=4),
    "seconds of NaN": metadata(seconds=float("nan")),
    "best of a list": metadata(best=[1]),
    "best without an iteration": metadata(best={"validation_accuracy": 50.0}),
    "best of 101 %": metadata(best={"iteration": 1, "validation_accuracy": 101.0}),
    **{f"no {name}": lambda tensors, _, name=name: tensors.pop(name)  # type: ignore[misc]
       for name in ("synthetic.images", "synthetic.velocity.lr", "importance.value", "best.images",
                    "best.labels", "best.lr", "good.synthetic.logits")},
    "other images": tensor("synthetic.images", lambda x: x[:1]),
    "images of double precision": tensor("synthetic.images", lambda x: x.double()),
    "best images of another set": tensor("best.images", lambda x: x[:1]),
    "best labels of another set": tensor("best.labels", lambda x: x[:1]),
    "a class beyond the last": tensor("synthetic.labels", lambda x: x + 5),
    "a class below 0": tensor("synthetic.labels", lambda x: x - 1),
    "weights of NaN": tensor("importance.value", lambda x: x * torch.nan),
    "a best rate of 0": tensor("best.lr", lambda x: x * 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_goes_on_or_says_why_not(
    begun: tuple[iadd_fast.Data, Path], tmp_path: Path, name: str
) -> None:
    """Breaks when a key that is missing, or a value of another kind, ends in a traceback, or is
    computed with."""
    data, folder = begun
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run" / CHECKPOINT
    (tmp_path / "run" / PREVIOUS).unlink(missing_ok=True)
    tensors, told = load_tensors(path)
    CHANGES[name](tensors, told)
    save_tensors(path, tensors, told)
    if name == "nothing":
        iadd_fast.distill(data, out=tmp_path / "run", **RUN)
        return
    match = r"out: .* (is of another run or damaged: .*; remove it, or|holds a run with another)"
    with pytest.raises(ValueError, match=match):
        iadd_fast.distill(data, out=tmp_path / "run", **RUN)
