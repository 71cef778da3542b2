"""What the benches run: inputs for every operator and order, and the bytes each must move.

A case has fresh random inputs from a fixed seed, the same for every contender. Its function is the
one of that name in a backend's module; its truth is the reference in float64 on the same inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

OPERATORS = (
    "conv3x3",
    "norm_relu_pool",
    "softmax_cross_entropy",
    "diff_augment",
    "param_distance",
)
FOUR = ("forward", "backward", "tangent", "backward_tangent")
FAMILIES = ("color", "crop", "cutout", "flip", "scale", "rotate")
WIDTH = 128
PARAMETERS = 320_010  # of the ConvNet-3 of width 128 for CIFAR-10
EPS = 1e-5
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Case:
    """One operator at one order on one set of inputs; ``variant`` is what else tells it apart."""

    operator: str
    order: str
    shape: tuple[int, ...]
    variant: str = ""
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"

    @property
    def function(self) -> str:
        """The function's name in every backend's module."""
        first = self.order in ("forward", "value")
        return self.operator if first else f"{self.operator}_{self.order}"

    @property
    def name(self) -> str:
        """Operator, order and what tells the case apart, joined by ``-``."""
        shape = "x".join(str(size) for size in self.shape)
        dtype = "" if self.dtype == torch.float32 else str(self.dtype).removeprefix("torch.")
        layout = "" if self.layout == "contiguous" else self.layout
        parts = (self.operator, self.order, self.variant, shape, dtype, layout)
        return "-".join(part for part in parts if part)

    def arguments(self, device: torch.device, seed: int = 0) -> tuple[Any, ...]:
        """The function's arguments, drawn on ``device``."""
        draw = torch.Generator(device).manual_seed(seed)
        return _ARGUMENTS[self.operator](self, draw)


