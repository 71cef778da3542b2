"""Triton norm_relu_pool against the float64 reference, at every order."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.tolerances import assert_close

pytest.importorskip("triton", reason="triton is not installed")

from iadd_fast.kernels import norm_relu_pool as kernels
from iadd_fast.kernels import planes
from iadd_fast.kernels.launch import INTERPRETED
from iadd_fast.reference import norm_relu_pool as definition

reference: Any = definition

EPS = 1e-5


class Case(NamedTuple):
    """Planes with an affine, tangents and cotangents; no value within rounding of the kink."""

    z: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    dp: Tensor
    zdot: Tensor
    gammadot: Tensor | None
    betadot: Tensor | None
    dpdot: Tensor | None
    pool: bool


def case(
    shape: tuple[int, int, int, int],
    device: str,
    pool: bool = True,
    affine: bool = True,
    layout: str = "contiguous",
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
    offset: float = 0.0,
) -> Case:
    pooled = (*shape[:2], shape[2] // 2, shape[3] // 2) if pool else shape
    generator = torch.Generator()
    for seed in range(100):
        generator.manual_seed(seed)

        def draw(*size: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(*size, generator=generator)

        vectors: list[Any] = [draw(shape[1]).to(device) for _ in range(4)]
        if not affine:
            vectors = [None] * 4
        z = (draw(*shape) * scale + offset).to(dtype)
        y = reference.norm_relu_pool(z.double(), *(_wide(vectors[:2])), EPS, False)
        opposite = [-v if v is not None else v for v in _wide(vectors[:2])]
        if affine:
            y = y + reference.norm_relu_pool(z.double(), *opposite, EPS, False)
        if z[0, 0].numel() == 1 or not affine or float(y.min()) > 1e-5:
            break
    batches = [z, draw(*pooled), draw(*shape) * scale + offset / 1000, draw(*pooled)]
    z, dp, zdot, dpdot = (_laid_out(b.to(device, dtype), layout) for b in batches)
    gamma, beta, gammadot, betadot = vectors
    return Case(z, gamma, beta, dp, zdot, gammadot, betadot, dpdot, pool)


def _laid_out(tensor: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        return torch.stack([tensor, -tensor], dim=-1)[..., 0]
    return tensor


def _wide(tensors: Any) -> list[Any]:
    return [t.cpu().double() if isinstance(t, Tensor) else t for t in tensors]


def run(module: Any, c: Any) -> dict[str, Any]:
    """All four orders of a backend, by the name of each result."""
    z, gamma, beta, dp, zdot, gammadot, betadot, dpdot, pool = c
    affine = (z, gamma, beta)
    dots = (zdot, gammadot, betadot)
    names = ("z", "gamma", "beta")
    first = module.norm_relu_pool_backward(*affine, dp, EPS, pool)
    second = module.norm_relu_pool_backward_tangent(*affine, dp, *dots, dpdot, EPS, pool)
    return {
        "forward p": module.norm_relu_pool(*affine, EPS, pool),
        "tangent p": module.norm_relu_pool_tangent(*affine, *dots, EPS, pool),
        **{f"backward {name}": got for name, got in zip(names, first, strict=True)},
        **{f"backward_tangent {name}": got for name, got in zip(names, second, strict=True)},
    }


def check(c: Case, slack: float = 1) -> dict[str, Any]:
    results, wanted = run(kernels, c), run(reference, _wide(c))
    for key, got in results.items():
        # The interpreter cuts a float32 off to bfloat16 instead of rounding it.
        cut_off = INTERPRETED and got is not None and got.dtype == torch.bfloat16
        order, name = key.split()
        assert_close(got, wanted[key], order, slack=slack * (2 if cut_off else 1), name=name)
    return results


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    "shape, pool",
    [
        ((2, 3, 8, 8), True),  # several planes in a program, one of them past the end
        ((1, 5, 7, 9), True),  # odd sides, one image
        ((3, 2, 2, 3), True),  # one window
        ((2, 3, 5, 6), False),
        ((1, 2, 32, 32), True),
    ],
)
def test_every_order(
    shape: tuple[int, int, int, int], pool: bool, affine: bool, layout: str, device: str
) -> None:
    """Breaks on a wrong term, an odd side's last row that is pooled or left out of a mean, a plane
    past the end that is written, or a layout read in the wrong order."""
    check(case(shape, device, pool, affine, layout))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape, pool", [((1, 2, 32, 32), True), ((1, 2, 37, 22), False)])
def test_planes_in_chunks(
    shape: Any, pool: bool, layout: str, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """Breaks when a chunk is left out of a mean, or the last one counts pixels past the plane."""
    monkeypatch.setattr(planes, "TILE", 128)
    monkeypatch.setattr(planes, "WHOLE_TILE", 128)
    c = case(shape, device, pool, layout=layout)
    assert planes.tiling(c.z).chunks > 1
    check(c)


def test_a_plane_of_64_in_one_piece(device: str) -> None:
    """Breaks when the largest block is not the plane it is meant to hold."""
    c = case((2, 1, 64, 64), device)
    assert planes.tiling(c.z).chunks == 1
    check(c)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_planes_of_one_pixel(affine: bool, layout: str, device: str) -> None:
    """The variance is zero and z has no influence: breaks on 0 times infinity."""
    c = case((2, 3, 1, 1), device, False, affine, layout)
    results, wanted = run(kernels, c), run(reference, _wide(c))
    for key, got in results.items():
        if got is not None:
            # Only beta makes a value; what is zero in the reference is a rounding of the cotangent.
            torch.testing.assert_close(got.cpu().double(), wanted[key], rtol=1e-6, atol=1e-3)
            if "backward z" in key or "forward" in key:
                torch.testing.assert_close(got.cpu().double(), wanted[key], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("pool", [True, False])
def test_bfloat16_is_storage(pool: bool, layout: str, device: str) -> None:
    """Breaks when the arithmetic is done in bfloat16, or a result has another dtype."""
    c = case((2, 9, 6, 8), device, pool, layout=layout, dtype=torch.bfloat16)
    results = check(c)
    for key, got in results.items():
        assert got.dtype == (torch.bfloat16 if key[-1] in "zp" else torch.float32), key


@pytest.mark.parametrize("scale, offset", [(1e-15, 0), (1e4, 0), (1e15, 0), (1, 1e4), (1e3, 1e6)])
def test_magnitudes(scale: float, offset: float, device: str) -> None:
    """Breaks when a mean or variance loses the plane's spread to its size or its offset."""
    check(case((2, 3, 8, 9), device, scale=scale, offset=offset))


