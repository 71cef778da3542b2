"""Testing a network on the fused forward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from iadd_fast.fused.network import FusedNetwork
from iadd_fast.fused.passes import Passes
from iadd_fast.students import Student


@torch.no_grad()
def count_right(
    student: Student, theta: Tensor, images: Tensor, labels: Tensor, samples: int
) -> Tensor:
    """How many of ``images`` have their largest logit at their label: int64 scalar.

    An image whose logits are not all finite is not among them.

    Args:
        student: one that :func:`iadd_fast.fused.network.why_not` finds nothing against.
        theta: its parameters ``[P]``; the result is on their device.
        images: ``[N, C, H, W]`` of theta's dtype, on its device or on the CPU, from where each part
            is copied. labels: int64 ``[N]``.
        samples: most images that go through the network at once.
    """
    network = FusedNetwork(student)
    like = theta.new_empty(0)
    passes = Passes(network, samples, like, tangents=False)
    buffers = passes.activations(samples)
    vectors = network.vectors(theta)
    right = torch.zeros((), dtype=torch.int64, device=theta.device)
    for part, wanted in zip(images.split(samples), labels.split(samples), strict=True):
        inputs = part.to(theta.device).contiguous(memory_format=torch.channels_last)
        logits = passes.forward(vectors, inputs, buffers.first(len(part)))
        hit = logits.argmax(1) == wanted.to(theta.device)
        right += (hit & logits.isfinite().all(1)).sum()
    return right
