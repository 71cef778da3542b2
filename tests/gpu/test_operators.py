"""On a GPU: both kernel backends, the public operators' two orders, streams, graphs, sanitizer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.cases import OPERATORS, small_cases
from bench.contenders import Contest
from iadd_fast import ops
from iadd_fast.ops.backends import implementation
from tests.tolerances import assert_close

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SERVED = [("triton", operator) for operator in OPERATORS] + [
    ("cuda", "param_distance"),
    ("cuda", "diff_augment"),
]


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend on GPU tensors; a missing one skips with its reason."""
    name: str = request.param
    reason = ops.backends()["param_distance"][name]
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    with ops.use_backend(name):
        yield name


@pytest.mark.parametrize("name, operator", SERVED)
def test_every_order_equals_the_reference(name: str, operator: str) -> None:
    """Tiny and odd shapes against float64: breaks where the GPU differs from the interpreter."""
    reason = ops.backends()[operator][name]
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    for case in small_cases(operator):
        Contest(case, torch.device("cuda"), torch.device("cpu")).enter(name)


def test_the_kernels_ran_and_in_one_launch_each() -> None:
    """The profiler sees the fused kernels: breaks when a public call falls back in silence."""
    z = torch.randn(4, 8, 16, 16, device="cuda")
    expected = {
        "norm_relu_pool_kernel": lambda: ops.norm_relu_pool(z),
        "softmax_cross_entropy": lambda: ops.softmax_cross_entropy(
            z[0, 0], torch.arange(16, device="cuda")
        ),
        "diff_augment|run_chain": lambda: ops.diff_augment(z, ("color", "scale"), 1),
        "param_distance|distance": lambda: ops.param_distance(
            z.flatten(), z.flatten() + 1, z.flatten() * 2
        ),
    }
    for names, call in expected.items():
        call()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            call()
            torch.cuda.synchronize()
        kernels = [e.key for e in recorded.key_averages() if "memcpy" not in e.key.lower()]
        assert any(name in key for name in names.split("|") for key in kernels), (names, kernels)
        assert len(kernels) <= 3, kernels


def test_second_order_through_the_public_operators() -> None:
    """Double backward on the GPU equals float64 on the CPU: breaks on a lost second-order term."""
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(3, 5, 8, 9, generator=draw, dtype=torch.float64)
    gamma, beta = (torch.randn(5, generator=draw, dtype=torch.float64) for _ in range(2))
    weights = torch.randn(5 * 4 * 4, 10, generator=draw, dtype=torch.float64) / 9
    labels = torch.tensor([1, 7, 3])

    def second(device: str, dtype: torch.dtype) -> list[Tensor]:
        inputs = [x.to(device, dtype).requires_grad_(True) for x in (z, gamma, beta, weights)]
        p = ops.norm_relu_pool(*inputs[:3])  # type: ignore[arg-type]
        loss = ops.softmax_cross_entropy(p.flatten(1) @ inputs[3], labels.to(device))
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        return list(
            torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), inputs)
        )

    got, wanted = second("cuda", torch.float32), second("cpu", torch.float64)
    for one, want in zip(got, wanted, strict=True):
        assert_close(one.cpu(), want, "backward_tangent", slack=10)


