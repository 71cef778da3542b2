"""Exploding unrolls: what every engine gives, and that a finite result is a right one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from iadd_fast import TrajectoryGradient, trajectory_gradient
from iadd_fast.ops import param_distance_gradients, use_backend
from tests.trouble.small import CONVNET, ENGINES, MLP, draw, samples


def unrolled(
    engine: str,
    lr: float = 0.01,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
    student: Any = CONVNET,
    **options: Any,
) -> TrajectoryGradient:
    theta = student.init(0, dtype=dtype)
    target = theta + 0.05 * torch.randn(theta.shape, generator=draw(4), dtype=torch.float64).to(
        dtype
    )
    images, labels = samples(scale, dtype)
    given: dict[str, Any] = {"weight": torch.ones_like(theta), "normaliser": "weighted", "steps": 4}
    return trajectory_gradient(
        student, theta, target, images, labels, lr, engine=engine, **(given | options)
    )


def finite(result: TrajectoryGradient) -> bool:
    """As an outer step asks before it moves."""
    parts = (result.loss, result.images, result.labels, result.lr, result.weight)
    return all(bool(part.isfinite().all()) for part in parts if part is not None)


@pytest.mark.parametrize("lr", [1e4, 1e10, 1e30])
@pytest.mark.parametrize("engine", ENGINES)
def test_an_exploded_unroll_is_not_finite_in_any_engine(engine: str, lr: float) -> None:
    """A kernel that takes the reciprocal root of an overflowed variance for 0: the planes are dead
    and everything is finite (engine fused did, up to 1e6)."""
    assert not finite(unrolled(engine, lr))


@pytest.mark.parametrize("engine", ENGINES)
def test_images_too_large_for_the_dtype_are_not_dead_planes(engine: str) -> None:
    """The same with images of 1e20: fused gave loss 1, gradient 0, and a run went on for ever.

    float64 says that these images train as well as any, so a finite loss of 1 was a wrong one.
    """
    assert not finite(unrolled(engine, scale=1e20))
    truth = unrolled("reference", scale=1e20, dtype=torch.float64)
    assert finite(truth) and float(truth.images.norm()) > 0


@pytest.mark.parametrize(("lr", "scale"), [(0.01, 1e15), (0.01, 1e-3), (1.0, 1.0), (-1.0, 1.0)])
@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_finite_is_right(engine: str, lr: float, scale: float) -> None:
    """Any engine that loses a factor where numbers are large or small, without saying so.

    The reference may give up earlier than the others (its second derivative squares activations);
    then it must say so.
    """
    result, truth = (unrolled(engine, lr, scale, dtype) for dtype in (torch.float32, torch.float64))
    if engine == "reference" and not finite(result):
        assert scale == 1e15
        return
    for name in ("loss", "images", "lr", "weight"):
        got, wanted = getattr(result, name).double(), getattr(truth, name)
        assert float((got - wanted).norm() / wanted.norm()) < 2e-2, name


@pytest.mark.parametrize("engine", ENGINES)
def test_no_learning_rate_at_all(engine: str) -> None:
    """lr = 0: nothing moves, the loss is 1, images have no influence, lr has one."""
    result = unrolled(engine, 0.0)
    assert float(result.loss) == 1.0 and not bool(result.images.any())
    truth = unrolled("reference", 0.0, dtype=torch.float64)
    assert float(result.lr) == pytest.approx(float(truth.lr), rel=1e-3)


def test_bfloat16_explodes_as_float32_does() -> None:
    """A rounding to bfloat16 that turns an infinity into the largest number."""
    assert finite(unrolled("fused", precision="bfloat16"))
    assert not finite(unrolled("fused", 1e10, precision="bfloat16"))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_finite_loss_with_an_infinite_gradient(backend: str) -> None:
    """A skip rule that looks at the loss alone: here L = 1 and 2 / ||start - target||^2 overflows.

    start - target is 1e-21 throughout, so dL/dtheta = 2e21 / P in exact arithmetic.
    """
    start, target = torch.zeros(9), torch.full((9,), 1e-21)
    with use_backend(backend):
        loss, d_theta, _ = param_distance_gradients(start, start, target)
    assert float(loss) == 1.0
    assert bool(d_theta.isinf().all())


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("scale", [1e-18, 1e18, 1e19, 1e30])
def test_the_distance_of_large_and_small_parameters(backend: str, scale: float) -> None:
    """Sums of squares in float32: they are 0 below 1e-23 and infinite above 1e19."""
    theta, start, target = (torch.randn(50, generator=draw(k)) * scale for k in range(3))
    with use_backend(backend):
        loss, d_theta, _ = param_distance_gradients(theta, start, target)
    t, s, g = theta.double(), start.double(), target.double()
    assert float(loss) == pytest.approx(float((t - g).square().sum() / (s - g).square().sum()))
    wanted = 2 * (t - g) / (s - g).square().sum()
    if 2 / float((s - g).square().sum()) > torch.finfo(torch.float32).tiny:
        torch.testing.assert_close(d_theta.double(), wanted, rtol=1e-5, atol=0)
    else:  # the factor is subnormal or 0: a step of size 0 at worst, never a wrong direction
        assert bool((d_theta.double().abs() <= wanted.abs() * 1.5).all())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_in_the_weights(engine: str, value: float) -> None:
    """A weight that is not finite: lost where a kernel takes the larger of two numbers."""
    weight = torch.ones(CONVNET.num_parameters)
    weight[7] = value
    assert not finite(unrolled(engine, weight=weight))


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_of_zero(engine: str) -> None:
    """0 / 0 of the weighted form must not pass for a loss of 0; the paper's form is 0 exactly."""
    zeros = torch.zeros(CONVNET.num_parameters)
    assert bool(unrolled(engine, weight=zeros).loss.isnan())
    plain = unrolled(engine, weight=zeros, normaliser="start")
    assert float(plain.loss) == 0.0 and float(plain.images.abs().max()) < 1e-8


@pytest.mark.parametrize("engine", ENGINES)
def test_the_least_unroll(engine: str) -> None:
    """One step, a window of one, one sample a step, one sample altogether: against float64."""
    images, labels = samples()

    def least(engine: str, dtype: torch.dtype) -> Tensor:
        theta = CONVNET.init(0, dtype=dtype)
        return trajectory_gradient(
            CONVNET, theta, theta + 0.01, images[:1].to(dtype), labels[:1], 0.1,
            steps=1, window=1, batch_size=1, engine=engine,
        ).images  # fmt: skip

    truth = least("reference", torch.float64)
    got = least(engine, torch.float32).double()
    assert float((got - truth).norm() / truth.norm()) < 1e-4


@pytest.mark.parametrize("engine", ["reference", "module"])
def test_an_exploded_unroll_without_norms(engine: str) -> None:
    """An MLP explodes without any norm to overflow: inf - inf in the softmax."""
    assert not finite(unrolled(engine, 1e20, student=MLP))


@pytest.mark.parametrize("engine", ENGINES)
def test_degenerate_soft_labels(engine: str) -> None:
    """One-hot probabilities are the hard labels: breaks on 0 log 0 in a loss or its derivatives."""
    images, labels = samples()
    hot = torch.eye(3)[labels]
    theta = CONVNET.init(0)
    soft, hard = (
        trajectory_gradient(
            CONVNET, theta, theta + 0.01, images, given, 0.1, steps=2, engine=engine
        )
        for given in (hot, labels)
    )
    assert finite(soft)
    torch.testing.assert_close(soft.images, hard.images, rtol=1e-3, atol=1e-5)
