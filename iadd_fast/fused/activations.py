"""What one pass over some samples leaves for the next, in static buffers where they pay.

On a CPU with the compiled operators everything is written into buffers that are allocated once: a
fresh block of several MiB costs as many page faults as the arithmetic takes. On a GPU the operators
allocate, because there the blocks come out of torch's cache, or once and for all out of the pool
of a captured graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from iadd_fast.fused.network import FusedNetwork


@dataclass
class Activations:
    """Values of one chunk of samples, by block; ``None`` where there is no buffer or value yet.

    z: outputs of the convolutions. p: pooled outputs of the blocks. dp: gradients for p.
    dlogits: gradient for the logits. logits: the network's outputs.
    """

    z: list[Tensor | None]
    p: list[Tensor | None]
    dp: list[Tensor | None]
    logits: Tensor | None = None
    dlogits: Tensor | None = None

    @classmethod
    def empty(cls, network: FusedNetwork) -> Activations:
        """Without buffers."""
        depth = len(network.blocks)
        return cls([None] * depth, [None] * depth, [None] * depth)

    @classmethod
    def static(cls, network: FusedNetwork, samples: int, like: Tensor) -> Activations:
        """Buffers for ``samples``, but for the first block's z, which is shared or made anew."""
        _, *later = network.blocks
        pooled = [planes_like(network, samples, block.pooled, like) for block in network.blocks]
        return cls(
            z=[None, *(planes_like(network, samples, block.side, like) for block in later)],
            p=list(pooled),
            dp=[torch.empty_like(p) for p in pooled],
        )

    def first(self, samples: int) -> Activations:
        """The same buffers for only so many samples."""

        def cut(tensors: list[Tensor | None]) -> list[Tensor | None]:
            return [None if tensor is None else tensor[:samples] for tensor in tensors]

        return Activations(cut(self.z), cut(self.p), cut(self.dp))


def planes_like(network: FusedNetwork, samples: int, side: tuple[int, int], like: Tensor) -> Tensor:
    """An empty channels-last ``[samples, width, *side]`` of the dtype and device of ``like``."""
    return torch.empty(
        (samples, network.width, *side),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )


def kept_bytes(network: FusedNetwork, samples: int, itemsize: int) -> int:
    """Bytes of :meth:`Activations.static`: what keeping one inner step costs."""
    numbers = sum(
        network.width * (2 * b.pooled[0] * b.pooled[1] + (b.side[0] * b.side[1] if d else 0))
        for d, b in enumerate(network.blocks)
    )
    return numbers * samples * itemsize


def workspace_bytes(network: FusedNetwork, samples: int, itemsize: int) -> int:
    """Bytes of all values that a pass and its tangents write for ``samples``."""
    side = sum(block.side[0] * block.side[1] for block in network.blocks)
    pooled = sum(block.pooled[0] * block.pooled[1] for block in network.blocks)
    first = network.blocks[0].side[0] * network.blocks[0].side[1]
    numbers = network.width * (3 * side + first + 2 * pooled)
    return numbers * samples * itemsize + kept_bytes(network, samples, itemsize)
