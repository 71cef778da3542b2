"""The larger networks of the cross-architecture tables: AlexNet, VGG11, ResNet18.

As in MTT's ``networks.py`` (anchors 2.2): AlexNet without norm, VGG11 and ResNet18 with instance
norm written as ``GroupNorm(C, C)``; inputs of one channel at 28x28 are padded to 32x32 by the first
convolution.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from iadd_fast.students.student import check_images, pooled_side


def _padded(channels: int, side: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """Extra padding of the first convolution, and the side it works on."""
    return (2, (32, 32)) if channels == 1 and side == (28, 28) else (0, side)


class AlexNet(nn.Module):
    """Five convolutions without norm, three max pools, one linear layer (MTT's variant)."""

    def __init__(self, channels: int, classes: int, side: tuple[int, int]) -> None:
        super().__init__()
        self.sample = (channels, *side)
        extra, side = _padded(channels, side)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 128, 5, padding=2 + extra),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(128, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(192, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 192, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(192, 192, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        height, width = (pooled_side(s, 3) for s in side)
        self.classifier = nn.Linear(192 * height * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.sample, self.classifier.weight)
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


class VGG11(nn.Module):
    """VGG11 with instance norm; the last of its five max pools leaves side / 32."""

    WIDTHS = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)

    def __init__(self, channels: int, classes: int, side: tuple[int, int]) -> None:
        super().__init__()
        self.sample = (channels, *side)
        extra, side = _padded(channels, side)
        layers: list[nn.Module] = []
        inputs = channels
        for width in self.WIDTHS:
            if width == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            padding = 1 + (extra if not layers else 0)
            layers += [nn.Conv2d(inputs, width, 3, padding=padding), nn.GroupNorm(width, width)]
            layers.append(nn.ReLU())
            inputs = width
        self.features = nn.Sequential(*layers)
        height, width = (pooled_side(s, 5) for s in side)
        self.classifier = nn.Linear(512 * height * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.sample, self.classifier.weight)
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with instance norm and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(width, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(width, width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride=stride, bias=False), nn.GroupNorm(width, width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNet18(nn.Module):
    """The CIFAR form of ResNet18: 3x3 first convolution, no first pool, global average pool."""

    def __init__(self, channels: int, classes: int, side: tuple[int, int]) -> None:
        super().__init__()
        self.sample = (channels, *side)
        extra, _ = _padded(channels, side)
        self.conv = nn.Conv2d(channels, 64, 3, padding=1 + extra, bias=False)
        self.norm = nn.GroupNorm(64, 64)
        blocks: list[nn.Module] = []
        inputs = 64
        for stage, width in enumerate((64, 128, 256, 512)):
            for position in range(2):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(BasicBlock(inputs, width, stride))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(512, classes)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.sample, self.classifier.weight)
        x = self.blocks(self.norm(self.conv(images)).relu())
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits
