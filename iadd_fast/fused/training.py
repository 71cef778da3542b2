"""Training and testing networks on the fused passes: no autograd graph, static buffers, no waits.

A step is forward and backward in chunks, then SGD in one pass over the parameters. Batches are
gathered and augmented on the device, so no worker process feeds the loop, and nothing in an epoch
waits for the device; data that stays on the host is gathered there and copied while the device
computes. On a GPU one step of several networks is one CUDA graph
with a stream for each; on a CPU, where one network fills the cores, they train one after another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from iadd_fast.augment import Augmentation
from iadd_fast.fused import choices
from iadd_fast.fused.graphs import Replayed
from iadd_fast.fused.network import FusedNetwork
from iadd_fast.fused.passes import Passes
from iadd_fast.fused.staging import Staging
from iadd_fast.memory import RanOut, attempt, going_on, mib, nothing_helps
from iadd_fast.ops.backends import implementation
from iadd_fast.seeds import derive, generator
from iadd_fast.students import Student

TrainingSet = tuple[Tensor, Tensor]

#: Where a student's ``compiled`` holds what an unroll keeps for its next call, and the plans of
#: training and of testing.
UNROLLS, TRAINING, TESTING = "fused", "training plans", "testing plans"


@dataclass(frozen=True)
class Recipe:
    """SGD (PyTorch's conventions) on shuffled batches, of which the last may be smaller.

    decay: learning rate x 0.1 from epoch ``epochs // 2 + 1`` on, the momentum dropped there.
    """

    lr: float
    epochs: int
    batch_size: int = 256
    momentum: float = 0.0
    weight_decay: float = 0.0
    decay: bool = False
    augment: Augmentation | None = None

    def decays_at(self, epoch: int) -> bool:
        """Whether ``epoch`` begins with the smaller learning rate and without momentum."""
        return self.decay and epoch == self.epochs // 2 + 1

    def rate_after(self, epochs: int) -> float:
        """The learning rate of epoch number ``epochs - 1``, or of the first one."""
        decayed = self.decay and epochs > self.epochs // 2 + 1
        return self.lr * 0.1 if decayed else self.lr


@dataclass(frozen=True, eq=False)
class State:
    """A network between two epochs: with the recipe, data and seed all that the rest depends on.

    Attributes:
        epochs: done. theta: its parameters ``[P]``. momentum: of SGD ``[P]``; None where the recipe
            has none.
    """

    epochs: int
    theta: Tensor
    momentum: Tensor | None = None


#: Told (network, its state) after an epoch; copies what it keeps.
OnEpoch = Callable[[int, State], None]


class FusedTrainer:
    """One network in training: its parameters, momentum, gradient and batch, allocated once.

    Args:
        network: its sizes.
        recipe: how it is trained.
        images, labels: a training set of the shape and dtypes of those it will be trained on.
        device: where it is trained.
        samples: most samples that go through the network at once.
        staged: whether batches are gathered on the host; default: where the images are not on
            ``device``.
    """

    def __init__(
        self,
        network: FusedNetwork,
        recipe: Recipe,
        images: Tensor,
        labels: Tensor,
        device: torch.device,
        samples: int,
        *,
        staged: bool | None = None,
    ) -> None:
        self.recipe = recipe
        count, size = network.num_parameters, min(recipe.batch_size, len(images))
        like = images.new_empty(0, device=device)
        self.theta = like.new_zeros(count)
        # Zeros stay where no pass writes: the biases ahead of a norm. Weight decay and momentum
        # act on them as on the others.
        self.gradient, self.part = like.new_zeros(count), like.new_zeros(count)
        self.momentum = [like.new_zeros(count)] if recipe.momentum else []
        # On the device, for a captured step to follow the decay.
        self.rate = like.new_empty(())
        self._theta = network.vectors(self.theta)
        self._gradient, self._part = network.vectors(self.gradient), network.vectors(self.part)
        self.samples = samples
        self.passes = Passes(network, self.samples, like, tangents=False)
        self._workspace = self.passes.activations(self.samples)
        self._gathered = like.new_empty(size, *images.shape[1:])
        # Channels last, as the convolutions take them.
        self.inputs = torch.empty_like(self._gathered, memory_format=torch.channels_last)
        self.targets = labels.new_empty(size, *labels.shape[1:], device=device)
        self._augment = implementation("diff_augment", like)
        staged = images.device != device if staged is None else staged
        self._staging = Staging(size, images, device) if staged else None

    def start(self, state: State, images: Tensor, labels: Tensor, seed: int) -> None:
        """Begin with other data and randomness, where ``state`` says."""
        self.theta.copy_(state.theta)
        self.images, self.labels, self.seed = images, labels.to(self.theta.device), seed
        self._draw = generator(seed, "order")
        for _ in range(state.epochs):
            torch.randperm(len(images), generator=self._draw)
        self.rate.fill_(self.recipe.rate_after(state.epochs))
        self._drop_momentum()
        if state.momentum is not None:
            for buffer in self.momentum:
                buffer.copy_(state.momentum)

    def state(self, epochs: int) -> State:
        """Its own state after so many epochs, not copied."""
        return State(epochs, self.theta, self.momentum[0] if self.momentum else None)

    def begin(self, epoch: int) -> None:
        """Shuffle for an epoch."""
        if self.recipe.decays_at(epoch):
            self.rate.fill_(self.recipe.lr * 0.1)
            self._drop_momentum()
        order = torch.randperm(len(self.images), generator=self._draw)
        self._on_host = order.split(self.recipe.batch_size)
        self._batches = order.to(self.theta.device).split(self.recipe.batch_size)
        self._epoch = epoch

    def load(self, number: int) -> None:
        """Gather and augment a batch of the epoch into the static inputs.

        Not part of a captured step: DSA picks a batch's family on the host.
        """
        batch, augment = self._batches[number], self.recipe.augment
        size = len(batch)
        images = self._gathered[:size]
        if self._staging is None:
            torch.index_select(self.images, 0, batch, out=images)
        else:
            self._staging.gather(self.images, self._on_host[number], images)
        if augment is not None:
            seed = derive(self.seed, "augment", self._epoch, number)
            images = self._augment.diff_augment(images, augment.chain(seed), seed, augment.shared)
        self.inputs[:size].copy_(images)
        torch.index_select(self.labels, 0, batch, out=self.targets[:size])

    def step(self, size: int) -> None:
        """One step of SGD on the first ``size`` of the loaded batch."""
        for begin in range(0, size, self.samples):
            end = min(begin + self.samples, size)
            images, labels = self.inputs[begin:end], self.targets[begin:end]
            at = self._workspace.first(end - begin)
            self.passes.forward(self._theta, images, at)
            into = self._gradient if begin == 0 else self._part
            share = self.passes.share(end - begin, size)
            self.passes.backward(self._theta, images, labels, share, at, into)
            if begin > 0:
                self.gradient += self.part
        # One pass over parameters, gradient and momentum; its own lines would be four.
        torch._fused_sgd_(
            [self.theta],
            [self.gradient],
            self.momentum,
            weight_decay=self.recipe.weight_decay,
            momentum=self.recipe.momentum,
            lr=self.rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )

    def _drop_momentum(self) -> None:
        # From zeros the first step is SGD's own: its momentum begins as the gradient.
        for buffer in self.momentum:
            buffer.zero_()


@dataclass(frozen=True)
class Plan:
    """How many networks train side by side, and most samples of each that go through at once."""

    together: int
    samples: int

    def lower(self) -> Plan | None:
        """The next smaller way, None where there is none: one network alone, then fewer samples."""
        if self.together > 1:
            return replace(self, together=-(-self.together // 2))
        return replace(self, samples=-(-self.samples // 2)) if self.samples > 1 else None


class _Fleet:
    """Trainers side by side with their captured steps, made when first needed, then reused."""

    def __init__(self, network: FusedNetwork, recipe: Recipe, samples: int) -> None:
        self.network, self.recipe, self.samples = network, recipe, samples
        self.trainers: list[FusedTrainer] = []
        self.steps: dict[tuple[int, int], Replayed] = {}

    def let_go(self) -> None:
        """Drop them all."""
        self.trainers.clear()
        self.steps.clear()

    def train(
        self, states: Sequence[State], sets: Sequence[TrainingSet], seeds: Sequence[int]
    ) -> Iterator[None]:
        """Train a group that is equally far; pauses before the first and after every epoch."""
        device = states[0].theta.device
        while len(self.trainers) < len(sets):
            made = FusedTrainer(self.network, self.recipe, *sets[0], device, self.samples)
            self.trainers.append(made)
        trainers = self.trainers[: len(sets)]
        for trainer, state, own, seed in zip(trainers, states, sets, seeds, strict=True):
            trainer.start(state, *own, seed)
        yield
        count, size = len(sets[0][0]), self.recipe.batch_size
        for epoch in range(states[0].epochs, self.recipe.epochs):
            for trainer in trainers:
                trainer.begin(epoch)
            for number, begin in enumerate(range(0, count, size)):
                for trainer in trainers:
                    trainer.load(number)
                _step_of(trainers, self.steps, min(size, count - begin))()
            yield


@torch.no_grad()
def train_fused(
    student: Student,
    thetas: Tensor,
    sets: Sequence[TrainingSet],
    seeds: Sequence[int],
    recipe: Recipe,
    on_epoch: OnEpoch | None = None,
    side_by_side: int | None = None,
    begun: Mapping[int, State] | None = None,
    on_round: Callable[[], None] | None = None,
) -> Tensor:
    """Train one or many networks of one architecture; the results do not depend on the grouping.

    Where memory runs out, the group begins again with half as many networks side by side, down to
    one, then with fewer samples through it at once (which changes the rounding); that stays with
    the student for calls of the same batches. The caller is told each epoch once all the same.

    Args:
        student: one that :func:`iadd_fast.fused.network.why_not` finds nothing against.
        thetas: first parameters ``[K, P]``, left unchanged.
        sets: K pairs, all of one shape: images ``[N, C, H, W]`` of the dtype of ``thetas``, on
            their device or on the CPU, and labels, int64 ``[N]`` or probabilities ``[N, classes]``.
        seeds: K seeds of order and augmentation.
        recipe: how all of them are trained.
        on_epoch: called with (network, state) before the first and after each epoch of every
            network. On a CPU a network is through with its epochs before the next one begins, on a
            GPU a group goes through each together.
        side_by_side: networks of a group; default :func:`choices.networks_at_once`.
        begun: states of those networks that are some epochs on; they go on there. Neighbours of
            equal epochs form a group.
        on_round: called when all networks of a group have done an epoch and ``on_epoch`` knows.

    Returns:
        The final parameters ``[K, P]``.

    Raises:
        OutOfMemory: one sample of one network is too much; names the settings to lower.

    Warns:
        UserWarning: memory ran out, and how it goes on.
    """
    network, device = FusedNetwork(student), thetas.device
    size = min(recipe.batch_size, len(sets[0][0]))
    plans: dict[tuple[object, ...], Plan] = student.compiled.setdefault(TRAINING, {})
    key = device, thetas.dtype, size, side_by_side
    plan = plans.get(key) or _first_plan(network, size, thetas, side_by_side)
    begun = begun or {}
    states = [begun.get(k) or State(0, thetas[k]) for k in range(len(thetas))]
    told = [begun[k].epochs if k in begun else -1 for k in range(len(thetas))]
    finals = torch.empty_like(thetas)
    fleet = _Fleet(network, recipe, plan.samples)
    first = 0
    while first < len(thetas):
        group = _group(states, first, plan.together)
        members = slice(group.start, group.stop)
        run = fleet.train(states[members], sets[members], seeds[members])
        ran_out = None
        for epoch in range(states[first].epochs, recipe.epochs + 1):
            outcome = attempt(functools.partial(next, run), device, fleet.let_go)
            if isinstance(outcome, RanOut):
                ran_out = outcome
                break
            # By number: a variable would hold a trainer through the next attempt.
            for number, index in enumerate(group):
                if on_epoch is not None and told[index] < epoch:
                    on_epoch(index, fleet.trainers[number].state(epoch))
                told[index] = max(told[index], epoch)
            if on_round is not None:
                on_round()
        if ran_out is None:
            for number, index in enumerate(group):
                finals[index].copy_(fleet.trainers[number].theta)
            first = group.stop
            continue
        what = f"training {len(group)} networks on batches of {size}"
        if let_go_of_unrolls(student, what, ran_out):
            fleet = _Fleet(network, recipe, plan.samples)
            continue
        plan = _smaller(student, replace(plan, together=len(group)), ran_out, size, sets[0][0])
        plans[key] = plan
        fleet = _Fleet(network, recipe, plan.samples)
    return finals


def let_go_of_unrolls(student: Student, what: str, ran_out: RanOut) -> bool:
    """Let go of what an unroll keeps with ``student``, with a warning; False where there is none.

    In a validation it may take most of the memory; the next unroll makes it anew.
    """
    if student.compiled.pop(UNROLLS, None) is None:
        return False
    now = "without the buffers that the unroll keeps for its next call"
    going_on(what, ran_out, now, "a lower memory_budget of the unroll")
    return True


def _group(states: Sequence[State], first: int, most: int) -> range:
    """The networks from ``first`` on that are equally far, ``most`` of them or fewer."""
    last = first + 1
    while last < min(first + most, len(states)) and states[last].epochs == states[first].epochs:
        last += 1
    return range(first, last)


def _first_plan(network: FusedNetwork, size: int, thetas: Tensor, side_by_side: int | None) -> Plan:
    device, itemsize = thetas.device, thetas.element_size()
    if side_by_side is None:
        side_by_side = choices.networks_at_once(network, size, device, itemsize)
    return Plan(side_by_side, choices.samples_at_once(network, size, device, itemsize))


def _smaller(student: Student, plan: Plan, ran_out: RanOut, size: int, images: Tensor) -> Plan:
    """The next smaller plan, with a warning; an error where there is none."""
    what = f"training {plan.together} networks on batches of {size}"
    smaller = plan.lower()
    if smaller is None:
        width = student.spec.get("width")
        lower = [f"batch_size: got {size}; try {size // 2}"] if size > 1 else []
        if isinstance(width, int) and width > 1:
            lower.append(f"the student's width: got {width}; try {width // 2}")
        if images.device.type != "cpu":
            held = f"{mib(images.nbytes)} of images on {images.device}"
            lower.insert(0, f"what is held there: {held}; leave them on the CPU")
        raise nothing_helps(what, ran_out, lower or ["the size of the images"])
    if smaller.together != plan.together:
        now, avoid = f"with {smaller.together} at once", f"at_once={smaller.together}"
    else:
        now = f"with {smaller.samples} samples at once (the same up to rounding)"
        avoid = f"batch_size={smaller.samples} or a narrower student"
    going_on(what, ran_out, now, avoid)
    return smaller


def _step_of(
    trainers: Sequence[FusedTrainer], steps: dict[tuple[int, int], Replayed], size: int
) -> Replayed:
    """One step of all ``trainers`` on batches of ``size``: a graph of its own."""
    key = (len(trainers), size)
    if key not in steps:
        functions = [functools.partial(trainer.step, size) for trainer in trainers]
        name = f"a training step of {len(trainers)} networks on {size} images"
        steps[key] = Replayed(functions, trainers[0].theta.device, name)
    return steps[key]
