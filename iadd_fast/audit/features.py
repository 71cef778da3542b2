"""What a network makes of samples: its logits, and the features that its last layer reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from iadd_fast.fused import choices
from iadd_fast.fused.network import FusedNetwork, why_not
from iadd_fast.fused.passes import Passes
from iadd_fast.fused.precision import products_in
from iadd_fast.students import Student


def features(student: Student, theta: Tensor, images: Tensor, batch_size: int = 1024) -> Tensor:
    """``[N, F]``: the input of the last ``nn.Linear`` that runs, flattened per sample.

    The flattened logits where no ``nn.Linear`` runs on one entry a sample. One forward pass, by the
    fused operators where they apply; products in float32, also on a GPU.

    Args:
        student: the network. theta: its parameters ``[P]``.
        images: ``[N, ...]`` in the space of the network's training.
        batch_size: most samples that go through the network at once.

    Raises:
        ValueError: no images, parameters of another student, or ``batch_size`` below 1.
    """
    return _passed(0, student, theta, images, batch_size)


def logits(student: Student, theta: Tensor, images: Tensor, batch_size: int = 1024) -> Tensor:
    """``[N, classes]``; arguments, cost and errors as :func:`features`."""
    return _passed(1, student, theta, images, batch_size)


@torch.no_grad()
def _passed(
    wanted: int, student: Student, theta: Tensor, images: Tensor, batch_size: int
) -> Tensor:
    if len(images) == 0:
        raise ValueError("images: got none; takes at least one")
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}; takes a whole number of at least 1")
    student.check_theta(theta)
    fused = why_not(student) is None and theta.dtype == images.dtype == torch.float32
    run = _fused if fused else _plain
    with products_in("float32", images.device):
        return torch.cat([pair[wanted] for pair in run(student, theta, images, batch_size)])


def _plain(
    student: Student, theta: Tensor, images: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    seen: list[Tensor] = []

    def before(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen[:] = [arguments[0]]

    linears = [part for part in student.module.modules() if isinstance(part, nn.Linear)]
    hooks = [part.register_forward_pre_hook(before) for part in linears]
    try:
        for part in images.split(batch_size):
            seen.clear()
            logits = student.apply(theta, part)
            last = seen[0] if seen and len(seen[0]) == len(part) else logits
            yield last.flatten(1).clone(), logits
    finally:
        for hook in hooks:
            hook.remove()


def _fused(
    student: Student, theta: Tensor, images: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    network = FusedNetwork(student)
    batch = min(batch_size, len(images))
    samples = choices.samples_at_once(network, batch, images.device, images.element_size())
    passes = Passes(network, samples, images, tangents=False)
    buffers = passes.activations(samples)
    vectors = network.vectors(theta)
    for part in images.split(samples):
        at = buffers.first(len(part))
        inputs = part.contiguous(memory_format=torch.channels_last)
        logits = passes.forward(vectors, inputs, at)
        last = at.p[-1]
        assert last is not None
        # Planes of 1x1, flattened, are a view of the buffer that the next part overwrites.
        yield last.flatten(1).clone(), logits
