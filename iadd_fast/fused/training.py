"""Training and testing networks on the fused passes: no autograd graph, static buffers, no waits.

A step is forward and backward in chunks, then SGD in one pass over the parameters. Batches are
gathered and augmented on the device the data is on, so no worker process feeds the loop, and
nothing in an epoch waits for the device. On a GPU one step of several networks is one CUDA graph
with a stream for each; on a CPU, where one network fills the cores, they train one after another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iadd_fast.augment import Augmentation
from iadd_fast.fused import choices
from iadd_fast.fused.graphs import Replayed
from iadd_fast.fused.network import FusedNetwork
from iadd_fast.fused.passes import Passes
from iadd_fast.ops.backends import implementation
from iadd_fast.seeds import derive, generator
from iadd_fast.students import Student

TrainingSet = tuple[Tensor, Tensor]


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


class FusedTrainer:
    """One network in training: its parameters, momentum, gradient and batch, allocated once.

    Args:
        network: its sizes.
        recipe: how it is trained.
        images, labels: a training set of the shape and dtypes of those it will be trained on.
    """

    def __init__(
        self, network: FusedNetwork, recipe: Recipe, images: Tensor, labels: Tensor
    ) -> None:
        self.recipe = recipe
        count, size = network.num_parameters, min(recipe.batch_size, len(images))
        self.theta = images.new_zeros(count)
        # Zeros stay where no pass writes: the biases ahead of a norm. Weight decay and momentum
        # act on them as on the others.
        self.gradient, self.part = images.new_zeros(count), images.new_zeros(count)
        self.momentum = [images.new_zeros(count)] if recipe.momentum else []
        # On the device, for a captured step to follow the decay.
        self.rate = images.new_empty(())
        self._theta = network.vectors(self.theta)
        self._gradient, self._part = network.vectors(self.gradient), network.vectors(self.part)
        self.samples = choices.samples_at_once(network, size, images.device, images.element_size())
        self.passes = Passes(network, self.samples, images, tangents=False)
        self._workspace = self.passes.activations(self.samples)
        self._gathered = images.new_empty(size, *images.shape[1:])
        # Channels last, as the convolutions take them.
        self.inputs = torch.empty_like(self._gathered, memory_format=torch.channels_last)
        self.targets = labels.new_empty(size, *labels.shape[1:])
        self._augment = implementation("diff_augment", images)

    def start(self, theta: Tensor, images: Tensor, labels: Tensor, seed: int) -> None:
        """Begin anew with other parameters, data and randomness."""
        self.theta.copy_(theta)
        self.images, self.labels, self.seed = images, labels, seed
        self._draw = generator(seed, "order")
        self.rate.fill_(self.recipe.lr)
        self._drop_momentum()

    def begin(self, epoch: int) -> None:
        """Shuffle for an epoch."""
        if self.recipe.decays_at(epoch):
            self.rate.fill_(self.recipe.lr * 0.1)
            self._drop_momentum()
        order = torch.randperm(len(self.images), generator=self._draw).to(self.images.device)
        self._epoch, self._batches = epoch, order.split(self.recipe.batch_size)

    def load(self, number: int) -> None:
        """Gather and augment a batch of the epoch into the static inputs.

        Not part of a captured step: DSA picks a batch's family on the host.
        """
        batch, augment = self._batches[number], self.recipe.augment
        size = len(batch)
        images = torch.index_select(self.images, 0, batch, out=self._gathered[:size])
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


@torch.no_grad()
def train_fused(
    student: Student,
    thetas: Tensor,
    sets: Sequence[TrainingSet],
    seeds: Sequence[int],
    recipe: Recipe,
    on_epoch: Callable[[int, int, Tensor], None] | None = None,
    side_by_side: int | None = None,
) -> Tensor:
    """Train one or many networks of one architecture; the results do not depend on the grouping.

    Args:
        student: one that :func:`iadd_fast.fused.network.why_not` finds nothing against.
        thetas: first parameters ``[K, P]``, left unchanged.
        sets: K pairs, all of one shape and on the device of ``thetas``: images ``[N, C, H, W]`` of
            the dtype of ``thetas`` and labels, int64 ``[N]`` or probabilities ``[N, classes]``.
        seeds: K seeds of order and augmentation.
        recipe: how all of them are trained.
        on_epoch: called with (network, epochs done, theta) before the first and after each epoch
            of every network; it must copy what it keeps. On a CPU a network is through with its
            epochs before the next one begins, on a GPU a group goes through each together.
        side_by_side: networks of a group; default :func:`choices.networks_at_once`.

    Returns:
        The final parameters ``[K, P]``.
    """
    network = FusedNetwork(student)
    images, labels = sets[0]
    if side_by_side is None:
        side_by_side = choices.networks_at_once(
            network, min(recipe.batch_size, len(images)), thetas.device, thetas.element_size()
        )
    side_by_side = min(side_by_side, len(thetas))
    trainers = [FusedTrainer(network, recipe, images, labels) for _ in range(side_by_side)]
    steps: dict[tuple[int, int], Replayed] = {}
    finals = torch.empty_like(thetas)
    for first in range(0, len(thetas), side_by_side):
        group = range(first, min(first + side_by_side, len(thetas)))
        members = trainers[: len(group)]
        for trainer, index in zip(members, group, strict=True):
            trainer.start(thetas[index], *sets[index], seeds[index])
        told = None if on_epoch is None else functools.partial(_tell, on_epoch, members, group)
        _train_group(members, steps, len(images), recipe, told)
        for trainer, index in zip(members, group, strict=True):
            finals[index].copy_(trainer.theta)
    return finals


def _train_group(
    trainers: Sequence[FusedTrainer],
    steps: dict[tuple[int, int], Replayed],
    count: int,
    recipe: Recipe,
    told: Callable[[int], None] | None,
) -> None:
    if told is not None:
        told(0)
    for epoch in range(recipe.epochs):
        for trainer in trainers:
            trainer.begin(epoch)
        for number, begin in enumerate(range(0, count, recipe.batch_size)):
            for trainer in trainers:
                trainer.load(number)
            _step_of(trainers, steps, min(recipe.batch_size, count - begin))()
        if told is not None:
            told(epoch + 1)


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


def _tell(
    on_epoch: Callable[[int, int, Tensor], None],
    trainers: Sequence[FusedTrainer],
    group: range,
    epochs: int,
) -> None:
    for trainer, index in zip(trainers, group, strict=True):
        on_epoch(index, epochs, trainer.theta)


@torch.no_grad()
def count_right(
    student: Student, theta: Tensor, images: Tensor, labels: Tensor, batch_size: int
) -> Tensor:
    """How many of ``images`` have their largest logit at their label: int64 scalar on the device.

    Args:
        student, theta, images: as :func:`train_fused` takes them. labels: int64 ``[N]``.
        batch_size: most samples that go through the network at once; fewer where the cache is
            smaller than their activations.
    """
    network = FusedNetwork(student)
    batch = min(batch_size, len(images))
    samples = choices.samples_at_once(network, batch, images.device, images.element_size())
    passes = Passes(network, samples, images, tangents=False)
    buffers = passes.activations(samples)
    vectors = network.vectors(theta)
    right = torch.zeros((), dtype=torch.int64, device=images.device)
    for part, wanted in zip(images.split(samples), labels.split(samples), strict=True):
        inputs = part.contiguous(memory_format=torch.channels_last)
        logits = passes.forward(vectors, inputs, buffers.first(len(part)))
        right += (logits.argmax(1) == wanted).sum()
    return right
