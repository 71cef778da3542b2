"""``conv3x3`` compiled; the formulas stand in the reference of the same name.

Images are read and written channels-last; those that lie otherwise are laid out anew. The two terms
of a tangent are one call: both products go into one sum, nothing is concatenated or added up later.
"""

from __future__ import annotations

import torch
from torch import Tensor

from iadd_fast.native.library import laid_out, operators
from iadd_fast.reference import conv3x3 as definition

Pair = tuple[Tensor | None, Tensor | None]

# How many instruction sets to stay below the machine's best one (AVX-512, AVX2, SSE2): for tests.
_below_best = 0


def conv3x3(x: Tensor, weight: Tensor, padding: int, *, out: Tensor | None = None) -> Tensor:
    if _by_pytorch(x, weight):
        return definition.conv3x3(x, weight, padding, out=out)
    return _sum_of_products([x], [weight], padding, out)


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
    if _by_pytorch(x, weight):
        return definition.conv3x3_backward(
            x, weight, dz, padding, want_dx=want_dx, want_dweight=want_dweight, out=out
        )
    dx_out, dweight_out = out or (None, None)
    dx = _sum_of_input_gradients(x, [dz], [weight], padding, dx_out) if want_dx else None
    dweight = None
    if want_dweight:
        dweight = _sum_of_weight_gradients(weight, [x], [dz], padding, dweight_out)
    return dx, dweight


def conv3x3_tangent(
    x: Tensor,
    weight: Tensor,
    xdot: Tensor | None,
    weightdot: Tensor,
    padding: int,
    *,
    out: Tensor | None = None,
) -> Tensor:
    if _by_pytorch(x, weight):
        return definition.conv3x3_tangent(x, weight, xdot, weightdot, padding, out=out)
    if xdot is None:
        return _sum_of_products([x], [weightdot], padding, out)
    return _sum_of_products([x, xdot], [weightdot, weight], padding, out)


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
    if _by_pytorch(x, weight):
        wanted = {"want_dx": want_dx, "want_dweight": want_dweight}
        return definition.conv3x3_backward_tangent(
            x, weight, dz, xdot, weightdot, dzdot, padding, **wanted, out=out
        )
    dx_out, dweight_out = out or (None, None)
    dxdot = None
    if want_dx:
        dxdot = _sum_of_input_gradients(x, [dzdot, dz], [weight, weightdot], padding, dx_out)
    dweightdot = None
    if want_dweight:
        images, gradients = ([x], [dzdot]) if xdot is None else ([x, xdot], [dzdot, dz])
        dweightdot = _sum_of_weight_gradients(weight, images, gradients, padding, dweight_out)
    return dxdot, dweightdot


def _by_pytorch(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch's own kernels are faster: planes of one pixel, where 8 of 9 weights idle.

    The transforms of 128x128 weights then take all the time: by one core's time for value and both
    gradients, 0.38 ms against 0.10 for one image and 1.9 against 0.9 for a hundred. From planes of
    2x2 on the compiled ones won at every width measured (8 to 256): 1.06 to 2.1 times.
    """
    return x.shape[2] * x.shape[3] == 1


def _direct(weight: Tensor) -> bool:
    """Whether to sum directly: a few channels do not repay the transforms of Winograd's domain.

    10 images of 32x32 to 128 channels, value and both gradients by one core in ms, direct
    against transformed: 3 channels 3.1 and 9.3, 12 channels 9.5 and 11.6, 16 channels 12 and 10.
    """
    return weight.shape[1] < 16


def _sum_of_products(
    images: list[Tensor], weights: list[Tensor], padding: int, out: Tensor | None
) -> Tensor:
    samples, _, height, width = images[0].shape
    shape = (samples, weights[0].shape[0], height + 2 * padding - 2, width + 2 * padding - 2)
    z = _writable_images(out, shape, images[0])
    operators().conv3x3.default(
        [_channels_last(image) for image in images],
        [laid_out(weight) for weight in weights],
        padding,
        _direct(weights[0]),
        _below_best,
        z,
    )
    return _delivered(z, out)


def _sum_of_input_gradients(
    x: Tensor, gradients: list[Tensor], weights: list[Tensor], padding: int, out: Tensor | None
) -> Tensor:
    dx = _writable_images(out, tuple(x.shape), x)
    operators().conv3x3_input_gradient.default(
        [_channels_last(gradient) for gradient in gradients],
        [laid_out(weight) for weight in weights],
        padding,
        _direct(weights[0]),
        _below_best,
        dx,
    )
    return _delivered(dx, out)


def _sum_of_weight_gradients(
    weight: Tensor,
    images: list[Tensor],
    gradients: list[Tensor],
    padding: int,
    out: Tensor | None,
) -> Tensor:
    dweight = out
    if dweight is None or not dweight.is_contiguous():
        dweight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    operators().conv3x3_weight_gradient.default(
        [_channels_last(image) for image in images],
        [_channels_last(gradient) for gradient in gradients],
        padding,
        _direct(weight),
        _below_best,
        dweight,
    )
    return _delivered(dweight, out)


def _is_dense(images: Tensor) -> bool:
    """Whether pixels lie one behind the other, each with its channels side by side.

    ``is_contiguous`` ignores the strides of sizes of 1 and would say so too; what counts here is
    that every element's place follows from the sizes, which holds in both cases.
    """
    return images.is_contiguous(memory_format=torch.channels_last)


def _channels_last(images: Tensor) -> Tensor:
    return laid_out(images, torch.channels_last)


def _writable_images(out: Tensor | None, shape: tuple[int, ...], like: Tensor) -> Tensor:
    if out is not None and _is_dense(out):
        return out
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _delivered(written: Tensor, out: Tensor | None) -> Tensor:
    return written if out is None or out is written else out.copy_(written)
