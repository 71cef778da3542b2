"""``compare``: the engines of the meta-gradient side by side on this machine."""

from __future__ import annotations

from iadd_fast.comparison.problem import CONTENDERS, CompareSettings
from iadd_fast.comparison.processes import ContenderFailed
from iadd_fast.comparison.result import Comparison, ContenderRow
from iadd_fast.comparison.run import compare

__all__ = [
    "CONTENDERS",
    "CompareSettings",
    "Comparison",
    "ContenderFailed",
    "ContenderRow",
    "compare",
]
