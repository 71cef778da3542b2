"""The arithmetic dtype of a storage dtype: half-width floats are computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def widened(tensor: Tensor) -> Tensor:
    """``tensor`` in the dtype its arithmetic is done in: float32 for bfloat16 and float16."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def widened_or_none(tensor: Tensor | None) -> Tensor | None:
    """:func:`widened`, letting a missing tensor stay missing."""
    return None if tensor is None else widened(tensor)
