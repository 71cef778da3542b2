"""The soak's counting, and a few dozen iterations a scenario; ``bench/soak.py`` runs thousands."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from bench import soak as soaking
from bench.soak import SCENARIOS, Growth, Sample, Soak, Watch, growth, leaks
from iadd_fast.demo import DISTILL

# The short runs hold fewer iterations than a checkpoint's file cache settles in.
PER_RUN = 40


@pytest.fixture(scope="module")
def soak(tmp_path_factory: pytest.TempPathFactory) -> Soak:
    return Soak(tmp_path_factory.mktemp("soak"), count=1, epochs=10)


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_left_behind(name: str, soak: Soak, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when a call leaves a file open, a thread running or a tensor referenced."""
    monkeypatch.setitem(DISTILL, "steps", 3)
    row = soaking.run(soak, name, PER_RUN)
    assert row["iterations"] == PER_RUN and len(row["samples"]) > 20
    # Memory settles over thousands of iterations: the bench judges that.
    assert not [leak for leak in row["leaks"] if not leak.startswith(("megabytes", "objects"))]


@pytest.fixture
def left() -> Iterator[list[Any]]:
    """What a planted leak leaves, cleaned up behind it."""
    held: list[Any] = []
    yield held
    for one in held:
        if hasattr(one, "close"):
            one.close()
        if isinstance(one, threading.Event):
            one.set()


def waiting(held: list[Any]) -> None:
    event = threading.Event()
    threading.Thread(target=event.wait, daemon=True).start()
    held.append(event)


PLANTED: dict[str, Callable[[list[Any]], None]] = {
    "descriptors": lambda held: held.append(os.fdopen(os.open("/dev/null", os.O_RDONLY))),
    "threads": waiting,
    "tensors": lambda held: held.append(torch.zeros(1)),
    "objects": lambda held: held.append([[] for _ in range(10)]),
    "megabytes": lambda held: held.append(bytearray(b"1" * 2**18)),
}


def test_planted_leaks_are_found(left: list[Any]) -> None:
    """One more of each an iteration: breaks when a count, a bound or the fitted line is wrong."""
    with Watch(50) as watch:
        for _ in range(50):
            for plant in PLANTED.values():
                plant(left)
            watch.tick()
    found = " ".join(leaks(watch.samples))
    assert not [name for name in PLANTED if f"{name}: " not in found], found


def test_the_line_and_its_error() -> None:
    """2 MB per 1,000 exactly, then around an outlier: breaks when the error leaves it out."""
    samples = [Sample(i, 100 + 0.002 * i, 5, 1, 7, 1000) for i in range(0, 4000, 100)]
    exact = growth(samples, "megabytes")
    assert exact.rate == pytest.approx(2) and exact.error == pytest.approx(0, abs=1e-6)
    assert growth(samples, "tensors") == Growth(0.0, 0.0)
    outlier = [*samples[:-1], Sample(3900, 200, 5, 1, 7, 1000)]
    assert growth(outlier, "megabytes").error > 1
