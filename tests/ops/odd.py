"""Odd arguments for operators: strides, magnitudes, wrong kinds; memory that shows who wrote it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

LAYOUTS = (
    "dense",
    "transposed",
    "channels-last",
    "every other",
    "offset",
    "expanded",
    "overlapping",
    "negated",
)
#: Values that sums, squares and exponentials meet badly. 1e15 squared is still a float32.
SPECIAL = (float("nan"), float("inf"), -float("inf"), 1e15, -1e15, 1e-40, 0.0, -0.0)


@contextmanager
def poisoned() -> Iterator[None]:
    """``torch.empty`` and its like give NaN (-1 for whole numbers): what is not written shows."""

    def poisoning(allocate: Any) -> Any:
        def allocate_poisoned(*arguments: Any, **keywords: Any) -> Any:
            tensor = allocate(*arguments, **keywords)
            return tensor.fill_(float("nan") if tensor.is_floating_point() else -1)

        return allocate_poisoned

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
            patch.setattr(owner, name, poisoning(getattr(owner, name)))
        yield


def normal(draw: Callable[[Any], Any], *shape: int) -> Tensor:
    """Standard normal numbers from a drawn seed, in float64."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """``tensor`` in another place of memory; NaN lies where none of its numbers do.

    ``"expanded"`` and ``"overlapping"`` repeat numbers instead: they keep the shape alone.
    """
    if layout == "transposed" and tensor.ndim >= 2:
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "channels-last" and tensor.ndim == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "every other":
        room = tensor.new_full((*tensor.shape, 2), _nothing(tensor))
        room[..., 0] = tensor
        return room[..., 0]
    if layout == "offset":
        return embedded(tensor)[0]
    if layout == "expanded" and tensor.numel() > 0:
        return tensor.flatten()[:1].expand(tensor.shape)
    if layout == "overlapping" and tensor.numel() > 0:
        return tensor.contiguous().as_strided(tensor.shape, [1] * tensor.ndim)
    if layout == "negated" and tensor.is_floating_point():
        return torch._neg_view(-tensor)
    return tensor.contiguous()


def embedded(tensor: Tensor) -> tuple[Tensor, Callable[[], bool]]:
    """A copy inside a larger memory, and whether what lies around it is as it was."""
    around, count = 67, tensor.numel()
    room = tensor.new_full((count + 2 * around,), 77)
    inside = room.as_strided(tensor.shape, tensor.stride(), around)
    inside.copy_(tensor)
    edges = lambda: torch.cat([room[:around], room[around + count :]])  # noqa: E731
    return inside, lambda: bool((edges() == 77).all())


def misaligned(tensor: Tensor) -> Tensor:
    """A contiguous copy that begins one byte behind where its dtype would."""
    size = tensor.numel() * tensor.element_size()
    room = torch.frombuffer(bytearray(size + 16), dtype=torch.uint8)
    place = 1 + (-room.data_ptr()) % tensor.element_size()
    room[place : place + size] = tensor.contiguous().flatten().view(torch.uint8)
    held = torch.frombuffer(
        room.numpy(), dtype=tensor.dtype, count=tensor.numel(), offset=place
    ).view(tensor.shape)
    assert held.data_ptr() % held.element_size()
    return held


def wrong_tensors(like: Tensor) -> dict[str, Any]:
    """What is no tensor of this shape, a floating dtype and this device."""
    return {
        "one size more": torch.zeros(*like.shape[:-1], like.shape[-1] + 1, dtype=like.dtype)
        if like.ndim
        else torch.zeros(2, dtype=like.dtype),
        "one dimension more": like.detach().clone().unsqueeze(0),
        "flat": torch.zeros(like.numel() + 3, dtype=like.dtype).view(-1, 1, 1)[:, 0],
        "whole numbers": torch.zeros(like.shape, dtype=torch.int32),
        "truth values": torch.zeros(like.shape, dtype=torch.bool),
        "complex": torch.zeros(like.shape, dtype=torch.complex64),
        "eight bits": torch.zeros(like.shape).to(torch.float8_e4m3fn),
        "sparse": torch.zeros(like.shape, dtype=torch.float32).to_sparse(),
        "a list": like.tolist(),
        "numpy": np.zeros(tuple(like.shape)),
        "a text": "tensor",
        "nested": nested(),
    }


def nested() -> Tensor:
    return torch.nested.nested_tensor([torch.zeros(2, 3)], layout=torch.jagged)


WRONG_NUMBERS = (
    None,
    "1",
    -1,
    1.5,
    float("nan"),
    float("inf"),
    10**400,
    2**64,
    complex(1),
    torch.tensor([1.0, 2.0]),
    torch.tensor(1e-5, requires_grad=True),
    [1],
)


def refused(call: Callable[[], Any], names: Sequence[str]) -> bool:
    """Whether ``call`` raises: one short error that begins with an argument's name."""
    try:
        call()
    except (ValueError, TypeError) as error:
        message = str(error)
        assert re.match(rf"({'|'.join(names)}): ", message), f"no argument is named: {message}"
        assert "\n" not in message and len(message) < 600, message
        return True
    return False


def _nothing(tensor: Tensor) -> float:
    return float("nan") if tensor.is_floating_point() else 77
