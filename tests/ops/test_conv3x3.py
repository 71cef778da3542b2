"""conv3x3: the definition against autograd, the compiled passes against both at every order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp

from iadd_fast import ops
from iadd_fast.native import conv3x3 as native
from iadd_fast.ops.backends import implementation
from iadd_fast.reference import conv3x3 as definition
from tests.tolerances import assert_close, relative_error

DOUBLE = torch.float64
LAST = torch.channels_last
GUARD = 1024
ORDERS = ("", "_backward", "_tangent", "_backward_tangent")
Given = dict[str, Tensor]

# Samples, input and output channels, height, width, padding.
SHAPES = [
    (2, 3, 20, 9, 8, 1),  # few channels: the direct passes
    (1, 1, 5, 2, 70, 3),  # one channel, rows in two pieces, more padding than image
    (2, 3, 40, 34, 5, 3),  # an input's gradient in two bands
    (2, 20, 12, 7, 7, 1),  # odd sides, channels that fill no vector
    (1, 17, 7, 5, 9, 0),  # one sample, no padding
    (3, 32, 128, 6, 4, 2),
    (1, 33, 200, 1, 1, 1),  # a plane of one pixel
    (2, 16, 48, 5, 6, 3),  # more padding than the window reaches
    (5, 128, 128, 8, 8, 1),  # several blocks of tiles
]


def arguments(shape: tuple[int, ...], dtype: torch.dtype = DOUBLE) -> Given:
    samples, inputs, outputs, height, width, padding = shape
    draw = torch.Generator().manual_seed(sum(shape))
    make = lambda *size: torch.randn(size, generator=draw, dtype=DOUBLE).to(dtype)  # noqa: E731
    grown = (height + 2 * padding - 2, width + 2 * padding - 2)
    return {
        **{name: make(samples, inputs, height, width) for name in ("x", "xdot")},
        **{name: make(outputs, inputs, 3, 3) for name in ("weight", "weightdot")},
        **{name: make(samples, outputs, *grown) for name in ("dz", "dzdot")},
    }


NAMES = {
    "": ("x", "weight"),
    "_backward": ("x", "weight", "dz"),
    "_tangent": ("x", "weight", "xdot", "weightdot"),
    "_backward_tangent": ("x", "weight", "dz", "xdot", "weightdot", "dzdot"),
}


def run(kernels: Any, order: str, given: Any, padding: int, **options: Any) -> tuple[Any, ...]:
    """One order's outputs as a tuple."""
    kernel = getattr(kernels, f"conv3x3{order}")
    outputs = kernel(*(given[name] for name in NAMES[order]), padding, **options)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def doubled(given: Given) -> Given:
    return {name: value.double() for name, value in given.items()}


def laid_out(given: Given, layout: torch.memory_format) -> Given:
    """Images in a layout; weights are always contiguous."""
    return {
        name: value if "weight" in name else value.contiguous(memory_format=layout)
        for name, value in given.items()
    }


def compare(got: tuple[Any, ...], want: tuple[Any, ...], order: str, slack: float = 1) -> None:
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, order[1:] or "forward", slack=slack)


def compiled() -> Any:
    reason = ops.backends()["conv3x3"]["cpp"]
    if reason is not None:
        pytest.skip(reason)
    with ops.use_backend("cpp"):
        return implementation("conv3x3", torch.empty(0))


@pytest.fixture
def always_compiled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The compiled passes also for the small sizes that PyTorch's own are faster for."""
    kernels = compiled()
    monkeypatch.setattr(native, "_by_pytorch", lambda x, weight: False)
    return kernels


@pytest.fixture(params=[0, 1, 2], ids=["best", "one below", "two below"])
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's best instruction set, and narrower ones with register tiles of their own."""
    monkeypatch.setattr(native, "_below_best", request.param)


@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
def test_closed_forms_are_the_derivatives_of_the_definition(shape: tuple[int, ...]) -> None:
    """Every order against autograd of plain PyTorch: a lost term or two swapped ones break it."""
    given, padding = arguments(shape), shape[-1]
    x, xdot = (given["x"], given["weight"]), (given["xdot"], given["weightdot"])

    def f(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, padding=padding)

    def gradients(x: Tensor, weight: Tensor, dz: Tensor) -> Any:
        return grad(lambda x, weight: (f(x, weight) * dz).sum(), (0, 1))(x, weight)

    value, tangent, *_ = jvp(f, x, xdot)
    backward, turned, *_ = jvp(gradients, (*x, given["dz"]), (*xdot, given["dzdot"]))
    wanted = {"": (value,), "_backward": backward, "_tangent": (tangent,)}
    for order in ORDERS:
        compare(run(definition, order, given, padding), wanted.get(order, turned), order)


