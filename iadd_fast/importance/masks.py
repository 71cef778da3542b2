"""Weights of 0 and 1 chosen anew at every outer step once theta_J is known."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from iadd_fast import arguments
from iadd_fast.importance.policy import Importance, Segment, Setting, check_share
from iadd_fast.unroll import WeightFunction


class Uniform(Importance):
    """w = 1: MTT (arXiv 2203.11932)."""

    normaliser = "start"

    def prepare(self, setting: Setting) -> None:
        pass

    def weight(self, segment: Segment) -> None:
        return None


class Mask(Importance):
    """A mask from (theta_J, start, target), in numerator and denominator; the last is kept."""

    def prepare(self, setting: Setting) -> None:
        self._last: Tensor | None = None

    def kept(self, theta: Tensor, target: Tensor) -> Tensor:
        """Which parameters stay in the distance, boolean ``[P]``."""
        raise TypeError(f"{type(self).__name__} does not say which parameters stay")

    def weight(self, segment: Segment) -> WeightFunction:
        def function(theta: Tensor, start: Tensor, target: Tensor) -> Tensor:
            mask = self.kept(theta, target)
            if not bool(((start != target) & mask).any()):
                mask = torch.ones_like(mask)
            self._last = mask.to(theta.dtype)
            return self._last

        return function

    def current(self) -> Tensor | None:
        """The mask of the last outer step."""
        return self._last


class Similarity(Mask):
    """Parameter pruning (arXiv 2209.14609): drop the difficult-to-match parameters each step.

    A parameter stays while ``1 - |theta_J - target| / max(|theta_J|, |target|) >= threshold``: for
    equal signs the smaller over the larger magnitude, negative for opposite signs. That difficult
    parameters are dropped is confirmed; criterion, threshold and frequency are not in any source
    read (0.1 is a recollection).

    Args:
        threshold: least similarity that stays, in [-1, 1).
    """

    def __init__(self, threshold: float = 0.1) -> None:
        self.threshold = arguments.number("threshold", threshold, least=-1, below=1)

    def kept(self, theta: Tensor, target: Tensor) -> Tensor:
        largest = torch.maximum(theta.abs(), target.abs())
        return (theta - target).abs() <= (1 - self.threshold) * largest


class Ranked(Mask):
    """Keep the share of parameters with the largest (or smallest) squared error each step.

    ``keep="largest"`` is what PAD's code does (numerator and denominator restricted to the kept
    ones); ``"smallest"`` drops the difficult ones.

    Args:
        share: share of the parameters kept, in (0, 1]. keep: ``"largest"`` or ``"smallest"``.
    """

    def __init__(
        self, share: float = 0.5, keep: Literal["largest", "smallest"] = "largest"
    ) -> None:
        self.share = check_share("share", share)
        arguments.choice("keep", keep, ("largest", "smallest"))
        self.keep = keep

    def kept(self, theta: Tensor, target: Tensor) -> Tensor:
        error = (theta - target).square()
        count = max(1, round(self.share * error.numel()))
        chosen = error.topk(count, largest=self.keep == "largest").indices
        return torch.zeros_like(error, dtype=torch.bool).index_fill_(0, chosen, True)
