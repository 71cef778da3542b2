"""Training, testing and gradient matching where memory runs out, and on data left on the host."""

from __future__ import annotations

import gc
import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from iadd_fast import students, training
from iadd_fast.fused import choices
from iadd_fast.fused.network import FusedNetwork
from iadd_fast.fused.training import (
    TESTING,
    TRAINING,
    UNROLLS,
    FusedTrainer,
    OnEpoch,
    Recipe,
    State,
    train_fused,
)
from iadd_fast.matching import Matcher
from iadd_fast.memory import OutOfMemory
from iadd_fast.training import accuracy, train_many
from iadd_fast.unroll import release
from tests.fused.test_training import samples
from tests.memory_limit import MemoryLimit

SEEDS = (5, 6, 7)
RECIPE = Recipe(lr=0.05, epochs=3, batch_size=20, momentum=0.9)


@pytest.fixture(autouse=True)
def no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Python's collector, which takes most of the time here: no buffer may need it."""
    monkeypatch.setattr("iadd_fast.memory.gc", SimpleNamespace(collect=lambda: 0))


def student() -> students.Student:
    return students.convnet(channels=3, classes=4, image_size=(12, 10), width=8, depth=2)


def starts(network: students.Student) -> Tensor:
    return torch.stack([network.init(seed) for seed in SEEDS])


def trained(
    network: students.Student,
    limit: int | None = None,
    side_by_side: int = 3,
    on_epoch: OnEpoch | None = None,
) -> tuple[Tensor, list[str], MemoryLimit]:
    sets = [samples(torch.float32)] * 3
    thetas = starts(network)
    with warnings.catch_warnings(record=True) as caught, MemoryLimit(limit) as memory:
        warnings.simplefilter("always")
        finals = train_fused(network, thetas, sets, SEEDS, RECIPE, on_epoch, side_by_side)
    return finals, [str(entry.message) for entry in caught], memory


