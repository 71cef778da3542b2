"""Odd but valid calls of every public operator, with what plain PyTorch says they give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from iadd_fast import ops
from iadd_fast.ops.checks import FAMILIES
from iadd_fast.reference import diff_augment as augmentation
from iadd_fast.reference import param_distance as distance
from tests.ops.odd import LAYOUTS, laid_out, normal


@dataclass(frozen=True)
class Call:
    """``run(**tensors, **settings)`` on float64 tensors; those in ``differentiated`` are varied."""

    operator: str
    run: Callable[..., Tensor]
    truth: Callable[..., Tensor]
    tensors: dict[str, Tensor | None]
    settings: dict[str, Any] = field(default_factory=dict)
    differentiated: tuple[str, ...] = ()
    #: Whether the result is a smooth function near these arguments.
    smooth: Callable[..., bool] = lambda **_: True

    def given(self, dtype: torch.dtype, layout: Callable[[], str]) -> dict[str, Tensor | None]:
        """The tensors in this dtype, each in a layout of its own."""
        return {
            name: None if value is None else laid_out(_to(value, dtype), layout())
            for name, value in self.tensors.items()
        }

    def names(self) -> list[str]:
        """Of all arguments."""
        return [*self.tensors, *self.settings]


def _to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


@st.composite
def convolutions(draw: st.DrawFn) -> Call:
    padding = draw(st.integers(0, 3))
    least = max(1, 3 - 2 * padding)
    sides = [draw(st.integers(least, 9)) for _ in range(2)]
    inputs = draw(st.sampled_from([1, 2, 3, 5, 15, 16, 17, 20]))
    outputs = draw(st.sampled_from([1, 2, 7, 8, 17]))
    x = normal(draw, draw(st.integers(1, 3)), inputs, *sides)
    weight = normal(draw, outputs, inputs, 3, 3) / (3 * inputs**0.5)
    return Call(
        "conv3x3",
        ops.conv3x3,
        F.conv2d,
        {"x": x, "weight": weight},
        {"padding": padding},
        ("x", "weight"),
    )


@st.composite
def planes(draw: st.DrawFn) -> Call:
    pool, affine = draw(st.booleans()), draw(st.booleans())
    channels = draw(st.sampled_from([1, 2, 3, 5, 17]))
    side = st.integers(1 + pool, 9)
    if channels <= 3:
        side = st.one_of(side, st.sampled_from([8, 16, 32]))
    z = normal(draw, draw(st.integers(1, 3)), channels, draw(side), draw(side))
    gamma, beta = 1 + normal(draw, channels) / 4, normal(draw, channels)
    eps = draw(st.sampled_from([1e-5, 1e-3, 1.0]))
    return Call(
        "norm_relu_pool",
        ops.norm_relu_pool,
        _pooled,
        {"z": z, "gamma": gamma if affine else None, "beta": beta if affine else None},
        {"eps": eps, "pool": pool},
        ("z", "gamma", "beta") if affine else ("z",),
        away_from_the_kink,
    )


def _pooled(z: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, pool: bool) -> Tensor:
    # `group_norm` folds mean and scale into a shift: an infinite gamma is inf - inf there.
    centred = z - z.mean((2, 3), keepdim=True)
    y = centred * (centred.square().mean((2, 3), keepdim=True) + eps).rsqrt()
    if gamma is not None and beta is not None:
        y = y * gamma.view(-1, 1, 1) + beta.view(-1, 1, 1)
    return F.avg_pool2d(y.relu(), 2) if pool else y.relu()


def away_from_the_kink(
    z: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, pool: bool
) -> bool:
    """Whether no rounding decides on which side of the ReLU's kink a pixel lies."""
    y = torch.group_norm(z.double(), z.shape[1], _double(gamma), _double(beta), eps)
    return bool((y.abs() > 1e-5).all())


def _double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


@st.composite
def entropies(draw: st.DrawFn) -> Call:
    count, classes = draw(st.integers(1, 7)), draw(st.sampled_from([1, 2, 3, 10, 16, 17, 33]))
    soft, weighted = draw(st.booleans()), draw(st.booleans())
    logits = 3 * normal(draw, count, classes)
    labels: Tensor = normal(draw, count, classes)
    if not soft:
        hard = st.lists(st.integers(0, classes - 1), min_size=count, max_size=count)
        labels = torch.tensor(draw(hard))
    return Call(
        "softmax_cross_entropy",
        ops.softmax_cross_entropy,
        F.cross_entropy,
        {
            "logits": logits,
            "labels": labels,
            "class_weights": normal(draw, classes).abs() + 0.1 if weighted else None,
        },
        {},
        ("logits", "labels") if soft else ("logits",),
    )


@st.composite
def augmentations(draw: st.DrawFn) -> Call:
    shape = [draw(st.integers(0, 3)), draw(st.integers(1, 4))]
    shape += [draw(st.integers(1, 12)) for _ in range(2)]
    settings = {
        "families": draw(st.lists(st.sampled_from(FAMILIES), max_size=8)),
        "seed": draw(st.one_of(st.integers(0, 2**63 - 1), st.sampled_from([0, 2**63 - 1, 2**32]))),
        "shared": draw(st.booleans()),
    }

    def run(images: Tensor, families: list[str], seed: int, shared: bool) -> Tensor:
        return ops.diff_augment(images, families, seed, shared=shared)  # type: ignore[arg-type]

    return Call(
        "diff_augment",
        run,
        augmentation.diff_augment,
        {"images": normal(draw, *shape)},
        settings,
        ("images",),
    )


@st.composite
def distances(draw: st.DrawFn) -> Call:
    count = draw(st.sampled_from([1, 2, 3, 15, 17, 4096, 4097, 9000]))
    weighted = draw(st.booleans())
    weight = normal(draw, count).abs() + 0.1 if weighted else None
    normaliser = draw(st.sampled_from(["start", "weighted"]))

    def truth(
        theta: Tensor, start: Tensor, target: Tensor, weight: Tensor | None, normaliser: str
    ) -> Tensor:
        return distance.param_distance(theta, start, target, weight, normaliser == "weighted")

    vectors = {name: normal(draw, count) for name in ("theta", "start", "target")}
    vectors["start"] += 3
    return Call(
        "param_distance",
        ops.param_distance,
        truth,
        {**vectors, "weight": weight},
        {"normaliser": normaliser},
        ("theta", "start", "target", *(["weight"] if weighted else [])),
        lambda theta, start, target, weight, normaliser: bool(
            (start - target).double().square().sum() > 0.1
        ),
    )


CALLS: dict[str, st.SearchStrategy[Call]] = {
    "conv3x3": convolutions(),
    "norm_relu_pool": planes(),
    "softmax_cross_entropy": entropies(),
    "diff_augment": augmentations(),
    "param_distance": distances(),
}
LAYOUT = st.sampled_from(LAYOUTS)
REPEATING_NOTHING = LAYOUT.filter(lambda layout: layout not in ("expanded", "overlapping"))
