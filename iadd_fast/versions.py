"""Versions of the software a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch


def versions() -> dict[str, str]:
    """Of this package, torch and Python."""
    return {
        "iadd_fast": version("iadd_fast"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