def test_fewer_networks_train_at_once_and_come_out_the_same() -> None:
    """Breaks when a failed group leaves trainers alive, a network begins with another's start or
    seed, or the next call fails first again."""
    network = student()
    wanted, _, all_of_them = trained(network)
    _, _, two = trained(network, side_by_side=2)
    _, _, alone = trained(network, side_by_side=1)
    assert alone.peak < two.peak < all_of_them.peak
    got, told, memory = trained(network, (alone.peak + two.peak) // 2)
    assert torch.equal(got, wanted)
    assert memory.failures == len(told) == 2
    assert "training 3 networks on batches of 20: out of memory" in told[0]
    assert "going on with 2 at once. at_once=2 avoids" in told[0]
    assert "going on with 1 at once. at_once=1 avoids" in told[1]
    again, told, memory = trained(network, (alone.peak + two.peak) // 2)
    assert torch.equal(again, wanted) and told == [] and memory.failures == 0


def test_every_epoch_is_told_once_though_the_group_begins_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Out of memory in the second epoch: breaks when the caller is told an epoch twice (experts
    would hold it twice), misses one, or sees parameters of another moment."""
    network = student()
    told: dict[tuple[int, int], Tensor] = {}

    def keep(number: int, state: State) -> None:
        assert (number, state.epochs) not in told
        told[number, state.epochs] = state.theta.clone()

    wanted: dict[tuple[int, int], Tensor] = {}
    trained(network, on_epoch=lambda k, s: wanted.update({(k, s.epochs): s.theta.clone()}))
    load, calls = FusedTrainer.load, []

    def runs_out(self: FusedTrainer, number: int) -> None:
        calls.append(number)
        if len(calls) == 14:
            raise torch.OutOfMemoryError("CUDA out of memory")
        load(self, number)

    monkeypatch.setattr(FusedTrainer, "load", runs_out)
    finals, messages, _ = trained(network, on_epoch=keep)
    assert len(messages) == 1 and len(calls) > 27
    assert told.keys() == wanted.keys() and len(told) == 12
    assert all(torch.equal(told[key], wanted[key]) for key in wanted)
    assert all(torch.equal(finals[k], wanted[k, 3]) for k in range(3))


def test_the_callers_own_errors_pass() -> None:
    """An error of on_epoch, out of memory too: breaks when the ladder takes it for its own and
    calls again what may have stored an expert."""
    calls = []

    def keep(number: int, state: State) -> None:
        calls.append((number, state.epochs))
        raise torch.OutOfMemoryError("the caller's")

    with pytest.raises(torch.OutOfMemoryError, match="the caller's"):
        trained(student(), on_epoch=keep)
    assert calls == [(0, 0)]


def test_one_network_goes_through_in_parts_and_then_ends_with_advice() -> None:
    """Breaks when the end is the bare error, names no number, or holds the trainers."""
    network = student()
    _, _, alone = trained(network, side_by_side=1)
    got, told, _ = trained(network, alone.peak - 1, side_by_side=1)
    assert "with 10 samples at once (the same up to rounding)" in told[0]
    torch.testing.assert_close(got, trained(student())[0], atol=1e-5, rtol=1e-4)
    with pytest.raises(OutOfMemory) as caught:
        trained(student(), 40_000)
    assert "batch_size: got 20; try 10" in str(caught.value)
    assert "the student's width: got 8; try 4" in str(caught.value)


def test_other_errors_of_training_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when any RuntimeError is taken for a lack of memory."""

    def broken(*_: Any) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(FusedTrainer, "load", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        trained(student())


def test_the_plain_loop_says_what_to_lower() -> None:
    """Breaks when a network outside the fused family ends with the bare error."""
    network = students.mlp(inputs=(3, 12, 10), classes=4)
    images, labels = samples(torch.float32)
    theta = network.init(0)
    with MemoryLimit(1_000) as memory, pytest.raises(OutOfMemory) as caught:
        memory.limit = None
        first = theta[None].clone()
        memory.limit = memory.live() + 2 * theta.nbytes
        train_many(network, first, [(images, labels)], seeds=[0], lr=0.1, epochs=1, batch_size=20)
    assert "batch_size: got 20; try 10" in str(caught.value)


@pytest.mark.parametrize("fused", [True, False])
def test_accuracy_takes_fewer_images_at_once(fused: bool) -> None:
    """Breaks when a test fails for its batch size, counts a part twice after a failure, or the
    next test begins with the size that failed."""
    network = student() if fused else students.mlp(inputs=(3, 12, 10), classes=4)
    images, labels = samples(torch.float32)
    theta = network.init(3)
    wanted = accuracy(network, theta, images, labels)
    with MemoryLimit() as memory:
        assert accuracy(network, theta, images, labels, batch_size=20) == wanted
    limit = memory.peak
    with warnings.catch_warnings(record=True) as caught, MemoryLimit(limit) as memory:
        warnings.simplefilter("always")
        assert accuracy(network, theta, images, labels) == wanted
        assert memory.failures == len(caught) >= 1
        assert "batch_size=" in str(caught[-1].message)
        failures = memory.failures
        assert accuracy(network, theta, images, labels) == wanted
        assert memory.failures == failures
    if not fused:  # one image takes less here than the check of the labels
        return
    with warnings.catch_warnings(), MemoryLimit(1100):
        warnings.simplefilter("ignore")
        with pytest.raises(OutOfMemory, match="1 images"):
            accuracy(network, theta, images, labels)


@pytest.mark.parametrize("engine", ["fused", "plain"])
def test_gradient_matching_takes_smaller_parts_or_says_what_to_lower(engine: str) -> None:
    """Breaks when the buffers of a failed attempt stay, or the parts' gradients are not all of
    the batch."""
    network = student()
    images, labels = samples(torch.float32)
    real, synthetic = (images[:40], labels[:40]), (images[40:], labels[40:])
    theta = network.init(3)
    with MemoryLimit() as memory:
        wanted = Matcher(network, engine=engine).gradient(theta, real, synthetic)
    matcher = Matcher(network, engine=engine)
    if engine == "fused":
        with MemoryLimit(memory.peak - 1), pytest.warns(UserWarning, match="batch_real=20 avoids"):
            got = matcher.gradient(theta, real, synthetic)
        torch.testing.assert_close(got.images, wanted.images, atol=1e-7, rtol=1e-3)
        torch.testing.assert_close(got.loss, wanted.loss, atol=1e-5, rtol=1e-5)
    with warnings.catch_warnings(), MemoryLimit(9_000) as memory:
        warnings.simplefilter("ignore")
        with pytest.raises(OutOfMemory, match="batch_real: got 40; try 20") as caught:
            matcher.gradient(theta, real, synthetic)
        gc.collect()
        assert memory.live() < 9_000
    assert ("engine: got 'plain'; try 'fused'" in str(caught.value)) == (engine == "plain")


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_data_on_the_host_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch, soft: bool) -> None:
    """Batches gathered on the host against batches gathered on the device: breaks on another
    order, a buffer that is overwritten too early, or a short last batch."""
    recipe = Recipe(lr=0.05, epochs=2, batch_size=20, momentum=0.9)
    network = FusedNetwork(student())
    images, labels = samples(torch.float32, soft=soft)
    thetas = []
    for staged in (False, True):
        trainer = FusedTrainer(
            network, recipe, images, labels, torch.device("cpu"), 8, staged=staged
        )
        assert (trainer._staging is not None) == staged
        trainer.start(State(0, student().init(1)), images, labels, seed=4)
        for epoch in range(2):
            trainer.begin(epoch)
            for number, size in enumerate((20, 20, 13)):
                trainer.load(number)
                trainer.step(size)
        thetas.append(trainer.theta)
    assert torch.equal(*thetas)
    assert not torch.equal(thetas[0], student().init(1))


def test_where_data_is_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when data larger than half of what is free goes to a GPU all the same, or the bound
    holds on a CPU, where there is nothing to move."""
    images = torch.zeros(10, 100)
    moved: list[Any] = []

    class Images:
        nbytes, device = 4000, torch.device("cpu")

        def to(self, device: torch.device) -> str:
            moved.append(device)
            return "moved"

    cuda = torch.device("cuda")
    for free, wanted in ((7999, 0), (8000, 1)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10**9))
        held: Any = Images()
        assert (training.placed(held, cuda) == "moved") == bool(wanted)
    assert moved == [cuda]
    assert training.placed(images, torch.device("cpu")) is images


def test_samples_at_once_is_asked_once_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan comes from the choices: breaks when a trainer chooses for itself, past the plan."""
    monkeypatch.setattr(choices, "samples_at_once", lambda *_: 7)
    seen = []
    init = FusedTrainer.__init__

    def spy(self: FusedTrainer, *given: Any, **named: Any) -> None:
        init(self, *given, **named)
        seen.append(self.samples)

    monkeypatch.setattr(FusedTrainer, "__init__", spy)
    trained(student())
    assert seen == [7, 7, 7]


def test_what_an_unroll_keeps_goes_before_anything_is_made_smaller() -> None:
    """A validation beside a distillation's buffers: breaks when it goes down to fewer samples at
    once, which changes its bits, or ends the run, while memory is held that nobody needs then."""
    network = student()
    wanted, _, alone = trained(network, side_by_side=1)
    images, labels = samples(torch.float32)
    score = accuracy(network, wanted[0], images, labels)
    with MemoryLimit() as memory, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for use in ("training", "testing"):
            network.compiled[UNROLLS] = torch.empty(alone.peak // 4)
            memory.limit = alone.peak + alone.peak // 2 if use == "training" else None
            if use == "training":
                sets = [samples(torch.float32)] * 3
                got = train_fused(network, starts(network), sets, SEEDS, RECIPE, None, 1)
                assert torch.equal(got, wanted)
            else:
                memory.limit = memory.live() + 1_000
                assert accuracy(network, wanted[0], images, labels, 1) == score
            assert UNROLLS not in network.compiled
    told = [str(entry.message) for entry in caught]
    assert len(told) == 2 and all("a lower memory_budget of the unroll avoids" in t for t in told)
    release(network)
    assert not {TRAINING, TESTING} & network.compiled.keys()


@pytest.mark.filterwarnings("ignore:training 1 networks on batches of 2")
@pytest.mark.parametrize("size", [1, 2])
def test_nothing_is_advised_that_cannot_be_lowered(size: int) -> None:
    """Breaks when the last word is 'batch_size: got 1; try 1'."""
    images, labels = samples(torch.float32)
    recipe = replace(RECIPE, batch_size=size, augment=None)
    network = student()
    with MemoryLimit() as memory, pytest.raises(OutOfMemory) as caught:
        theta = starts(network)[:1].clone()
        memory.limit = memory.live() + 2 * theta.nbytes
        train_fused(network, theta, [(images, labels)], [0], recipe)
    assert ("batch_size: got" in str(caught.value)) == (size == 2)
    assert "the student's width: got 8; try 4" in str(caught.value)
