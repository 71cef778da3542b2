"""Dead and constant planes: instance norm of zero variance, ReLUs that never fire, overflow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from iadd_fast import trajectory_gradient
from iadd_fast.matching import Matcher
from iadd_fast.ops import norm_relu_pool, use_backend
from iadd_fast.reference import norm_relu_pool as reference
from iadd_fast.students import Student
from tests.trouble.small import CONVNET, ENGINES, draw, samples

definition: Any = reference
EPS = 1e-5
LAYOUTS = {"planar": torch.contiguous_format, "channels last": torch.channels_last}


def with_norm(student: Student, shift: float | None) -> Tensor:
    """An initialisation whose norms have this shift (None: random ones)."""
    theta = student.init(0, dtype=torch.float64)
    for entry in student.parameters:
        part = theta[entry.start : entry.stop]
        if entry.name in norm_shifts(student):
            random = torch.randn(part.shape, generator=draw(entry.start))
            part.copy_(random if shift is None else torch.full_like(random, shift))
    return theta


def norm_shifts(student: Student) -> set[str]:
    """The names of a ConvNet's shifts: they go with the scales, which begin at 1."""
    theta = student.init(0)
    return {
        entry.name.removesuffix("weight") + "bias"
        for entry in student.parameters
        if len(entry.shape) == 1 and bool((theta[entry.start : entry.stop] == 1).all())
    }


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in Triton's interpreter
@pytest.mark.parametrize("backend", ["cpp", "triton"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pool", [True, False])
def test_a_variance_that_overflows_is_told(backend: str, layout: str, pool: bool) -> None:
    """``rsqrt(inf) = 0``: the plane then passes for a constant one, as if nothing had happened.

    Only the sample whose variance overflows is lost; the other one is as it was.
    """
    if backend == "triton":
        pytest.importorskip("triton")
        import iadd_fast.kernels.norm_relu_pool as kernels
        from iadd_fast.kernels.launch import INTERPRETED

        if not INTERPRETED:
            pytest.skip("on CPU tensors Triton runs in its interpreter alone")
    else:
        import iadd_fast.native.norm_relu_pool as kernels
    run: Any = kernels
    z = torch.randn(2, 3, 4, 4, generator=draw())
    gamma, beta = torch.ones(3), torch.full((3,), 0.1)
    dp = torch.randn(2, 3, 2, 2, generator=draw(1)) if pool else torch.ones_like(z)
    fine = run.norm_relu_pool(z, gamma, beta, EPS, pool)
    z[1] *= 1e21
    z = z.contiguous(memory_format=LAYOUTS[layout])
    p = run.norm_relu_pool(z, gamma, beta, EPS, pool)
    dz, _, _ = run.norm_relu_pool_backward(z, gamma, beta, dp, EPS, pool)
    torch.testing.assert_close(p[0], fine[0])
    assert bool(dz[0].isfinite().all())
    assert bool(p[1].isnan().all()) and bool(dz[1].isnan().all())


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("shift", [-0.5, 0.25])
@pytest.mark.parametrize("size", [1, 4])
def test_a_constant_plane_is_its_shift(backend: str, shift: float, size: int) -> None:
    """Zero variance: p = relu(beta), dgamma = 0, dbeta = sum dp where beta > 0, dz without the
    mean and 1 / sqrt(eps) large. Breaks on rounding noise of a mean that is not the plane's value.
    """
    z = torch.full((2, 3, size, size), 0.7, requires_grad=True)
    gamma = torch.ones(3, requires_grad=True)
    beta = torch.full((3,), shift, requires_grad=True)
    dp = torch.randn(2, 3, size, size, generator=draw())
    with use_backend(backend):
        p = norm_relu_pool(z, gamma, beta, EPS, pool=False)
        dz, dgamma, dbeta = torch.autograd.grad(p, (z, gamma, beta), dp)
    on = float(shift > 0)
    torch.testing.assert_close(p, torch.full_like(p, max(shift, 0.0)), rtol=1e-5, atol=0)
    assert float(dgamma.abs().max()) < 1e-4
    torch.testing.assert_close(dbeta, on * dp.sum((0, 2, 3)))
    wanted = on * (dp - dp.mean((2, 3), keepdim=True)) * EPS**-0.5
    torch.testing.assert_close(dz, wanted, rtol=1e-4, atol=1e-3 * on)


def test_a_large_offset_costs_what_its_rounding_costs() -> None:
    """E[z^2] - E[z]^2: at an offset of 1e4 over a spread of 0.01 it has no digit right.

    One rounding of the offset is 5e-4, a twentieth of the spread: no kernel can know better.
    """
    z = 1e4 + 1e-2 * torch.randn(2, 3, 8, 8, generator=draw())
    truth = definition.norm_relu_pool(z.double(), None, None, EPS, False)
    with use_backend("cpp"):
        got = norm_relu_pool(z, None, None, EPS, pool=False)
    assert float((got.double() - truth).abs().max()) < 2 * (1e4 * 2**-24) / 1e-2


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_images(engine: str, value: float) -> None:
    """All-black and all-grey images: every engine against float64, with shifts off ReLU's kink."""
    theta = with_norm(CONVNET, None)
    images = torch.full((6, 1, 8, 8), value)
    labels = torch.arange(6) % 3

    def run(dtype: torch.dtype, engine: str) -> Any:
        given = theta.to(dtype)
        return trajectory_gradient(
            CONVNET, given, given + 0.01, images.to(dtype), labels, 0.01, steps=3, engine=engine
        )

    truth, got = run(torch.float64, "reference"), run(torch.float32, engine)
    assert float(got.loss) == pytest.approx(float(truth.loss), rel=1e-4)
    assert float(got.lr) == pytest.approx(float(truth.lr), rel=1e-2)
    assert float((got.images - truth.images).norm() / truth.images.norm()) < 2e-2


@pytest.mark.parametrize("engine", ENGINES)
def test_black_images_on_the_kink(engine: str) -> None:
    """At an initialisation (shift 0) a black image lies exactly on ReLU's kink.

    There each engine may take another side, and all of them are finite; fused computes the plane's
    zeros exactly and takes the derivative 0.
    """
    theta = CONVNET.init(0)
    got = trajectory_gradient(
        CONVNET, theta, theta + 0.01, torch.zeros(6, 1, 8, 8), torch.arange(6) % 3, 0.01,
        steps=3, engine=engine,
    )  # fmt: skip
    for part in (got.loss, got.images, got.lr):
        assert bool(part.isfinite().all())
    assert engine != "fused" or not bool(got.images.any())


@pytest.mark.parametrize("engine", ENGINES)
def test_relus_that_never_fire(engine: str) -> None:
    """Shifts of -10: the network is its last bias. Images move nothing, and exactly nothing."""
    theta = with_norm(CONVNET, -10.0).float()
    images, labels = samples()
    got = trajectory_gradient(
        CONVNET, theta, theta + 0.01, images, labels, 0.5, steps=3, engine=engine
    )
    assert not bool(got.images.any())
    assert bool(got.loss.isfinite()) and bool(got.lr.isfinite()) and float(got.lr) != 0.0


@pytest.mark.parametrize("engine", ["plain", "fused"])
def test_gradient_matching_of_dead_rows(engine: str) -> None:
    """Zero gradients have no direction: each row counts 1 and moves nothing (0 / 0 otherwise).

    Dead are the convolutions; the last layer's input is 0, so its rows are dead too.
    """
    theta = with_norm(CONVNET, -10.0).float()
    images, labels = samples()
    found = Matcher(CONVNET, engine=engine).gradient(theta, (images, labels), (images, labels))
    rows = sum(entry.shape[0] for entry in CONVNET.parameters if len(entry.shape) > 1)
    assert float(found.loss) == rows
    assert not bool(found.images.any())