def widened(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """The arguments with every floating-point tensor in float64."""
    return tuple(
        value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in arguments
    )


def tensors(values: Any) -> list[Tensor]:
    """The tensors among arguments or results, in order."""
    values = values if isinstance(values, list | tuple) else [values]
    return [value for value in values if isinstance(value, Tensor)]


def bytes_moved(arguments: Sequence[Any], result: Any) -> int:
    """Every input read once and every output written once: the least that can be moved."""
    return sum(value.numel() * value.element_size() for value in tensors(arguments)) + sum(
        value.numel() * value.element_size() for value in tensors(result)
    )


def cases(operator: str, device: torch.device) -> list[Case]:
    """The cases of an operator on the CPU or on a GPU."""
    gpu = device.type == "cuda"
    if operator == "conv3x3":
        return _conv3x3()
    if operator == "norm_relu_pool":
        return _norm_relu_pool_gpu() if gpu else _norm_relu_pool_cpu()
    if operator == "softmax_cross_entropy":
        return _softmax_cross_entropy()
    return _diff_augment(gpu) if operator == "diff_augment" else _param_distance(gpu)


def small_cases(operator: str) -> list[Case]:
    """Every order on tiny and odd shapes: for a sanitizer, which is a hundred times slower."""
    if operator == "conv3x3":
        shapes = [((2, 3, 7, 9), "channels_last"), ((1, 20, 5, 8), "channels_last")]
        shapes += [((2, 16, 8, 8), "contiguous"), ((1, 1, 1, 1), "contiguous")]
        shapes += [((3, 17, 1, 9), "channels_last"), ((1, 2, 9, 1), "contiguous")]
        return [
            Case(operator, order, shape, layout=layout)
            for order in FOUR
            for shape, layout in shapes
        ]
    if operator == "norm_relu_pool":
        shapes = [((2, 3, 8, 8), "contiguous"), ((2, 5, 7, 9), "contiguous")]
        shapes += [((3, 16, 32, 32), "contiguous"), ((2, 5, 6, 8), "channels_last")]
        # The least, one row of windows, one column of them, odd ends in both directions.
        shapes += [((1, 1, 2, 2), "contiguous"), ((1, 17, 2, 33), "channels_last")]
        shapes += [((3, 2, 31, 2), "contiguous"), ((1, 33, 3, 3), "channels_last")]
        return [
            Case(operator, order, shape, layout=layout)
            for order in FOUR
            for shape, layout in shapes
        ]
    if operator == "softmax_cross_entropy":
        return [
            Case(operator, order, shape, variant)
            for order in FOUR
            for variant in ("hard", "soft")
            for shape in ((3, 10), (37, 101), (1, 2), (5, 17), (1, 2049), (1025, 3))
        ]
    if operator == "diff_augment":
        chains = [*FAMILIES, "_".join(FAMILIES)]
        return [
            Case(operator, order, shape, chain)
            for order in ("forward", "adjoint")
            for shape in ((3, 3, 9, 8), (1, 1, 1, 7), (2, 5, 13, 1), (1, 2, 2, 17))
            for chain in chains
        ]
    return [
        Case(operator, order, (count,), variant)
        for order in ("value", "gradients")
        for variant in ("none", "start", "weighted")
        for count in (1, 5, 1023, 4099)
    ]


def _conv3x3() -> list[Case]:
    # The three blocks of a ConvNet on CIFAR: images of any width to WIDTH channels.
    return [
        Case("conv3x3", order, (batch, channels, side, side), layout="channels_last")
        for channels, side in ((3, 32), (WIDTH, 16), (WIDTH, 8))
        for batch in (10, 100)
        for order in FOUR
    ]


def _norm_relu_pool_cpu() -> list[Case]:
    found = [
        Case("norm_relu_pool", order, (batch, WIDTH, side, side))
        for side in (32, 16, 8)
        for batch in (10, 100)
        for order in FOUR
    ]
    return found + [
        Case("norm_relu_pool", order, (batch, WIDTH, side, side), layout="channels_last")
        for batch, side in ((10, 32), (100, 16))
        for order in FOUR
    ]


def _norm_relu_pool_gpu() -> list[Case]:
    # 10 and 100 images, and batches whose planes fill tens of MB also at the smaller sides.
    sizes = [(10, 32), (10, 16), (10, 8), (100, 32), (100, 16), (100, 8), (500, 16), (2000, 8)]
    kinds = [(torch.float32, "contiguous", sizes), (torch.bfloat16, "contiguous", sizes[3:])]
    kinds += [(torch.float32, "channels_last", sizes[3:6])]
    kinds += [(torch.bfloat16, "channels_last", sizes[3:6])]
    return [
        Case("norm_relu_pool", order, (batch, WIDTH, side, side), "", dtype, layout)
        for dtype, layout, chosen in kinds
        for batch, side in chosen
        for order in FOUR
    ]


def _softmax_cross_entropy() -> list[Case]:
    return [
        Case("softmax_cross_entropy", order, shape, variant)
        for shape in ((10, 10), (100, 10), (1000, 100))
        for variant in ("hard", "soft")
        for order in FOUR
    ]


def _diff_augment(gpu: bool) -> list[Case]:
    orders, whole = ("forward", "adjoint"), "_".join(FAMILIES)
    # MTT's shapes: CIFAR at 1 and 10 images a class (50 on a GPU), and Tiny ImageNet's side.
    shapes = [(10, 3, 32, 32), (100, 3, 32, 32), (20, 3, 64, 64)]
    shapes += [(500, 3, 32, 32), (5000, 3, 32, 32)] if gpu else []
    found = [Case("diff_augment", order, shape, whole) for shape in shapes for order in orders]
    return found + [
        Case("diff_augment", order, (100, 3, 32, 32), family)
        for family in FAMILIES
        for order in orders
    ]


def _param_distance(gpu: bool) -> list[Case]:
    return [
        Case("param_distance", order, (count,), variant)
        for count in (PARAMETERS, 16_000_000 if gpu else 4_000_000)
        for variant in ("none", "start", "weighted")
        for order in ("value", "gradients")
    ]


def _normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=draw, device=draw.device)


def _conv3x3_arguments(case: Case, draw: torch.Generator) -> tuple[Any, ...]:
    samples, channels, height, width = case.shape

    def images(channels: int) -> Tensor:
        drawn = _normal(draw, samples, channels, height, width).to(case.dtype)
        return drawn.contiguous(memory_format=LAYOUTS[case.layout])

    def weights() -> Tensor:
        return (_normal(draw, WIDTH, channels, 3, 3) / (9 * channels) ** 0.5).to(case.dtype)

    x, weight = images(channels), weights()
    if case.order == "forward":
        return x, weight, 1
    if case.order == "backward":
        return x, weight, images(WIDTH), 1
    xdot, weightdot = images(channels), weights()
    if case.order == "tangent":
        return x, weight, xdot, weightdot, 1
    return x, weight, images(WIDTH), xdot, weightdot, images(WIDTH), 1


