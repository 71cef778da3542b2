"""Philox 4x32-10 (Salmon et al., SC 2011): counter-based random words, equal on every backend.

The same generator as ``triton.language.philox``: a draw needs its seed and its place only, so that
an adjoint, a replay or another device repeats it without storing it.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLY = (0xD2511F53, 0xCD9E8D57)
_KEY_STEP = (0x9E3779B9, 0xBB67AE85)


def philox(
    seed: int | Tensor, counter: Tensor, position: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four independent 32-bit words per entry of ``counter``, as int64 in [0, 2^32).

    Args:
        seed: the 64-bit key, a number or an int64 scalar tensor.
        counter: int64 ``[n]``, first counter word, in [0, 2^32).
        position: second counter word; different positions are independent draws.
    """
    key0, key1 = seed & _MASK, (seed >> 32) & _MASK
    word0, word1 = counter, torch.full_like(counter, position)
    word2, word3 = torch.zeros_like(counter), torch.zeros_like(counter)
    for _ in range(10):
        # int64 products wrap, which keeps the 64 bits of the unsigned product.
        first, second = word0 * _MULTIPLY[0], word2 * _MULTIPLY[1]
        word0, word2 = (
            ((second >> 32) & _MASK) ^ word1 ^ key0,
            ((first >> 32) & _MASK) ^ word3 ^ key1,
        )
        word1, word3 = second & _MASK, first & _MASK
        key0, key1 = (key0 + _KEY_STEP[0]) & _MASK, (key1 + _KEY_STEP[1]) & _MASK
    return word0, word1, word2, word3


def uniform(word: Tensor, dtype: torch.dtype) -> Tensor:
    """The top 24 bits of a word as a number in [0, 1): exact in float32 and float64."""
    return (word >> 8).to(dtype) * 2.0**-24


def integers(word: Tensor, low: int, high: int) -> Tensor:
    """A whole number in ``low..high``, both included, by multiply and shift."""
    return low + ((word * (high - low + 1)) >> 32)
