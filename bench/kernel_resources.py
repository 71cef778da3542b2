"""Registers, spills and shared memory of every kernel, compiled without a GPU.

    python bench/kernel_resources.py [--part triton|cuda|all] [--few] [--markdown FILE] [--jobs N]

The Triton kernels are compiled in the variants that the host functions launch: each call of
:func:`variants` runs with the launches recorded instead of started. The CUDA files are compiled by
``nvcc -Xptxas -v``. Exits with 1 where a kernel spills registers or does not compile.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = (80, 90, 100)
# What the test compiles: every kernel, each where it needs the most registers.
REPRESENTATIVE = (
    "fp32 weighted",
    "fp32 32x32 color adjoint",
    "fp32 32x32 rotate forward",
    "bf16 32x32 color_crop_cutout_flip_scale_rotate forward",
    "bf16 32x32 color_crop_cutout_flip_scale_rotate adjoint",
    "fp32 32x32 nchw",
    "fp32 32x32 nhwc",
    "bf16 64x64 nhwc",
    "fp32 10000x10 hard",
    "bf16 100x10 soft",
)
OPERATORS = ("param_distance", "diff_augment", "norm_relu_pool", "softmax_cross_entropy")
CUDA_FLAGS = ("-std=c++20", "-O3", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA")
POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
}


class Row(NamedTuple):
    """What one compiled kernel takes."""

    kernel: str
    variant: str
    architecture: int
    registers: int
    spills: int  # bytes a thread stores and loads
    stack: int  # bytes a thread
    shared: int  # static bytes a block, and dynamic ones for Triton


class Launch(NamedTuple):
    """A recorded launch: a kernel, and its arguments by name."""

    kernel: Any
    arguments: dict[str, Any]
    warps: int


def variants() -> dict[str, Callable[[], object]]:
    """Calls of the host functions, by a name that says what is special about them."""
    calls: dict[str, Callable[[], object]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        short = "fp32" if dtype == torch.float32 else "bf16"
        calls |= _param_distance_calls(dtype, short)
        calls |= _diff_augment_calls(dtype, short)
        calls |= _norm_relu_pool_calls(dtype, short)
        calls |= _softmax_cross_entropy_calls(dtype, short)
    return calls


def _param_distance_calls(dtype: torch.dtype, short: str) -> dict[str, Callable[[], object]]:
    module = importlib.import_module("iadd_fast.kernels.param_distance")
    vector = torch.zeros(320_010, dtype=dtype)
    return {
        f"{short} value": lambda: module.param_distance(vector, vector, vector, vector, True),
        f"{short} no weight": lambda: module.param_distance_gradients(
            vector, vector, vector, None, False
        ),
        f"{short} weight": lambda: module.param_distance_gradients(
            vector, vector, vector, vector, False
        ),
        f"{short} weighted": lambda: module.param_distance_gradients(
            vector, vector, vector, vector, True
        ),
    }


def _diff_augment_calls(dtype: torch.dtype, short: str) -> dict[str, Callable[[], object]]:
    module = importlib.import_module("iadd_fast.kernels.diff_augment")
    chains: list[tuple[tuple[str, ...], int, int]] = [((name,), 3, 32) for name in module.FAMILIES]
    chains += [(module.FAMILIES, 3, 32), (("crop", "scale", "rotate"), 1, 28)]
    chains += [(("color", "crop", "cutout", "flip", "scale", "rotate"), 3, 64)]
    if short != "fp32":
        chains = chains[-3:]
    calls: dict[str, Callable[[], object]] = {}
    for families, channels, side in chains:
        images = torch.zeros((10, channels, side, side), dtype=dtype)
        name = f"{short} {side}x{side} {'_'.join(families)}"
        seed = torch.zeros((), dtype=torch.int64)

        def forward(images: Any = images, families: Any = families) -> object:
            return module.diff_augment(images, families, 2**40, False)

        def adjoint(images: Any = images, families: Any = families, seed: Any = seed) -> object:
            return module.diff_augment_adjoint(images, families, seed, True)

        calls |= {f"{name} forward": forward, f"{name} adjoint": adjoint}
    return calls


def _norm_relu_pool_calls(dtype: torch.dtype, short: str) -> dict[str, Callable[[], object]]:
    module = importlib.import_module("iadd_fast.kernels.norm_relu_pool")
    calls: dict[str, Callable[[], object]] = {}
    cases = [(side, layout, True, True) for side in (32, 16, 8, 64) for layout in ("nchw", "nhwc")]
    cases += [(7, "nchw", True, True), (8, "nhwc", False, False)]
    if short != "fp32":
        cases = [(32, "nchw", True, True), (64, "nhwc", True, True), (32, "nhwc", True, True)]
    for side, layout, pool, affine in cases:
        form = torch.contiguous_format if layout == "nchw" else torch.channels_last
        z = torch.zeros((10, 128, side, side), dtype=dtype).contiguous(memory_format=form)
        pooled = z[:, :, : side // 2, : side // 2] if pool else z
        dp = pooled.contiguous(memory_format=form)
        g = torch.zeros(128) if affine else None

        def call(z: Any = z, dp: Any = dp, g: Any = g, pool: bool = pool) -> object:
            return (
                module.norm_relu_pool(z, g, g, 1e-5, pool),
                module.norm_relu_pool_backward(z, g, g, dp, 1e-5, pool),
                module.norm_relu_pool_tangent(z, g, g, z, g, g, 1e-5, pool),
                module.norm_relu_pool_backward_tangent(z, g, g, dp, z, g, g, dp, 1e-5, pool),
                module.norm_relu_pool_backward_tangent(
                    z, g, g, dp, z, g, g, dp, 1e-5, pool, dz=torch.empty_like(z)
                ),
            )

        flags = f"{'' if pool else ' no pool'}{'' if affine else ' no affine'}"
        calls[f"{short} {side}x{side} {layout}{flags}"] = call
    return calls


def _softmax_cross_entropy_calls(dtype: torch.dtype, short: str) -> dict[str, Callable[[], object]]:
    module = importlib.import_module("iadd_fast.kernels.softmax_cross_entropy")
    calls: dict[str, Callable[[], object]] = {}
    cases = [(100, 10, True), (100, 10, False), (10_000, 10, True), (100, 1000, False)]
    cases += [(10, 10_450, True)]
    for rows, classes, hard in cases if short == "fp32" else cases[:2]:
        x = torch.zeros((rows, classes), dtype=dtype)
        y = torch.zeros(rows, dtype=torch.int64) if hard else x
        one, weights = torch.zeros(()), torch.zeros(classes)
        ydot = None if hard else x

        def call(
            x: Any = x, y: Any = y, ydot: Any = ydot, u: Any = weights, one: Any = one
        ) -> object:
            return (
                module.softmax_cross_entropy(x, y, u),
                module.softmax_cross_entropy_backward(x, y, one, u),
                module.softmax_cross_entropy_tangent(x, y, x, ydot, None),
                module.softmax_cross_entropy_backward_tangent(x, y, one, x, ydot, one, u),
            )

        calls[f"{short} {rows}x{classes} {'hard' if hard else 'soft'}"] = call
    return calls


def recorded(call: Callable[[], object]) -> list[Launch]:
    """The launches of ``call``, none of them started."""
    launches: list[Launch] = []

    def record(kernel: Any, _grid: object, _on: object, *arguments: Any, **options: Any) -> None:
        warps = options.pop("num_warps")
        launches.append(
            Launch(kernel, dict(zip(kernel.arg_names, arguments, strict=False)) | options, warps)
        )

    modules = [importlib.import_module(f"iadd_fast.kernels.{name}") for name in OPERATORS]
    kept = [module.launch for module in modules]
    try:
        for module in modules:
            vars(module)["launch"] = record
        call()
    finally:
        for module, launch in zip(modules, kept, strict=True):
            vars(module)["launch"] = launch
    return launches


def specialised(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[Any, Any]]:
    """Types, constants and divisibilities that Triton's launcher gives these arguments."""
    types: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[Any, Any] = {}
    for index, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        special = not parameter.do_not_specialize
        if isinstance(value, torch.Tensor):
            types[name] = POINTERS[value.dtype]
            attributes |= {(index,): [["tt.divisibility", 16]]} if special else {}
        elif parameter.is_constexpr or value is None or (special and value == 1):
            types[name], constants[name] = "constexpr", value
        elif isinstance(value, float):
            types[name] = "fp32"
        else:
            types[name] = "i32" if value < 2**31 else "i64"
            attributes |= (
                {(index,): [["tt.divisibility", 16]]} if special and not value % 16 else {}
            )
    return types, constants, attributes