@pytest.mark.usefixtures("poisoned", "instruction_set")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_compiled_equals_the_reference(
    shape: tuple[int, ...], dtype: torch.dtype, always_compiled: Any
) -> None:
    """All orders in both layouts on each instruction set, into poisoned memory.

    Breaks when a border, an odd side, a vector's tail or one of two terms goes wrong.
    """
    given, padding = arguments(shape, dtype), shape[-1]
    for order in ORDERS:
        wanted = run(definition, order, doubled(given), padding)
        for layout in (LAST, torch.contiguous_format):
            outputs = run(always_compiled, order, laid_out(given, layout), padding)
            compare(outputs, wanted, order)
            for output in outputs:
                image = output.shape[2:] != (3, 3)
                assert output.dtype == dtype
                assert output.is_contiguous(memory_format=LAST) if image else output.is_contiguous()


@pytest.mark.parametrize("kind", ["Winograd", "direct"])
def test_float32_is_as_exact_as_the_direct_sum(kind: str, always_compiled: Any) -> None:
    """At most three times the error of PyTorch's float32 convolution, at every order.

    Breaks when the transforms get larger factors, as those of F(4x4, 3x3) have.
    """
    inputs = 3 if kind == "direct" else 128
    given = laid_out(arguments((4, inputs, 128, 16, 16, 1), torch.float32), LAST)
    for order in ORDERS:
        truth = run(definition, order, doubled(given), 1)
        ours, theirs = run(always_compiled, order, given, 1), run(definition, order, given, 1)
        for got, other, want in zip(ours, theirs, truth, strict=True):
            assert relative_error(got, want) <= 3 * relative_error(other, want), order


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]], ids=str)
def test_any_strides_are_taken(shape: tuple[int, ...], always_compiled: Any) -> None:
    """Sliced, expanded and permuted tensors: breaks when strides are read that were not asked for.

    Every tensor of the call is strided in a way of its own.
    """
    given, padding = arguments(shape), shape[-1]
    strided = {
        "x": given["x"].transpose(2, 3).contiguous().transpose(2, 3),
        "xdot": torch.stack([given["xdot"]] * 2, dim=-1)[..., 1],
        "dz": given["dz"][:1, :, :1, :1].expand_as(given["dz"]),
        "dzdot": torch.cat([given["dzdot"].contiguous(memory_format=LAST)] * 2)[::2],
        "weight": given["weight"].contiguous(memory_format=LAST),
        "weightdot": torch.cat([given["weightdot"], given["weight"]], 1)[:, : shape[1]],
    }
    for order in ORDERS:
        wanted = run(definition, order, {k: v.clone() for k, v in strided.items()}, padding)
        compare(run(always_compiled, order, strided, padding), wanted, order)


def test_sizes_of_one_hide_no_layout(always_compiled: Any) -> None:
    """One channel or one pixel is in both layouts whatever its strides are, which may be anything.

    Breaks when strides of such sizes are computed with.
    """
    for shape in ((2, 1, 9, 4, 6, 1), (3, 17, 1, 4, 4, 1), (2, 20, 9, 1, 1, 2), (1, 1, 1, 3, 3, 0)):
        given, padding = arguments(shape), shape[-1]
        odd = {
            name: value.as_strided(
                value.shape,
                [
                    77 if size == 1 else step
                    for size, step in zip(value.shape, value.stride(), strict=True)
                ],
            )
            for name, value in given.items()
        }
        for order in ORDERS:
            wanted = run(definition, order, given, padding)
            compare(run(always_compiled, order, odd, padding), wanted, order)


def test_planes_of_one_pixel_are_pytorchs() -> None:
    """Breaks when the sizes that are left to PyTorch lose an order, ``out`` or a choice."""
    kernels = compiled()
    given = arguments((3, 17, 20, 1, 1, 1))
    for order in ORDERS:
        wanted = run(definition, order, given, 1)
        out = tuple(torch.full_like(want, float("nan")) for want in wanted)
        run(kernels, order, given, 1, out=out if len(out) == 2 else out[0])
        for got, want in zip(out, wanted, strict=True):
            assert torch.equal(got, want)
    assert run(kernels, "_backward", given, 1, want_dx=False)[0] is None


