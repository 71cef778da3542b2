"""On a GPU: captured training steps against the CPU's plain loop, alone and side by side."""

from __future__ import annotations

import logging

import pytest
import torch

from iadd_fast.fused import choices
from iadd_fast.fused.network import FusedNetwork
from iadd_fast.fused.training import Recipe, train_fused
from iadd_fast.training import accuracy, train_many
from tests.fused.test_training import BASIC, CASES, SEEDS, STUDENT, moved_error, samples

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_are_those_of_the_cpu(
    case: str, at_once: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Four epochs of three batches: eager, captured and replayed, the last batch in a graph of its
    own. Breaks when a graph keeps the first batch, learning rate or network, when two streams share
    a buffer, or when a step cannot be captured (which is logged)."""
    options = {name: value for name, value in (BASIC | CASES[case]).items() if name != "seed"}
    sets = [samples(torch.float64, seed=k) for k in range(3)]
    thetas = torch.stack([STUDENT.init(k, dtype=torch.float64) for k in range(3)])
    want = train_many(STUDENT, thetas, sets, seeds=SEEDS, engine="plain", **options)
    on_gpu = [(images.float().cuda(), labels.cuda()) for images, labels in sets]
    with caplog.at_level(logging.WARNING):
        got = train_many(
            STUDENT, thetas.float().cuda(), on_gpu, seeds=SEEDS, engine="fused", at_once=at_once,
            **options,
        )  # fmt: skip
    assert not caplog.records, caplog.text
    for k in range(3):
        assert moved_error(got[k].double().cpu(), want[k], thetas[k]) < 1e-3
        gpu = accuracy(STUDENT, got[k], *on_gpu[k])
        assert gpu == pytest.approx(accuracy(STUDENT, got[k].cpu(), sets[k][0].float(), sets[k][1]))


def test_memory_of_the_device_does_not_grow() -> None:
    """Allocated bytes after every epoch; breaks when a step keeps what it makes."""
    images, labels = samples(torch.float32)
    held: list[int] = []
    train_fused(
        STUDENT,
        STUDENT.init(0, "cuda")[None],
        [(images.cuda(), labels.cuda())],
        [0],
        Recipe(0.05, 6, 20, **CASES["everything"]),
        lambda *_: held.append(torch.cuda.memory_allocated()),
    )
    assert len(set(held[3:])) == 1, held


def test_small_batches_train_side_by_side() -> None:
    """Breaks when the rule gives a GPU one network at a time however little that is."""
    device = torch.device("cuda")
    network = FusedNetwork(STUDENT)
    assert choices.networks_at_once(network, 10, device, 4) == 16
