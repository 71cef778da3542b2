"""On a GPU: the fused engine against the CPU, its graph against eager launches, its memory."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from iadd_fast.fused.precision import switches
from iadd_fast.unroll import trajectory_gradient, trajectory_gradients
from iadd_fast.unroll.fused import FusedUnrolls
from tests.unroll.test_fused import CASES, fused_problems, problem
from tests.unroll.test_trajectory_gradient import relative_errors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def on(device: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def on_cpu(result: Any) -> Any:
    values = {
        name: None if getattr(result, name) is None else getattr(result, name).double().cpu()
        for name in ("loss", "images", "labels", "lr", "weight", "theta")
    }
    return type(result)(**values)


@pytest.mark.parametrize("case", CASES)
def test_every_call_equals_float64_on_the_cpu(case: str, caplog: pytest.LogCaptureFixture) -> None:
    """Eager, capturing and replaying calls: breaks when a graph reads a buffer that is not static,
    keeps the first call's draws, or could not be captured at all (which is logged)."""
    single = problem(**CASES[case], dtype=torch.float32)
    with caplog.at_level(logging.WARNING):
        for seed in (4, 5, 6):
            exact = problem(**CASES[case], dtype=torch.float32) | {"seed": seed}
            exact = {
                name: value.double()
                if isinstance(value, Tensor) and value.is_floating_point()
                else value
                for name, value in exact.items()
            }
            wanted = trajectory_gradient(**exact, engine="reference")
            got = trajectory_gradient(**on("cuda", single | {"seed": seed}), engine="fused")
            errors = relative_errors(on_cpu(got), wanted)
            assert max(errors.values()) < 1e-4, (seed, errors)
    assert single["student"].compiled["fused"].whole.graph is not None
    assert not caplog.records, caplog.text


@pytest.mark.parametrize("masked", [False, True])
def test_trajectories_side_by_side(masked: bool) -> None:
    """Three unrolls on three streams of one graph: breaks on a race or a shared buffer."""
    arguments = on("cuda", problem(**CASES["all"], dtype=torch.float32))
    student, theta, target, weight = (
        arguments.pop(name) for name in ("student", "theta", "target", "weight")
    )
    seed = arguments.pop("seed")
    thetas = [theta + 0.01 * k for k in range(3)]
    weights: list[Any] = [weight * (k + 1) for k in range(3)]
    if masked:
        weights = [lambda a, _, c: ((a - c).abs() > 0.02).to(a.dtype)] * 3
    seeds = [seed, seed + 1, seed + 2]
    singles = [
        trajectory_gradient(
            student,
            thetas[k],
            target,
            **arguments,
            weight=weights[k],
            seed=seeds[k],
            engine="module",
        )
        for k in range(3)
    ]
    for _ in range(4):
        together = trajectory_gradients(
            student,
            thetas,
            [target] * 3,
            **arguments,
            weights=weights,
            seeds=seeds,
            engine="fused",
        )
        for k in range(3):
            errors = relative_errors(on_cpu(together[k]), on_cpu(singles[k]))
            assert max(errors.values()) < 1e-4, (k, errors)


def test_a_replay_allocates_nothing() -> None:
    """The allocator's counters over replays: breaks when something in the loop allocates."""
    arguments = on("cuda", problem(**CASES["plain"], dtype=torch.float32))
    student, theta, target = (arguments.pop(name) for name in ("student", "theta", "target"))
    shared = {name: arguments.pop(name) for name in ("images", "labels")}
    lists = {"weights": [None], "seeds": [arguments.pop("seed")]}
    problems = fused_problems(student, [theta], target, shared, arguments, lists)
    unrolls = FusedUnrolls(problems)
    for _ in range(3):
        unrolls.gradients(problems)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(5):
        unrolls.whole()
    torch.cuda.synchronize()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.mark.parametrize("precision, least, most", [("tf32", 1e-6, 1e-2), ("bfloat16", 1e-5, 0.1)])
def test_narrow_products_are_near_and_the_switches_are_put_back(
    precision: str, least: float, most: float
) -> None:
    """Breaks when the option has no effect, or changes torch's own settings for good."""
    before = [switch.fp32_precision for switch in switches()]
    arguments = on("cuda", problem(width=32, dtype=torch.float32))
    wanted = trajectory_gradient(**arguments, engine="fused")
    got = trajectory_gradient(**arguments, engine="fused", precision=precision)
    errors = relative_errors(got, wanted)
    assert least < errors["images"] < most, errors
    assert [switch.fp32_precision for switch in switches()] == before
