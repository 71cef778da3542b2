"""Every kernel compiles for three architectures, without a GPU, and spills no registers."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("triton", reason="triton is not installed")

SCRIPT = Path(__file__).parents[2] / "bench" / "kernel_resources.py"


@pytest.fixture
def resources() -> ModuleType:
    specification = importlib.util.spec_from_file_location("kernel_resources", SCRIPT)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def compiled(part: str, folder: Path) -> str:
    """The table that the script writes; it fails where a kernel spills or does not compile."""
    environment = dict(os.environ, TRITON_CACHE_DIR=str(folder / "cache"))
    run = subprocess.run(
        [
            sys.executable,
            str(SCRIPT),
            "--few",
            *("--part", part),
            *("--jobs", "2"),
            *("--markdown", str(folder / "table.md")),
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return (folder / "table.md").read_text()


def test_triton_kernels_spill_no_registers(tmp_path: Path, resources: ModuleType) -> None:
    """Breaks when a block size or a longer formula no longer fits the registers, when a kernel runs
    in the interpreter only, or when a new kernel is not among the variants."""
    text = compiled("triton", tmp_path)
    kernels = [
        name
        for operator in resources.OPERATORS
        for name in vars(importlib.import_module(f"iadd_fast.kernels.{operator}"))
        if name.endswith("_kernel")
    ]
    assert len(kernels) == 11
    for name in kernels:
        assert f"`{name}`" in text, f"{name}: no variant launches it"
    lines = text.splitlines()[6:]
    for line in lines:
        registers, spills = line.split(" | ")[2:4]
        assert registers.count(" / ") == len(resources.ARCHITECTURES) - 1, line
        assert spills == "0 / 0 / 0", line


def test_cuda_kernels_spill_no_registers(tmp_path: Path, resources: ModuleType) -> None:
    """As above for nvcc; skipped where it is not installed."""
    reason = resources.cuda_missing()
    if reason is not None:
        pytest.skip(reason)
    assert ".cu |" in compiled("cuda", tmp_path)


def test_a_spill_is_read_from_the_log(resources: ModuleType) -> None:
    """Breaks when a log that tells of spills reads as none."""
    log = (
        "ptxas info    : Compiling entry function 'k' for 'sm_90a'\n"
        "ptxas info    : Function properties for k\n"
        "    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads\n"
        "ptxas info    : Used 128 registers, used 1 barriers, 528 bytes smem\n"
    )
    (row,) = resources.ptxas_rows(log, "variant", 90)
    assert (row.kernel, row.registers, row.spills, row.shared) == ("k", 128, 20, 528)
    assert "20" in resources.table([row])
