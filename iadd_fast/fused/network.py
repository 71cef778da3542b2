"""The ConvNet family as the fused passes see it: sizes of its blocks, and views of flat vectors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from iadd_fast.students import Student
from iadd_fast.students.convnet import ConvNet


@dataclass(frozen=True)
class Block:
    """One block: 3x3 convolution to planes of ``side``, norm, ReLU, 2x2 pool to ``pooled``."""

    inputs: int
    padding: int
    side: tuple[int, int]
    pooled: tuple[int, int]


@dataclass(frozen=True)
class BlockVectors:
    """One block's slices of a flat vector: parameters, a tangent or a gradient."""

    weight: Tensor
    gamma: Tensor
    beta: Tensor


@dataclass(frozen=True)
class Vectors:
    """A flat vector (theta, a tangent of it or a gradient) cut into the network's parameters.

    The biases of the convolutions are left out: the norm behind them removes a constant, so that
    their gradient is zero and they have no influence.
    """

    flat: Tensor
    blocks: tuple[BlockVectors, ...]
    weight: Tensor
    bias: Tensor


class FusedNetwork:
    """A ConvNet with instance norm on images, cut into what the fused operators take.

    Args:
        student: one that :func:`why_not` finds nothing against.
    """

    def __init__(self, student: Student) -> None:
        reason = why_not(student)
        if reason is not None:
            raise ValueError(f"student: {reason}")
        spec, module = student.spec, student.module
        assert isinstance(module, ConvNet)
        self.num_parameters = student.num_parameters
        self.slices = student.parameters
        self.width: int = spec["width"]
        self.classes: int = spec["classes"]
        self.sample_shape: tuple[int, int, int] = (spec["channels"], *spec["image_size"])
        convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
        self.eps = next(part.eps for part in module.modules() if isinstance(part, nn.GroupNorm))
        blocks = []
        height, width = self.sample_shape[1:]
        for convolution in convolutions:
            padding = int(convolution.padding[0])
            side = (height + 2 * padding - 2, width + 2 * padding - 2)
            height, width = side[0] // 2, side[1] // 2
            blocks.append(Block(convolution.in_channels, padding, side, (height, width)))
        self.blocks = tuple(blocks)
        self.features = self.width * height * width

    def vectors(self, flat: Tensor) -> Vectors:
        """``flat`` ``[num_parameters]`` as views, in the order of the module's parameters."""
        parts = [flat[part.start : part.stop].view(part.shape) for part in self.slices]
        blocks = tuple(
            BlockVectors(parts[4 * d], parts[4 * d + 2], parts[4 * d + 3])
            for d in range(len(self.blocks))
        )
        return Vectors(flat, blocks, parts[-2], parts[-1])

    def numbers_per_sample(self) -> int:
        """Numbers in one sample's largest activation."""
        return max(self.width * block.side[0] * block.side[1] for block in self.blocks)


def why_not(student: Student) -> str | None:
    """Why the fused passes do not take ``student``, or None where they do."""
    if not isinstance(student.module, ConvNet) or student.spec.get("name") != "convnet":
        return f"the fused passes take the ConvNet for images; this is {student.spec.get('name')!r}"
    norm = student.spec.get("norm")
    if norm != "instance":
        return f"the fused passes take norm 'instance'; this ConvNet has {norm!r}"
    return None
