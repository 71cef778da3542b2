"""The ConvNet family of dataset distillation, for images and for series."""

from __future__ import annotations

import math

from torch import Tensor, nn

from iadd_fast.students.student import check_images, pooled_side

NORMS = ("instance", "group", "layer", "none")


class ConvNet(nn.Module):
    """``depth`` blocks of convolution -> norm -> ReLU -> average pool by 2, then a linear layer.

    MTT's ConvNet (anchors: mtt-distillation ``networks.py``): 3x3 convolutions with bias, instance
    norm written as ``GroupNorm(C, C)`` with affine and eps 1e-5. A first layer with one channel at
    28x28 pads by 3, so that 28 becomes 32. With a ``length`` instead of an image size the same
    network on series (N, channels, length), with ``kernel`` taps per convolution.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        side: tuple[int, ...],
        width: int,
        depth: int,
        norm: str,
        kernel: int = 3,
    ) -> None:
        super().__init__()
        self.sample = (channels, *side)
        series = len(side) == 1
        convolution = nn.Conv1d if series else nn.Conv2d
        pool = nn.AvgPool1d if series else nn.AvgPool2d
        widened = channels == 1 and side == (28, 28)
        if widened:
            side = (32, 32)
        self.blocks = nn.ModuleList()
        for block in range(depth):
            padding = 3 if widened and block == 0 else kernel // 2
            inputs = channels if block == 0 else width
            self.blocks.append(
                nn.Sequential(
                    convolution(inputs, width, kernel, padding=padding),
                    *_norm(norm, width),
                    nn.ReLU(),
                    pool(2),
                )
            )
        features = width
        for length in side:
            features *= pooled_side(length, depth)
        self.classifier = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.sample, self.classifier.weight)
        for block in self.blocks:
            images = block(images)
        logits: Tensor = self.classifier(images.flatten(1))
        return logits


def _norm(norm: str, width: int) -> list[nn.Module]:
    groups = {"instance": width, "group": math.gcd(4, width), "layer": 1}
    return [] if norm == "none" else [nn.GroupNorm(groups[norm], width)]