def guarded(like: Tensor) -> tuple[Tensor, Tensor]:
    """NaN of the shape and strides of a dense tensor, and the vector it is in the middle of."""
    flat = torch.full((like.numel() + 2 * GUARD,), float("nan"), dtype=like.dtype)
    return flat.as_strided(like.shape, like.stride(), GUARD), flat


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("shape", [(1, 3, 32, 5, 5, 1), (1, 20, 96, 7, 7, 1)], ids=str)
def test_results_go_where_they_are_asked_for(shape: tuple[int, ...], always_compiled: Any) -> None:
    """``out`` of NaN, as views into longer vectors and as strided tensors, holds the same bits.

    Breaks when a result is added to what was there, lands beside it or is written elsewhere.
    """
    given, padding = laid_out(arguments(shape, torch.float32), LAST), shape[-1]
    for kernels in (always_compiled, definition):
        for order in ORDERS:
            wanted = run(kernels, order, given, padding)
            views, vectors = zip(*(guarded(want) for want in wanted), strict=True)
            strided = tuple(torch.stack([want] * 2, -1)[..., 1].fill_(0.5) for want in wanted)
            for out in (views, strided):
                options = {"out": out if len(out) == 2 else out[0]}
                results = run(kernels, order, given, padding, **options)
                for got, place, want in zip(results, out, wanted, strict=True):
                    assert got.data_ptr() == place.data_ptr()
                    torch.testing.assert_close(place, want, rtol=0, atol=0)
            for vector in vectors:
                assert vector[:GUARD].isnan().all() and vector[-GUARD:].isnan().all()


def test_only_what_is_wanted_is_returned(always_compiled: Any) -> None:
    """None in the place of the rest, and the same bits for what is: with and without ``out``."""
    given = laid_out(arguments(SHAPES[3], torch.float32), LAST)
    for kernels in (always_compiled, definition):
        for order in ("_backward", "_backward_tangent"):
            both = run(kernels, order, given, 1)
            for place, name in enumerate(("want_dweight", "want_dx")):
                for filled in (False, True):
                    out: list[Any] = [None, None]
                    out[place] = torch.full_like(both[place], float("nan"))
                    options = {name: False} | ({"out": tuple(out)} if filled else {})
                    some = run(kernels, order, given, 1, **options)
                    assert some[1 - place] is None
                    assert torch.equal(some[place], both[place])


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]], ids=str)
def test_a_missing_tangent_is_zero(shape: tuple[int, ...], always_compiled: Any) -> None:
    """Breaks when the other term is dropped with it."""
    given, padding = arguments(shape), shape[-1]
    zero = {**given, "xdot": torch.zeros_like(given["xdot"])}
    for kernels in (always_compiled, definition):
        for order in ("_tangent", "_backward_tangent"):
            without = run(kernels, order, {**given, "xdot": None}, padding)
            compare(without, run(definition, order, zero, padding), order)


@pytest.mark.parametrize("inputs", [3, 16])
def test_nan_and_infinity_reach_their_outputs_alone(inputs: int, always_compiled: Any) -> None:
    """A NaN pixel makes the outputs of its window NaN, and none of another sample or far away."""
    given = arguments((2, inputs, 4, 12, 12, 1), torch.float32)
    given["x"][1, 0, 5, 5] = float("nan")
    (z,) = run(always_compiled, "", given, 1)
    assert z[1, :, 4:7, 4:7].isnan().all()
    assert z[0].isfinite().all()
    # A tile is transformed as a whole: its neighbours within two pixels may be NaN too.
    assert z[1, :, :2].isfinite().all() and z[1, :, 8:].isfinite().all()


