"""The unroll: inner steps on the synthetic set and the exact gradient through them."""

from __future__ import annotations

from iadd_fast.unroll.fused import release
from iadd_fast.unroll.gradient import ENGINES, trajectory_gradient, trajectory_gradients
from iadd_fast.unroll.problem import TrajectoryGradient, WeightFunction

__all__ = [
    "ENGINES",
    "TrajectoryGradient",
    "WeightFunction",
    "release",
    "trajectory_gradient",
    "trajectory_gradients",
]
