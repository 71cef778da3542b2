"""Training networks on sets held in memory: teachers, evaluation networks, baselines."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from iadd_fast import arguments
from iadd_fast.augment import Augmentation
from iadd_fast.fused import choices
from iadd_fast.fused.counting import count_right
from iadd_fast.fused.network import FusedNetwork
from iadd_fast.fused.precision import check_tf32, products_in
from iadd_fast.fused.training import (
    TESTING,
    OnEpoch,
    Recipe,
    State,
    TrainingSet,
    let_go_of_unrolls,
    train_fused,
)
from iadd_fast.memory import Done, attempt, going_on, nothing_helps
from iadd_fast.seeds import derive, generator
from iadd_fast.students import Student, check_labels
from iadd_fast.training_inputs import check_sets, checked_states, is_fused, recipe_of

#: Share of a GPU's free memory that a data set may take there; a larger one stays on the host.
SHARE_OF_FREE = 0.5


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
        images: ``[N, ...]``, on theta's device or on the CPU (memory-mapped, say), from where each
            batch is copied: the same results. labels: int64 ``[N]`` or probabilities
            ``[N, classes]``.
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
    arguments.instance("student", student, Student, "a Student")
    student.check_theta(theta)
    told = None if on_epoch is None else lambda _, state: on_epoch(state.epochs, state.theta)
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
    on_epoch: OnEpoch | None = None,
    at_once: int | None = None,
    engine: str = "auto",
    precision: str = "float32",
    begun: Mapping[int, State] | None = None,
    on_round: Callable[[], None] | None = None,
) -> Tensor:
    """:func:`train` for K networks: the same results, on a GPU several side by side.

    Args:
        student: the architecture of all. thetas: their first parameters ``[K, P]``.
        sets: pairs of images and labels, one for each network (all of the same size), or one for
            all.
        seeds: one of each network.
        on_epoch: called with (network, its :class:`~iadd_fast.fused.training.State`); see
            :func:`train`. Networks may take turns: only the order within one is fixed.
        at_once: networks that train side by side; default: on a GPU as many as fill it. On a CPU
            they train one after another, as they do in engine plain.
        begun: states that ``on_epoch`` was told of in an earlier call, by the network's number.
            They go on there, to the same bits as if they had never stopped, whatever their row of
            ``thetas`` holds; ``on_epoch`` is told of what comes after.
        on_round: called after ``on_epoch`` was told of all that train side by side: no network is
            in the middle of an epoch then.
        The others: as :func:`train` takes them, equal for all networks.

    Returns:
        The final parameters ``[K, P]``.

    Raises:
        TypeError, ValueError: parameters, sets or seeds that do not fit together, no images, labels
            that are not the student's classes, a value out of range, an unknown engine or
            precision, or engine fused where it does not apply.
        OutOfMemory: memory ran out, and no smaller way is left; names the settings to lower.

    Warns:
        UserWarning: memory ran out in engine fused, which goes on with fewer networks at once.
    """
    arguments.instance("student", student, Student, "a Student")
    arguments.tensor("thetas", thetas)
    good = thetas.is_floating_point() and thetas.ndim == 2 and len(thetas) > 0
    if not good or thetas.shape[1] != student.num_parameters:
        raise ValueError(
            f"thetas: got {arguments.shown(thetas)}; takes one row of {student.num_parameters} "
            "parameters for each network"
        )
    recipe = recipe_of(lr, epochs, batch_size, momentum, weight_decay, decay, augment)
    if at_once is not None:
        at_once = arguments.whole("at_once", at_once)
    check_sets(sets, seeds, len(thetas))
    begun = checked_states(begun, thetas, recipe)
    check_tf32(precision, thetas)
    images = sets[0][0]
    fused = is_fused(engine, student, thetas, images)
    if fused:
        for _, labels in sets:
            check_labels(labels, len(images), FusedNetwork(student).classes, thetas.dtype)
        if augment is not None:
            augment(images[:1], 0)  # its checks: the trainer calls the backend itself
    else:
        for images, labels in sets:
            student.check_samples(thetas[0], images, labels)
    sets = [(images, labels.to(thetas.device)) for images, labels in sets]
    sets = sets * len(thetas) if len(sets) == 1 else sets
    thetas = thetas.detach()
    with products_in(precision, thetas.device):
        if fused:
            return train_fused(
                student, thetas, sets, seeds, recipe, on_epoch, at_once, begun, on_round
            )
        return torch.stack(
            [
                _train_plain(
                    student,
                    thetas[k],
                    *sets[k],
                    seeds[k],
                    recipe,
                    k,
                    on_epoch,
                    begun.get(k),
                    on_round,
                )
                for k in range(len(thetas))
            ]
        )


def placed(images: Tensor, device: torch.device) -> Tensor:
    """``images`` on ``device`` where half of its free memory holds them, else where they are.

    What stays on the host costs a copy a batch, which runs beside the computation.
    """
    if device.type == "cuda" and images.device != device:
        free, _ = torch.cuda.mem_get_info(device)
        if images.nbytes > SHARE_OF_FREE * free:
            return images
    return images.to(device)


def _train_plain(
    student: Student,
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    seed: int,
    recipe: Recipe,
    network: int,
    on_epoch: OnEpoch | None,
    begun: State | None,
    on_round: Callable[[], None] | None,
) -> Tensor:
    done, momentum = 0, None
    if begun is not None:
        done, theta, momentum = begun.epochs, begun.theta, begun.momentum
    theta = theta.clone().requires_grad_(True)

    def optimiser(rate: float) -> torch.optim.SGD:
        return torch.optim.SGD(
            [theta], lr=rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )

    def state(epochs: int) -> State:
        buffer = sgd.state[theta].get("momentum_buffer")
        if recipe.momentum and buffer is None:
            buffer = torch.zeros_like(theta)
        return State(epochs, theta.detach(), buffer if recipe.momentum else None)

    sgd = optimiser(recipe.rate_after(done))
    if momentum is not None:
        sgd.state[theta]["momentum_buffer"] = momentum.clone()
    draw = generator(seed, "order")
    for _ in range(done):
        torch.randperm(len(images), generator=draw)
    if on_epoch is not None and begun is None:
        on_epoch(network, state(0))
    for epoch in range(done, recipe.epochs):
        if recipe.decays_at(epoch):
            sgd = optimiser(recipe.lr * 0.1)
        order = torch.randperm(len(images), generator=draw).to(images.device)
        for number, batch in enumerate(order.split(recipe.batch_size)):
            inputs = images[batch].to(theta.device)
            if recipe.augment is not None:
                inputs = recipe.augment(inputs, derive(seed, "augment", epoch, number))
            wanted = labels[batch.to(labels.device)]
            gradient = attempt(
                functools.partial(_gradient, student, theta, inputs, wanted), theta.device
            )
            if not isinstance(gradient, Done):
                what = f"training on batches of {len(batch)}"
                raise nothing_helps(what, gradient, [_batch_size(len(batch))])
            theta.grad = gradient.value
            sgd.step()
        if on_epoch is not None:
            on_epoch(network, state(epoch + 1))
        if on_round is not None:
            on_round()
    return theta.detach()


def _gradient(student: Student, theta: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
    loss = F.cross_entropy(student.apply(theta, inputs), labels)
    return torch.autograd.grad(loss, theta)[0]


def _batch_size(size: int) -> str:
    return f"batch_size: got {size}; try {size // 2}" if size > 1 else "the size of the student"


@torch.no_grad()
def accuracy(
    student: Student, theta: Tensor, images: Tensor, labels: Tensor, batch_size: int = 1024
) -> float:
    """Share of ``images`` whose largest logit is at their label, in percent.

    An image whose logits are not all finite counts as wrong: a diverged network has 0 %, not the
    share of the class at which ``argmax`` finds the first NaN.

    Args:
        student: the network; the fused forward runs where it applies. theta: parameters ``[P]``.
        images: ``[N, ...]``, on theta's device or elsewhere, from where each batch is copied.
            labels: int64 ``[N]``.
        batch_size: most images that go through the network at once. Where memory runs out it is
            halved (with a warning), which the student's following tests begin with.

    Raises:
        TypeError, ValueError: no images, images or parameters of another student, or labels that
            are not its classes.
        OutOfMemory: memory runs out for a single image.
    """
    arguments.instance("student", student, Student, "a Student")
    arguments.tensor("images", images)
    if images.ndim == 0 or images.shape[0] == 0:
        raise ValueError("images: got none; an accuracy needs at least one")
    student.check_theta(theta)
    batch_size = arguments.whole("batch_size", batch_size)
    device, size = theta.device, min(batch_size, len(images))
    fused = is_fused("auto", student, theta, images)
    if arguments.tensor("labels", labels).is_floating_point():
        raise ValueError(f"labels: got {labels.dtype}; an accuracy takes int64 [{len(images)}]")
    if fused:
        check_labels(labels, len(images), FusedNetwork(student).classes, theta.dtype)
        itemsize = images.element_size()
        size = choices.samples_at_once(FusedNetwork(student), size, device, itemsize)
    else:
        student.check_samples(theta, images, labels)
    sizes: dict[tuple[object, ...], int] = student.compiled.setdefault(TESTING, {})
    size = min(size, sizes.get((device, theta.dtype), size))
    with products_in("float32", device):
        while True:
            count = functools.partial(
                count_right if fused else _count_right, student, theta, images, labels, size
            )
            right = attempt(count, device)
            if isinstance(right, Done):
                return 100.0 * int(right.value) / images.shape[0]
            what = f"testing {size} images at once"
            if let_go_of_unrolls(student, what, right):
                continue
            if size == 1:
                raise nothing_helps(what, right, ["the size of the student or of the images"])
            size = sizes[device, theta.dtype] = -(-size // 2)
            going_on(what, right, f"with {size} at once", f"batch_size={size}")


def _count_right(
    student: Student, theta: Tensor, images: Tensor, labels: Tensor, size: int
) -> Tensor:
    right = torch.zeros((), dtype=torch.int64, device=theta.device)
    for part, wanted in zip(images.split(size), labels.split(size), strict=True):
        logits = student.apply(theta, part.to(theta.device))
        hit = logits.argmax(1) == wanted.to(theta.device)
        right += (hit & logits.isfinite().all(1)).sum()
    return right
