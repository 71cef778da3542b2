"""Engine "fused": the definition, both ends of the memory budget, chunks, graphs, memory."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from iadd_fast import students, use_backend
from iadd_fast.fused import choices
from iadd_fast.fused.graphs import Replayed
from iadd_fast.unroll import fused, trajectory_gradient, trajectory_gradients
from iadd_fast.unroll.fused_inputs import StepInputs
from tests.unroll.test_trajectory_gradient import relative_errors


def problem(
    shape: tuple[int, int, int] = (3, 16, 16),
    count: int = 9,
    *,
    width: int = 6,
    depth: int = 2,
    dtype: torch.dtype = torch.float64,
    soft: bool = False,
    weight: bool = False,
    **options: Any,
) -> dict[str, Any]:
    student = students.convnet(
        channels=shape[0], classes=10, image_size=shape[1:], width=width, depth=depth
    )
    draw = torch.Generator().manual_seed(11)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=draw, dtype=torch.float64)

    theta = student.init(1, dtype=torch.float64)
    # Away from 1 and 0, where a wrong use of gamma and beta would not show.
    theta += 0.1 * normal(theta.numel())
    labels = normal(count, 10).softmax(1).to(dtype) if soft else torch.arange(count) % 10
    if weight:
        options["weight"] = (normal(theta.numel()).abs() + 0.1).to(dtype)
    target = theta + 0.02 * normal(theta.numel())
    return {
        "student": student,
        "theta": theta.to(dtype),
        "target": target.to(dtype),
        "images": normal(count, *shape).to(dtype),
        "labels": labels,
        "lr": torch.tensor(0.02, dtype=dtype),
        "steps": 4,
        "seed": 4,
        **options,
    }


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "28x28, padded by 3": {"shape": (1, 28, 28), "depth": 3, "width": 5},
    "odd sides": {"shape": (2, 13, 19), "depth": 2, "width": 7},
    "one block": {"depth": 1},
    "four blocks": {"shape": (3, 33, 32), "depth": 4, "width": 4, "count": 3},
    "64x64": {"shape": (3, 64, 64), "depth": 4, "width": 4, "count": 2, "steps": 2},
    "128x128": {"shape": (3, 128, 128), "depth": 5, "width": 3, "count": 1, "steps": 2},
    "mini-batches": {"batch_size": 4, "steps": 6},
    "DSA": {"augment": "dsa", "steps": 8},
    "chain, shared": {"augment": "chain:shared:color_crop_cutout_flip_scale_rotate"},
    "soft labels": {"soft": True},
    "weights": {"weight": True, "normaliser": "weighted"},
    "window": {"window": 2},
    "width 32": {"width": 32, "count": 3},
    "all": {
        "batch_size": 4,
        "augment": "chain:crop_color_rotate",
        "soft": True,
        "weight": True,
        "normaliser": "weighted",
        "window": 3,
        "steps": 7,
        "width": 20,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_equals_full_backpropagation_in_float64(case: str) -> None:
    """Every gradient to 1e-10: breaks when a term of the closed form is wrong, dropped, or taken
    at another step's theta, draws or batch."""
    arguments = problem(**CASES[case])
    wanted = trajectory_gradient(**arguments, engine="reference")
    got = trajectory_gradient(**arguments, engine="fused")
    errors = relative_errors(got, wanted)
    assert max(errors.values()) < 1e-10, errors


@pytest.mark.parametrize("case", ["plain", "28x28, padded by 3", "all", "width 32"])
def test_float32_is_as_exact_as_the_definition_in_float32(case: str) -> None:
    """Against float64, at most 1e-5: breaks on an unstable formula or a half-width intermediate."""
    arguments = problem(**CASES[case], dtype=torch.float32)
    exact: dict[str, Any] = {
        key: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for key, value in arguments.items()
    }
    wanted = trajectory_gradient(**exact, engine="reference")
    got = trajectory_gradient(**arguments, engine="fused")
    assert got.images.dtype == torch.float32
    errors = relative_errors(got, wanted)
    assert max(errors.values()) < 1e-5, errors


def test_plain_operators_give_the_same() -> None:
    """Without compiled operators the passes allocate: breaks where only one of both ways works."""
    arguments = problem(**CASES["all"])
    wanted = trajectory_gradient(**arguments, engine="reference")
    # First with whatever is compiled, so that a stale choice of operators would show.
    trajectory_gradient(**arguments, engine="fused")
    with use_backend("reference"):
        got = trajectory_gradient(**arguments, engine="fused")
        cached = arguments["student"].compiled["fused"]
        assert not cached.unrolls[0].passes.static
    assert max(relative_errors(got, wanted).values()) < 1e-10


