"""Training on the fused passes against the plain loop, which is the definition."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from iadd_fast import students
from iadd_fast.augment import Augmentation
from iadd_fast.fused import choices
from iadd_fast.fused.training import Recipe, State, train_fused
from iadd_fast.ops import use_backend
from iadd_fast.training import accuracy, train, train_many

STUDENT = students.convnet(channels=3, classes=4, image_size=(12, 10), width=8, depth=2)
SEEDS = (5, 6, 7)
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "momentum": 0.9,
        "weight_decay": 0.02,
        "decay": True,
        "augment": Augmentation.parse("dsa"),
    },
    "weight decay alone": {"weight_decay": 0.02, "decay": True},
    "chain": {"momentum": 0.5, "augment": Augmentation.parse("chain:shared:color_scale_flip")},
    "one batch": {"momentum": 0.9, "batch_size": 100, "augment": Augmentation.parse("crop")},
}
BASIC: dict[str, Any] = {"lr": 0.05, "epochs": 4, "batch_size": 20, "seed": 5}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 20 go through in 8, 8 and 4, the last one of 13 in 8 and 5."""
    monkeypatch.setattr(choices, "samples_at_once", lambda *_: 8)


def samples(
    dtype: torch.dtype = torch.float64, soft: bool = False, seed: int = 0
) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(53, 3, 12, 10, generator=draw).to(dtype)
    if soft:
        return images, torch.randn(53, 4, generator=draw).to(dtype).softmax(1)
    return images, torch.randint(0, 4, (53,), generator=draw)


def moved_error(got: Tensor, want: Tensor, first: Tensor) -> float:
    """Of the way that the parameters went: their start is equal anyway."""
    return float((got - want).norm() / (want - first).norm())


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_plain_loop_in_float64(case: str, soft: bool) -> None:
    """Every epoch of it. Breaks on another order, draw, share of a chunk, decay epoch, kept
    momentum, or weight decay that leaves out the biases whose gradient is zero."""
    images, labels = samples(soft=soft)
    first = STUDENT.init(1, dtype=torch.float64)
    seen: dict[str, list[tuple[int, Tensor]]] = {"plain": [], "fused": []}
    finals = {}
    for engine, kept in seen.items():
        finals[engine] = train(
            STUDENT, first, images, labels, engine=engine,
            on_epoch=lambda done, theta, kept=kept: kept.append((done, theta.clone())),  # type: ignore[misc]
            **BASIC | CASES[case],
        )  # fmt: skip
    assert [done for done, _ in seen["fused"]] == [0, 1, 2, 3, 4]
    assert torch.equal(seen["fused"][0][1], first)
    assert torch.equal(first, STUDENT.init(1, dtype=torch.float64)), "the start was changed"
    for (_, got), (_, want) in zip(seen["fused"][1:], seen["plain"][1:], strict=True):
        assert moved_error(got, want, first) < 1e-12
    assert torch.equal(finals["fused"], seen["fused"][-1][1])


@pytest.mark.parametrize("backend", [None, "reference"])
def test_agrees_in_float32_on_every_backend(backend: str | None) -> None:
    """Breaks when a static buffer of the compiled operators is read before it is written, or when
    activations without buffers (as on a GPU) are taken over by the next chunk."""
    images, labels = samples(torch.float32)
    first = STUDENT.init(1)
    options = BASIC | CASES["everything"]
    want = train(STUDENT, first, images, labels, engine="plain", **options)
    with use_backend(backend):
        got = train(STUDENT, first, images, labels, engine="fused", **options)
    assert moved_error(got, want, first) < 1e-5


def test_biases_ahead_of_a_norm_keep_their_bits() -> None:
    """Their gradient is exactly zero; breaks when a buffer's old contents are taken for it."""
    images, labels = samples(torch.float32)
    first = STUDENT.init(1)
    got = train(STUDENT, first, images, labels, engine="fused", **BASIC | {"momentum": 0.9})
    for entry in STUDENT.parameters:
        part = slice(entry.start, entry.stop)
        bias = entry.name.startswith("blocks") and entry.name.endswith(".0.bias")
        assert torch.equal(got[part], first[part]) == bias, entry.name


