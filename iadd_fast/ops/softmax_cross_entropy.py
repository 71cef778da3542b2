"""``softmax_cross_entropy``: the mean cross-entropy of a batch, hard or soft labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from iadd_fast.ops import chain, registered
from iadd_fast.ops.backends import implementation
from iadd_fast.ops.checks import check_classes, check_entropy


def softmax_cross_entropy(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None = None
) -> Tensor:
    """``- sum_nc t_nc log softmax(logits)_nc`` with the labels as targets t, averaged.

    Equivalent to ``F.cross_entropy(logits, labels, weight=class_weights)``: with hard labels the
    mean is weighted by each sample's class weight (weights of one over a class's count give every
    class the same share), with soft labels it is over the samples.

    Args:
        logits: ``[N, C]``, any strides.
        labels: classes ``[N]`` (int64), or probabilities ``[N, C]`` of the logits' dtype (they need
            not sum to one). On a GPU a class outside 0 .. C-1 gives NaN, not an error.
        class_weights: ``[C]`` of the logits' dtype, held constant, or None for 1.

    Returns:
        A scalar of the logits' dtype; float32 for bfloat16 and float16, whose arithmetic it is.

    Differentiable in logits and soft labels to second order, in reverse and forward mode and both
    mixed; a third derivative raises NotImplementedError.

    Raises:
        ValueError: a dtype, shape or device that does not fit, a class out of range (on the CPU),
            or class weights that require a gradient.
    """
    check_entropy(logits, labels, class_weights)
    if torch.compiler.is_compiling():
        compiled: Tensor = registered.softmax_cross_entropy(logits, labels, class_weights)
        return compiled
    check_classes(logits, labels)
    kernels = implementation("softmax_cross_entropy", logits)
    if labels.is_floating_point():
        return chain.apply(_Soft(kernels, class_weights), logits, labels)
    return chain.apply(_Hard(kernels, class_weights, labels), logits)


@dataclass(frozen=True)
class _Soft:
    """Logits and labels are differentiated."""

    kernels: Any
    class_weights: Tensor | None
    name: str = "softmax_cross_entropy"

    def forward(self, x: Any) -> Tensor:
        return self.kernels.softmax_cross_entropy(*x, self.class_weights)

    def backward(self, x: Any, dy: Tensor) -> Any:
        return self.kernels.softmax_cross_entropy_backward(*x, dy, self.class_weights)

    def tangent(self, x: Any, xdot: Any) -> Tensor:
        return self.kernels.softmax_cross_entropy_tangent(*x, *xdot, self.class_weights)

    def backward_tangent(self, x: Any, dy: Tensor, xdot: Any, dydot: Tensor | None) -> Any:
        kernel = self.kernels.softmax_cross_entropy_backward_tangent
        return kernel(*x, dy, *xdot, dydot, self.class_weights)


@dataclass(frozen=True)
class _Hard:
    """Logits are differentiated; the classes are constants."""

    kernels: Any
    class_weights: Tensor | None
    labels: Tensor
    name: str = "softmax_cross_entropy"

    def forward(self, x: Any) -> Tensor:
        return self.kernels.softmax_cross_entropy(*x, self.labels, self.class_weights)

    def backward(self, x: Any, dy: Tensor) -> Any:
        kernel = self.kernels.softmax_cross_entropy_backward
        return kernel(*x, self.labels, dy, self.class_weights)[:1]

    def tangent(self, x: Any, xdot: Any) -> Tensor:
        kernel = self.kernels.softmax_cross_entropy_tangent
        return kernel(*x, self.labels, *xdot, None, self.class_weights)

    def backward_tangent(self, x: Any, dy: Tensor, xdot: Any, dydot: Tensor | None) -> Any:
        kernel = self.kernels.softmax_cross_entropy_backward_tangent
        return kernel(*x, self.labels, dy, *xdot, None, dydot, self.class_weights)[:1]