def test_kept_and_recomputed_activations_give_the_same_bits() -> None:
    """Both ends of the memory budget: breaks when a kept buffer is overwritten before the sweep."""
    arguments = problem(**CASES["all"])
    results = {}
    for budget in (0, 1000):
        results[budget] = trajectory_gradient(**arguments, engine="fused", memory_budget=budget)
        unroll = arguments["student"].compiled["fused"].unrolls[0]
        steps, window = arguments["steps"], arguments["window"]
        assert unroll.kept_from == (steps if budget == 0 else steps - window)
    assert max(relative_errors(results[0], results[1000]).values()) == 0


def test_budget_is_kept() -> None:
    """What is kept has at most the bytes of the budget: breaks when bytes are miscounted."""
    arguments = problem((3, 32, 32), 16, width=16, steps=12, dtype=torch.float32)
    trajectory_gradient(**arguments, engine="fused", memory_budget=4)
    unroll = arguments["student"].compiled["fused"].unrolls[0]
    if not unroll.passes.static:
        pytest.skip("nothing is kept in buffers without compiled operators")
    kept = [
        tensor
        for at in unroll.kept.values()
        for tensor in (*at.z[1:], *at.p, *at.dp)
        if tensor is not None
    ]
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept)
    assert 2 * 2**20 < total <= 4 * 2**20


