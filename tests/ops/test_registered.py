"""The operators that torch.compile sees: schemas, fakes, gradients, one graph without a break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.library import opcheck

from iadd_fast import ops

Make = Callable[[], tuple[Any, ...]]


def planes(layout: torch.memory_format = torch.contiguous_format, dense: bool = True) -> Any:
    z = torch.randn(2, 3, 5, 6).contiguous(memory_format=layout)
    if not dense:
        # A dense permutation that is neither of the two formats.
        z = z.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    return z.requires_grad_(True)


def vectors(count: int, gradient: bool = True) -> list[torch.Tensor]:
    return [torch.randn(3, requires_grad=gradient) for _ in range(count)]


HARD = torch.tensor([0, 4, 2, 2])
CASES: dict[str, tuple[str, Make]] = {
    "planes": ("norm_relu_pool", lambda: (planes(), *vectors(2), 1e-5, True)),
    "planes, channels-last": (
        "norm_relu_pool",
        lambda: (planes(torch.channels_last), *vectors(2), 1e-5, True),
    ),
    "planes, permuted, bare": (
        "norm_relu_pool",
        lambda: (planes(dense=False), None, None, 1e-5, False),
    ),
    "planes, backward": (
        "norm_relu_pool_backward",
        lambda: (
            planes(torch.channels_last).detach(),
            *vectors(2, gradient=False),
            torch.randn(2, 3, 2, 3),
            1e-5,
            True,
        ),
    ),
    "hard labels": (
        "softmax_cross_entropy",
        lambda: (torch.randn(4, 5, requires_grad=True), HARD, torch.rand(5)),
    ),
    "soft labels": (
        "softmax_cross_entropy",
        lambda: (
            torch.randn(5, 4).t().requires_grad_(True),
            torch.rand(4, 5, requires_grad=True),
            None,
        ),
    ),
    "labels, backward": (
        "softmax_cross_entropy_backward",
        lambda: (torch.randn(4, 5), torch.rand(4, 5), torch.tensor(0.7), None),
    ),
    "augment": (
        "diff_augment",
        lambda: (planes(torch.channels_last), "color_scale", torch.tensor(7), False, False),
    ),
    "augment, adjoint": (
        "diff_augment_adjoint",
        lambda: (planes(dense=False), "color_scale", torch.tensor(7), True),
    ),
    "distance": (
        "param_distance_gradients",
        lambda: (*(torch.randn(9) for _ in range(4)), True),
    ),
    "distance, bare": (
        "param_distance_gradients",
        lambda: (*(torch.randn(9) for _ in range(3)), None, False),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_opcheck(case: str, backend: str) -> None:
    """Breaks when a fake's shape or strides differ from the kernel's, or a schema lies."""
    name, make = CASES[case]
    opcheck(getattr(torch.ops.iadd_fast, name).default, make())


def test_a_compiled_graph_has_every_operator_and_no_break() -> None:
    """fullgraph, captured without a code generator: values and gradients equal eager ones."""
    seen: list[str] = []

    def record(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    z, logits = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    gamma, beta = vectors(2)
    theta: Any = [torch.randn(9) for _ in range(4)]

    def f() -> torch.Tensor:
        p = ops.norm_relu_pool(z, gamma, beta)
        augmented = ops.diff_augment(z, ("flip", "scale"), 3)
        gradients = ops.param_distance_gradients(*theta, "weighted")  # type: ignore[call-arg]
        _, d_theta, d_weight = gradients
        assert d_weight is not None
        loss = ops.softmax_cross_entropy(logits, HARD) + ops.param_distance(*theta)
        return p.square().sum() + augmented.square().sum() + loss + (d_theta * d_weight).sum()

    inputs = (z, gamma, beta, logits)
    wanted = f()
    wanted_gradients = torch.autograd.grad(wanted, inputs)
    got = torch.compile(f, backend=record, fullgraph=True)()
    torch.testing.assert_close(got, wanted)
    for one, want in zip(torch.autograd.grad(got, inputs), wanted_gradients, strict=True):
        torch.testing.assert_close(one, want)
    for name in ("norm_relu_pool", "diff_augment", "softmax_cross_entropy"):
        assert any(name in target for target in seen), (name, seen)


def test_a_second_derivative_through_a_registered_operator_raises() -> None:
    """Breaks when the compile boundary loses a second order in silence."""
    z, (gamma, beta) = planes(), vectors(2)
    p = torch.ops.iadd_fast.norm_relu_pool(z, gamma, beta, 1e-5, True)
    (first,) = torch.autograd.grad(p.square().sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        torch.autograd.grad(first.square().sum(), z)