@pytest.mark.parametrize("shape", [(9, 3, 32, 16, 16, 1), (9, 32, 32, 12, 12, 1)], ids=str)
def test_results_repeat_bit_for_bit(shape: tuple[int, ...], always_compiled: Any) -> None:
    """Called again with two threads; images also against one thread; all against the reference.

    Breaks when a sum's order depends on which thread comes first, or a thread's share is lost.
    """
    given = laid_out(arguments(shape, torch.float32), LAST)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(
                [one for order in ORDERS for one in run(always_compiled, order, given, 1)]
            )
    finally:
        torch.set_num_threads(threads)
    single, first, second = results
    for one, again, alone in zip(first, second, single, strict=True):
        assert torch.equal(one, again)
        if one.shape[2:] != (3, 3):
            assert torch.equal(one, alone)
    wanted = [one for order in ORDERS for one in run(definition, order, doubled(given), 1)]
    compare(tuple(first), tuple(wanted), "_backward")


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "Winograd"])
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_derivatives_of_both_orders_and_modes(
    direct: bool, padding: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gradcheck and gradgradcheck, forward mode and forward-over-reverse included.

    Breaks when the chain of kernels is wired to a wrong cotangent or loses a second-order term.
    """
    monkeypatch.setattr(native, "_direct", lambda weight: direct)
    given = arguments((1, 2, 3, 4, 3, padding))
    x = [given[name].requires_grad_(True) for name in ("x", "weight")]

    def f(x: Tensor, weight: Tensor) -> Tensor:
        return ops.conv3x3(x, weight, padding)

    assert gradcheck(f, x, check_forward_ad=True)
    assert gradgradcheck(f, x, check_fwd_over_rev=True, check_rev_over_rev=True)


def test_func_transforms_compose(backend: str) -> None:
    """jvp of grad, grad of jvp and grad of grad equal those of plain PyTorch."""
    given = arguments((2, 17, 4, 6, 7, 1))
    x, xdot = (given["x"], given["weight"]), (given["xdot"], given["weightdot"])

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, padding=1)

    results = []
    for f in (ops.conv3x3, plain):
        loss = lambda *x, f=f: (f(*x) * given["dz"]).square().sum()  # noqa: E731
        along = lambda *x, f=f: jvp(f, x, xdot)[1].square().sum()  # noqa: E731
        slope = lambda *x, loss=loss: sum(  # noqa: E731
            (g * d).sum() for g, d in zip(grad(loss, (0, 1))(*x), xdot, strict=True)
        )
        results.append(
            [
                *jvp(grad(loss, (0, 1)), x, xdot)[1],
                *grad(along, (0, 1))(*x),
                *grad(slope, (0, 1))(*x),
            ]
        )
    compare(tuple(results[0]), tuple(results[1]), "_backward_tangent", slack=5)


def test_a_third_derivative_raises(backend: str) -> None:
    """Breaks when a third order comes back as a silent zero."""
    given = arguments((1, 2, 2, 4, 4, 1))
    x, weight = (given[name].requires_grad_(True) for name in ("x", "weight"))
    (first,) = torch.autograd.grad(ops.conv3x3(x, weight).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="conv3x3: a third derivative"):
        torch.autograd.grad(second.square().sum(), x)


def test_compiled_graphs_hold_pytorchs_convolution() -> None:
    """One graph without a break, values as in eager: breaks when a chain is traced instead."""
    seen: list[str] = []

    def record(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    given = arguments((2, 17, 4, 6, 7, 1))
    f: Any = torch.compile(ops.conv3x3, backend=record, fullgraph=True)
    assert_close(
        f(given["x"], given["weight"]), ops.conv3x3(given["x"], given["weight"]), "forward"
    )
    assert any("conv2d" in target for target in seen), seen


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(2, 3, 4)}, "x: got"),
        ({"x": torch.zeros(2, 3, 4, 4, dtype=torch.int64)}, "x: got torch.int64"),
        ({"x": torch.zeros(0, 3, 4, 4)}, "x: got shape"),
        ({"x": [1.0]}, "x: got list"),
        ({"x": torch.zeros(2, 3, 2, 4), "padding": 0}, "x: got planes of 2x4 with padding 0"),
        ({"weight": torch.zeros(5, 4, 3, 3)}, "weight: got"),
        ({"weight": torch.zeros(5, 3, 5, 5)}, "weight: got"),
        ({"weight": torch.zeros(0, 3, 3, 3)}, "weight: got shape"),
        ({"weight": torch.zeros(5, 3, 3, 3, dtype=DOUBLE)}, "weight: got torch.float64"),
        ({"weight": torch.zeros(5, 3, 3, 3, device="meta")}, "weight: got .* on meta"),
        ({"padding": 4}, "padding: got 4"),
        ({"padding": -1}, "padding: got -1"),
        ({"padding": True}, "padding: got True"),
        ({"padding": "same"}, "padding: got 'same'"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    """Breaks when a kernel is reached with a shape it was not written for."""
    good: dict[str, Any] = {
        "x": torch.zeros(2, 3, 4, 4),
        "weight": torch.zeros(5, 3, 3, 3),
        "padding": 1,
    }
    assert ops.conv3x3(**good).shape == (2, 5, 4, 4)
    with pytest.raises(ValueError, match=message):
        ops.conv3x3(**(good | change))
