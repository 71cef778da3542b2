"""3x3 convolution, stride 1, no bias: the definition, by PyTorch's own convolutions.

``z = conv(x, w)`` is linear in ``x`` and in ``w``; with its two transposes ``dgrad`` (for x) and
``wgrad`` (for w) it is closed under differentiation ::

    zdot  = conv(xdot, w) + conv(x, wdot)
    dx    = dgrad(dz, w)                       dw    = wgrad(x, dz)
    dxdot = dgrad(dzdot, w) + dgrad(dz, wdot)  dwdot = wgrad(xdot, dz) + wgrad(x, dzdot)

Shapes: ``x`` ``[N, Cin, H, W]``, ``weight`` ``[Cout, Cin, 3, 3]``, ``z`` ``[N, Cout, H', W']`` with
``H' = H + 2 padding - 2``. A missing ``xdot`` is zero. Results go to ``out`` where it is given: a
tensor, or a tuple in the order returned, with None in the places that are not wanted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from iadd_fast.reference.written import written

Pair = tuple[Tensor | None, Tensor | None]


def conv3x3(x: Tensor, weight: Tensor, padding: int, *, out: Tensor | None = None) -> Tensor:
    """``z``."""
    return written(out, _conv(x, weight, padding))


def conv3x3_backward(
    x: Tensor,
    weight: Tensor,
    dz: Tensor,
    padding: int,
    *,
    want_dx: bool = True,
    want_dweight: bool = True,
    out: Pair | None = None,
) -> Pair:
    """``(dx, dweight)``, None where it is not wanted."""
    dx, dweight = _gradients(x, weight, dz, padding, want_dx, want_dweight)
    into, weight_into = out or (None, None)
    return (
        written(into, dx) if want_dx else None,
        written(weight_into, dweight) if want_dweight else None,
    )


def conv3x3_tangent(
    x: Tensor,
    weight: Tensor,
    xdot: Tensor | None,
    weightdot: Tensor,
    padding: int,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """``zdot``, the derivative of ``z`` along ``(xdot, weightdot)``."""
    zdot = _conv(x, weightdot, padding)
    if xdot is not None:
        zdot = zdot + _conv(xdot, weight, padding)
    return written(out, zdot)


def conv3x3_backward_tangent(
    x: Tensor,
    weight: Tensor,
    dz: Tensor,
    xdot: Tensor | None,
    weightdot: Tensor,
    dzdot: Tensor,
    padding: int,
    *,
    want_dx: bool = True,
    want_dweight: bool = True,
    out: Pair | None = None,
) -> Pair:
    """``(dxdot, dweightdot)``, the derivative of the gradients along ``(xdot, weightdot, dzdot)``.

    None where it is not wanted.
    """
    dxdot, dweightdot = _gradients(x, weight, dzdot, padding, want_dx, want_dweight)
    if want_dx:
        turned, _ = _gradients(x, weightdot, dz, padding, True, False)
        dxdot = dxdot + turned
    if want_dweight and xdot is not None:
        _, moved = _gradients(xdot, weight, dz, padding, False, True)
        dweightdot = dweightdot + moved
    into, weight_into = out or (None, None)
    return (
        written(into, dxdot) if want_dx else None,
        written(weight_into, dweightdot) if want_dweight else None,
    )


def _conv(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    ones, sides = [1, 1], [padding, padding]
    return torch.ops.aten.convolution(x, weight, None, ones, sides, ones, False, [0, 0], 1)


def _gradients(
    x: Tensor, weight: Tensor, dz: Tensor, padding: int, want_dx: bool, want_dweight: bool
) -> tuple[Tensor, Tensor]:
    """PyTorch's own pair; None in the place of what is not wanted."""
    ones, sides, mask = [1, 1], [padding, padding], [want_dx, want_dweight, False]
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        dz, x, weight, None, ones, sides, ones, False, [0, 0], 1, mask
    )
    return dx, dweight
