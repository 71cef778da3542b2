"""Every public operator on odd arguments: the result of plain PyTorch, or one error with a name.

``HYPOTHESIS_PROFILE=thorough`` draws thousands of examples of each instead of a handful.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from iadd_fast import ops
from tests.ops.derivatives import ORDERS, as_function, assert_near, derivative, widened
from tests.ops.odd import SPECIAL, WRONG_NUMBERS, normal, poisoned, refused, wrong_tensors
from tests.ops.odd_cases import CALLS, LAYOUT, REPEATING_NOTHING

EXAMPLES = settings.default.max_examples if settings.default else 10


def available(backend: str, operator: str) -> bool:
    return ops.backends()[operator][backend] is None


@pytest.mark.parametrize("operator", CALLS)
@given(data=st.data())
@settings(max_examples=3 * EXAMPLES)
def test_results_are_those_of_pytorch(operator: str, data: st.DataObject) -> None:
    """Any shape, stride, order of derivative and backend against autograd in float64.

    Breaks on memory read as if it were dense, a place not written (it holds NaN), a lane past an
    odd end, a derivative that is lost, or an input that is written to.
    """
    call = data.draw(CALLS[operator])
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    order = data.draw(st.sampled_from(ORDERS))
    backend = data.draw(st.sampled_from(["cpp", "reference"]))
    assume(available(backend, operator))
    # PyTorch writes a tangent at its value's strides, where repeated numbers overwrite each other.
    layouts = LAYOUT if order in ("forward", "backward", "double_backward") else REPEATING_NOTHING
    tensors = call.given(dtype, lambda: data.draw(layouts))
    assume(call.smooth(**tensors, **call.settings))
    exact = widened(tensors)
    before = {name: None if v is None else v.clone() for name, v in tensors.items()}
    x = [tensors[name] for name in call.differentiated]
    size = call.truth(*exact.values(), **call.settings).shape
    dy = normal(data.draw, *size).to(dtype)
    xdot = [normal(data.draw, *value.shape).to(dtype) for value in x]  # type: ignore[union-attr]
    with ops.use_backend(backend), poisoned():
        got = derivative(as_function(call.run, tensors, call), x, xdot, dy, order)  # type: ignore[arg-type]
    truth = as_function(call.truth, exact, call)
    wide: Any = [exact[name] for name in call.differentiated]
    if operator == "diff_augment" and order not in ("forward", "backward"):
        # Affine, and PyTorch's own sampling has no forward mode.
        want: Any = [truth(*[v.double() for v in xdot]) - truth(*[0 * v.double() for v in xdot])]
        if order != "tangent":
            want = [torch.zeros_like(wide[0])]
    else:
        want = derivative(truth, wide, [v.double() for v in xdot], dy.double(), order)
    for one, wanted, name in zip(got, want, call.differentiated * len(got), strict=False):
        assert_near(one, wanted, order, name)
    for name, value in tensors.items():
        if value is not None:
            assert torch.equal(value, before[name]), f"{name} was changed"  # type: ignore[arg-type]


@pytest.mark.parametrize("operator", CALLS)
@given(data=st.data())
@settings(max_examples=2 * EXAMPLES)
def test_what_is_not_a_number_is_not_lost(operator: str, data: st.DataObject) -> None:
    """NaN, infinities, huge and denormal numbers: where PyTorch has no number, nor has a backend.

    Breaks when a maximum, a comparison or a product with zero drops a NaN: a silent wrong answer.
    """
    call = data.draw(CALLS[operator])
    backend = data.draw(st.sampled_from(["cpp", "reference"]))
    assume(available(backend, operator))
    tensors: dict[str, Any] = call.given(torch.float64, lambda: "dense")
    name = data.draw(
        st.sampled_from([n for n, v in tensors.items() if v is not None and v.is_floating_point()])
    )
    flat = tensors[name].view(-1)
    if len(flat):
        for place in data.draw(st.lists(st.integers(0, len(flat) - 1), min_size=1, max_size=3)):
            flat[place] = data.draw(st.sampled_from(SPECIAL))
    order = data.draw(st.sampled_from(["forward", "backward"]))
    x = [tensors[name] for name in call.differentiated]
    size = call.truth(*tensors.values(), **call.settings).shape
    dy = normal(data.draw, *size)
    with ops.use_backend(backend), poisoned():
        got = derivative(as_function(call.run, tensors, call), x, [], dy, order)
    want = derivative(as_function(call.truth, tensors, call), x, [], dy, order)
    for one, wanted, name in zip(got, want, call.differentiated * len(got), strict=False):
        lost = wanted.isnan() & one.isfinite()
        assert not bool(lost.any()), f"{name} ({order}): {int(lost.sum())} NaN became numbers"


@pytest.mark.parametrize("operator", CALLS)
@given(data=st.data())
@settings(max_examples=3 * EXAMPLES)
def test_wrong_arguments_are_named(operator: str, data: st.DataObject) -> None:
    """One argument of another kind, shape or dtype: one error that begins with an argument's name.

    Breaks on an error from inside PyTorch or Python, and on an argument that is broadcast,
    converted or ignored instead.
    """
    call = data.draw(CALLS[operator])
    arguments: dict[str, Any] = {**call.given(torch.float32, lambda: "dense"), **call.settings}
    name = data.draw(st.sampled_from([n for n in arguments if arguments[n] is not None]))
    if isinstance(arguments[name], Tensor):
        kinds = wrong_tensors(arguments[name])
        kind = data.draw(st.sampled_from(sorted(kinds)))
        wrong = kinds[kind]
        # A size more of the one tensor that the others follow is another valid call.
        follows = name in ("x", "z", "images", "logits", "theta") and kind == "one size more"
    else:
        wrong = data.draw(st.sampled_from(WRONG_NUMBERS))
        follows = False
    backend = data.draw(st.sampled_from(["cpp", "reference"]))
    assume(available(backend, operator))
    with ops.use_backend(backend):
        seen = refused(lambda: call.run(**{**arguments, name: wrong}), call.names())
    valid = follows or (name in ("eps", "seed", "padding") and _fits(name, wrong))
    assert seen or valid, f"{name}: {wrong!r} was taken"


def _fits(name: str, value: Any) -> bool:
    """Any finite number above 0 is an eps; no other wrong number is anything."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return name == "eps" and is_number and 0 < value < math.inf


