"""``conv3x3``: the 3x3 convolution of a ConvNet's blocks, differentiable twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from iadd_fast.ops import chain
from iadd_fast.ops.backends import implementation
from iadd_fast.ops.checks import check_convolution


def conv3x3(x: Tensor, weight: Tensor, padding: int = 1) -> Tensor:
    """``F.conv2d(x, weight, padding=padding)`` for 3x3 weights: ``z = sum over taps of w x``.

    On a CPU compiled by Winograd's F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308): 2.25 times fewer
    multiplications, with a float32 error of the direct sum's size. Its two derivatives are
    convolutions of the same three kinds, the two terms of a second derivative in one pass.

    Args:
        x: ``[N, Cin, H, W]``, any strides; channels-last is read as it lies.
        weight: ``[Cout, Cin, 3, 3]`` of x's dtype and device.
        padding: zeros around the image, 0 to 3.

    Returns:
        ``[N, Cout, H + 2 padding - 2, W + 2 padding - 2]`` in x's dtype.

    Differentiable in x and weight to second order, in reverse and forward mode and both mixed; a
    third derivative raises NotImplementedError. Under ``torch.compile`` it is ``F.conv2d``.

    Raises:
        ValueError: a dtype, shape, device or padding that does not fit; a result without pixels.
    """
    padding = check_convolution(x, weight, padding)
    if torch.compiler.is_compiling():
        return F.conv2d(x, weight, padding=padding)
    return chain.apply(_Conv3x3(implementation("conv3x3", x), padding), x, weight)


@dataclass(frozen=True)
class _Conv3x3:
    kernels: Any
    padding: int
    name: str = "conv3x3"

    def forward(self, x: Any) -> Tensor:
        return self.kernels.conv3x3(*x, self.padding)

    def backward(self, x: Any, dy: Tensor) -> Any:
        return self.kernels.conv3x3_backward(*x, dy, self.padding)

    def tangent(self, x: Any, xdot: Any) -> Tensor:
        return self.kernels.conv3x3_tangent(*x, *xdot, self.padding)

    def backward_tangent(self, x: Any, dy: Tensor, xdot: Any, dydot: Tensor | None) -> Any:
        dydot = torch.zeros_like(dy) if dydot is None else dydot
        return self.kernels.conv3x3_backward_tangent(*x, dy, *xdot, dydot, self.padding)
