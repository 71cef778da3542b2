"""The operators: one public name each, checked arguments, the backend chosen here."""

from __future__ import annotations

from iadd_fast.ops.backends import backends
from iadd_fast.ops.diff_augment import diff_augment
from iadd_fast.ops.param_distance import param_distance, param_distance_gradients

__all__ = ["backends", "diff_augment", "param_distance", "param_distance_gradients"]
