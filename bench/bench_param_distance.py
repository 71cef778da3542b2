"""``param_distance``: value and gradients, without a weight and with both normalisers."""

from __future__ import annotations

from typing import Any

OPERATOR = "param_distance"


def test_param_distance(benchmark: Any, measured: Any, case: Any, contender: str) -> None:
    """One contender on one case, behind its gate."""
    measured(benchmark, case, contender)
