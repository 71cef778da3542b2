"""The operators: one public name each, checked arguments, the backend chosen here."""

from __future__ import annotations

from iadd_fast.ops.backends import backend_of, backends, use_backend
from iadd_fast.ops.conv3x3 import conv3x3
from iadd_fast.ops.diff_augment import diff_augment
from iadd_fast.ops.norm_relu_pool import norm_relu_pool
from iadd_fast.ops.param_distance import param_distance, param_distance_gradients
from iadd_fast.ops.softmax_cross_entropy import softmax_cross_entropy

__all__ = [
    "backend_of",
    "backends",
    "conv3x3",
    "diff_augment",
    "norm_relu_pool",
    "param_distance",
    "param_distance_gradients",
    "softmax_cross_entropy",
    "use_backend",
]
