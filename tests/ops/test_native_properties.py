"""The compiled bindings called directly, past Python's checks: an error, never foreign memory.

Every tensor lies inside a larger memory whose edges are looked at after the call; under
``bench/sanitize.sh`` every access is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from iadd_fast import ops
from iadd_fast.native import library
from tests.ops.derivatives import as_function, derivative
from tests.ops.odd import embedded, misaligned, normal
from tests.ops.odd_cases import CALLS
from tests.ops.test_properties import EXAMPLES

pytestmark = pytest.mark.skipif(
    ops.backends()["conv3x3"]["cpp"] is not None, reason="the C++ kernels are not built"
)
Recorded = tuple[str, list[Any]]


class Recorder:
    """Stands for the namespace of the bindings: notes each call before it goes on."""

    def __init__(self) -> None:
        self.calls: list[Recorded] = []

    def __getattr__(self, name: str) -> Any:
        binding = getattr(torch.ops.iadd_fast_native, name)

        def call(*arguments: Any) -> None:
            self.calls.append((name, list(arguments)))
            binding(*arguments)

        call.default = call  # type: ignore[attr-defined]
        return call


def recorded(data: st.DataObject, operator: str) -> Recorded:
    """A valid call of one of the operator's bindings, as a public call of some order makes it."""
    call = data.draw(CALLS[operator])
    order = data.draw(st.sampled_from(["forward", "backward", "tangent", "backward_tangent"]))
    tensors: Any = call.given(torch.float32, lambda: "dense")
    x = [tensors[name] for name in call.differentiated]
    dy = normal(data.draw, *call.truth(*tensors.values(), **call.settings).shape).float()
    xdot = [normal(data.draw, *value.shape).float() for value in x]
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch, ops.use_backend("cpp"):
        for name in CALLS:
            room = importlib.import_module(f"iadd_fast.native.{name}")
            patch.setattr(room, "operators", lambda: recorder)
        derivative(as_function(call.run, tensors, call), x, xdot, dy, order)
    assume(recorder.calls)
    return data.draw(st.sampled_from(recorder.calls))


def tensors_of(arguments: list[Any]) -> list[Tensor]:
    """All tensors, those in lists too."""
    flat = [one for value in arguments for one in (value if isinstance(value, list) else [value])]
    return [value for value in flat if isinstance(value, Tensor)]


def each(arguments: list[Any], change: Callable[[Tensor], Tensor]) -> list[Any]:
    """The arguments with every tensor changed."""
    return [
        [change(one) if isinstance(one, Tensor) else one for one in value]
        if isinstance(value, list)
        else change(value)
        if isinstance(value, Tensor)
        else value
        for value in arguments
    ]


def watched(arguments: list[Any]) -> tuple[list[Any], Callable[[], bool]]:
    """The arguments inside larger memories, and whether those are untouched around them."""
    checks: list[Callable[[], bool]] = []

    def move(tensor: Tensor) -> Tensor:
        inside, intact = embedded(tensor)
        checks.append(intact)
        return inside

    return each(arguments, move), lambda: all(check() for check in checks)


# What no binding may take in the place of a tensor that is right. Each gives None where it would
# change nothing.
TENSORS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "shorter": lambda t: t[..., :-1].contiguous() if t.ndim else None,
    "longer": lambda t: (
        torch.cat([t, t[..., :1]], -1).contiguous() if t.ndim and t.numel() else None
    ),
    "empty": lambda t: t[:0] if t.ndim and t.numel() else None,
    "one dimension more": lambda t: t.unsqueeze(0),
    "one dimension less": lambda t: t[0] if t.ndim and len(t) else None,
    "every other": lambda t: torch.stack([t, t], -1)[..., 0] if t.numel() > 1 else None,
    "expanded": lambda t: t.flatten()[:1].expand(t.shape) if t.numel() > 1 else None,
    "another dtype": lambda t: t.double() if t.is_floating_point() else t.float(),
    "half a dtype": lambda t: t.bfloat16() if t.is_floating_point() else t.int(),
    "whole numbers": lambda t: t.to(torch.int64) if t.is_floating_point() else t.bool(),
    "complex": lambda t: t.to(torch.complex64),
    "no memory": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse() if t.ndim else None,
    "misaligned": lambda t: misaligned(t) if t.numel() else None,
}
NUMBERS = (-1, 3, 9, 10**6, -(2**31), 2**31, 2**32 + 1, -(2**63), 2**63 - 1)