@pytest.mark.parametrize("shared", [True, False], ids=["one set", "own sets"])
def test_many_are_the_same_bits_as_one_by_one(shared: bool) -> None:
    """Breaks when a network takes over momentum, learning rate, order or data of another."""
    options = {key: value for key, value in BASIC.items() if key != "seed"} | CASES["everything"]
    sets = [samples(torch.float32, seed=0 if shared else k) for k in range(3)]
    thetas = torch.stack([STUDENT.init(k) for k in range(3)])
    want = torch.stack(
        [train(STUDENT, thetas[k], *sets[k], seed=SEEDS[k], **options) for k in range(3)]
    )
    got = train_many(STUDENT, thetas, sets[:1] if shared else sets, seeds=SEEDS, **options)
    assert torch.equal(got, want)
    plain = train_many(
        STUDENT, thetas, sets[:1] if shared else sets, seeds=SEEDS, engine="plain", **options
    )
    for k in range(3):
        assert moved_error(got[k], plain[k], thetas[k]) < 1e-5


@pytest.mark.parametrize("side_by_side", [2, 3])
def test_groups_as_on_a_gpu_are_the_same_bits(side_by_side: int) -> None:
    """Three in lockstep, or two and one left over: breaks when they share a buffer, or when the
    trainer of a finished group goes on from its state."""
    recipe = Recipe(0.05, 3, 20, **CASES["everything"])
    sets = [samples(torch.float32, seed=k) for k in range(3)]
    thetas = torch.stack([STUDENT.init(k) for k in range(3)])
    calls: list[tuple[int, int]] = []
    one_by_one = train_fused(STUDENT, thetas, sets, SEEDS, recipe)
    got = train_fused(
        STUDENT, thetas, sets, SEEDS, recipe, lambda k, state: calls.append((k, state.epochs)),
        side_by_side,
    )  # fmt: skip
    assert torch.equal(got, one_by_one)
    assert sorted(calls) == [(k, done) for k in range(3) for done in range(4)]
    assert calls[:side_by_side] == [(k, 0) for k in range(side_by_side)]
    for k in range(3):
        assert [done for network, done in calls if network == k] == [0, 1, 2, 3]


def copied(state: State) -> State:
    momentum = None if state.momentum is None else state.momentum.clone()
    return State(state.epochs, state.theta.clone(), momentum)


@pytest.mark.parametrize("engine", ["fused", "plain"])
@pytest.mark.parametrize("case", CASES)
def test_a_network_goes_on_from_every_epoch_to_the_same_bits(case: str, engine: str) -> None:
    """Breaks when a state lacks the momentum, or the order, the decayed rate or the draws of the
    epochs that follow depend on more than it; and when a finished network is trained again."""
    images, labels = samples(torch.float32)
    options = {key: value for key, value in (BASIC | CASES[case]).items() if key != "seed"}
    options["epochs"] = 6  # the rate decays in number 4, and one more follows
    thetas = torch.stack([STUDENT.init(k) for k in range(2)])
    told: dict[tuple[int, int], State] = {}

    def keep(network: int, state: State) -> None:
        assert (network, state.epochs) not in told
        told[network, state.epochs] = copied(state)

    want = train_many(
        STUDENT, thetas, [(images, labels)], seeds=SEEDS[:2], engine=engine, on_epoch=keep,
        **options,
    )  # fmt: skip
    whole = dict(told)
    for done in range(options["epochs"] + 1):
        told.clear()
        begun = {1: whole[1, done]}
        # What its row of thetas holds does not matter any more.
        starts = torch.stack([thetas[0], torch.full_like(thetas[1], torch.nan)])
        got = train_many(
            STUDENT, starts, [(images, labels)], seeds=SEEDS[:2], engine=engine, on_epoch=keep,
            begun=begun, **options,
        )  # fmt: skip
        assert torch.equal(got, want)
        assert {epoch for network, epoch in told if network == 1} == set(
            range(done + 1, options["epochs"] + 1)
        )
        for key, state in told.items():
            assert torch.equal(state.theta, whole[key].theta)


