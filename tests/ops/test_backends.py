"""Which backend runs is never a guess: availability, choice, forcing, and proof that it ran."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from iadd_fast import backends as public_backends
from iadd_fast import ops
from iadd_fast.native import library

# The package has a function of this name, which hides the module from `import ... as`.
registry: Any = importlib.import_module("iadd_fast.ops.backends")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No choice of one test reaches another."""
    registry._choose.cache_clear()
    yield
    registry._choose.cache_clear()
    assert registry._forced is None


def calls() -> dict[str, torch.Tensor]:
    """Each public operator run once on CPU tensors."""
    z = torch.randn(2, 3, 8, 8)
    return {
        "param_distance": ops.param_distance(z.flatten(), z.flatten() + 1, z.flatten() * 2),
        "diff_augment": ops.diff_augment(z, ("scale",), 1),
        "norm_relu_pool": ops.norm_relu_pool(z),
        "softmax_cross_entropy": ops.softmax_cross_entropy(z[0, 0], torch.arange(8)),
        "conv3x3": ops.conv3x3(torch.randn(2, 16, 8, 8), torch.randn(16, 16, 3, 3)),
    }


def test_every_operator_names_every_backend() -> None:
    """Breaks when a backend is dropped from the table, or a missing one has no reason."""
    table = public_backends()
    assert set(table) == set(calls())
    for found in table.values():
        assert tuple(found) == registry.BACKENDS
        assert found["reference"] is None
        assert all(reason is None or len(reason) > 5 for reason in found.values())


def test_the_compiled_path_ran() -> None:
    """The profiler sees the native operators: breaks when a public call falls back in silence."""
    if public_backends()["norm_relu_pool"]["cpp"] is not None:
        pytest.skip("the C++ kernels are not built")
    for force, expected in ((None, True), ("cpp", True), ("reference", False)):
        with ops.use_backend(force), profile(activities=[ProfilerActivity.CPU]) as recorded:
            names = calls()
        ran = {event.key for event in recorded.key_averages()}
        for name in names:
            assert (f"iadd_fast_native::{name}" in ran) == expected, (force, name)


def test_the_best_available_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """By device and dtype, in the order of preference; bfloat16 on the CPU has the reference."""
    monkeypatch.setattr(registry, "_missing", lambda operator, backend: None)
    tensor = torch.zeros(1)
    assert registry.backend_of("param_distance", tensor) == "cpp"
    assert registry.backend_of("param_distance", tensor.double()) == "cpp"
    assert registry.backend_of("param_distance", tensor.bfloat16()) == "reference"
    assert registry._choose("param_distance", "cuda", torch.float32) == "cuda"
    assert registry._choose("param_distance", "cuda", torch.bfloat16) == "cuda"
    assert registry._choose("param_distance", "cuda", torch.float64) == "reference"
    monkeypatch.setattr(
        registry, "_missing", lambda operator, backend: "gone" if backend == "cuda" else None
    )
    registry._choose.cache_clear()
    assert registry._choose("param_distance", "cuda", torch.float32) == "triton"
    with pytest.raises(ValueError, match="operator: got 'matmul'"):
        registry.backend_of("matmul", tensor)


def test_forcing_holds_nests_and_ends() -> None:
    """Breaks when leaving an inner block forgets the outer one, or a plain call does not last."""
    tensor = torch.zeros(1, dtype=torch.float64)
    default = ops.backend_of("diff_augment", tensor)
    with ops.use_backend("reference"):
        assert ops.backend_of("diff_augment", tensor) == "reference"
        with ops.use_backend(None):
            assert ops.backend_of("diff_augment", tensor) == default
        assert ops.backend_of("diff_augment", tensor) == "reference"
    assert ops.backend_of("diff_augment", tensor) == default
    ops.use_backend("reference")
    assert ops.backend_of("diff_augment", tensor) == "reference"
    ops.use_backend(None)
    with pytest.raises(ValueError, match="name: got 'numpy'"):
        ops.use_backend("numpy")


def test_a_forced_backend_that_cannot_serve_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when forcing falls back to another backend: the reason is raised instead."""
    z = torch.randn(1, 2, 4, 4)
    with ops.use_backend("cuda"), pytest.raises(RuntimeError, match="'cuda'.: norm_relu_pool"):
        ops.norm_relu_pool(z)
    monkeypatch.setattr(registry, "_missing", lambda operator, backend: None)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with ops.use_backend("triton"), pytest.raises(RuntimeError, match="on cuda, got cpu"):
        ops.norm_relu_pool(z)
    with ops.use_backend("cpp"), pytest.raises(RuntimeError, match="takes float32, float64"):
        ops.norm_relu_pool(z.bfloat16())


def test_a_gradient_stays_on_the_backend_of_its_value() -> None:
    """Leaving the block before ``backward`` changes nothing: breaks when it is looked up again."""
    if public_backends()["norm_relu_pool"]["cpp"] is not None:
        pytest.skip("the C++ kernels are not built")
    z = torch.randn(2, 3, 8, 8, requires_grad=True)
    with ops.use_backend("reference"):
        loss = ops.norm_relu_pool(z).square().sum()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        loss.backward()
    assert not [e.key for e in recorded.key_averages() if e.key.startswith("iadd_fast_native")]


def test_the_kept_reason_of_a_build_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No library: the build's own words; one that does not load: the loader's; then neither."""
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    missing: Any = library.missing.__wrapped__
    assert missing("cpu") == "not built (pip install --no-build-isolation .)"
    (tmp_path / "build.json").write_text(json.dumps({"cpu": "no compiler"}))
    assert missing("cpu") == "not built: no compiler"
    (tmp_path / "build.json").write_text("{")
    assert missing("cpu").startswith("not built (")
    (tmp_path / "cpu.abi3.so").write_bytes(b"not a library")
    assert missing("cpu").startswith("cpu.abi3.so does not load:")


def test_without_the_library_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a compiler: every operator works, and asking for C++ says why not."""
    monkeypatch.setattr(library, "missing", lambda name: "not built: no compiler")
    table = public_backends()
    assert all(found["cpp"] == "not built: no compiler" for found in table.values())
    assert ops.backend_of("norm_relu_pool", torch.zeros(1)) == "reference"
    assert all(bool(value.isfinite().all()) for value in calls().values())


def test_triton_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not installed, no compiler for its launcher, no device: each has its own reason."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert public_backends()["norm_relu_pool"]["triton"] == "triton is not installed"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find("torch"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert public_backends()["norm_relu_pool"]["triton"] is None
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(registry, "_c_compiler", lambda: True)
    assert public_backends()["norm_relu_pool"]["triton"] == "no CUDA device"
    monkeypatch.setattr(registry, "_c_compiler", lambda: False)
    assert "C compiler" in str(public_backends()["norm_relu_pool"]["triton"])
