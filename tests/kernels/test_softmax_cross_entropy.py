"""Triton softmax_cross_entropy against the float64 reference, at every order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tolerances import assert_close

pytest.importorskip("triton", reason="triton is not installed")

from iadd_fast.kernels import softmax_cross_entropy as kernels
from iadd_fast.kernels.launch import INTERPRETED
from iadd_fast.reference import softmax_cross_entropy as definition

reference: Any = definition


class Case:
    """Random logits, labels, class weights and tangents."""

    def __init__(
        self,
        rows: int,
        classes: int,
        hard: bool,
        weighted: bool,
        device: str,
        dtype: torch.dtype = torch.float32,
        scale: float = 3.0,
    ) -> None:
        generator = torch.Generator().manual_seed(rows * classes)
        draw = lambda: torch.randn(rows, classes, generator=generator).to(device, dtype)  # noqa: E731
        self.logits, self.logitsdot = draw() * scale, draw()
        self.labels, self.labelsdot = draw().abs(), None if hard else draw()
        if hard:
            self.labels = torch.randint(classes, (rows,), generator=generator).to(device)
        self.weights = torch.rand(classes, generator=generator).to(device) + 0.5
        if not weighted:
            self.weights = None  # type: ignore[assignment]
        self.dloss, self.dlossdot = torch.tensor(1.7, device=device), torch.tensor(-0.6).to(device)


def wide(*tensors: Tensor | None) -> list[Any]:
    return [t.double() if t is not None and t.is_floating_point() else t for t in tensors]


def check(c: Case) -> None:
    # The interpreter cuts a float32 off to bfloat16 instead of rounding it.
    slack = 2 if INTERPRETED and c.logits.dtype == torch.bfloat16 else 1
    arguments: Any = (c.logits, c.labels, c.weights)
    loss = kernels.softmax_cross_entropy(*arguments)
    assert loss.dtype == torch.float32
    assert_close(loss, reference.softmax_cross_entropy(*wide(*arguments)), "forward", name="loss")

    arguments = (c.logits, c.labels, c.dloss, c.weights)
    got = kernels.softmax_cross_entropy_backward(*arguments)
    want = reference.softmax_cross_entropy_backward(*wide(*arguments))
    assert_close(got[0], want[0], "backward", slack, name="dlogits")
    assert_close(got[1], want[1], "backward", slack, name="dlabels")
    assert got[0].dtype == c.logits.dtype

    for labelsdot in {id(c.labelsdot): c.labelsdot, id(None): None}.values():
        tangents = (c.logits, c.labels, c.logitsdot, labelsdot, c.weights)
        lossdot = kernels.softmax_cross_entropy_tangent(*tangents)
        want_dot = reference.softmax_cross_entropy_tangent(*wide(*tangents))
        assert_close(lossdot, want_dot, "tangent", name="lossdot")
        for dlossdot in (c.dlossdot, None):
            turned = (c.logits, c.labels, c.dloss, c.logitsdot, labelsdot, dlossdot, c.weights)
            got = kernels.softmax_cross_entropy_backward_tangent(*turned)
            want = reference.softmax_cross_entropy_backward_tangent(*wide(*turned))
            assert_close(got[0], want[0], "backward_tangent", slack, name="dlogitsdot")
            assert_close(got[1], want[1], "backward_tangent", slack, name="dlabelsdot")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("rows, classes", [(1, 2), (5, 10), (130, 10), (3, 129)])
def test_every_order(rows: int, classes: int, hard: bool, weighted: bool, device: str) -> None:
    """Breaks on a wrong term, on class weights in the wrong divisor, on rows or classes past the
    end that count, or on a missing tangent that is not zero."""
    check(Case(rows, classes, hard, weighted, device))


@pytest.mark.parametrize("hard", [False, True])
def test_bfloat16_is_storage(hard: bool, device: str) -> None:
    """Breaks when the arithmetic is done in bfloat16, or an output has another dtype."""
    check(Case(6, 10, hard, True, device, torch.bfloat16))


@pytest.mark.parametrize("hard", [False, True])
def test_rows_walked_in_chunks(hard: bool, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Breaks when a maximum, a sum or a mass of a long row leaves a chunk out."""
    monkeypatch.setattr(kernels, "MOST_CLASSES", 8)
    check(Case(3, 21, hard, True, device))


@pytest.mark.parametrize("hard", [False, True])
def test_losses_summed_by_several_programs(
    hard: bool, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """Breaks when a program's partial sum or divisor is lost, or a row is counted twice."""
    monkeypatch.setattr(kernels, "ALONE", 0)
    monkeypatch.setattr(kernels, "TILE", 64)
    monkeypatch.setattr(kernels, "MOST_PROGRAMS", 3)
    check(Case(30, 10, hard, True, device))


@pytest.mark.parametrize("scale", [1e-15, 1e4, 1e15])
def test_magnitudes(scale: float, device: str) -> None:
    """Breaks when the maximum is not taken out before the exponential."""
    for hard in (True, False):
        c = Case(4, 10, hard, True, device, scale=scale)
        got = kernels.softmax_cross_entropy(c.logits, c.labels, c.weights)
        want = reference.softmax_cross_entropy(*wide(c.logits, c.labels, c.weights))
        assert_close(got, want, "forward", name="loss")
        arguments = (c.logits, c.labels, c.dloss, c.weights)
        for one, other in zip(
            kernels.softmax_cross_entropy_backward(*arguments),
            reference.softmax_cross_entropy_backward(*wide(*arguments)),
            strict=True,
        ):
            assert_close(one, other, "backward", name="gradient")


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_an_impossible_class_costs_nothing_unless_chosen(device: str) -> None:
    """Breaks when 0 times the infinite log-probability of another class makes a loss NaN."""
    c = Case(3, 5, True, False, device)
    c.labels[:] = 1
    c.logits[:, 4] = float("-inf")
    got = kernels.softmax_cross_entropy(c.logits, c.labels, None)
    assert_close(got, reference.softmax_cross_entropy(*wide(c.logits), c.labels, None), "forward")


@pytest.mark.parametrize("label", [-1, 10, -100, 2**40])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_label_that_is_no_class_gives_nan(label: int, weighted: bool, device: str) -> None:
    """Breaks when such a label reads out of bounds, or its row is silently left out."""
    c = Case(4, 10, True, weighted, device)
    c.labels[2] = label
    assert kernels.softmax_cross_entropy(c.logits, c.labels, c.weights).isnan()
    d_logits, _ = kernels.softmax_cross_entropy_backward(c.logits, c.labels, c.dloss, c.weights)
    assert d_logits[2].isnan().all()


def test_strided_inputs_and_same_bits(device: str) -> None:
    """Breaks when a transposed tensor is read as if it were dense, or sums depend on scheduling."""
    for hard in (True, False):
        c = Case(70, 10, hard, True, device)
        dense = kernels.softmax_cross_entropy_backward(c.logits, c.labels, c.dloss, c.weights)
        logits = c.logits.t().contiguous().t()
        labels = c.labels if hard else c.labels.t().contiguous().t()
        strided = kernels.softmax_cross_entropy_backward(logits, labels, c.dloss, c.weights)
        assert torch.equal(dense[0], strided[0])
        first = kernels.softmax_cross_entropy(c.logits, c.labels, c.weights)
        assert torch.equal(first, kernels.softmax_cross_entropy(logits, labels, c.weights))