@pytest.mark.parametrize("operator", CALLS)
@given(data=st.data())
@settings(max_examples=4 * EXAMPLES, suppress_health_check=list(HealthCheck))
def test_a_wrong_tensor_is_refused(operator: str, data: st.DataObject) -> None:
    """One tensor of another size, stride, dtype, device or alignment, or an output over an input.

    Breaks when a binding trusts its caller: it would read or write past an end, or answer nonsense.
    """
    name, arguments = recorded(data, operator)
    arguments, intact = watched(arguments)
    place = data.draw(st.sampled_from([i for i, v in enumerate(arguments) if tensors_of([v])]))
    chosen = data.draw(st.sampled_from(tensors_of([arguments[place]])))
    kind = data.draw(st.sampled_from([*TENSORS, "another argument"]))
    before = [tensor.clone() for tensor in tensors_of(arguments)]
    if kind == "another argument":
        # The last argument is written to: it may not be what is read as well.
        alike = [
            t for t in tensors_of(arguments[:-1]) if t.shape == tensors_of(arguments)[-1].shape
        ]
        assume(alike and alike[0].numel() and isinstance(arguments[-1], Tensor))
        wrong = [*arguments[:-1], alike[0]]
    else:
        changed = TENSORS[kind](chosen)
        assume(changed is not None)
        assert changed is not None
        swapped = changed
        # Nothing else tells how many classes there are.
        assume(kind not in ("shorter", "longer") or chosen is not arguments[0] or len(before) > 3)
        # Of an odd side the pooling leaves the last pixel out: one less gives planes of one size.
        pooled = name == "norm_relu_pool" and chosen is arguments[0] and arguments[4] is True
        pooled = pooled and kind in ("shorter", "longer")
        assume(not pooled or swapped.shape[-1] // 2 != chosen.shape[-1] // 2)
        wrong = each(arguments, lambda tensor: swapped if tensor is chosen else tensor)
    with pytest.raises((ValueError, RuntimeError, TypeError)) as caught:
        getattr(torch.ops.iadd_fast_native, name)(*wrong)
    assert "Assert" not in str(caught.value)
    assert intact(), f"{name}: {kind}: memory around a tensor was written"
    for was, now in zip(before, tensors_of(arguments), strict=True):
        assert torch.equal(was, now) or bool(was.isnan().any()), f"{name}: {kind}: was written"


@pytest.mark.parametrize("operator", CALLS)
@given(data=st.data())
@settings(max_examples=3 * EXAMPLES, suppress_health_check=list(HealthCheck))
def test_any_other_argument_stays_in_its_memory(operator: str, data: st.DataObject) -> None:
    """Absurd numbers, flags turned, tensors left out, odd lists: an error or a result.

    Breaks on an index, an instruction set or a table looked up without a check.
    """
    name, arguments = recorded(data, operator)
    arguments, intact = watched(arguments)
    places = range(len(arguments) - 1)
    place = data.draw(st.sampled_from(places))
    value = arguments[place]
    if isinstance(value, bool):
        wrong: Any = not value
    elif isinstance(value, int):
        wrong = data.draw(st.sampled_from(NUMBERS))
    elif isinstance(value, float):
        wrong = data.draw(st.sampled_from([0.0, -1.0, float("nan"), float("inf"), 1e300, 5e-324]))
    elif isinstance(value, list) and tensors_of(value):
        wrong = data.draw(st.sampled_from([[], value * 2, value * 3, value * 40, [value[0]]]))
    elif isinstance(value, list):
        codes = st.lists(st.sampled_from([0, 5, 6, -1, 2**40]), max_size=12)
        wrong = data.draw(codes)
    else:
        wrong = None
    before = [tensor.clone() for tensor in tensors_of(arguments[:-1])]
    try:
        getattr(torch.ops.iadd_fast_native, name)(
            *arguments[:place], wrong, *arguments[place + 1 :]
        )
    except (ValueError, RuntimeError, TypeError):
        assert all(
            torch.equal(was, now) or bool(was.isnan().any())
            for was, now in zip(before, tensors_of(arguments[:-1]), strict=True)
        )
    assert intact(), f"{name}: memory around a tensor was written"


def test_the_messages_name_binding_and_argument() -> None:
    """Breaks when an error does not say which of nine tensors is meant, or is no ValueError."""
    native, z = library.operators(), torch.zeros(1, 2, 4, 4)
    out = torch.zeros(1, 2, 2, 2)
    with pytest.raises(ValueError, match=r"^norm_relu_pool: gamma: got Float of sizes \(3\)"):
        native.norm_relu_pool(z, torch.ones(3), torch.ones(2), 1e-5, True, False, out)
    with pytest.raises(ValueError, match="^norm_relu_pool: p: shares memory with z"):
        native.norm_relu_pool(z, None, None, 1e-5, True, False, z.flatten()[:8].view(1, 2, 2, 2))
    with pytest.raises(ValueError, match="^conv3x3: below: takes 0 to 2"):
        native.conv3x3([z], [torch.ones(2, 2, 3, 3)], 1, True, -7, torch.ones(1, 2, 4, 4))
