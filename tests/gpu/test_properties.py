"""On a GPU: the operators on the odd arguments of ``tests/ops``, by both backends there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from iadd_fast import ops
from tests.ops.derivatives import as_function, assert_near, derivative, widened
from tests.ops.odd import normal, poisoned
from tests.ops.odd_cases import CALLS, LAYOUT, Call

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SERVED = [(operator, "triton") for operator in CALLS if operator != "conv3x3"]
SERVED += [("param_distance", "cuda"), ("diff_augment", "cuda"), ("conv3x3", "reference")]
EXAMPLES = settings.default.max_examples if settings.default else 10


def compare(call: Call, tensors: dict[str, Any], order: str, data: st.DataObject) -> None:
    """The backend in force on these tensors against float64 on the CPU."""
    exact = widened({name: None if v is None else v.cpu() for name, v in tensors.items()})
    dy = normal(data.draw, *call.truth(*exact.values(), **call.settings).shape).float()
    x = [tensors[name] for name in call.differentiated]
    wide = [exact[name] for name in call.differentiated]
    with poisoned():
        got = derivative(as_function(call.run, tensors, call), x, [], dy.to(x[0].device), order)
    want = derivative(as_function(call.truth, exact, call), wide, [], dy.double(), order)
    for one, wanted, name in zip(got, want, call.differentiated * len(got), strict=False):
        assert_near(one.cpu(), wanted, order, name)


@pytest.mark.parametrize("operator, backend", SERVED)
@given(data=st.data())
@settings(max_examples=EXAMPLES)
def test_odd_arguments_on_a_gpu(operator: str, backend: str, data: st.DataObject) -> None:
    """Any shape, stride, magnitude: breaks on an unmasked access, a lost thread or stride."""
    reason = ops.backends()[operator][backend]
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    call = data.draw(CALLS[operator])
    families = call.settings.get("families", ())
    resamplings = sum(family in ("scale", "rotate") for family in families)
    # The Triton kernel takes 9 paths a pixel to the power of their number, and four at most.
    assume(resamplings <= (2 if backend == "triton" else 8))
    laid: dict[str, Any] = call.given(torch.float32, lambda: data.draw(LAYOUT))
    assume(call.smooth(**laid, **call.settings))
    tensors = {name: None if value is None else on_gpu(value) for name, value in laid.items()}
    with ops.use_backend(backend):
        compare(call, tensors, data.draw(st.sampled_from(["forward", "backward"])), data)


def on_gpu(tensor: torch.Tensor) -> torch.Tensor:
    """On the GPU with the strides it has: ``to`` would make repeated numbers dense."""
    room = torch.full((span(tensor),), 77, dtype=tensor.dtype, device="cuda")
    placed = room.as_strided(tensor.shape, tensor.stride())
    if 0 in tensor.stride() or span(tensor) < tensor.numel():
        room.copy_(tensor.as_strided((span(tensor),), (1,)))
    else:
        placed.copy_(tensor)
    return placed


def span(tensor: torch.Tensor) -> int:
    """Numbers from the first to the last one it reaches."""
    if tensor.numel() == 0:
        return 0
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in sizes)
