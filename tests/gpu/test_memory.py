"""On a GPU whose memory really runs out: unroll, training and testing go on, or say what to do."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from iadd_fast import students
from iadd_fast.fused.training import Recipe, train_fused
from iadd_fast.memory import OutOfMemory
from iadd_fast.training import accuracy, train
from iadd_fast.unroll import release, trajectory_gradient
from tests.gpu.test_fused_unroll import on
from tests.unroll.test_fused import problem
from tests.unroll.test_memory import same_bits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(autouse=True)
def whole_card() -> Iterator[None]:
    """The card as it was, before and after."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    gc.collect()
    torch.cuda.empty_cache()


def allow(count: int) -> None:
    """Let torch's allocator hold at most ``count`` bytes more than it does."""
    gc.collect()
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + count) / total)


def arguments() -> dict[str, Any]:
    return on(
        "cuda",
        problem((3, 32, 32), 100, width=64, depth=3, steps=20, dtype=torch.float32, weight=True),
    )


def reserved(given: dict[str, Any], budget: int) -> int:
    """Bytes that three calls (eager, captured, replayed) take."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    for _ in range(3):
        trajectory_gradient(**given, engine="fused", memory_budget=budget)
    taken = torch.cuda.max_memory_reserved() - before
    release(given["student"])
    return taken


def test_the_unroll_keeps_less_and_gives_the_same_bits() -> None:
    """Breaks when a failed attempt or capture leaves memory taken, or the results differ."""
    given = arguments()
    wanted = trajectory_gradient(**given, engine="fused")
    release(given["student"])
    most, least = reserved(given, 10**5), reserved(given, 0)
    assert least < most
    allow((most + least) // 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            result = trajectory_gradient(**given, engine="fused", memory_budget=10**5)
            assert same_bits(result, wanted)
    told = [str(entry.message) for entry in caught]
    assert told and all("out of memory" in text for text in told)
    assert given["student"].compiled["fused"].whole.graph is not None


def test_the_unroll_ends_with_advice_and_works_again_afterwards() -> None:
    """Breaks when the end leaves the stream capturing or the memory taken."""
    given = arguments()
    allow(8 * 2**20)
    with warnings.catch_warnings(), pytest.raises(OutOfMemory, match=r"try \d+"):
        warnings.simplefilter("ignore")
        trajectory_gradient(**given, engine="fused")
    torch.cuda.set_per_process_memory_fraction(1.0)
    for _ in range(3):
        trajectory_gradient(**given, engine="fused")
    assert not torch.cuda.is_current_stream_capturing()


def test_training_and_testing_go_on_with_less() -> None:
    """Breaks when networks side by side leave their buffers, or differ from those alone."""
    student = students.convnet(channels=3, classes=10, image_size=(32, 32), width=64, depth=3)
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(512, 3, 32, 32, generator=draw).cuda()
    labels = (torch.arange(512) % 10).cuda()
    thetas = torch.stack([student.init(seed, "cuda") for seed in range(8)])
    recipe = Recipe(lr=0.01, epochs=2, batch_size=128, momentum=0.9)

    def run(side_by_side: int) -> tuple[torch.Tensor, int]:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_reserved()
        finals = train_fused(
            student, thetas, [(images, labels)] * 8, range(8), recipe, side_by_side=side_by_side
        )
        return finals, torch.cuda.max_memory_reserved() - before

    (wanted, eight), (_, two) = run(8), run(2)
    allow((eight + two) // 2)
    with pytest.warns(UserWarning, match="at_once="):
        got, _ = run(8)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    exact = accuracy(student, wanted[0], images, labels)
    allow(24 * 2**20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert abs(accuracy(student, wanted[0], images, labels) - exact) < 0.5


def test_data_left_on_the_host_trains_the_same_network() -> None:
    """Breaks when a pinned buffer is filled again while it is still being copied."""
    student = students.convnet(channels=3, classes=10, image_size=(32, 32), width=32, depth=3)
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(1000, 3, 32, 32, generator=draw)
    labels = torch.arange(1000) % 10
    theta = student.init(0, "cuda")
    options: dict[str, Any] = {"lr": 0.01, "epochs": 3, "batch_size": 64, "momentum": 0.9}
    wanted = train(student, theta, images.cuda(), labels.cuda(), **options)
    got = train(student, theta, images, labels, **options)
    assert torch.equal(got, wanted)
    assert accuracy(student, got, images, labels) == accuracy(
        student, got, images.cuda(), labels.cuda()
    )
