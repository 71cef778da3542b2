"""``diff_augment``: forward and adjoint, each family and the whole chain."""

from __future__ import annotations

from typing import Any

OPERATOR = "diff_augment"


def test_diff_augment(benchmark: Any, measured: Any, case: Any, contender: str) -> None:
    """One contender on one case, behind its gate."""
    measured(benchmark, case, contender)
