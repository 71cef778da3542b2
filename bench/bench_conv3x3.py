"""``conv3x3``: all four orders, the three blocks of a ConvNet, 10 and 100 images."""

from __future__ import annotations

from typing import Any

OPERATOR = "conv3x3"


def test_conv3x3(benchmark: Any, measured: Any, case: Any, contender: str) -> None:
    """One contender on one case, behind its gate."""
    measured(benchmark, case, contender)
