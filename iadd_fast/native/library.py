"""Finds and loads what ``pip install`` compiled, and keeps the reason where it did not.

Two shared libraries on torch's stable ABI, one for every Python: ``cpu`` (schemas and C++ kernels)
and ``cuda``. ``build.json`` beside them says what the build made and why it left something out.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parent


@functools.cache
def missing(name: str) -> str | None:
    """Why library ``"cpu"`` or ``"cuda"`` cannot be used, or None. The first call loads it."""
    if name == "cuda":
        needed = missing("cpu")
        if needed is not None:
            return needed
    found = sorted(FOLDER.glob(f"{name}.*so"))
    if not found:
        return _not_built(name)
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return f"{found[0].name} does not load: {' '.join(str(error).split())}"
    return None


def _not_built(name: str) -> str:
    try:
        reasons = json.loads((FOLDER / "build.json").read_text())
    except (OSError, ValueError):
        reasons = {}
    reason = reasons.get(name) if isinstance(reasons, dict) else None
    return f"not built: {reason}" if reason else "not built (pip install --no-build-isolation .)"


@functools.cache
def operators() -> Any:
    """The namespace of the compiled operators.

    Raises:
        RuntimeError: the library is missing; the message has the reason.
    """
    reason = missing("cpu")
    if reason is not None:
        raise RuntimeError(f"the compiled operators are not available: {reason}")
    return torch.ops.iadd_fast_native


def laid_out(tensor: Tensor, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """``tensor`` dense in this format, copied where it is not."""
    # Forward mode's zeros say they are contiguous and have the memory of one number.
    written = tensor.clone() if tensor._is_zerotensor() else tensor
    return written.contiguous(memory_format=layout)


def laid_out_or_none(tensor: Tensor | None) -> Tensor | None:
    """:func:`laid_out`, letting a missing tensor stay missing."""
    return None if tensor is None else laid_out(tensor)