def test_results_do_not_change_between_calls(backend: str) -> None:
    """Bit for bit: breaks when a reduction or an adjoint adds in the order threads arrive."""
    draw = torch.Generator("cuda").manual_seed(0)
    vectors = [torch.randn(320_010, generator=draw, device="cuda") for _ in range(4)]
    images = torch.randn(50, 3, 32, 32, generator=draw, device="cuda")
    distance = implementation("param_distance", images).param_distance_gradients
    adjoint = implementation("diff_augment", images).diff_augment_adjoint
    families = ("color", "crop", "cutout", "flip", "scale", "rotate")
    first = [*distance(*vectors, True), adjoint(images, families, 3, False)]
    for _ in range(5):
        again = [*distance(*vectors, True), adjoint(images, families, 3, False)]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_draws_are_those_of_the_cpu(backend: str) -> None:
    """One seed, one augmentation on every device; from a number or read by the kernel."""
    images = torch.randn(6, 3, 32, 32)
    kernels = implementation("diff_augment", images.cuda())
    families = ("flip", "color", "rotate")
    for seed in (0, 2**40 + 3, 2**63 - 1):
        with ops.use_backend("reference"):
            want = ops.diff_augment(images.double(), families, seed)
        got = kernels.diff_augment(images.cuda(), families, seed, False)
        assert_close(got.cpu(), want, "forward", slack=20)
        read = kernels.diff_augment(
            images.cuda(), families, torch.tensor(seed, device="cuda"), False
        )
        assert torch.equal(got, read)


def test_kernels_run_on_the_current_stream(backend: str) -> None:
    """Behind a long sleep on a side stream: breaks when a kernel is put on another stream."""
    stream = torch.cuda.Stream()
    theta = torch.zeros(100_000, device="cuda")
    start, target = torch.ones_like(theta), torch.full_like(theta, 2.0)
    kernels = implementation("param_distance", theta)
    kernels.param_distance(theta, start, target, None, False)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        theta.fill_(5.0)
        distance = kernels.param_distance(theta, start, target, None, False)
    torch.cuda.current_stream().wait_stream(stream)
    assert float(distance) == pytest.approx(9.0)


def test_a_captured_graph_replays_with_new_seeds(backend: str) -> None:
    """Capture once, change the seed on the device, replay: equals eager calls of each seed."""
    images = torch.randn(4, 3, 32, 32, device="cuda")
    seed = torch.tensor(1, device="cuda")
    kernels = implementation("diff_augment", images)
    families = ("color", "scale", "cutout")

    def step() -> Tensor:
        augmented = kernels.diff_augment(images, families, seed, False)
        result: Tensor = kernels.diff_augment_adjoint(augmented, families, seed, False)
        return result

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for number in (1, 2, 77):
        seed.fill_(number)
        graph.replay()
        assert torch.equal(captured, step())


def test_more_than_two_to_the_31_elements() -> None:
    """Offsets of 64 bits: the last planes of a batch of 4.3 GB equal those computed alone."""
    samples, channels, side = 4097, 128, 64
    if torch.cuda.get_device_properties(0).total_memory < 14 * 2**30:
        pytest.skip("needs 14 GiB of GPU memory")
    z = torch.zeros(samples, channels, side, side, dtype=torch.bfloat16, device="cuda")
    assert z.numel() > 2**31
    z[-1] = torch.randn(channels, side, side, device="cuda").bfloat16()
    got = ops.norm_relu_pool(z)[-1:]
    assert torch.equal(got, ops.norm_relu_pool(z[-1:].clone()))
    assert bool(got.any())


def test_bad_arguments_are_named_before_any_launch() -> None:
    """Two devices in one call: breaks when a kernel would read the host's memory."""
    z = torch.zeros(2, 3, 4, 4, device="cuda")
    with pytest.raises(ValueError, match="gamma: got .* on cpu"):
        ops.norm_relu_pool(z, torch.ones(3), torch.zeros(3))
    with pytest.raises(ValueError, match="labels: got .* on cpu"):
        ops.softmax_cross_entropy(z[0, 0], torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="seed: got .* on cpu"):
        ops.diff_augment(z, ("flip",), torch.tensor(1))
    with pytest.raises(RuntimeError, match="'cpp'.: norm_relu_pool cannot"), ops.use_backend("cpp"):
        ops.norm_relu_pool(z)


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool: str) -> None:
    """Every kernel on tiny shapes: an out-of-bounds access or a race in shared memory."""
    sanitizer: Any = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not in PATH")
    run = subprocess.run(
        [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "sanitizer_run.py"],
        cwd=ROOT / "bench",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
