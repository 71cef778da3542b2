"""Forward, backward and the tangents of both through a ConvNet: the closed form on the operators.

Design: the exact meta-gradient, "the closed form for one block". All passes work on one chunk of a
batch; ``share`` is the part of the batch's mean loss that its samples make. Gradients for the
parameters are written into views of one flat vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from iadd_fast.fused.activations import Activations, planes_like
from iadd_fast.fused.network import FusedNetwork, Vectors
from iadd_fast.ops.backends import backend_of, implementation


@dataclass
class Tangents:
    """What :meth:`Passes.tangent` finds for one chunk.

    loss: derivative of the loss along the direction, that is its product with the gradient.
    images, labels: derivatives of the gradients for the inputs and (soft) labels.
    """

    loss: Tensor
    images: Tensor
    labels: Tensor | None


class Passes:
    """The four passes of one network for chunks of at most ``samples``.

    Args:
        network: the network's sizes.
        samples: most samples of a call.
        like: a tensor of the dtype and on the device of the activations.
        tangents: whether :meth:`tangent` will be called, which needs buffers of its own.
    """

    def __init__(
        self, network: FusedNetwork, samples: int, like: Tensor, *, tangents: bool = True
    ) -> None:
        self.network = network
        self._like = like[:0]
        self._shares: dict[tuple[int, int], Tensor] = {}
        self.convolution: Any = implementation("conv3x3", like)
        self.planes: Any = implementation("norm_relu_pool", like)
        self.entropy: Any = implementation("softmax_cross_entropy", like)
        self.static = backend_of("conv3x3", like) == "cpp"
        blocks = network.blocks
        self._z: list[Tensor | None] = [None] * len(blocks)
        self._dz, self._zdot, self._dzdot = list(self._z), list(self._z), list(self._z)
        self._pdot, self._dpdot = list(self._z), list(self._z)
        # Gradients of a norm that nobody asked for, but the operator writes.
        self._unwanted = (like.new_empty(network.width), like.new_empty(network.width))
        if not self.static:
            return
        for d, block in enumerate(blocks):
            self._dz[d] = planes_like(network, samples, block.side, like)
            if tangents:
                self._zdot[d] = planes_like(network, samples, block.side, like)
                self._dzdot[d] = planes_like(network, samples, block.side, like)
                self._pdot[d] = planes_like(network, samples, block.pooled, like)
                self._dpdot[d] = planes_like(network, samples, block.pooled, like)
        self._z[0] = planes_like(network, samples, blocks[0].side, like)

    def activations(self, samples: int) -> Activations:
        """Where the values of a chunk go: buffers where the passes write into such."""
        if not self.static:
            return Activations.empty(self.network)
        return Activations.static(self.network, samples, self._like)

    def share(self, samples: int, batch: int) -> Tensor:
        """The part that ``samples`` make of a batch's mean loss, a scalar made once."""
        key = (samples, batch)
        if key not in self._shares:
            exact = torch.float64 if self._like.dtype == torch.float64 else torch.float32
            self._shares[key] = self._like.new_tensor(samples / batch, dtype=exact)
        return self._shares[key]

    def forward(self, theta: Vectors, images: Tensor, at: Activations) -> Tensor:
        """Logits of ``images``; fills z, p and logits of ``at``, the first z of the passes."""
        x = images
        for d in range(len(theta.blocks)):
            z = self._convolved(theta, x, d, at)
            x = at.p[d] = self.planes.norm_relu_pool(
                z, theta.blocks[d].gamma, theta.blocks[d].beta, self.network.eps, True, out=at.p[d]
            )
        at.logits = torch.addmm(theta.bias, _features(x), theta.weight.t())
        return at.logits

    def first_convolution(self, theta: Vectors, images: Tensor, at: Activations) -> None:
        """Make the first z again, for activations that were kept without it."""
        self._convolved(theta, images, 0, at)

    def _convolved(self, theta: Vectors, x: Tensor, d: int, at: Activations) -> Tensor:
        buffer = _first(self._z[0], x) if d == 0 else at.z[d]
        z: Tensor = self.convolution.conv3x3(
            x, theta.blocks[d].weight, self.network.blocks[d].padding, out=buffer
        )
        at.z[d] = z
        return z

    def backward(
        self,
        theta: Vectors,
        images: Tensor,
        labels: Tensor,
        share: Tensor,
        at: Activations,
        gradient: Vectors | None,
    ) -> None:
        """Fill dlogits and dp of ``at``, and ``gradient`` where the parameters' is wanted."""
        assert at.logits is not None
        x = _known(at.p[-1])
        at.dlogits = self.entropy.softmax_cross_entropy_backward(at.logits, labels, share, None)[0]
        dlogits = _known(at.dlogits)
        if gradient is not None:
            gradient.weight.copy_(dlogits.t() @ _features(x))
            gradient.bias.copy_(dlogits.sum(0))
        at.dp[-1] = _as_planes(dlogits @ theta.weight, x, at.dp[-1])
        for d in reversed(range(len(theta.blocks))):
            if d == 0 and gradient is None:
                return
            dz = self._normed_backward(theta, d, at, gradient)
            x = images if d == 0 else _known(at.p[d - 1])
            dx, _ = self.convolution.conv3x3_backward(
                x,
                theta.blocks[d].weight,
                dz,
                self.network.blocks[d].padding,
                want_dx=d > 0,
                want_dweight=gradient is not None,
                out=(
                    at.dp[d - 1] if d > 0 else None,
                    None if gradient is None else gradient.blocks[d].weight,
                ),
            )
            if d > 0:
                at.dp[d - 1] = dx

    def _normed_backward(
        self, theta: Vectors, d: int, at: Activations, gradient: Vectors | None
    ) -> Tensor:
        block, z = theta.blocks[d], _known(at.z[d])
        buffer = _first(self._dz[d], z)
        out = None
        if gradient is not None:
            into = gradient.blocks[d]
            out = (torch.empty_like(z) if buffer is None else buffer, into.gamma, into.beta)
        elif buffer is not None:
            out = (buffer, self._unwanted[0], self._unwanted[1])
        dz: Tensor = self.planes.norm_relu_pool_backward(
            z, block.gamma, block.beta, _known(at.dp[d]), self.network.eps, True, out=out
        )[0]
        return dz

    def tangent(
        self,
        theta: Vectors,
        direction: Vectors,
        images: Tensor,
        labels: Tensor,
        share: Tensor,
        at: Activations,
        change: Vectors | None,
    ) -> Tangents:
        """Derivative along ``direction`` of the loss and of its gradients.

        ``at`` holds the values of :meth:`forward` and :meth:`backward`. The derivative of the
        parameters' gradient is written into ``change``, where it is wanted.
        """
        zdots: list[Tensor] = []
        xdots: list[Tensor | None] = []
        x = images
        xdot: Tensor | None = None
        for d, (block, dot) in enumerate(zip(theta.blocks, direction.blocks, strict=True)):
            zdot = self.convolution.conv3x3_tangent(
                x,
                block.weight,
                xdot,
                dot.weight,
                self.network.blocks[d].padding,
                out=_first(self._zdot[d], x),
            )
            zdots.append(zdot)
            xdots.append(xdot)
            xdot = self.planes.norm_relu_pool_tangent(
                _known(at.z[d]),
                block.gamma,
                block.beta,
                zdot,
                dot.gamma,
                dot.beta,
                self.network.eps,
                True,
                out=_first(self._pdot[d], x),
            )
            x = _known(at.p[d])
        logits, dlogits = _known(at.logits), _known(at.dlogits)
        features, featuresdot = _features(x), _features(_known(xdot))
        logitsdot = torch.addmm(direction.bias, features, direction.weight.t())
        logitsdot = torch.addmm(logitsdot, featuresdot, theta.weight.t())
        loss = (dlogits * logitsdot).sum()
        dlogitsdot, dlabelsdot = self.entropy.softmax_cross_entropy_backward_tangent(
            logits, labels, share, logitsdot, None, None, None
        )
        if change is not None:
            change.weight.copy_(torch.addmm(dlogits.t() @ featuresdot, dlogitsdot.t(), features))
            change.bias.copy_(dlogitsdot.sum(0))
        dfeatures = torch.addmm(dlogits @ direction.weight, dlogitsdot, theta.weight)
        dpdot = _as_planes(dfeatures, x, _first(self._dpdot[-1], x))
        for d in reversed(range(len(theta.blocks))):
            dz, dzdot = self._normed_tangent(theta, direction, d, at, zdots[d], dpdot, change)
            x = images if d == 0 else _known(at.p[d - 1])
            dpdot, _ = self.convolution.conv3x3_backward_tangent(
                x,
                theta.blocks[d].weight,
                dz,
                xdots[d],
                direction.blocks[d].weight,
                dzdot,
                self.network.blocks[d].padding,
                want_dweight=change is not None,
                out=(
                    _first(self._dpdot[d - 1], x) if d > 0 else None,
                    None if change is None else change.blocks[d].weight,
                ),
            )
        return Tangents(loss, dpdot, dlabelsdot)

    def _normed_tangent(
        self,
        theta: Vectors,
        direction: Vectors,
        d: int,
        at: Activations,
        zdot: Tensor,
        dpdot: Tensor,
        change: Vectors | None,
    ) -> tuple[Tensor, Tensor]:
        """The gradient for z and its tangent, which share what they read."""
        block, dot = theta.blocks[d], direction.blocks[d]
        into = self._unwanted
        if change is not None:
            into = (change.blocks[d].gamma, change.blocks[d].beta)
        z = _known(at.z[d])
        dz, dzdot = _first(self._dz[d], z), _first(self._dzdot[d], z)
        dz = torch.empty_like(z) if dz is None else dz
        dzdot = torch.empty_like(z) if dzdot is None else dzdot
        self.planes.norm_relu_pool_backward_tangent(
            z,
            block.gamma,
            block.beta,
            _known(at.dp[d]),
            zdot,
            dot.gamma,
            dot.beta,
            dpdot,
            self.network.eps,
            True,
            out=(dzdot, *into),
            dz=dz,
        )
        return dz, dzdot


def _known(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _first(buffer: Tensor | None, like: Tensor) -> Tensor | None:
    """The rows of a static buffer for as many samples as ``like`` has."""
    return None if buffer is None else buffer[: like.shape[0]]


def _features(planes: Tensor) -> Tensor:
    """``[N, C h w]`` in the order of the classifier's weight, whatever the memory format."""
    return planes.contiguous().flatten(1)


def _as_planes(features: Tensor, like: Tensor, buffer: Tensor | None) -> Tensor:
    """The transpose of :func:`_features`, in the memory format of ``like``."""
    planes = features.view(like.shape)
    if buffer is None:
        return planes.contiguous(memory_format=torch.channels_last)
    return buffer.copy_(planes)