def compile_variant(task: tuple[str, int]) -> list[Row]:
    """Every kernel that a variant launches, compiled for one architecture."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    variant, architecture = task
    rows = []
    seen = set()
    for launch in recorded(variants()[variant]):
        types, constants, attributes = specialised(launch)
        key = (launch.kernel.__name__, str(types), str(constants))
        if key in seen:
            continue
        seen.add(key)
        # Triton runs ptxas with -v and prints the log if asked, unless its cache has the kernel.
        triton.knobs.nvidia.dump_ptxas_log = True
        triton.knobs.compilation.always_compile = True
        with contextlib.redirect_stdout(io.StringIO()) as said:
            compiled = triton.compile(
                ASTSource(launch.kernel, types, constants, attributes),
                target=GPUTarget("cuda", architecture, 32),
                options={"num_warps": launch.warps, "enable_fp_fusion": True},
            )
        for row in ptxas_rows(said.getvalue(), variant, architecture):
            rows.append(row._replace(shared=max(row.shared, compiled.metadata.shared)))
        if not rows:
            raise RuntimeError(f"{launch.kernel.__name__}: ptxas said nothing")
    return rows


def ptxas_rows(log: str, variant: str, architecture: int) -> list[Row]:
    """One row for each kernel that a ``ptxas -v`` log tells of."""
    rows = []
    for entry in re.split(r"Compiling entry function '", log)[1:]:
        frame = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry
        )
        used = re.search(r"Used (\d+) registers", entry)
        if frame is None or used is None:
            raise RuntimeError(f"ptxas -v: cannot read {entry!r}")
        shared = re.search(r"(\d+) bytes smem", entry)
        rows.append(
            Row(
                entry.split("'")[0],
                variant,
                architecture,
                int(used[1]),
                int(frame[2]) + int(frame[3]),
                int(frame[1]),
                int(shared[1]) if shared else 0,
            )
        )
    return rows


def cuda_files() -> list[Path]:
    """The CUDA sources of the project."""
    return sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def cuda_missing() -> str | None:
    """Why the CUDA files cannot be compiled, None where they can."""
    if shutil.which("nvcc") is None:
        return "nvcc is not on the path"
    if not cuda_files():
        return "csrc/cuda has no .cu file"
    return None


def compile_cuda(task: tuple[str, int]) -> list[Row]:
    """Every kernel of a CUDA file, compiled for one architecture."""
    from torch.utils.cpp_extension import include_paths

    path, architecture = task
    includes = [f"-I{ROOT / 'csrc' / 'include'}", *(f"-I{folder}" for folder in include_paths())]
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            [
                "nvcc",
                *CUDA_FLAGS,
                f"-arch=sm_{architecture}",
                "-Xptxas",
                "-v",
                "-cubin",
                *includes,
                path,
                "-o",
                str(Path(folder) / "out.cubin"),
            ],
            capture_output=True,
            text=True,
        )
    if run.returncode:
        raise RuntimeError(f"{path} for sm_{architecture}:\n{run.stdout}{run.stderr}")
    return [
        row._replace(kernel=_demangled(row.kernel))
        for row in ptxas_rows(run.stdout + run.stderr, Path(path).name, architecture)
    ]


def _demangled(symbol: str) -> str:
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None:
        return symbol
    text = subprocess.run([tool, symbol], capture_output=True, text=True, check=True).stdout.strip()
    return re.sub(r"^void |\(.*", "", text.replace("(anonymous namespace)::", ""))


def collect(part: str, jobs: int, few: bool = False) -> Iterator[Row]:
    """The rows of ``part`` ("triton", "cuda" or "all"), compiled by ``jobs`` processes.

    ``few`` takes the representative variants of the Triton kernels only.
    """
    triton_tasks: Sequence[tuple[str, int]] = []
    cuda_tasks: Sequence[tuple[str, int]] = []
    if part in ("triton", "all"):
        names = REPRESENTATIVE if few else tuple(variants())
        triton_tasks = [(name, arch) for name in names for arch in ARCHITECTURES]
    if part in ("cuda", "all"):
        reason = cuda_missing()
        if reason is None:
            cuda_tasks = [(str(path), arch) for path in cuda_files() for arch in ARCHITECTURES]
        else:
            print(f"CUDA part skipped: {reason}")
    # Forked workers would inherit torch's thread pool without its threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
        for rows in pool.map(compile_variant, triton_tasks):
            yield from rows
        for rows in pool.map(compile_cuda, cuda_tasks):
            yield from rows


def table(rows: Sequence[Row]) -> str:
    """A line for each kernel and variant; the architectures side by side."""
    names = " / ".join(f"sm_{architecture}" for architecture in ARCHITECTURES)
    lines = [
        f"| kernel | variant | registers ({names}) | spills, bytes | shared memory, bytes |",
        "| --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[str, str], list[list[Row]]] = {}
    for row in rows:
        # One variant may launch a kernel in two specialisations: both have all architectures.
        lists = groups.setdefault((row.kernel, row.variant), [])
        for group in lists:
            if all(other.architecture != row.architecture for other in group):
                group.append(row)
                break
        else:
            lists.append([row])
    for (kernel, variant), lists in sorted(groups.items()):
        for group in lists:
            cells = [
                " / ".join(str(getattr(row, field)) for row in group)
                for field in ("registers", "spills", "shared")
            ]
            lines.append(f"| `{kernel}` | {variant} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Compile, print a summary, write the table; the exit code."""
    parser = argparse.ArgumentParser(description="Registers and spills of every kernel.")
    parser.add_argument("--part", choices=("triton", "cuda", "all"), default="all")
    parser.add_argument("--few", action="store_true", help="representative Triton variants only")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    rows = list(collect(options.part, options.jobs, options.few))
    if options.markdown is not None:
        options.markdown.write_text(
            "# Registers, spills and shared memory\n\n"
            "Written by `python bench/kernel_resources.py --markdown FILE`; a spill is an error "
            "there.\n\n" + table(rows)
        )
    spilled = [row for row in rows if row.spills]
    for row in spilled:
        print(f"sm_{row.architecture} {row.kernel} ({row.variant}): {row.spills} bytes spilled")
    most = max((row.registers for row in rows), default=0)
    print(f"{len(rows)} kernels compiled, at most {most} registers, {len(spilled)} with spills")
    return 1 if spilled else 0


if __name__ == "__main__":
    # A kernel decorated for the interpreter cannot be compiled; workers inherit this.
    os.environ.pop("TRITON_INTERPRET", None)
    sys.exit(main())
