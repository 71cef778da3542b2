"""Multilayer perceptron (MTT's ``MLP``: three linear layers of width 128)."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Flatten, ``depth - 1`` hidden linear layers with ReLU, one linear layer to the classes."""

    def __init__(self, inputs: tuple[int, ...], classes: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = [math.prod(inputs), *[width] * (depth - 1), classes]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        logits: Tensor = self.layers[-1](x)
        return logits