def test_a_group_of_unequal_epochs_goes_on_to_the_same_bits() -> None:
    """Killed between two of a GPU's side-by-side networks: breaks when one network's epoch counts
    for its neighbours."""
    recipe = Recipe(0.05, 4, 20, **CASES["everything"])
    sets = [samples(torch.float32, seed=k) for k in range(4)]
    thetas = torch.stack([STUDENT.init(k) for k in range(4)])
    seeds = (*SEEDS, 8)
    whole: dict[tuple[int, int], State] = {}
    want = train_fused(
        STUDENT, thetas, sets, seeds, recipe, lambda k, s: whole.update({(k, s.epochs): copied(s)})
    )
    begun = {0: whole[0, 3], 1: whole[1, 3], 2: whole[2, 2]}
    calls: list[tuple[int, int]] = []
    got = train_fused(
        STUDENT, thetas, sets, seeds, recipe, lambda k, s: calls.append((k, s.epochs)), 4, begun
    )
    assert torch.equal(got, want)
    assert calls == [(0, 4), (1, 4), (2, 3), (2, 4), *((3, epoch) for epoch in range(5))]


@pytest.mark.parametrize(
    ("begun", "told"),
    [
        ({1: State(0, torch.zeros(3))}, "begun: got 1; takes a whole number of at most 0"),
        ({0: 3}, "begun: got 3; takes states by the number of their network"),
        ({0: State(9, torch.zeros(3))}, r"begun\[0\].epochs: got 9; .* at most 4"),
        ({0: State(1, torch.zeros(3))}, r"begun\[0\].theta: got .* \(3,\); takes \(\d+,\)"),
        ({0: State(1, STUDENT.init(0))}, r"begun\[0\].momentum: got None"),
        ({0: State(1, STUDENT.init(0).double())}, r"begun\[0\].theta: got a torch.float64"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(begun: Any, told: str) -> None:
    """Breaks when a state of another network or recipe is trained on."""
    with pytest.raises((TypeError, ValueError), match=told):
        train_many(
            STUDENT, STUDENT.init(0)[None], [samples(torch.float32)], seeds=[0], lr=0.1, epochs=4,
            momentum=0.9, begun=begun,
        )  # fmt: skip


class Seen(TorchDispatchMode):
    """Keeps the names of all operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def test_an_epoch_waits_for_nothing_and_records_no_graph() -> None:
    """Breaks with an .item(), a nonzero or a boolean index in a step, or with autograd in it."""
    images, labels = samples(torch.float32)
    thetas = STUDENT.init(0)[None].requires_grad_(True)
    recipe = Recipe(0.05, 2, 20, **CASES["everything"])
    with Seen() as seen:
        got = train_fused(STUDENT, thetas, [(images, labels)], [0], recipe)
    assert "aten::_fused_sgd_.tensor_lr" in seen.names
    waiting = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "aten::equal")
    assert not [name for name in seen.names if any(word in name for word in waiting)]
    assert not got.requires_grad


def test_memory_does_not_grow_from_epoch_to_epoch() -> None:
    """Counts tensors and their bytes; breaks when something of a batch or an epoch is kept."""
    images, labels = samples(torch.float32)
    held: list[tuple[int, int]] = []

    def count(done: int, theta: Tensor) -> None:
        gc.collect()
        tensors = [
            entry
            for entry in gc.get_objects()
            if type(entry) is Tensor
            and entry.layout is torch.strided  # of other tests, some are not
        ]
        held.append((len(tensors), sum(tensor.nbytes for tensor in tensors)))

    train(STUDENT, STUDENT.init(0), images, labels, on_epoch=count, **BASIC | CASES["everything"])
    assert len(held) == 5 and len(set(held[1:])) == 1, held


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_accuracy_counts_as_the_plain_forward(dtype: torch.dtype) -> None:
    """Of 53 images in chunks of 8; breaks when the last chunk is left out or counted double."""
    images, labels = samples(dtype)
    theta = train(STUDENT, STUDENT.init(0, dtype=dtype), images, labels, **BASIC)
    right = (STUDENT(theta, images).argmax(1) == labels).sum()
    assert 20 < right < 53, "no test"
    for batch_size in (3, 1024):
        assert accuracy(STUDENT, theta, images, labels, batch_size) == 100 * int(right) / 53


def bad(**changes: Any) -> dict[str, Any]:
    return {"thetas": torch.stack([STUDENT.init(0)] * 2), "sets": [samples(torch.float32)]} | {
        "seeds": (0, 1),
        **changes,
    }


IMAGES, LABELS = samples(torch.float32)
BAD: list[tuple[dict[str, Any], str]] = [
    (bad(thetas=STUDENT.init(0)), r"thetas: got a torch.float32 tensor of shape \(1036,\)"),
    (bad(seeds=(1,)), "seeds: got 1; takes one for each of 2 networks"),
    (bad(sets=[(IMAGES, LABELS)] * 3), "sets: got 3; takes one for each of 2 networks, or one"),
    (bad(sets=[(IMAGES, LABELS), (IMAGES[:9], LABELS[:9])]), r"sets: got \(53, .* one kind"),
    (bad(sets=[(IMAGES, LABELS), (IMAGES.double(), LABELS)]), "sets: got .*float64.* one kind"),
    (bad(sets=[(IMAGES[:0], LABELS[:0])]), "images: got none"),
    (
        bad(sets=[(IMAGES, LABELS[:9])]),
        r"labels: got a torch.int64 tensor of shape \(9,\); takes int64 \[53\]",
    ),
    (bad(sets=[(IMAGES, LABELS + 1)]), "labels: got values from 1 to 4; takes 0 to 3"),
    (bad(sets=[(IMAGES, LABELS.int())]), r"labels: got a torch.int32 tensor .* takes int64 \[53\]"),
    (
        bad(sets=[(IMAGES, torch.ones(53, 5) / 5)]),
        r"labels: got a torch.float32 tensor of shape \(53, 5\)",
    ),
    (bad(engine="fast"), "engine: got 'fast'; takes one of auto, fused, plain"),
    (bad(sets=[(IMAGES.double(), LABELS)], engine="fused"), "engine: got 'fused'; .*float64"),
    (
        bad(sets=[(IMAGES[:, :, 1:], LABELS)], engine="fused"),
        r"takes images of shape \(3, 12, 10\)",
    ),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_clear_error(given: dict[str, Any], message: str) -> None:
    """Each names the argument; labels out of range would be read from memory of others."""
    options = {"lr": 0.1, "epochs": 1, **given}
    with pytest.raises(ValueError, match=message):
        train_many(STUDENT, options.pop("thetas"), options.pop("sets"), **options)


def test_other_students_train_by_autograd_and_say_why_not_fused() -> None:
    """Breaks when auto sends a network to passes that are not its own."""
    mlp = students.mlp(inputs=(3, 12, 10), classes=4, width=7, depth=2)
    layer = students.convnet(
        channels=3, classes=4, image_size=(12, 10), width=8, depth=2, norm="layer"
    )
    images, labels = samples(torch.float32)
    for student in (mlp, layer):
        first = student.init(0)
        got = train(student, first, images, labels, **BASIC)
        assert torch.equal(got, train(student, first, images, labels, engine="plain", **BASIC))
        assert accuracy(student, got, images, labels) > accuracy(student, first, images, labels)
        with pytest.raises(ValueError, match="engine: got 'fused'; the fused passes take"):
            train(student, first, images, labels, engine="fused", **BASIC)
