"""How every kernel is started: on its tensors' device and torch's current stream there."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
from torch import Tensor

# Triton reads TRITON_INTERPRET when a kernel is decorated, which is when its module is imported.
INTERPRETED: bool = triton.knobs.runtime.interpret


def launch(kernel: Any, grid: tuple[int, ...], on: Tensor, *arguments: Any, **options: Any) -> None:
    """``kernel[grid](*arguments, **options)`` on the device of ``on``; an empty grid does nothing.

    Triton takes the current stream of the current device, so that a launch belongs to whatever
    torch work (or graph capture) surrounds it. The interpreter also takes tensors of the CPU.
    """
    if 0 in grid:
        return
    arguments = tuple(_in_memory(argument) for argument in arguments)
    # Triton's default is about to change; fused multiply-adds are meant.
    options.setdefault("enable_fp_fusion", True)
    with torch.cuda.device(on.device) if on.is_cuda else contextlib.nullcontext():
        kernel[grid](*arguments, **options)


def _in_memory(argument: Any) -> Any:
    """A tensor that is only marked as negated, or as zeros (forward mode's), written out."""
    if isinstance(argument, Tensor) and (argument.is_neg() or argument._is_zerotensor()):
        return argument.clone().resolve_neg()
    return argument