def _norm_relu_pool_arguments(case: Case, draw: torch.Generator) -> tuple[Any, ...]:
    samples, channels, height, width = case.shape
    pooled = (samples, channels, height // 2, width // 2)

    def laid_out(*shape: int) -> Tensor:
        drawn = _normal(draw, *shape).to(case.dtype)
        return drawn.contiguous(memory_format=LAYOUTS[case.layout])

    def vector() -> Tensor:
        return _normal(draw, channels).to(case.dtype)

    gamma, beta = (1 + vector() / 4), vector() / 4
    z = off_the_kink(laid_out(*case.shape), gamma, beta)
    if case.order == "forward":
        return z, gamma, beta, EPS, True
    if case.order == "backward":
        return z, gamma, beta, laid_out(*pooled), EPS, True
    if case.order == "tangent":
        return z, gamma, beta, laid_out(*case.shape), vector(), vector(), EPS, True
    dp, zdot = laid_out(*pooled), laid_out(*case.shape)
    return z, gamma, beta, dp, zdot, vector(), vector(), laid_out(*pooled), EPS, True


def off_the_kink(z: Tensor, gamma: Tensor, beta: Tensor, band: float = 1e-4) -> Tensor:
    """``z`` with the pixels moved away whose ``gamma xh + beta`` lies within ``band`` of zero.

    There float32 and float64 may disagree about the ReLU's side, which is no error of a kernel
    but would be the largest difference in the whole comparison.

    Raises:
        RuntimeError: some are still there after ten rounds.
    """
    step = 2e-2 if z.dtype == torch.float32 else 2e-1
    samples = max(1, 2**24 // z[0].numel())  # float64 planes of a large batch, some at a time
    for part in z.split(samples):
        for _ in range(10):
            wide = part.double()
            centred = wide - wide.mean((2, 3), keepdim=True)
            r = torch.rsqrt(centred.square().mean((2, 3), keepdim=True) + EPS)
            y = gamma.double().view(1, -1, 1, 1) * centred * r + beta.double().view(1, -1, 1, 1)
            near = y.abs() < band
            if not near.any():
                break
            part += near.to(z.dtype) * step
        else:
            raise RuntimeError(f"{int(near.sum())} pixels of {tuple(z.shape)} stay at the kink")
    return z


def _softmax_cross_entropy_arguments(case: Case, draw: torch.Generator) -> tuple[Any, ...]:
    count, classes = case.shape
    logits, soft = 2 * _normal(draw, count, classes), case.variant == "soft"
    hard = torch.randint(classes, (count,), generator=draw, device=draw.device)
    labels = _normal(draw, count, classes).softmax(1) if soft else hard
    weights = 0.5 + torch.rand(classes, generator=draw, device=draw.device)
    labelsdot = _normal(draw, count, classes) if soft else None
    if case.order == "forward":
        return logits, labels, weights
    if case.order == "backward":
        return logits, labels, _normal(draw), weights
    if case.order == "tangent":
        return logits, labels, _normal(draw, count, classes), labelsdot, weights
    logitsdot = _normal(draw, count, classes)
    return logits, labels, _normal(draw), logitsdot, labelsdot, _normal(draw), weights


def _diff_augment_arguments(case: Case, draw: torch.Generator) -> tuple[Any, ...]:
    # The seed is a tensor: a number would be a constant for torch.compile, compiled anew each step.
    seed = torch.tensor(20_240_601, device=draw.device)
    return _normal(draw, *case.shape), tuple(case.variant.split("_")), seed, False


def _param_distance_arguments(case: Case, draw: torch.Generator) -> tuple[Any, ...]:
    theta, start, target = (_normal(draw, *case.shape) for _ in range(3))
    weight = None
    if case.variant != "none":
        weight = 0.1 + torch.rand(case.shape, generator=draw, device=draw.device)
    return theta, start, target, weight, case.variant == "weighted"


_ARGUMENTS = {
    "conv3x3": _conv3x3_arguments,
    "norm_relu_pool": _norm_relu_pool_arguments,
    "softmax_cross_entropy": _softmax_cross_entropy_arguments,
    "diff_augment": _diff_augment_arguments,
    "param_distance": _param_distance_arguments,
}
