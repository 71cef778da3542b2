"""Where an unroll runs out of memory: the ladder, what it says, and what it leaves behind."""

from __future__ import annotations

import gc
import warnings
import weakref
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from iadd_fast.fused import graphs
from iadd_fast.fused.network import FusedNetwork
from iadd_fast.memory import MIB, OutOfMemory, RanOut, attempt
from iadd_fast.unroll import fused, release, trajectory_gradient
from iadd_fast.unroll.memory import Plan, kept_from
from tests.memory_limit import MemoryLimit
from tests.unroll.test_fused import problem
from tests.unroll.test_trajectory_gradient import relative_errors

#: Bytes that fit the arguments but no engine's work on them, and what the caller's frames hold of
#: the arguments: the copy of the images and the batches.
SMALL, OWN = 90_000, 34_000
FIELDS = ("loss", "images", "labels", "lr", "weight", "theta")


@pytest.fixture(autouse=True)
def no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Python's collector, which takes most of the time here: no buffer may need it."""
    monkeypatch.setattr("iadd_fast.memory.gc", SimpleNamespace(collect=lambda: 0))


def arguments() -> dict[str, Any]:
    """Eight steps of which each keeps about a third of a MiB."""
    return problem(
        (3, 16, 16), 10, width=8, steps=8, dtype=torch.float32, batch_size=6,
        augment="chain:crop_color", soft=True, weight=True,
    )  # fmt: skip


def same_bits(one: Any, other: Any) -> bool:
    return all(
        a is b or torch.equal(a, b)
        for a, b in ((getattr(one, name), getattr(other, name)) for name in FIELDS)
    )


def peak_of(given: dict[str, Any], **options: Any) -> int:
    with MemoryLimit() as memory:
        trajectory_gradient(**given | {"engine": "fused"} | options)
    release(given["student"])
    return memory.peak


def run(given: dict[str, Any], limit: int) -> tuple[Any, list[str], MemoryLimit]:
    with warnings.catch_warnings(record=True) as caught, MemoryLimit(limit) as memory:
        warnings.simplefilter("always")
        result = trajectory_gradient(**given, engine="fused")
    return result, [str(entry.message) for entry in caught], memory


def test_less_is_kept_until_it_fits_and_the_bits_stay() -> None:
    """Breaks when an attempt's buffers outlive it (then no smaller budget fits under the limit), a
    change of the budget changes a bit, or the next call begins at the top again."""
    given = arguments()
    wanted = trajectory_gradient(**given, engine="fused")
    release(given["student"])
    most, least = peak_of(given), peak_of(given, memory_budget=0)
    assert least < most, "keeping costs nothing here"
    result, told, memory = run(given, (most + least) // 2)
    assert same_bits(result, wanted)
    assert memory.failures == len(told) >= 1
    assert all(
        "unroll, 8 steps of 6 samples: out of memory (CUDA out of memory." in t for t in told
    )
    assert all("instead of" in text and "memory_budget=" in text for text in told)
    assert "and more lines" not in told[0]
    plan = given["student"].compiled["fused"].plan
    assert 0 < plan.budget < 256 * MIB
    again, told, memory = run(given, (most + least) // 2)
    assert same_bits(again, wanted)
    assert told == [] and memory.failures == 0, "the plan was not remembered"
    release(given["student"])
    assert given["student"].compiled == {}


def test_then_fewer_samples_go_through_at_once() -> None:
    """Breaks when the ladder ends while a batch could still go through in parts."""
    given = arguments()
    wanted = trajectory_gradient(**given, engine="fused")
    release(given["student"])
    result, told, _ = run(given, peak_of(given, memory_budget=0) - 1)
    assert "3 samples through the network at once instead of 6" in told[-1]
    assert "the same up to rounding" in told[-1]
    assert max(relative_errors(result, wanted).values()) < 1e-5


def test_at_the_end_one_error_says_what_to_lower() -> None:
    """Breaks when the last failure is passed on as it is, or names a setting without a value."""
    given = arguments()
    with warnings.catch_warnings(), MemoryLimit(SMALL) as memory:
        warnings.simplefilter("ignore")
        with pytest.raises(OutOfMemory) as caught:
            trajectory_gradient(**given, engine="fused")
        assert isinstance(caught.value, torch.OutOfMemoryError)
        assert isinstance(caught.value, MemoryError)
        text = str(caught.value)
        assert "batch_size: got 6" in text and "try 3" in text
        assert "window (or steps): got None (all 8 steps)" in text and "try 4" in text
        assert "MiB" in text
        assert caught.value.__cause__ is None and caught.value.__context__ is None
        # The error itself is held here: it must not hold the last attempt.
        gc.collect()
        assert memory.live() <= OWN
    assert "fused" not in given["student"].compiled


@pytest.mark.parametrize("forever", [False, True])
def test_nothing_of_a_failed_attempt_stays(monkeypatch: pytest.MonkeyPatch, forever: bool) -> None:
    """Breaks when an exception, its traceback or the student keeps a failed attempt's buffers, also
    after the last one."""
    made: list[weakref.ref[Any]] = []
    alive: list[int] = []

    class Watched(fused.FusedUnrolls):
        def __init__(self, *given: Any) -> None:
            alive.append(sum(one() is not None for one in made))
            super().__init__(*given)
            made.append(weakref.ref(self))
            made.extend(weakref.ref(unroll) for unroll in self.unrolls)

        def gradients(self, problems: Any) -> Any:
            found = super().gradients(problems)
            if forever or len(made) <= 4:
                # Raised while another error is being handled, as the end of a broken capture is.
                try:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                except RuntimeError:
                    raise RuntimeError("the capture cannot be ended")  # noqa: B904
            return found

    monkeypatch.setattr(fused, "FusedUnrolls", Watched)
    given = arguments()
    gc.disable()
    try:
        with pytest.warns(UserWarning, match="out of memory"):
            if forever:
                with pytest.raises(OutOfMemory):
                    trajectory_gradient(**given, engine="fused")
                alive.append(sum(one() is not None for one in made))
            else:
                trajectory_gradient(**given, engine="fused")
    finally:
        gc.enable()
    assert len(alive) == (9 if forever else 3) and not any(alive), alive


@pytest.mark.parametrize(
    "error", [ValueError("no"), RuntimeError("CUDA error: an illegal memory access")]
)
def test_other_errors_pass(error: Exception) -> None:
    """Breaks when the ladder takes whatever is raised for a lack of memory and tries again."""
    given = arguments()
    with MemoryLimit(SMALL, error) as memory, pytest.raises(type(error), match=str(error)[:4]):
        trajectory_gradient(**given, engine="fused")
    assert memory.failures == 1


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    ],
)
def test_what_others_than_torchs_allocator_say_counts_too(error: Exception) -> None:
    """Breaks when only CUDA's own error is known."""

    def fails() -> None:
        raise error

    outcome = attempt(fails, torch.device("cpu"))
    assert isinstance(outcome, RanOut)
    assert outcome.reason == (str(error) or "MemoryError")


