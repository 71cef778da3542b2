"""``trajectory_gradient``: odd inputs against full backpropagation in float64, or refused.

The values are compared with autograd through an unroll written out here, which shares nothing with
the package but the student's forward.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from iadd_fast import trajectory_gradient
from tests.properties.strategies import (
    Refused,
    anything,
    normal,
    odd_tensors,
    result_of,
    small_student,
    strided,
)

NAMES = ("student", "theta", "target", "images", "labels", "lr", "steps")
OPTIONS = (
    "weight", "normaliser", "batch_size", "augment", "window", "seed", "engine", "precision",
    "memory_budget", "compile",
)  # fmt: skip


def arguments(student: str, count: int = 2, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """A problem of ``count`` images that any engine takes."""
    network = small_student(student)
    theta = network.init(0, dtype=dtype)
    return {
        "student": network,
        "theta": theta,
        "target": theta + 0.1 * normal(len(theta), dtype=dtype),
        "images": normal(count, 1, 4, 4, seed=1, dtype=dtype),
        "labels": torch.arange(count) % 2,
        "lr": 0.1,
        "steps": 2,
    }


def unrolled(
    student: Any,
    theta: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: float,
    steps: int,
    weight: Tensor | None,
    normaliser: str,
    window: int | None,
) -> dict[str, Tensor | None]:
    """Loss and gradients in float64 by the formulas of the docstring, all images in every step."""

    def wide(value: Tensor) -> Tensor:
        value = value.detach()
        return value.double() if value.is_floating_point() else value

    start, target = wide(theta), wide(target)
    leaves = {"images": wide(images).clone(), "lr": torch.tensor(float(lr), dtype=torch.float64)}
    if labels.is_floating_point():
        leaves["labels"] = wide(labels).clone()
    if weight is not None:
        leaves["weight"] = wide(weight).clone()
    for leaf in leaves.values():
        leaf.requires_grad_(True)
    moving = start.clone().requires_grad_(True)
    for step in range(steps):
        logits = student.apply(moving, leaves["images"])
        loss = F.cross_entropy(logits, leaves.get("labels", labels))
        (gradient,) = torch.autograd.grad(loss, moving, create_graph=True)
        moving = moving - leaves["lr"] * gradient
        if window is not None and step < steps - window:
            moving = moving.detach().requires_grad_(True)
    w = leaves.get("weight", torch.ones_like(start))
    below = w if normaliser == "weighted" else torch.ones_like(start)
    distance = (w * (moving - target)).square().sum() / (below * (start - target)).square().sum()
    gradients = dict(zip(leaves, torch.autograd.grad(distance, list(leaves.values())), strict=True))
    return {"loss": distance.detach(), "theta": moving.detach(), **gradients}


@given(data=st.data())
def test_values(data: st.DataObject) -> None:
    """Breaks when strides, an expanded image, one sample, one class in the set, J = 1, a window
    longer than the unroll, soft labels or any weight give another gradient than backpropagation."""
    draw = data.draw
    name = draw(st.sampled_from(("convnet", "none", "layer", "mlp")))
    dtype = draw(st.sampled_from((torch.float32, torch.float64)))
    count = draw(st.integers(1, 3))
    problem = arguments(name, count, dtype)
    kind = draw(st.sampled_from(("two classes", "one class", "soft")))
    if kind == "one class":
        problem["labels"] = torch.full((count,), 1)
    elif kind == "soft":
        problem["labels"] = normal(count, 2, seed=3, dtype=dtype).softmax(1)
    if draw(st.booleans()):
        problem["images"] = problem["images"][:1].expand(count, 1, 4, 4)
    for tensor in ("theta", "target", "images", "labels"):
        problem[tensor] = draw(strided(problem[tensor]))
    options: dict[str, Any] = {
        "window": draw(st.sampled_from((None, 1, 2, 50))),
        "weight": None,
        "normaliser": draw(st.sampled_from(("start", "weighted"))),
    }
    problem["steps"] = draw(st.integers(1, 3))
    problem["lr"] = draw(st.sampled_from((0.0, 0.05, -0.05, 0.5)))
    if draw(st.booleans()):
        weight = 1 + 0.3 * normal(len(problem["theta"]), seed=2, dtype=dtype)
        options["weight"] = draw(strided(weight))
    wanted = unrolled(**problem, **options)
    engines = ["auto", "module", "reference"] + (["fused"] if name == "convnet" else [])
    engine = draw(st.sampled_from(engines))
    tensors = [value for value in (*problem.values(), options["weight"])]
    got = result_of(
        lambda: trajectory_gradient(
            **problem, **options, engine=engine, memory_budget=draw(st.sampled_from((None, 0)))
        ),
        *tensors,
    )
    assert not isinstance(got, Refused), got
    limit = 1e-9 if dtype == torch.float64 else 2e-3
    for part in ("loss", "theta", "images", "labels", "lr", "weight"):
        value, truth = getattr(got, part), wanted.get(part)
        assert (value is None) == (truth is None), part
        if value is not None and truth is not None:
            assert value.dtype == dtype
            assert value.shape == truth.shape
            assert not value.requires_grad
            scale = truth.abs().max().clamp_min(1e-3)
            assert (value.double() - truth).abs().max() <= limit * scale, part


@pytest.mark.parametrize("name", NAMES + OPTIONS)
@given(value=anything(), student=st.sampled_from(("convnet", "mlp")))
def test_one_odd_argument(name: str, value: Any, student: str) -> None:
    """Breaks when an argument reaches torch unchecked: a crash, an error without its name, or a
    label of -100, which cross-entropy passes over in silence."""
    problem = arguments(student)
    if name == "weight" and callable(value):
        return  # what a user's function raises is its own
    got = result_of(lambda: trajectory_gradient(**{**problem, name: value}), value)
    if isinstance(got, Refused) or name in OPTIONS or name in ("steps", "lr"):
        return
    assert isinstance(value, Tensor)
    assert value.shape == problem[name].shape
    assert value.dtype == problem[name].dtype
    if name == "labels":
        assert ((value >= 0) & (value < 2)).all()


@given(
    images=odd_tensors(),
    labels=odd_tensors(),
    theta=odd_tensors(),
    weight=odd_tensors(),
    student=st.sampled_from(("convnet", "mlp")),
)
def test_odd_tensors_together(
    images: Tensor, labels: Tensor, theta: Tensor, weight: Tensor, student: str
) -> None:
    """Breaks when a check of one tensor against another comes before the check of both."""
    problem = {**arguments(student), "images": images, "labels": labels, "weight": weight}
    got = result_of(lambda: trajectory_gradient(**problem), images, labels, weight)
    assert isinstance(got, Refused)
    got = result_of(lambda: trajectory_gradient(**{**problem, "theta": theta}), images, theta)
    assert isinstance(got, Refused)


@given(value=anything(), student=st.sampled_from(("convnet", "mlp")))
def test_what_a_weight_function_gives(value: Any, student: str) -> None:
    """Breaks when a value of another shape is broadcast over all parameters in silence."""
    problem = arguments(student)
    got = result_of(lambda: trajectory_gradient(**problem, weight=lambda *_: value))
    assert isinstance(got, Refused)
    assert got.startswith("weight: ")


@given(label=st.integers(-200, 200), engine=st.sampled_from(("fused", "module", "reference")))
def test_labels_out_of_range(label: int, engine: str) -> None:
    """Breaks when -100 (cross-entropy's ``ignore_index``) drops a sample without a word."""
    problem = {**arguments("convnet"), "labels": torch.tensor([0, label])}
    got = result_of(lambda: trajectory_gradient(**problem, engine=engine))
    assert isinstance(got, Refused) == (label not in (0, 1))
