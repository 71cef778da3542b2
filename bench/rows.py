"""One row of results: what ran, where, how long, and what share of the copy bandwidth that is."""

from __future__ import annotations

import importlib.metadata
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench.cases import Case
from bench.timing import Sample


def surroundings(device: torch.device) -> dict[str, Any]:
    """Device, versions, threads and date: equal for every row of a run."""
    return {
        "device": device.type,
        "device_name": device_name(device),
        "torch": str(torch.__version__),
        "triton": _version("triton"),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0]}, {len(models)} cores" if models else platform.machine()


def about(case: Case, session: dict[str, Any], contender: str) -> dict[str, Any]:
    """What a row is of."""
    return {
        "operator": case.operator,
        "order": case.order,
        "variant": case.variant,
        "shape": list(case.shape),
        "dtype": str(case.dtype).removeprefix("torch."),
        "layout": case.layout,
        "contender": contender,
        **session,
    }


def row(found: Sample, graph: Sample | None, size: int, copy_gb_s: float) -> dict[str, Any]:
    """Its times, in milliseconds, and GB/s out of the shorter of them."""
    best = graph.median if graph is not None else found.median
    rate = size / best / 1e9
    times: dict[str, Any] = {
        "median_ms": found.median * 1e3,
        "quartiles_ms": [found.low * 1e3, found.high * 1e3],
        "rounds": found.rounds,
        "bytes": size,
        "gb_s": rate,
        "share_of_copy": rate / copy_gb_s,
    }
    if graph is not None:
        times["graph_ms"] = graph.median * 1e3
        times["graph_quartiles_ms"] = [graph.low * 1e3, graph.high * 1e3]
    return times


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
