"""Training one network on a set held in memory: teachers, evaluation networks, baselines."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from iadd_fast.augment import Augmentation
from iadd_fast.seeds import derive, generator
from iadd_fast.students import Student


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

    Returns:
        The final parameters ``[P]``.
    """
    theta = theta.detach().clone().requires_grad_(True)
    count = images.shape[0]

    def optimiser(rate: float) -> torch.optim.SGD:
        return torch.optim.SGD([theta], lr=rate, momentum=momentum, weight_decay=weight_decay)

    sgd = optimiser(lr)
    draw = generator(seed, "order")
    if on_epoch is not None:
        on_epoch(0, theta.detach())
    for epoch in range(epochs):
        if decay and epoch == epochs // 2 + 1:
            sgd = optimiser(lr * 0.1)
        order = torch.randperm(count, generator=draw).to(images.device)
        for number, batch in enumerate(order.split(batch_size)):
            inputs = images[batch]
            if augment is not None:
                inputs = augment(inputs, derive(seed, "augment", epoch, number))
            loss = F.cross_entropy(student.apply(theta, inputs), labels[batch])
            (theta.grad,) = torch.autograd.grad(loss, theta)
            sgd.step()
        if on_epoch is not None:
            on_epoch(epoch + 1, theta.detach())
    return theta.detach()


@torch.no_grad()
def accuracy(
    student: Student, theta: Tensor, images: Tensor, labels: Tensor, batch_size: int = 1024
) -> float:
    """Share of ``images`` whose largest logit is at their label, in percent.

    Raises:
        ValueError: no images.
    """
    if images.shape[0] == 0:
        raise ValueError("images: got none; an accuracy needs at least one")
    right = torch.zeros((), dtype=torch.int64, device=images.device)
    for part, wanted in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        right += (student.apply(theta, part).argmax(1) == wanted).sum()
    return 100.0 * int(right) / images.shape[0]
