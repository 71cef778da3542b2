"""norm_relu_pool: closed forms against autograd of the definition, backends against both."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp

from iadd_fast import ops
from iadd_fast.ops.backends import implementation
from iadd_fast.reference import norm_relu_pool as definition
from tests.tolerances import assert_close

DOUBLE = torch.float64
EPS = 1e-5
ORDERS = ("", "_backward", "_tangent", "_backward_tangent")

SHAPES = [
    (2, 3, 8, 8),  # two rows to a vector
    (3, 37, 32, 32),  # channels that fill no vector
    (1, 1, 5, 7),  # odd sides, one sample, one channel
    (2, 18, 9, 4),  # odd height alone
    (2, 5, 4, 13),  # odd width alone
    (1, 2, 2, 3),  # a pool of one
    (2, 2, 64, 64),
    (2, 16, 16, 18),  # a row's end that fills no vector
]


def arguments(
    shape: tuple[int, ...], pool: bool, affine: bool, dtype: torch.dtype = DOUBLE
) -> dict[str, Tensor | None]:
    draw = torch.Generator().manual_seed(sum(shape))
    make = lambda *size: torch.randn(size, generator=draw, dtype=DOUBLE).to(dtype)  # noqa: E731
    samples, channels, height, width = shape
    pooled = (samples, channels, height // 2, width // 2) if pool else shape
    vectors = [make(channels) if affine else None for _ in range(4)]
    names = ("gamma", "beta", "gammadot", "betadot")
    planes = {"z": make(*shape), "zdot": make(*shape), "dp": make(*pooled), "dpdot": make(*pooled)}
    return {**planes, **dict(zip(names, vectors, strict=True))}


def run(kernels: Any, order: str, given: dict[str, Any], pool: bool, eps: float = EPS) -> Any:
    """One order's outputs as a tuple, without those that do not exist."""
    names = {
        "": ("z", "gamma", "beta"),
        "_backward": ("z", "gamma", "beta", "dp"),
        "_tangent": ("z", "gamma", "beta", "zdot", "gammadot", "betadot"),
        "_backward_tangent": (
            *("z", "gamma", "beta", "dp"),
            *("zdot", "gammadot", "betadot", "dpdot"),
        ),
    }
    kernel = getattr(kernels, f"norm_relu_pool{order}")
    outputs = kernel(*(given[name] for name in names[order]), eps, pool)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return tuple(output for output in outputs if output is not None)


def doubled(given: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value is None else value.double() for name, value in given.items()}


def plain(z: Tensor, gamma: Tensor | None, beta: Tensor | None, pool: bool) -> Tensor:
    """The operator as any user of PyTorch would write it."""
    y = torch.group_norm(z, z.shape[1], gamma, beta, EPS).relu()
    return F.avg_pool2d(y, 2) if pool else y


@pytest.mark.parametrize("shape", SHAPES[:6], ids=str)
@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_closed_forms_are_the_derivatives_of_the_definition(
    shape: tuple[int, ...], pool: bool, affine: bool
) -> None:
    """Every order against autograd of plain PyTorch: a lost mean, factor or sign breaks it."""
    given: Any = arguments(shape, pool, affine)
    names = ("z", "gamma", "beta") if affine else ("z",)
    x = tuple(given[name] for name in names)
    xdot = tuple(given[f"{name}dot"] for name in names)

    def f(*x: Any) -> Tensor:
        z, gamma, beta = x if affine else (*x, None, None)
        return plain(z, gamma, beta, pool)

    def gradients(*x_and_dp: Any) -> Any:
        *x, dp = x_and_dp
        return grad(lambda *x: (f(*x) * dp).sum(), tuple(range(len(x))))(*x)

    value, tangent, *_ = jvp(f, x, xdot)
    backward, backward_tangent, *_ = jvp(gradients, (*x, given["dp"]), (*xdot, given["dpdot"]))
    wanted = {
        "": (value,),
        "_backward": backward,
        "_tangent": (tangent,),
        "_backward_tangent": backward_tangent,
    }
    for order in ORDERS:
        for got, want in zip(run(definition, order, given, pool), wanted[order], strict=True):
            assert_close(got, want, order[1:] or "forward", slack=5)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_compiled_equals_the_reference(
    shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype
) -> None:
    """All orders, with and without pool and affine, into poisoned memory.

    Breaks when a vector's tail, an odd side, a layout or a plane's sums go wrong.
    """
    kernels = compiled()
    for pool, affine in itertools.product((True, False), repeat=2):
        given: Any = arguments(shape, pool, affine, dtype)
        laid_out = {
            name: value.contiguous(memory_format=layout) if value is not None and value.ndim == 4
            else value
            for name, value in given.items()
        }  # fmt: skip
        for order in ORDERS:
            outputs = run(kernels, order, laid_out, pool)
            wanted = run(definition, order, doubled(given), pool)
            for got, want in zip(outputs, wanted, strict=True):
                assert got.dtype == dtype
                assert_close(got, want, order[1:] or "forward")
            assert outputs[0].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", ["compiled", "definition"])
