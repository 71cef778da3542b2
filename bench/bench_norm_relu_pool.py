"""``norm_relu_pool``: all four orders, planes of 32, 16 and 8, 10 and 100 images."""

from __future__ import annotations

from typing import Any

OPERATOR = "norm_relu_pool"


def test_norm_relu_pool(benchmark: Any, measured: Any, case: Any, contender: str) -> None:
    """One contender on one case, behind its gate."""
    measured(benchmark, case, contender)
