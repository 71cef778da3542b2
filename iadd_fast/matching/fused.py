"""Gradients of two batches and the derivative of one's images' gradient, on the fused passes."""

from __future__ import annotations

import torch
from torch import Tensor

from iadd_fast.fused import choices
from iadd_fast.fused.activations import Activations
from iadd_fast.fused.network import FusedNetwork, Vectors
from iadd_fast.fused.passes import Passes
from iadd_fast.students import Student

Batch = tuple[Tensor, Tensor]


class FusedGradients:
    """The passes of a student with the buffers that stay from call to call.

    The synthetic batch's activations are kept from :meth:`gradients` to :meth:`along`, so that its
    forward and backward run once (the first convolution is made again where the batch goes through
    in several chunks, which share that buffer).

    Args:
        student: one that :func:`iadd_fast.fused.network.why_not` finds nothing against.
    """

    def __init__(self, student: Student) -> None:
        self.network = FusedNetwork(student)
        self._real: _Chunks | None = None
        self._synthetic: _Chunks | None = None
        self._most: int | None = None

    def let_go(self) -> None:
        """Drop the buffers, which the next call makes anew."""
        self._real = self._synthetic = None

    def lower(self, theta: Tensor, batch: int) -> tuple[int, int] | None:
        """Halve the samples that go through the network at once: (before, after).

        None where it is one already. It changes the results in their rounding.
        """
        before = self._samples(theta, batch)
        if before == 1:
            return None
        self._most = -(-before // 2)
        return before, self._most

    def _samples(self, theta: Tensor, batch: int) -> int:
        own = choices.samples_at_once(self.network, batch, theta.device, theta.element_size())
        return own if self._most is None else min(own, self._most)

    def gradients(self, theta: Tensor, real: Batch, synthetic: Batch) -> tuple[Tensor, Tensor]:
        """The gradients ``[P]`` of the mean cross-entropy on both; valid until the next call."""
        self._theta = self.network.vectors(theta)
        self._real = self._of(self._real, theta, real, tangents=False)
        self._synthetic = self._of(self._synthetic, theta, synthetic, tangents=True)
        return (
            self._real.gradient(self._theta, *real),
            self._synthetic.gradient(self._theta, *synthetic),
        )

    def along(self, direction: Tensor) -> Tensor:
        """Derivative along ``direction`` ``[P]`` of the gradient for the synthetic images."""
        assert self._synthetic is not None
        return self._synthetic.along(self._theta, self.network.vectors(direction))

    def _of(self, held: _Chunks | None, theta: Tensor, batch: Batch, tangents: bool) -> _Chunks:
        if held is not None and held.takes(theta, len(batch[0])):
            return held
        count = len(batch[0])
        return _Chunks(self.network, theta, count, self._samples(theta, count), tangents)


class _Chunks:
    """One batch of at most ``batch`` samples on its way through the network, chunk by chunk."""

    def __init__(
        self, network: FusedNetwork, theta: Tensor, batch: int, samples: int, tangents: bool
    ) -> None:
        self.network, self.batch, self.keeps = network, batch, tangents
        self.samples = samples
        self.passes = Passes(network, self.samples, theta, tangents=tangents)
        # Zeros stay where no pass writes: the biases ahead of a norm.
        self.total, self.part = torch.zeros_like(theta), torch.zeros_like(theta)
        chunks = -(-batch // self.samples) if tangents else 1
        self.buffers = [self.passes.activations(self.samples) for _ in range(chunks)]
        self.held: list[tuple[Tensor, Tensor, Tensor, Activations]] = []

    def takes(self, theta: Tensor, batch: int) -> bool:
        """Whether the buffers do for ``batch`` samples."""
        same = (theta.dtype, theta.device) == (self.total.dtype, self.total.device)
        return same and batch <= self.batch

    def gradient(self, theta: Vectors, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient of the mean cross-entropy for theta."""
        self.held.clear()
        for number, begin in enumerate(range(0, len(images), self.samples)):
            # Channels last, as the convolutions take them.
            inputs = images[begin : begin + self.samples].contiguous(
                memory_format=torch.channels_last
            )
            wanted = labels[begin : begin + self.samples]
            share = self.passes.share(len(inputs), len(images))
            at = self.buffers[number if self.keeps else 0].first(len(inputs))
            into = self.total if number == 0 else self.part
            self.passes.forward(theta, inputs, at)
            self.passes.backward(theta, inputs, wanted, share, at, self.network.vectors(into))
            if number > 0:
                self.total += self.part
            if self.keeps:
                self.held.append((inputs, wanted, share, at))
        return self.total

    def along(self, theta: Vectors, direction: Vectors) -> Tensor:
        """Derivative along ``direction`` of the gradient for the images of the last call."""
        parts = []
        for inputs, labels, share, at in self.held:
            if len(self.held) > 1:
                self.passes.first_convolution(theta, inputs, at)
            tangents = self.passes.tangent(theta, direction, inputs, labels, share, at, None)
            parts.append(tangents.images)
        return torch.cat(parts).contiguous()