def test_results_go_into_given_tensors(name: str, layout: torch.memory_format) -> None:
    """Poisoned buffers of the caller's, views into one vector among them, and the gradient beside
    its tangent: breaks when a buffer is replaced by a new tensor, or left in part."""
    wanted: Any
    kernels: Any = compiled() if name == "compiled" else definition
    given = arguments((3, 20, 6, 7), pool=True, affine=True)
    planes = [given[key] for key in ("z", "dp", "zdot", "dpdot")]
    z, dp, zdot, dpdot = (x.contiguous(memory_format=layout) for x in planes if x is not None)
    gamma, beta, gammadot, betadot = (given[k] for k in ("gamma", "beta", "gammadot", "betadot"))

    def nan(like: Tensor) -> Tensor:
        return torch.full_like(like, float("nan"))

    p, dz, dzdot = nan(dp), nan(z), nan(z)
    assert kernels.norm_relu_pool(z, gamma, beta, EPS, True, out=p) is p
    wanted = definition.norm_relu_pool(z, gamma, beta, EPS, True)
    assert_close(p, wanted, "forward")
    kernels.norm_relu_pool_tangent(z, gamma, beta, zdot, gammadot, betadot, EPS, True, out=p)
    wanted = definition.norm_relu_pool_tangent(z, gamma, beta, zdot, gammadot, betadot, EPS, True)
    assert_close(p, wanted, "tangent")
    vectors = torch.full((2, 20), float("nan"), dtype=DOUBLE)
    gradients = definition.norm_relu_pool_backward(z, gamma, beta, dp, EPS, True)
    kernels.norm_relu_pool_backward(z, gamma, beta, dp, EPS, True, out=(dz, *vectors))
    for got, expected in zip((dz, *vectors), gradients, strict=True):
        assert_close(got, expected, "backward")
    dz, vectors = nan(z), vectors.fill_(float("nan"))
    both = (z, gamma, beta, dp, zdot, gammadot, betadot, dpdot, EPS, True)
    kernels.norm_relu_pool_backward_tangent(*both, out=(dzdot, *vectors), dz=dz)
    assert_close(dz, gradients[0], "backward")
    wanted = definition.norm_relu_pool_backward_tangent(*both)
    for got, expected in zip((dzdot, *vectors), wanted, strict=True):
        assert_close(got, expected, "backward_tangent")


def compiled() -> Any:
    reason = ops.backends()["norm_relu_pool"]["cpp"]
    if reason is not None:
        pytest.skip(reason)
    with ops.use_backend("cpp"):
        return implementation("norm_relu_pool", torch.empty(0))


def test_any_strides_are_taken() -> None:
    """Sliced, expanded and permuted planes: breaks when a kernel reads strides it did not ask for.

    Every tensor of the call is strided in a way of its own.
    """
    kernels = compiled()
    given: Any = arguments((2, 6, 8, 10), True, True)
    strided = {
        "z": given["z"].transpose(2, 3).contiguous().transpose(2, 3),
        "zdot": torch.stack([given["zdot"]] * 2, dim=-1)[..., 1],
        "dp": given["dp"][:1, :, :1, :1].expand_as(given["dp"]),
        "dpdot": given["dpdot"].contiguous(memory_format=torch.channels_last),
        "gamma": torch.stack([given["gamma"]] * 3, dim=1)[:, 1],
        "beta": given["beta"].flip(0).flip(0),
        "gammadot": given["gammadot"][:1].expand(6),
        "betadot": torch.cat([given["betadot"], given["beta"]])[:6],
    }
    for order in ORDERS:
        outputs = run(kernels, order, strided, True)
        wanted = run(definition, order, {k: v.clone() for k, v in strided.items()}, True)
        for got, want in zip(outputs, wanted, strict=True):
            assert_close(got, want, order[1:] or "forward")