@pytest.mark.parametrize("operator", CALLS)
@given(data=st.data())
@settings(max_examples=EXAMPLES)
def test_other_dtypes_and_devices_give_a_result_or_an_error(
    operator: str, data: st.DataObject
) -> None:
    """Each tensor of a dtype and device of its own: a result of the first one's, or a named error.

    Breaks when two dtypes or devices are mixed in silence, or a tensor without memory is read.
    """
    call = data.draw(CALLS[operator])
    dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
    one, mixed = data.draw(dtypes), data.draw(st.booleans())
    devices = st.sampled_from(["cpu", "meta"])
    device = data.draw(devices)
    tensors: dict[str, Any] = {}
    for name, value in call.given(torch.float32, lambda: "dense").items():
        if value is not None and value.is_floating_point():
            value = value.to(data.draw(dtypes) if mixed else one)
        tensors[name] = None if value is None else value.to(data.draw(devices) if mixed else device)
    kinds = {
        (v.dtype, v.device) for v in tensors.values() if v is not None and v.dtype.is_floating_point
    }
    places = {v.device for v in tensors.values() if v is not None}
    results: list[Tensor] = []
    seen = refused(lambda: results.append(call.run(**tensors, **call.settings)), call.names())
    assert seen == (len(kinds) > 1 or len(places) > 1)
    if not seen:
        assert results[0].device == next(iter(places))
        assert results[0].dtype in (next(iter(kinds))[0], torch.float32)


@pytest.mark.parametrize("operator", CALLS)
@given(data=st.data())
@settings(max_examples=min(3, EXAMPLES))
def test_triton_agrees_on_odd_shapes(operator: str, data: st.DataObject) -> None:
    """The interpreter on tiny inputs, value and gradient: breaks on an unmasked load or store."""
    if operator == "conv3x3" or not available("triton", operator):
        pytest.skip(f"triton: {ops.backends()[operator]['triton']}")
    call = data.draw(CALLS[operator])
    tensors: dict[str, Any] = call.given(torch.float32, lambda: data.draw(LAYOUT))
    # The interpreter takes a path through two resamplings for longer than all the rest.
    families = call.settings.get("families", ())
    assume(sum(family in ("scale", "rotate") for family in families) <= 1)
    assume(all(v is None or v.numel() <= 300 for v in tensors.values()))
    assume(call.smooth(**tensors, **call.settings))
    exact = widened(tensors)
    order = data.draw(st.sampled_from(["forward", "backward"]))
    x = [tensors[name] for name in call.differentiated]
    dy = normal(data.draw, *call.truth(*exact.values(), **call.settings).shape).float()
    with ops.use_backend("triton"), poisoned():
        got = derivative(as_function(call.run, tensors, call), x, [], dy, order)
    truth = as_function(call.truth, exact, call)
    wide: Any = [exact[name] for name in call.differentiated]
    want = derivative(truth, wide, [], dy.double(), order)
    for one, wanted, name in zip(got, want, call.differentiated * len(got), strict=False):
        assert_near(one, wanted, order, name)
