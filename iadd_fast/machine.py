"""The machine a result was made on: what decides, beside the versions, how its sums are rounded."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from iadd_fast import ops


def machine(device: torch.device) -> dict[str, Any]:
    """Of the work done on ``device`` in this process, JSON-able.

    ``device`` its kind, ``device_name`` the model of the processor or GPU, ``system``,
    ``cpu_capability`` the widest vectors of PyTorch's own kernels, ``threads`` of one operation on
    the CPU, ``backends`` the one that serves each operator in float32; on a GPU also ``cuda`` and
    ``cudnn``, the versions.
    """
    float32 = torch.empty(0, device=device)
    found: dict[str, Any] = {
        "device": device.type,
        "device_name": device_name(device),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "backends": {operator: ops.backend_of(operator, float32) for operator in ops.backends()},
    }
    if device.type == "cuda":
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found


def device_name(device: torch.device) -> str:
    """The model of a GPU, or of the processor where the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