@pytest.mark.parametrize("missing", ["gammadot", "betadot", "dpdot"])
def test_a_missing_tangent_is_zero(missing: str) -> None:
    """Breaks when a kernel reads through a null pointer or drops the other tangents too."""
    kernels = compiled()
    given: Any = arguments((2, 5, 6, 8), True, True)
    zero = {**given, missing: torch.zeros_like(given[missing])}
    for order in ("_tangent", "_backward_tangent"):
        for module in (kernels, definition):
            outputs = run(module, order, {**given, missing: None}, True)
            for got, want in zip(outputs, run(definition, order, zero, True), strict=True):
                assert_close(got, want, order[1:])


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 5, 1, 1), (2, 3, 1, 7)], ids=str)
def test_planes_of_one_pixel_and_of_one_row(shape: tuple[int, ...]) -> None:
    """One pixel has variance 0: its output is relu(beta) and its gradient for z is 0."""
    kernels = compiled()
    given: Any = arguments(shape, False, True)
    (p,) = run(kernels, "", given, False)
    if shape[2:] == (1, 1):
        want = given["beta"].relu().view(1, -1, 1, 1).expand(shape)
        torch.testing.assert_close(p, want, rtol=0, atol=0)
        # What is left is the rounding of one product, times 1 / sqrt(eps).
        assert float(run(kernels, "_backward", given, False)[0].abs().max()) < 1e-12
    # PyTorch's group norm subtracts mean / sqrt(eps) from z / sqrt(eps), which costs three digits.
    slack = 1000 if shape[2:] == (1, 1) else 1
    for order in ORDERS:
        outputs = run(kernels, order, given, False)
        for got, want in zip(outputs, run(definition, order, given, False), strict=True):
            assert_close(got, want, order[1:] or "forward", slack=slack)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_constant_planes_have_no_nan(layout: torch.memory_format) -> None:
    """Variance 0, z = 3 everywhere: only eps stands between every order and a division by 0."""
    kernels = compiled()
    given: Any = arguments((2, 4, 8, 8), True, True, torch.float32)
    given["z"] = torch.full_like(given["z"], 3.0).contiguous(memory_format=layout)
    for order in ORDERS:
        wanted = run(definition, order, doubled(given), True)
        for got, want in zip(run(kernels, order, given, True), wanted, strict=True):
            assert_close(got, want, order[1:] or "forward")


@pytest.mark.parametrize("scale, offset", [(1e4, 0), (1e12, 0), (1e-12, 0), (1.0, 1e3)])
def test_magnitudes_in_float32(scale: float, offset: float) -> None:
    """Huge, tiny and far from zero: breaks when the variance is E[z^2] - E[z]^2 or overflows."""
    kernels = compiled()
    given: Any = arguments((2, 3, 16, 16), True, True, torch.float32)
    given["z"] = given["z"] * scale + offset
    # An offset of 1e3 leaves 1e-4 of a pixel's own digits in float32: the input's rounding, not
    # the kernel's, is excluded by comparing on the rounded input; the mean's rounding stays.
    slack = 100 if offset else 1
    for order in ORDERS:
        wanted = run(definition, order, doubled(given), True)
        for got, want in zip(run(kernels, order, given, True), wanted, strict=True):
            assert_close(got, want, order[1:] or "forward", slack=slack)


def test_nan_reaches_the_output() -> None:
    """A NaN pixel makes its plane NaN and no other: breaks when the ReLU turns NaN into 0."""
    z = arguments((2, 3, 8, 8), True, False, torch.float32)["z"]
    assert z is not None
    z[1, 2, 3, 4] = float("nan")
    for name in ("cpp", "reference"):
        if ops.backends()["norm_relu_pool"][name] is None:
            with ops.use_backend(name):
                nan = ops.norm_relu_pool(z).isnan()
            assert nan[1, 2].all() and int(nan.sum()) == 16