@pytest.mark.parametrize(
    ("engine", "advice"),
    [("module", "engine: got 'module'"), ("reference", "engine: got 'reference'")],
)
def test_engines_without_a_smaller_way_say_what_to_do(engine: str, advice: str) -> None:
    """Breaks when they pass the bare error on, or keep their graph in it."""
    given = arguments()
    with MemoryLimit(SMALL) as memory, pytest.raises(OutOfMemory) as caught:
        trajectory_gradient(**given, engine=engine)
    assert advice in str(caught.value) and "try 'fused'" in str(caught.value)
    gc.collect()
    assert memory.live() <= OWN


def test_groupings_and_budgets_give_the_same_bits() -> None:
    """Side by side, in groups that do not fill up, alone, all kept to none: breaks when a group's
    last, filled-up places are handed out as results, or a plan changes a bit."""
    given = arguments()
    (one,) = caught_problem(given)
    problems = [
        replace(one, seed=seed, theta=one.theta + 0.01 * seed, weight=one.weight + seed)
        for seed in range(3)
    ]
    wanted = [fused.fused_gradients([one])[0] for one in problems]
    for plan in (
        Plan(together=3, budget=MIB, samples=6),
        Plan(together=2, budget=40_000, samples=6),
        Plan(together=1, budget=0, samples=6),
    ):
        release(problems[0].student)
        results: list[Any] = []
        while len(results) < 3:
            results += fused._next_group(problems[len(results) :], plan)
        assert len(results) == 3
        for got, want in zip(results, wanted, strict=True):
            assert same_bits(got, want), plan


def test_the_ladder_goes_down_by_halves() -> None:
    """Breaks when a rung keeps as much as the one before (an attempt for nothing), trajectories
    come before recomputation, or it has no end."""
    given = arguments()
    (one,) = caught_problem(given)
    plan: Plan | None = Plan.first(one, together=3)
    rungs = []
    while plan is not None:
        rungs.append((plan.kept(one), plan.together, plan.samples))
        assert len(rungs) < 20, "it has no end"
        plan = plan.lower(one)
    kept = [entry[0] for entry in rungs]
    assert kept == sorted(kept, reverse=True)
    assert len(set(rungs)) == len(rungs)
    everything = kept[0]
    assert [k * 8 // everything for k in kept if k] == [8, 4, 2, 1]
    assert rungs[4:] == [(0, 3, 6), (0, 2, 6), (0, 1, 6), (0, 1, 3), (0, 1, 2), (0, 1, 1)]


def test_a_plan_keeps_no_more_than_its_budget() -> None:
    """Breaks when the first step that is kept is miscounted by one."""
    given = arguments()
    (one,) = caught_problem(given)
    everything = Plan.first(one, 1)
    network = FusedNetwork(one.student)
    for steps in range(9):
        plan = replace(everything, budget=everything.kept(one) * steps // 8)
        assert kept_from(network, [6] * 8, 0, plan, 4) == 8 - steps


def caught_problem(given: dict[str, Any]) -> list[Any]:
    caught: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:

        def catch(problems: Any) -> list[None]:
            caught.extend(problems)
            return [None]

        patch.setattr("iadd_fast.unroll.gradient.fused_gradients", catch)
        trajectory_gradient(**given, engine="fused")
    return caught


class Stream:
    """Remembers who waited for it."""

    def __init__(self, *_: Any) -> None:
        self.waited: list[Stream] = []

    def wait_stream(self, other: Stream) -> None:
        self.waited.append(other)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def test_a_capture_that_runs_out_is_ended_and_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when the side streams do not come back to the main one (then CUDA cannot end the
    capture), or running out is taken for a capture that does not work and launched eagerly."""
    main, ended = Stream(), []

    class Graph:
        def __init__(self, *_: Any, **__: Any) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None:
            ended.append(len(main.waited))

    for name, value in {
        "CUDAGraph": object, "graph": Graph, "Stream": Stream,
        "stream": lambda stream: stream, "current_stream": lambda *_: main,
        "synchronize": lambda *_: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    calls = []

    def work() -> None:
        calls.append(1)
        if len(calls) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")

    replayed = graphs.Replayed([work, work, work], torch.device("cuda"), "work")
    replayed()
    assert len(calls) == 3
    with pytest.raises(torch.OutOfMemoryError):
        replayed()
    assert ended == [2], "both side streams, before the capture ends"
