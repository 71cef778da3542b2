"""Gradient matching: the distance of two batches' gradients, and its gradient for one of them."""

from __future__ import annotations

from iadd_fast.matching.distance import matching_distance, matching_distance_gradient
from iadd_fast.matching.gradient import ENGINES, Matcher, MatchingGradient

__all__ = [
    "ENGINES",
    "Matcher",
    "MatchingGradient",
    "matching_distance",
    "matching_distance_gradient",
]
