"""Multilayer perceptron (MTT's ``MLP``: three linear layers of width 128)."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

from iadd_fast.students.student import check_images


class MLP(nn.Module):
    """Flatten, ``depth - 1`` hidden linear layers with ReLU, one linear layer to the classes."""

    def __init__(self, inputs: tuple[int, ...], classes: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = [math.prod(inputs), *[width] * (depth - 1), classes]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, images: Tensor) -> Tensor:
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        x = images.flatten(1) if images.ndim > 1 else images
        check_images(x, (first.in_features,), first.weight)
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        logits: Tensor = self.layers[-1](x)
        return logits
