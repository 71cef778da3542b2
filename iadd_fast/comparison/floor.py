"""The floor: no engine that does this arithmetic directly can be faster on this machine.

    floor = FLOPs / (rate of a large matrix product) + bytes / (bandwidth of a copy)

**FLOPs** (a multiplication and an addition are two) are those of the convolutions and of the last
layer in the exact algorithm that keeps what it has computed. For each inner step a layer takes 9
passes over its multiplications: the output, the gradients of its input and of its weight (3), and
in the sweep the tangent of each along the weight's and the input's (6). The first layer takes 6:
its input has no tangent, and the first sweep needs no gradient of it. The earliest step leaves out
the tangent of the weight's gradient, which nothing uses (2, of the first layer 1).

**Winograd** F(2x2, 3x3) needs 16 multiplications for 2x2 outputs of a 3x3 convolution instead of
36, in all three directions: 2.25 times fewer on even sides. The second floor counts those for every
convolution but the first, whose few channels do not pay for the transforms (not counted either). An
engine that uses it, as the CPU kernels do, may well be below the direct floor.

**Bytes** are those that the operators between the convolutions have to move, once each:
``norm_relu_pool`` 1.25 + 2.25 + 2.25 + 3.5 times the output of each convolution, in each step;
``diff_augment`` a read and a write of the images, forward and in the adjoint; ``param_distance``
four reads and two writes of the parameters. The convolutions' own traffic is not counted; and what
stays in a cache moves faster than the copy of 64 MB that the bandwidth is taken from.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iadd_fast.augment import Augmentation
from iadd_fast.comparison.problem import CompareSettings
from iadd_fast.students import Student

PLANE_PASSES = 1.25 + 2.25 + 2.25 + 3.5
ITEM_SIZE = {"float64": 8, "float32": 4, "tf32": 4, "bfloat16": 2}
COPY_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Layer:
    """One image's share in a convolution or linear layer.

    Attributes:
        multiplications: of one pass, directly. winograd: the same by F(2x2, 3x3) where it applies.
        plane: values in a convolution's output, which a norm follows; 0 for a linear layer.
        first: whether its input is the images.
    """

    multiplications: int
    winograd: int
    plane: int
    first: bool

    @property
    def passes(self) -> int:
        """In an inner step and its part of the sweep."""
        return 6 if self.first else 9

    @property
    def unused(self) -> int:
        """Of these, what the earliest step leaves out."""
        return 1 if self.first else 2


@dataclass(frozen=True)
class Work:
    """Of one outer iteration: FLOPs directly and by Winograd, and bytes of the plane operators."""

    flops: float
    flops_winograd: float
    bytes: float


def layers(student: Student, shape: tuple[int, ...]) -> list[Layer]:
    """The layers of a ConvNet as they see one image of ``shape`` (channels, height, width)."""
    found: list[Layer] = []

    def convolution(module: Any, inputs: Any, output: Tensor) -> None:
        channels, height, width = output.shape[1:]
        area = module.kernel_size[0] * module.kernel_size[1]
        pairs, first = channels * module.in_channels, not found
        direct = pairs * area * height * width
        tiles = (height + 1) // 2 * ((width + 1) // 2)
        fewer = direct if first or area != 9 else 16 * pairs * tiles
        found.append(Layer(direct, fewer, channels * height * width, first))

    def linear(module: Any, inputs: Any, output: Tensor) -> None:
        size = module.in_features * module.out_features
        found.append(Layer(size, size, 0, not found))

    kinds = ((nn.Conv2d, convolution), (nn.Linear, linear))
    hooks = [
        module.register_forward_hook(hook)
        for module in student.module.modules()
        for kind, hook in kinds
        if isinstance(module, kind)
    ]
    try:
        with torch.no_grad():
            student.module(torch.zeros(1, *shape))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def work(settings: CompareSettings) -> Work:
    """What one outer iteration of ``settings`` has to do."""
    student, samples = settings.student(), settings.samples()
    image = (settings.channels, settings.image_size, settings.image_size)
    all_layers, item = layers(student, image), ITEM_SIZE[settings.precision]

    def flops(field: str) -> float:
        return 2.0 * sum(
            getattr(layer, field) * (layer.passes * sum(samples) - layer.unused * samples[0])
            for layer in all_layers
        )

    planes = sum(layer.plane for layer in all_layers)
    size = PLANE_PASSES * planes * item * sum(samples)
    if Augmentation.parse(settings.augment) is not None:
        size += 4 * image[0] * image[1] * image[2] * item * sum(samples)
    size += 6 * student.num_parameters * settings.dtype.itemsize
    return Work(flops("multiplications"), flops("winograd"), size)


def floor(settings: CompareSettings, rates: list[tuple[float, float]]) -> dict[str, float]:
    """Work, the best of the measured rates (FLOP/s, bytes/s) and the milliseconds they come to."""
    done = work(settings)
    matmul, copy = (max(column) for column in zip(*rates, strict=True))
    moving = done.bytes / copy
    return {
        "matmul_gflop_s": matmul / 1e9,
        "copy_gb_s": copy / 1e9,
        "gflop": done.flops / 1e9,
        "gflop_winograd": done.flops_winograd / 1e9,
        "gbyte": done.bytes / 1e9,
        "milliseconds": 1e3 * (done.flops / matmul + moving),
        "milliseconds_winograd": 1e3 * (done.flops_winograd / matmul + moving),
    }


def measure_rates(precision: str, device: torch.device) -> tuple[float, float]:
    """FLOP/s of a square matrix product, bytes/s (read and written) of a copy; best of three."""
    side = 8192 if device.type == "cuda" else 1536
    dtype = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(precision, torch.float32)
    left, right = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    count = COPY_BYTES * (8 if device.type == "cuda" else 1) // 4
    source = torch.rand(count, device=device)
    copied = torch.empty_like(source).fill_(0)
    multiplying = _best(lambda: torch.mm(left, right, out=product), device)
    copying = _best(lambda: copied.copy_(source), device)
    return 2 * side**3 / multiplying, 2 * source.nbytes / copying


def _best(function: Callable[[], Any], device: torch.device) -> float:
    function()
    times = []
    for _ in range(3):
        synchronise(device)
        began = time.perf_counter()
        function()
        synchronise(device)
        times.append(time.perf_counter() - began)
    return min(times)


def synchronise(device: torch.device) -> None:
    """Wait for the device's work; the CPU has none outstanding."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
