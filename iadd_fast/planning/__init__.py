"""What a distillation will take on this machine, measured before it is started."""

from __future__ import annotations

from iadd_fast.planning.job import DataShape, EvaluationSettings
from iadd_fast.planning.result import Plan
from iadd_fast.planning.run import plan

__all__ = ["DataShape", "EvaluationSettings", "Plan", "plan"]