def test_constant_planes(device: str) -> None:
    """Variance 0: breaks when the mean of equal values is not that value, or eps is left out."""
    c = case((2, 3, 8, 8), device)
    constants = torch.tensor([0.0, 3.0, -1.5], device=device).view(1, 3, 1, 1)
    check(c._replace(z=constants.expand(2, 3, 8, 8).contiguous()))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_results_take_the_layout_of_z(layout: str, device: str) -> None:
    """Breaks when a stride is ignored or a channels-last network is silently made contiguous."""
    c = case((2, 3, 6, 4), device, layout=layout)
    dense = case((2, 3, 6, 4), device)
    last = layout == "channels_last"
    expected = torch.channels_last if last else torch.contiguous_format
    for tensors in (c, c._replace(dp=dense.dp, zdot=dense.zdot), dense._replace(z=c.z)):
        results = check(tensors)
        for key in ("forward p", "backward z", "tangent p", "backward_tangent z"):
            assert results[key].is_contiguous(memory_format=expected), key


def test_cotangents_that_are_expanded(device: str) -> None:
    """A mean has one gradient for all pixels: breaks when stride 0 is read as dense."""
    c = case((2, 3, 6, 4), device)
    one = torch.full((), 0.7, device=device)
    check(c._replace(dp=one.expand(2, 3, 3, 2), dpdot=-one.expand(2, 3, 3, 2)))


