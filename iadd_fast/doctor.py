"""What runs here: versions, devices, and the backend of each operator or why it is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import warnings

import torch

from iadd_fast import ops

PACKAGES = ("iadd_fast", "torch", "triton", "numpy", "safetensors", "scikit-learn", "tensorboard")


def diagnose() -> str:
    """The whole diagnosis as plain text."""
    sections = {
        "versions": versions(),
        "devices": devices(),
        "backends": [
            (operator, _backends(found)) for operator, found in sorted(ops.backends().items())
        ],
    }
    lines = []
    for title, rows in sections.items():
        width = max(len(name) for name, _ in rows)
        lines.append(title)
        for name, text in rows:
            first, *more = text.split("\n")
            lines.append(f"  {name.ljust(width)}  {first}")
            lines += [f"  {' ' * width}  {line}" for line in more]
    return "\n".join(lines)


def versions() -> list[tuple[str, str]]:
    """(name, version or that it is not installed) of what a result depends on."""
    rows = [("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    for name in PACKAGES:
        try:
            rows.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            rows.append((name, "not installed"))
    return rows


def devices() -> list[tuple[str, str]]:
    """(torch's name, description) of every device; for CUDA the reason where there is none."""
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads in torch"
    rows = [("cpu", f"{platform.processor() or platform.machine()}, {cores}")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            rows.append(
                (
                    f"cuda:{index}",
                    f"{found.name}, compute capability {found.major}.{found.minor}, "
                    f"{found.total_memory / 2**30:.1f} GiB",
                )
            )
        return rows
    build = torch.version.cuda or torch.version.hip
    if build is None:
        reason = "torch was built without it"
    elif caught:
        reason = " ".join(str(caught[-1].message).split())
    else:
        reason = f"torch was built for {build} and sees no device"
    return [*rows, ("cuda", f"missing: {reason}")]


def _backends(found: dict[str, str | None]) -> str:
    """Available backends on the first line, then one line for each missing one."""
    there = [name for name, reason in found.items() if reason is None]
    missing = [f"no {name}: {reason}" for name, reason in found.items() if reason is not None]
    return "\n".join([", ".join(there) or "none", *missing])
