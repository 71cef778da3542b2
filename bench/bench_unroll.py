"""One outer iteration by every engine: the rows of the design's table, ConvNet-3 of width 128.

    python -m pytest bench/bench_unroll.py -o python_files='bench_*.py' --benchmark-only
    python bench/bench_unroll.py [--compare] [--device cpu|cuda] [--json FILE]
    python bench/bench_unroll.py --memory

The first runs in one process, one contender after the other. The second is ``iadd_fast.compare`` on
each row: fresh processes, contenders in turn, the ratios to quote. The third is the peak memory of
engine "fused" over the number of inner steps, each in a fresh process, beside what one more set of
parameters takes: with nothing kept (``memory_budget=0``) no step may cost more than that.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
import torch
from torch import Tensor

import iadd_fast
from bench.rows import surroundings
from bench.timing import copy_bandwidth, synchronise
from iadd_fast.comparison import CONTENDERS, CompareSettings
from iadd_fast.comparison.problem import LIMITS, Contender, gradients, make_iteration
from iadd_fast.comparison.processes import Process
from iadd_fast.comparison.result import make_row, relative_errors
from iadd_fast.comparison.run import truth_engine

ROWS: dict[str, dict[str, CompareSettings]] = {
    "cpu": {
        "ipc1-steps10": CompareSettings(images_per_class=1, steps=10),
        "ipc10-steps10": CompareSettings(images_per_class=10, steps=10),
    },
    "cuda": {
        "ipc1-steps50": CompareSettings(images_per_class=1, steps=50),
        "ipc10-steps30": CompareSettings(images_per_class=10, steps=30),
        "ipc50-steps30": CompareSettings(images_per_class=50, steps=30),
    },
}
STEPS = (10, 20, 50, 100)
ROUNDS, LEAST = 15, 3  # of one contender, fewer where they are long
SECONDS = 20.0  # of one contender's rounds
SLACK = 1.1  # share of the parameters' size by which a step may grow the peak


@cache
def truth(device: str, row: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The float64 gradients of a row and how sensitive they are."""
    settings, where = ROWS[device][row], torch.device(device)
    engine = Contender(truth_engine(settings, where))
    plain, moved = (
        dict(gradients(make_iteration(settings, engine, where, torch.float64, change)()))
        for change in (0.0, settings.change)
    )
    return plain, relative_errors(moved, plain)


@cache
def session(device: str) -> dict[str, Any]:
    """What stands in every result."""
    where = torch.device(device)
    return surroundings(where) | {"copy_gb_s": copy_bandwidth(where)}


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize(
    ("device", "row"), [(device, row) for device, rows in ROWS.items() for row in rows]
)
def test_unroll(
    benchmark: Any, request: pytest.FixtureRequest, device: str, row: str, contender: str
) -> None:
    """One contender on one row, behind its gate."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    if device != (request.config.getoption("--bench-device") or default):
        pytest.skip(f"needs --bench-device {device}")
    threads = request.config.getoption("--bench-threads")
    if threads:
        torch.set_num_threads(threads)
    settings, where = ROWS[device][row], torch.device(device)
    iteration = make_iteration(settings, CONTENDERS[contender], where, settings.dtype)
    got = {name: value.double() for name, value in gradients(iteration())}
    wanted, sensitivity = truth(device, row)
    errors = relative_errors(got, wanted)

    def call() -> None:
        iteration()
        synchronise(where)

    began = time.perf_counter()
    call()
    once = time.perf_counter() - began
    gate = make_row(contender, [once], 0.0, errors, LIMITS[settings.precision], sensitivity)
    assert gate.failed is None, f"{contender}: {gate.failed}"
    rounds = max(LEAST, min(ROUNDS, int(SECONDS / once)))
    benchmark.group = f"unroll, {row}"
    benchmark.pedantic(call, rounds=rounds)
    stats = benchmark.stats.stats
    benchmark.extra_info |= {
        "operator": "unroll",
        "order": "outer step",
        "variant": row,
        "shape": [settings.images, settings.channels, settings.image_size, settings.image_size],
        "dtype": settings.precision,
        "layout": "contiguous",
        "contender": contender,
        **session(device),
        "median_ms": stats.median * 1e3,
        "quartiles_ms": [stats.q1 * 1e3, stats.q3 * 1e3],
        "rounds": rounds,
        "error": gate.error,
        "errors": errors,
        "sensitivity": sensitivity,
    }


def memory(device: str, budget: int | None) -> dict[str, Any]:
    """Peak MB of engine "fused" over J, and of one set of parameters."""
    base = replace(next(iter(ROWS[device].values())), memory_budget=budget)
    peaks = {}
    for steps in STEPS:
        with Process(f"fused, J={steps}") as process:
            process.ask(
                "begin",
                settings=replace(base, steps=steps).to_dict(),
                contender=asdict(CONTENDERS["fused"]),
                device=device,
                threads=torch.get_num_threads(),
                float64=False,
            )
            peaks[steps] = process.ask("memory")["megabytes"]
    size = base.student().num_parameters * base.dtype.itemsize / 1e6
    growth = (peaks[STEPS[-1]] - peaks[STEPS[0]]) / (STEPS[-1] - STEPS[0])
    return {"budget": budget, "peak_mb": peaks, "parameters_mb": size, "mb_per_step": growth}


def memory_line(found: dict[str, Any]) -> str:
    """One line of Markdown's table."""
    budget = "default" if found["budget"] is None else f"{found['budget']} MiB"
    peaks = " | ".join(f"{peak:.1f}" for peak in found["peak_mb"].values())
    return f"| {budget} | {peaks} | {found['mb_per_step']:.2f} | {found['parameters_mb']:.2f} |"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="One outer iteration by every engine.")
    parser.add_argument("--compare", action="store_true", help="tables of all rows (the default)")
    parser.add_argument("--memory", action="store_true", help='peak of "fused" over the steps')
    parser.add_argument("--device", choices=tuple(ROWS))
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--budget", type=float, default=1e9, help="no new row after S seconds")
    options = parser.parse_args()
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    elif options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    options.compare = options.compare or not options.memory
    return options


def main() -> int:
    """Tables on stdout; the exit status is 1 where a row is wrong or the memory grows too much."""
    options, began = arguments(), time.perf_counter()
    held: dict[str, list[dict[str, Any]]] = {"comparisons": [], "memory": []}

    def keep() -> None:
        if options.json is not None:  # a run that is cut short leaves what it has
            options.json.write_text(json.dumps(held, indent=1) + "\n")

    bad = False
    if options.memory:
        print("peak MB of engine fused above its start, 1 image a class\n")
        heads = [*(f"J = {steps}" for steps in STEPS), "MB per step", "MB of the parameters"]
        print("| memory_budget | " + " | ".join(heads) + " |\n|" + " --- |" * (len(heads) + 1))
        for budget in (0, None):
            found = memory(options.device, budget)
            held["memory"].append(found)
            print(memory_line(found), flush=True)
            keep()
        first = held["memory"][0]
        bad = first["mb_per_step"] > SLACK * first["parameters_mb"]
        print("GROWS by more than the parameters per step\n" if bad else "")
    for name, settings in ROWS[options.device].items() if options.compare else ():
        if time.perf_counter() - began > options.budget:
            print(f"{name}: left out, --budget {options.budget:.0f}")
            continue
        compared = iadd_fast.compare(device=options.device, **settings.to_dict())
        held["comparisons"].append(compared.to_dict())
        print(f"## {name}\n\n{compared.table()}\n", flush=True)
        bad |= any(row.failed for row in compared.contenders)
        keep()
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
