"""Triton param_distance against the float64 reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tolerances import assert_close

pytest.importorskip("triton", reason="triton is not installed")

from iadd_fast.kernels import param_distance as kernels
from iadd_fast.kernels.launch import INTERPRETED
from iadd_fast.reference import param_distance as definition

reference: Any = definition


def vectors(size: int, device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(size)
    drawn = [torch.randn(size, generator=generator) for _ in range(4)]
    return [vector.to(device, dtype) for vector in drawn]


def check(tensors: list[Tensor | None], weighted: bool) -> None:
    theta, start, target, weight = tensors
    assert theta is not None and start is not None and target is not None
    wide = [None if tensor is None else tensor.double() for tensor in tensors]
    want = reference.param_distance_gradients(*wide, weighted)
    got = kernels.param_distance_gradients(theta, start, target, weight, weighted)
    assert got[0].dtype == torch.float32 and got[1].dtype == theta.dtype
    for name, order, one, other in zip(
        ("loss", "d_theta", "d_weight"), ("forward", "backward", "backward"), got, want, strict=True
    ):
        # The interpreter cuts a float32 off to bfloat16 instead of rounding it.
        cut_off = INTERPRETED and one is not None and one.dtype == torch.bfloat16
        assert_close(one, other, order, slack=2 if cut_off else 1, name=name)
    value = kernels.param_distance(theta, start, target, weight, weighted)
    torch.testing.assert_close(value, got[0], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [1, 1000, 1024, 5000])
def test_value_and_gradients(size: int, weighted: bool, dtype: torch.dtype, device: str) -> None:
    """Breaks when the weight misses a term, a tail block reads past the end, or v is w wrongly."""
    theta, start, target, weight = vectors(size, device, dtype)
    check([theta, start, target, weight], weighted)
    check([theta, start, target, None], weighted)


def test_programs_that_take_several_blocks(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Breaks when a large vector's later blocks are left out of the sums, or counted twice."""
    monkeypatch.setattr(kernels, "MOST_PROGRAMS", 3)
    check([*vectors(7 * 1024 + 5, device)], True)


@pytest.mark.parametrize("scale", [1e-15, 1e4, 1e15])
def test_magnitudes(scale: float, device: str) -> None:
    """Breaks when a sum or a square is kept in a type too narrow for it."""
    theta, start, target, weight = vectors(3000, device)
    check([theta * scale, start * scale, target * scale, weight], True)
    check([theta, start, target, weight * scale], True)


def test_strided_vectors(device: str) -> None:
    """Breaks when a slice with steps is read as if it were dense."""
    wide = [torch.stack([vector, vector.flip(0)], 1)[:, 0] for vector in vectors(1500, device)]
    assert not wide[0].is_contiguous()
    check([*wide], True)


@pytest.mark.filterwarnings("ignore:.*encountered in divide:RuntimeWarning")
def test_equal_start_and_target_are_no_distance(device: str) -> None:
    """The denominator is zero: breaks when that is hidden behind a finite number."""
    theta, start, _, weight = vectors(10, device)
    assert kernels.param_distance(theta, start, start, weight, False).isinf()
    assert kernels.param_distance(start, start, start, weight, False).isnan()


def test_same_bits_every_time(device: str) -> None:
    """Breaks with atomics or an order that depends on scheduling."""
    theta, start, target, weight = vectors(9000, device)
    first = kernels.param_distance_gradients(theta, start, target, weight, True)
    for one, other in zip(
        first, kernels.param_distance_gradients(theta, start, target, weight, True), strict=True
    ):
        assert one is not None and other is not None and torch.equal(one, other)
