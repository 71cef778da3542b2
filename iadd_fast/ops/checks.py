"""Argument checks shared by the operators: metadata only, nothing waits for a device."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_floating(name: str, tensor: Tensor, dimensions: int, layout: str) -> None:
    """``tensor`` is a strided float tensor of that many dimensions.

    Raises:
        ValueError: it is not; the message names it, what it is and what it should be.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name}: got {type(tensor).__name__}; takes a tensor {layout}")
    if tensor.dtype not in FLOATS or tensor.ndim != dimensions or tensor.layout != torch.strided:
        raise ValueError(
            f"{name}: got {tensor.dtype} of shape {tuple(tensor.shape)}, {tensor.layout}; takes a "
            f"floating-point {layout}"
        )


def check_like(
    name: str, tensor: Tensor, model_name: str, model: Tensor, shape: tuple[int, ...]
) -> None:
    """``tensor`` has this shape and the dtype and device of ``model``.

    Raises:
        ValueError: it has not; the message names both.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name}: got {type(tensor).__name__}; takes a tensor")
    if (tuple(tensor.shape), tensor.dtype, tensor.device) != (shape, model.dtype, model.device):
        raise ValueError(
            f"{name}: got {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}; takes "
            f"{model.dtype} of shape {shape} on {model.device}, to go with {model_name}"
        )