def test_sums_over_samples_do_not_depend_on_threads() -> None:
    """The weights' gradients bit for bit with one and with two threads, and when called again."""
    kernels = compiled()
    given: Any = arguments((40, 16, 32, 32), True, True, torch.float32)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(run(kernels, "_backward_tangent", given, True))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            assert torch.equal(first, second)


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_derivatives_of_both_orders_and_modes(backend: str, pool: bool, affine: bool) -> None:
    """gradcheck and gradgradcheck, forward mode and forward-over-reverse included.

    Breaks when the chain of kernels is wired to a wrong cotangent or loses a second-order term.
    """
    given: Any = arguments((2, 2, 4, 5), pool, affine)
    x = [given["z"], given["gamma"], given["beta"]] if affine else [given["z"]]
    x = [value.requires_grad_(True) for value in x]

    def f(*x: Any) -> Tensor:
        return ops.norm_relu_pool(*x, pool=pool)

    assert gradcheck(f, x, check_forward_ad=True)
    assert gradgradcheck(f, x, check_fwd_over_rev=True, check_rev_over_rev=True)


def test_func_transforms_compose(backend: str) -> None:
    """jvp of grad, grad of jvp and grad of grad equal those of plain PyTorch."""
    given: Any = arguments((2, 3, 6, 7), True, True)
    x = (given["z"], given["gamma"], given["beta"])
    xdot = (given["zdot"], given["gammadot"], given["betadot"])
    every = (0, 1, 2)

    def loss(f: Any) -> Any:
        return lambda *x: (f(*x) * given["dp"]).square().sum()

    results = []
    functions: list[Any] = [ops.norm_relu_pool, lambda z, gamma, beta: plain(z, gamma, beta, True)]
    for f in functions:
        along = lambda *x, f=f: jvp(f, x, xdot)[1].square().sum()  # noqa: E731
        # The tangent differentiated for its direction.
        length = lambda *d, f=f: jvp(f, x, d)[1].square().sum()  # noqa: E731
        slope = lambda *x, f=f: sum(  # noqa: E731
            (g * d).sum() for g, d in zip(grad(loss(f), every)(*x), xdot, strict=True)
        )
        results.append(
            [
                *jvp(grad(loss(f), every), x, xdot)[1],
                *grad(along, every)(*x),
                *grad(length, every)(*xdot),
                *grad(slope, every)(*x),
            ]
        )
    for got, want in zip(*results, strict=True):
        assert_close(got, want, "backward_tangent", slack=5)


def test_a_third_derivative_raises(backend: str) -> None:
    """Breaks when a third order comes back as a silent zero."""
    z: Any = arguments((1, 2, 4, 4), True, False)["z"]
    z.requires_grad_(True)
    (first,) = torch.autograd.grad(ops.norm_relu_pool(z).square().sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), z, create_graph=True)
    with pytest.raises(NotImplementedError, match="norm_relu_pool: a third derivative"):
        torch.autograd.grad(second.square().sum(), z)


def test_bfloat16_is_storage() -> None:
    """The reference computes in float32 and rounds once: breaks when it rounds every step."""
    given: Any = arguments((2, 3, 8, 8), True, True, torch.bfloat16)
    for order in ORDERS:
        wanted = run(definition, order, doubled(given), True)
        for got, want in zip(run(definition, order, given, True), wanted, strict=True):
            assert got.dtype == torch.bfloat16
            assert_close(got, want, order[1:] or "forward")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"z": torch.zeros(2, 3, 4)}, "z: got"),
        ({"z": torch.zeros(2, 3, 4, 4, dtype=torch.int64)}, "z: got torch.int64"),
        ({"z": torch.zeros(0, 3, 4, 4)}, "z: got shape"),
        ({"z": torch.zeros(2, 3, 1, 4)}, "z: got planes of 1x4"),
        ({"z": [1.0]}, "z: got list"),
        ({"gamma": None}, "gamma: got None beside a beta"),
        ({"beta": None}, "beta: got None beside a gamma"),
        ({"gamma": torch.ones(4)}, "gamma: got"),
        ({"beta": torch.zeros(3, dtype=torch.float64)}, "beta: got torch.float64"),
        ({"gamma": torch.ones(3, device="meta")}, "gamma: got .* on meta"),
        ({"eps": 0.0}, "eps: got 0.0"),
        ({"eps": -1e-5}, "eps: got -1e-05"),
        ({"eps": float("nan")}, "eps: got nan"),
        ({"eps": 1e-50}, "eps: got 1e-50"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    """Breaks when a mismatch reaches a kernel, which would read past the end or give NaN."""
    good = {"z": torch.zeros(2, 3, 4, 4), "gamma": torch.ones(3), "beta": torch.zeros(3)}
    with pytest.raises(ValueError, match=f"^{message}"):
        ops.norm_relu_pool(**{**good, **change})
