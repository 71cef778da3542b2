"""``softmax_cross_entropy``: all four orders, hard and soft labels."""

from __future__ import annotations

from typing import Any

OPERATOR = "softmax_cross_entropy"


def test_softmax_cross_entropy(benchmark: Any, measured: Any, case: Any, contender: str) -> None:
    """One contender on one case, behind its gate."""
    measured(benchmark, case, contender)