@pytest.mark.parametrize("missing", ["gammadot", "betadot", "dpdot"])
@pytest.mark.parametrize("pool", [True, False])
def test_a_missing_tangent_is_zero(missing: str, pool: bool, device: str) -> None:
    """Breaks when a missing tangent is read, or takes another one with it."""
    c = case((2, 3, 6, 4), device, pool)
    absent = c._replace(**{missing: None})  # type: ignore[arg-type]
    check(absent)
    zero: Any = {missing: torch.zeros_like(getattr(c, missing))}
    zeros = c._replace(**zero)
    for one, other in zip(run(kernels, absent).values(), run(kernels, zeros).values(), strict=True):
        assert torch.equal(one, other)


def test_channel_sums_over_many_images(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Breaks when images past the first block of the sum are lost, or channels past theirs."""
    monkeypatch.setattr(kernels, "SUM_BLOCK", 2)
    check(case((5, 3, 2, 2), device, pool=False))


def test_same_bits_every_time_and_in_any_batch(device: str) -> None:
    """Breaks with atomics, or when a plane's result depends on its neighbours."""
    c = case((3, 5, 8, 8), device)
    first, again = run(kernels, c), run(kernels, c)
    for key, got in first.items():
        assert torch.equal(got, again[key]), key
    alone = run(kernels, c._replace(z=c.z[:1], dp=c.dp[:1], zdot=c.zdot[:1], dpdot=c.dpdot[:1]))  # type: ignore[index]
    for key in ("forward p", "backward z", "tangent p", "backward_tangent z"):
        assert torch.equal(alone[key], first[key][:1]), key


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_stays_in_its_plane(device: str) -> None:
    """Breaks when the ReLU swallows a NaN, or one plane's values reach another."""
    c = case((2, 3, 8, 8), device)
    z = c.z.clone()
    z[0, 1, 3, 3] = float("nan")
    p = kernels.norm_relu_pool(z, c.gamma, c.beta, EPS, True)
    assert p[0, 1].isnan().all()
    assert int(p.isnan().sum()) == p[0, 1].numel()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_results_go_into_given_tensors(layout: str, device: str) -> None:
    """Buffers of the caller's, and the gradient beside its tangent: breaks when a buffer is
    replaced, or left in part (it starts as NaN)."""
    c = case((2, 3, 6, 7), device, layout=layout)
    p, dz, dzdot = torch.empty_like(c.dp), torch.empty_like(c.z), torch.empty_like(c.z)
    vectors = torch.empty(2, 3, device=device)
    tensors: Any = (*_wide(c[:8]), True)
    wide = Case(*tensors)
    plain = (c.z, c.gamma, c.beta)
    assert kernels.norm_relu_pool(*plain, EPS, True, out=p) is p
    wanted = reference.norm_relu_pool(wide.z, wide.gamma, wide.beta, EPS, True)
    assert_close(p, wanted, "forward")
    kernels.norm_relu_pool_tangent(*plain, *c[4:7], EPS, True, out=p)
    wanted = reference.norm_relu_pool_tangent(*wide[:3], *wide[4:7], EPS, True)
    assert_close(p, wanted, "tangent")
    gradients = reference.norm_relu_pool_backward(*wide[:4], EPS, True)
    kernels.norm_relu_pool_backward(*c[:4], EPS, True, out=(dz, *vectors))
    for got, expected in zip((dz, *vectors), gradients, strict=True):
        assert_close(got, expected, "backward")
    dz, vectors = torch.empty_like(c.z), torch.empty_like(vectors)
    kernels.norm_relu_pool_backward_tangent(*c[:8], EPS, True, out=(dzdot, *vectors), dz=dz)
    assert_close(dz, gradients[0], "backward")
    wanted = reference.norm_relu_pool_backward_tangent(*wide[:8], EPS, True)
    for got, expected in zip((dzdot, *vectors), wanted, strict=True):
        assert_close(got, expected, "backward_tangent")
