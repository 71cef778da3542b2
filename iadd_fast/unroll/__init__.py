"""The unroll: inner steps on the synthetic set and the exact gradient through them."""

from __future__ import annotations

from iadd_fast.unroll.gradient import ENGINES, trajectory_gradient
from iadd_fast.unroll.problem import TrajectoryGradient, WeightFunction

__all__ = ["ENGINES", "TrajectoryGradient", "WeightFunction", "trajectory_gradient"]