@pytest.mark.parametrize("case", ["plain", "all"])
def test_chunks_of_a_batch_add_up(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 3 (the last one smaller) equal one: breaks when a chunk's share of the mean loss
    is wrong or its gradient overwrites another's."""
    whole = trajectory_gradient(**problem(**CASES[case]), engine="fused")
    monkeypatch.setattr(choices, "samples_at_once", lambda *_: 3)
    chunked = trajectory_gradient(**problem(**CASES[case]), engine="fused")
    assert max(relative_errors(chunked, whole).values()) < 1e-12


@pytest.mark.parametrize("case", ["DSA", "all"])
def test_inputs_staged_for_a_graph_give_the_same(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of a GPU, on any device: breaks when inputs made before the graph, or gradients
    pulled back after it, belong to another step."""
    wanted = trajectory_gradient(**problem(**CASES[case]), engine="fused")
    monkeypatch.setattr(fused, "StepInputs", lambda *a: StepInputs(*a, staged=True))
    got = trajectory_gradient(**problem(**CASES[case]), engine="fused")
    assert max(relative_errors(got, wanted).values()) < 1e-14


@pytest.mark.parametrize("masked", [False, True])
def test_trajectories_side_by_side_are_each_their_own(masked: bool) -> None:
    """Three unrolls in one group equal three calls: breaks when they share a buffer."""
    arguments = problem(**CASES["all"])
    student, theta, target, weight = (
        arguments.pop(name) for name in ("student", "theta", "target", "weight")
    )
    seed = arguments.pop("seed")
    thetas = [theta + 0.01 * k for k in range(3)]
    weights: list[Any] = [weight * (k + 1) for k in range(3)]
    if masked:
        weights = [lambda a, _, c: ((a - c).abs() > 0.02).to(a.dtype)] * 3
    singles = [
        trajectory_gradient(
            student, thetas[k], target, **arguments, weight=weights[k], seed=seed + k
        )
        for k in range(3)
    ]
    shared = dict(images=arguments.pop("images"), labels=arguments.pop("labels"))
    lists: dict[str, Any] = {"weights": weights, "seeds": [seed, seed + 1, seed + 2]}
    together = trajectory_gradients(
        student, thetas, [target] * 3, **shared, **arguments, **lists, engine="fused"
    )
    problems = fused_problems(student, thetas, target, shared, arguments, lists)
    group = fused.FusedUnrolls(problems).gradients(problems)
    for k in range(3):
        assert max(relative_errors(together[k], singles[k]).values()) == 0
        assert max(relative_errors(group[k], singles[k]).values()) == 0
    assert not torch.equal(group[0].images, group[1].images)


def fused_problems(
    student: Any, thetas: list[Tensor], target: Tensor, shared: Any, rest: Any, lists: Any
) -> list[Any]:
    """The problems that :func:`trajectory_gradients` hands to the engine."""
    caught: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "iadd_fast.unroll.gradient.fused_gradients", lambda problems: caught.extend(problems)
        )
        trajectory_gradients(
            student, thetas, [target] * len(thetas), **shared, **rest, **lists, engine="fused"
        )
    return caught


def test_results_are_the_callers_own() -> None:
    """A later call leaves an earlier result alone: breaks when static buffers are handed out."""
    arguments = problem(**CASES["all"])
    first = trajectory_gradient(**arguments, engine="fused")
    before = {
        name: getattr(first, name).clone() for name in ("images", "labels", "weight", "theta")
    }
    trajectory_gradient(**{**arguments, "seed": 9}, engine="fused")
    for name, value in before.items():
        assert torch.equal(getattr(first, name), value), name


def test_auto_takes_fused_where_it_applies() -> None:
    """Breaks when the ConvNet of images silently goes the slow way, or another network fails."""
    arguments = problem()
    trajectory_gradient(**arguments)
    assert "fused" in arguments["student"].compiled
    for norm in ("group", "none"):
        other = students.convnet(channels=3, classes=10, image_size=16, width=4, norm=norm)
        theta = other.init(0, dtype=torch.float64)
        network: dict[str, Any] = {"student": other, "theta": theta, "target": theta + 0.01}
        trajectory_gradient(**{**arguments, **network})
        assert "fused" not in other.compiled
        with pytest.raises(ValueError, match=f"student: .*'{norm}'"):
            trajectory_gradient(**{**arguments, **network}, engine="fused")


def test_bfloat16_products_are_near_and_not_equal() -> None:
    """Breaks when the option has no effect, or when sums and updates lose their float32."""
    arguments = problem(width=16, dtype=torch.float32, steps=3)
    wanted = trajectory_gradient(**arguments, engine="fused")
    got = trajectory_gradient(**arguments, engine="fused", precision="bfloat16")
    errors = relative_errors(got, wanted)
    assert got.theta.dtype == torch.float32
    assert 1e-4 < errors["images"] < 0.1, errors
    assert 0 < errors["theta"] < 1e-3, errors


@pytest.mark.parametrize(
    "change, named",
    [
        ({"images": torch.zeros(9, 3, 15, 16, dtype=torch.float64)}, "images"),
        ({"labels": torch.full((9, 4), 0.25, dtype=torch.float64)}, "labels"),
        ({"labels": torch.arange(9) + 2}, "labels"),
        ({"labels": torch.arange(9) - 1}, "labels"),
        ({"precision": "half"}, "precision"),
        ({"precision": "bfloat16"}, "precision"),
        ({"memory_budget": -1}, "memory_budget"),
        ({"compile": True}, "compile"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], named: str) -> None:
    """Breaks when what the engine cannot take reaches a kernel."""
    with pytest.raises(ValueError, match=rf"^{named}:"):
        trajectory_gradient(**{**problem(), "engine": "fused", **change})


def test_precision_of_other_engines_and_devices() -> None:
    """TF32 exists on CUDA only, bfloat16 in "fused" only: breaks when either is ignored."""
    arguments = problem(dtype=torch.float32)
    for engine, precision in (("fused", "tf32"), ("module", "tf32"), ("module", "bfloat16")):
        with pytest.raises(ValueError, match=r"^precision:"):
            trajectory_gradient(**arguments, engine=engine, precision=precision)


def test_a_graph_that_cannot_be_captured_falls_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every call still runs, and the log has the reason once: breaks when a failed capture loses
    a call, is tried again each time, or is silent."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", refuse)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    calls: list[int] = []
    replayed = Replayed(
        [lambda: calls.append(1), lambda: calls.append(2)], torch.device("cuda"), "x"
    )
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            replayed()
    assert calls == [1, 2] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "x: no CUDA graph, every kernel is launched: "
        "operation not permitted when stream is capturing"
    ]


MEMORY = """
import sys, torch
from iadd_fast import students, trajectory_gradient
torch.set_num_threads(1)
student = students.convnet(channels=3, classes=10, image_size=32, width=16)
theta = student.init(0)
images, labels = torch.randn(20, 3, 32, 32), torch.arange(20) % 10

def peak(engine, steps):
    trajectory_gradient(
        student, theta, theta + 0.01, images, labels, 0.01, steps=steps, engine=engine,
        memory_budget=0,
    )
    # VmHWM, not ru_maxrss: that one starts from the parent's own peak.
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

peak("fused", 4)
first = peak("fused", 4)
for _ in range(20):
    again = peak("fused", 4)
longer = peak("fused", 24)
print(again - first, longer - again, 20 * 4 * student.num_parameters / 2**20)
print(peak("module", 24) - longer)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's VmHWM")
def test_memory_is_flat() -> None:
    """Peak resident memory of a fresh process: 20 calls more add nothing, 20 inner steps more add
    their thetas. Breaks when a call leaves something behind, or a step keeps more than theta.

    The module engine in the same process, with one step's graph, shows that the measure sees.
    """
    run = subprocess.run(
        [sys.executable, "-c", MEMORY],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        # Freed tensors go back to the system at once: otherwise the heap's gaps add up.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "32768"},
    )
    calls, steps, thetas, module = map(float, run.stdout.split())
    assert calls < 0.5, f"20 calls more took {calls} MB"
    assert steps < thetas + 1, f"20 steps more took {steps} MB, their thetas {thetas} MB"
    assert module > 5, f"the module engine took {module} MB more only: the measure sees nothing"
