"""In which precision the products of convolutions and matrices are made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from iadd_fast import arguments

PRECISIONS = ("float32", "tf32", "bfloat16")


def check_tf32(precision: str, theta: Tensor) -> None:
    """Raise ``ValueError`` unless ``precision`` is float32, or tf32 for ``theta`` on a GPU."""
    arguments.choice("precision", precision, ("float32", "tf32"))
    if precision == "tf32" and theta.dtype != torch.float32:
        raise ValueError(f"precision: got 'tf32'; theta is {theta.dtype}, takes float32")
    if precision == "tf32" and not theta.is_cuda:
        raise ValueError(
            f"precision: got 'tf32', a mode of CUDA devices; theta is on {theta.device}"
        )


@contextmanager
def products_in(precision: str, device: torch.device) -> Iterator[None]:
    """Within the block float32 products on a GPU are exact, or rounded to TF32 where asked.

    torch's own default rounds convolutions to TF32 and leaves matrices alone; its switches are
    process-wide and put back at the end.
    """
    if device.type != "cuda":
        yield
        return
    before = [switch.fp32_precision for switch in switches()]
    for switch in switches():
        switch.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        for switch, value in zip(switches(), before, strict=True):
            switch.fp32_precision = value


def switches() -> tuple[Any, Any]:
    """torch's own settings for float32 convolutions and matrix products on a GPU."""
    cudnn: Any = torch.backends.cudnn
    return cudnn.conv, torch.backends.cuda.matmul
