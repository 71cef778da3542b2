"""A search for settings of a distillation on validation accuracy, under a time budget."""

from __future__ import annotations

from iadd_fast.tuning.result import Tried, Tuning
from iadd_fast.tuning.run import tune

__all__ = ["Tried", "Tuning", "tune"]
