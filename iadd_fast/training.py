"""Training networks on sets held in memory: teachers, evaluation networks, baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from iadd_fast.augment import Augmentation
from iadd_fast.fused.network import FusedNetwork, why_not
from iadd_fast.fused.precision import check_tf32, products_in
from iadd_fast.fused.training import Recipe, TrainingSet, count_right, train_fused
from iadd_fast.seeds import derive, generator
from iadd_fast.students import Student

ENGINES = ("auto", "fused", "plain")


def train(
    student: Student,
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    *,
    lr: float,
    epochs: int,
    batch_size: int = 256,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    decay: bool = False,
    augment: Augmentation | None = None,
    seed: int = 0,
    on_epoch: Callable[[int, Tensor], None] | None = None,
    engine: str = "auto",
    precision: str = "float32",
) -> Tensor:
    """SGD on the mean cross-entropy, in shuffled batches (the last one may be smaller).

    Args:
        student: the network. theta: its first parameters ``[P]``, left unchanged.
        images: ``[N, ...]``. labels: int64 ``[N]`` or probabilities ``[N, classes]``.
        lr, epochs, batch_size, momentum, weight_decay: of SGD (PyTorch's conventions).
        decay: learning rate x 0.1 from epoch ``epochs // 2 + 1`` on, the momentum dropped there
            (MTT's ``evaluate_synset``).
        augment: applied to every batch with fresh draws.
        seed: fixes order and augmentation.
        on_epoch: called with (epochs done, theta) before the first and after every epoch; it must
            copy what it keeps.
        engine: ``"plain"``: autograd and torch's SGD, the definition, for any student; ``"fused"``:
            the closed form on the package's operators, equal to it up to rounding, for ConvNets
            with instance norm; ``"auto"``: fused where it applies.
        precision: of the products of convolutions and matrices: ``"float32"``, or ``"tf32"`` on a
            GPU; whatever torch's own switches say.

    Returns:
        The final parameters ``[P]``.

    Raises:
        ValueError: as :func:`train_many`.
    """
    student.check_theta(theta)
    told = None if on_epoch is None else lambda _, done, theta: on_epoch(done, theta)
    return train_many(
        student,
        theta[None],
        [(images, labels)],
        seeds=[seed],
        lr=lr,
        epochs=epochs,
        batch_size=batch_size,
        momentum=momentum,
        weight_decay=weight_decay,
        decay=decay,
        augment=augment,
        on_epoch=told,
        engine=engine,
        precision=precision,
    )[0]


def train_many(
    student: Student,
    thetas: Tensor,
    sets: Sequence[TrainingSet],
    *,
    seeds: Sequence[int],
    lr: float,
    epochs: int,
    batch_size: int = 256,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    decay: bool = False,
    augment: Augmentation | None = None,
    on_epoch: Callable[[int, int, Tensor], None] | None = None,
    at_once: int | None = None,
    engine: str = "auto",
    precision: str = "float32",
) -> Tensor:
    """:func:`train` for K networks: the same results, on a GPU several side by side.

    Args:
        student: the architecture of all. thetas: their first parameters ``[K, P]``.
        sets: pairs of images and labels, one for each network (all of the same size), or one for
            all.
        seeds: one of each network.
        on_epoch: called with (network, epochs done, theta); see :func:`train`. Networks may take
            turns: only the order within one is fixed.
        at_once: networks that train side by side; default: on a GPU as many as fill it. On a CPU
            they train one after another, as they do in engine plain.
        The others: as :func:`train` takes them, equal for all networks.

    Returns:
        The final parameters ``[K, P]``.

    Raises:
        ValueError: parameters, sets or seeds that do not fit together, no images, hard labels out
            of range, an unknown engine or precision, or engine fused where it does not apply.
    """
    if thetas.ndim != 2 or thetas.shape[1] != student.num_parameters:
        raise ValueError(
            f"thetas: got shape {tuple(thetas.shape)}; takes one row of {student.num_parameters} "
            "parameters for each network"
        )
    _check_sets(sets, seeds, len(thetas))
    check_tf32(precision, thetas)
    images = sets[0][0]
    fused = _is_fused(engine, student, thetas, images)
    if fused:
        for _, labels in sets:
            _check_labels(student, labels, thetas)
        if augment is not None:
            augment(images[:1], 0)  # its checks: the trainer calls the backend itself
    sets = list(sets) * len(thetas) if len(sets) == 1 else sets
    recipe = Recipe(lr, epochs, batch_size, momentum, weight_decay, decay, augment)
    thetas = thetas.detach()
    with products_in(precision, thetas.device):
        if fused:
            return train_fused(student, thetas, sets, seeds, recipe, on_epoch, at_once)
        return torch.stack(
            [
                _train_plain(student, thetas[k], *sets[k], seeds[k], recipe, k, on_epoch)
                for k in range(len(thetas))
            ]
        )


def _train_plain(
    student: Student,
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    seed: int,
    recipe: Recipe,
    network: int,
    on_epoch: Callable[[int, int, Tensor], None] | None,
) -> Tensor:
    theta = theta.clone().requires_grad_(True)

    def optimiser(rate: float) -> torch.optim.SGD:
        return torch.optim.SGD(
            [theta], lr=rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )

    sgd = optimiser(recipe.lr)
    draw = generator(seed, "order")
    if on_epoch is not None:
        on_epoch(network, 0, theta.detach())
    for epoch in range(recipe.epochs):
        if recipe.decays_at(epoch):
            sgd = optimiser(recipe.lr * 0.1)
        order = torch.randperm(len(images), generator=draw).to(images.device)
        for number, batch in enumerate(order.split(recipe.batch_size)):
            inputs = images[batch]
            if recipe.augment is not None:
                inputs = recipe.augment(inputs, derive(seed, "augment", epoch, number))
            loss = F.cross_entropy(student.apply(theta, inputs), labels[batch])
            (theta.grad,) = torch.autograd.grad(loss, theta)
            sgd.step()
        if on_epoch is not None:
            on_epoch(network, epoch + 1, theta.detach())
    return theta.detach()


@torch.no_grad()
def accuracy(
    student: Student, theta: Tensor, images: Tensor, labels: Tensor, batch_size: int = 1024
) -> float:
    """Share of ``images`` whose largest logit is at their label, in percent.

    Args:
        student: the network; the fused forward runs where it applies. theta: parameters ``[P]``.
        images: ``[N, ...]``. labels: int64 ``[N]``.
        batch_size: most images that go through the network at once.

    Raises:
        ValueError: no images, or parameters of another student.
    """
    if images.shape[0] == 0:
        raise ValueError("images: got none; an accuracy needs at least one")
    student.check_theta(theta)
    with products_in("float32", images.device):
        if _is_fused("auto", student, theta, images):
            right = count_right(student, theta, images, labels, batch_size)
        else:
            right = torch.zeros((), dtype=torch.int64, device=images.device)
            for part, wanted in zip(
                images.split(batch_size), labels.split(batch_size), strict=True
            ):
                right += (student.apply(theta, part).argmax(1) == wanted).sum()
    return 100.0 * int(right) / images.shape[0]


def _check_sets(sets: Sequence[TrainingSet], seeds: Sequence[int], networks: int) -> None:
    if len(seeds) != networks:
        raise ValueError(f"seeds: got {len(seeds)}; takes one for each of {networks} networks")
    if len(sets) not in (1, networks):
        raise ValueError(
            f"sets: got {len(sets)}; takes one for each of {networks} networks, or one for all"
        )
    kinds = {f"{_kind(images)} with labels {_kind(labels)}" for images, labels in sets}
    if len(kinds) > 1:
        raise ValueError(f"sets: got {' and '.join(sorted(kinds))}; takes sets of one kind")
    images, labels = sets[0]
    if len(images) == 0:
        raise ValueError("images: got none; training needs at least one")
    if len(labels) != len(images):
        raise ValueError(f"labels: got {len(labels)} for {len(images)} images; takes one for each")


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"


def _is_fused(engine: str, student: Student, theta: Tensor, images: Tensor) -> bool:
    if engine not in ENGINES:
        raise ValueError(f"engine: got {engine!r}; takes one of {', '.join(ENGINES)}")
    if engine == "plain":
        return False
    reason = _why_not_fused(student, theta, images)
    if engine == "fused" and reason is not None:
        raise ValueError(f"engine: got 'fused'; {reason}")
    return reason is None


def _why_not_fused(student: Student, theta: Tensor, images: Tensor) -> str | None:
    reason = why_not(student)
    if reason is not None:
        return reason
    if theta.dtype not in (torch.float32, torch.float64) or images.dtype != theta.dtype:
        return (
            "the fused passes take parameters and images in float32 or both in float64; got "
            f"{theta.dtype} and {images.dtype}"
        )
    sample = FusedNetwork(student).sample_shape
    if tuple(images.shape[1:]) != sample:
        return f"this student takes images of shape {sample}; got {tuple(images.shape[1:])}"
    if images.device != theta.device:
        return f"the parameters are on {theta.device}, the images on {images.device}"
    return None


def _check_labels(student: Student, labels: Tensor, thetas: Tensor) -> None:
    """The operators index with hard labels unchecked."""
    classes = FusedNetwork(student).classes
    if labels.is_floating_point():
        good = labels.ndim == 2 and labels.shape[1] == classes and labels.dtype == thetas.dtype
    else:
        good = labels.ndim == 1 and labels.dtype == torch.int64
    if not good or labels.device != thetas.device:
        raise ValueError(
            f"labels: got {labels.dtype} of shape {tuple(labels.shape)} on {labels.device}; takes "
            f"int64 [N] or {thetas.dtype} [N, {classes}] on {thetas.device}"
        )
    if labels.ndim == 1:
        least, largest = int(labels.min()), int(labels.max())
        if least < 0 or largest >= classes:
            raise ValueError(
                f"labels: got values from {least} to {largest}; takes 0 to {classes - 1}"
            )
