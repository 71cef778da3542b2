"""Learned importance: one persistent weight per parameter, tensor or layer (IADD).

What is known of IADD (arXiv 2401.15863): the loss ``||W theta_J - W target||^2`` over
``||start - target||^2``, with W beside the images and the learning rate as a third optimised
variable ("self-adaptive weights"). Not known, no source could be read: whether W is per scalar or
per layer, its start, its optimiser and step, whether it moves down or up the loss, any
normalisation. :class:`Paper` is the printed formula with the plainest reading of the rest;
:class:`Adaptive` is the form that the measurements in ``docs/results.md`` speak for.
"""

from __future__ import annotations

import warnings
from typing import ClassVar, Literal

import torch
from torch import Tensor

from iadd_fast import arguments
from iadd_fast.importance.fisher import fisher_information
from iadd_fast.importance.policy import Importance, Segment, Setting, check_bounds, check_share
from iadd_fast.ops.param_distance import Normaliser
from iadd_fast.students import Student

Granularity = Literal["scalar", "tensor", "layer"]
GRANULARITIES = ("scalar", "tensor", "layer")
DIRECTIONS = ("ascent", "descent")
#: Share of the loss with its first weights below which :class:`Paper` says that they collapsed.
COLLAPSED = 1e-3


class Adaptive(Importance):
    """Bounded multiplicative weights of mean 1, the same in numerator and denominator.

    With v = w^2 the weight of a squared error (mean over all parameters kept at 1)::

        s = P dL/dv = P (d^2 - L d0^2) / sum v d0^2, clipped to [-5, 5]
        v <- v exp(+step s)  for direction "ascent",   v exp(-step s) for "descent"
        v <- clamp(v, minimum, maximum), divided by its mean

    (d = theta_J - target, d0 = start - target). Ascent puts weight where matching still fails,
    as self-adaptive weights do in physics-informed networks; descent on the matching loss finds
    the parameters that are easiest to match. The mean and the bounds make a collapse to zero
    weights impossible.

    Args:
        direction: ``"ascent"`` or ``"descent"``.
        learning_rate: the step above.
        granularity: ``"scalar"``, ``"tensor"`` or ``"layer"``: what shares one weight (s is then
            the mean over the group).
        minimum, maximum: bounds on v before it is divided by its mean. Afterwards v is within
            [minimum / maximum, maximum / minimum], and no two weights differ by a factor of more
            than maximum / minimum, whatever the gradients were.
        initial: ``"uniform"``, or ``"fisher"``: the tempered diagonal Fisher information (power
            0.5) of the first target, clamped to the same bounds.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        direction: Literal["ascent", "descent"] = "ascent",
        learning_rate: float = 0.01,
        granularity: Granularity = "scalar",
        minimum: float = 0.5,
        maximum: float = 2.0,
        initial: Literal["uniform", "fisher"] = "uniform",
    ) -> None:
        arguments.choice("direction", direction, DIRECTIONS)
        check_granularity(granularity)
        minimum, maximum = check_bounds(minimum, maximum)
        if not minimum <= 1 <= maximum:
            raise ValueError(f"minimum, maximum: got {minimum}, {maximum}; must enclose 1")
        arguments.choice("initial", initial, ("uniform", "fisher"))
        self.direction = direction
        self.learning_rate = arguments.number("learning_rate", learning_rate, above=0)
        self.granularity = granularity
        self.minimum = minimum
        self.maximum = maximum
        self.initial = initial

    def prepare(self, setting: Setting) -> None:
        self._setting = setting
        self._group = group_index(setting.student, self.granularity).to(setting.device)
        self._value = torch.ones(
            setting.student.num_parameters, device=setting.device, dtype=setting.dtype
        )
        self._begun = self.initial == "uniform"

    @property
    def begun(self) -> bool:
        """Whether v is there: from the start, or since the first segment's Fisher information."""
        return self._begun

    def weight(self, segment: Segment) -> Tensor:
        if not self._begun:
            information = fisher_information(self._setting, segment.target).sqrt()
            self._value = self._bounded(information / information.mean().clamp_min(1e-30))
            self._begun = True
        return self._value.sqrt()

    def update(self, gradient: Tensor | None) -> None:
        assert gradient is not None, "adaptive weights are always passed to the distance"
        # dL/dv = dL/dw / (2 w) for v = w^2; P makes it the same size for every network.
        score = gradient * (gradient.numel() / 2) / self._value.sqrt()
        step = self.learning_rate * group_mean(score, self._group).clamp_(-5, 5)
        sign = 1.0 if self.direction == "ascent" else -1.0
        self._value = self._bounded(self._value * (sign * step).exp())

    def _bounded(self, value: Tensor) -> Tensor:
        value = group_mean(value, self._group).clamp(self.minimum, self.maximum)
        return value / value.mean()

    def current(self) -> Tensor:
        return self._value.sqrt()

    def state(self) -> dict[str, Tensor]:
        return {"value": self._value, "begun": torch.tensor(self._begun)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._value = state["value"].to(self._value)
        self._begun = bool(state["begun"])


class Prune(Adaptive):
    """Adaptive weights that drop parameters, iteratively, for good.

    Every ``every`` outer steps the parameters whose v has fallen below ``threshold`` (1 is the
    mean) leave the distance, lowest first, as long as a share of at least ``floor`` stays. Under
    descent these are the parameters that are hard to match, the ones the authors' parameter
    pruning removes (arXiv 2209.14609); under ascent those already matched. In a segment in which
    none of those that stay moves, which leaves nothing to divide by, all count.

    Args:
        threshold: v below which a parameter is dropped; above ``minimum``, below 1.
        floor: share of the parameters that always stays.
        every: outer steps between two prunings.
        direction, learning_rate, granularity, minimum, maximum, initial: as :class:`Adaptive`.
    """

    def __init__(
        self,
        threshold: float = 0.5,
        floor: float = 0.5,
        every: int = 10,
        direction: Literal["ascent", "descent"] = "descent",
        learning_rate: float = 0.02,
        granularity: Granularity = "scalar",
        minimum: float = 0.1,
        maximum: float = 4.0,
        initial: Literal["uniform", "fisher"] = "uniform",
    ) -> None:
        super().__init__(direction, learning_rate, granularity, minimum, maximum, initial)
        self.threshold = arguments.number("threshold", threshold, above=self.minimum, below=1)
        self.floor = check_share("floor", floor)
        self.every = arguments.whole("every", every)

    def prepare(self, setting: Setting) -> None:
        super().prepare(setting)
        self._kept = torch.ones_like(self._value, dtype=torch.bool)
        self._updates = 0

    def weight(self, segment: Segment) -> Tensor:
        weight, moved = super().weight(segment), segment.start != segment.target
        return weight * self._kept if bool((moved & self._kept).any()) else weight

    def update(self, gradient: Tensor | None) -> None:
        super().update(gradient)
        self._updates += 1
        if self._updates % self.every:
            return
        spare = int(self._kept.sum()) - int(self.floor * self._kept.numel() + 0.5)
        low = self._kept & (self._value < self.threshold)
        count = min(spare, int(low.sum()))
        if count > 0:
            # Ties (a whole tensor or layer at one value) are broken by place.
            order = torch.where(low, self._value, torch.inf).argsort(stable=True)
            # A tensor of its own: the state of the step before may still be wanted.
            self._kept = self._kept.index_fill(0, order[:count], False)

    def current(self) -> Tensor:
        return super().current() * self._kept

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), "kept": self._kept, "updates": torch.tensor(self._updates)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        self._kept = state["kept"].to(self._kept)
        self._updates = int(state["updates"])


class Paper(Importance):
    """The printed formula: raw weights W in the numerator only, learned by SGD beside the images.

    ``L = ||W theta_J - W target||^2 / ||start - target||^2``, W starts at ``initial``, SGD with
    ``momentum``. Start, optimiser, step and direction are not in any source read (see the module);
    descent follows from "jointly optimizes". dL/dW >= 0 for W > 0, so descent can only shrink the
    weights, in the end to the trivial optimum W = 0: kept for comparison, not for use. A warning
    says when they have made the loss less than ``COLLAPSED`` of what it is with the first weights.
    With a large step a weight passes 0 and may oscillate around it; only W^2 counts.

    Args:
        learning_rate: step of SGD on W; W moves by ``learning_rate * P * dL/dW``, P parameters,
            so that the same step suits every network.
        momentum: SGD momentum. initial: first value of every weight.
        direction: ``"descent"`` or ``"ascent"``. granularity: as :class:`Adaptive`.
    """

    normaliser: ClassVar[Normaliser] = "start"

    def __init__(
        self,
        learning_rate: float = 0.005,
        momentum: float = 0.5,
        initial: float = 1.0,
        direction: Literal["ascent", "descent"] = "descent",
        granularity: Granularity = "scalar",
    ) -> None:
        arguments.choice("direction", direction, DIRECTIONS)
        check_granularity(granularity)
        self.learning_rate = arguments.number("learning_rate", learning_rate, above=0)
        self.momentum = arguments.number("momentum", momentum, least=0, below=1)
        self.initial = arguments.number("initial", initial, above=0)
        self.direction = direction
        self.granularity = granularity

    def prepare(self, setting: Setting) -> None:
        self._group = group_index(setting.student, self.granularity).to(setting.device)
        self._weight = torch.full(
            (setting.student.num_parameters,),
            self.initial,
            device=setting.device,
            dtype=setting.dtype,
        )
        self._velocity = torch.zeros_like(self._weight)
        self._warned = False

    def weight(self, segment: Segment) -> Tensor:
        return self._weight

    def update(self, gradient: Tensor | None) -> None:
        assert gradient is not None, "the weights are always passed to the distance"
        self._warn_if_collapsed(gradient)
        scaled = group_mean(gradient, self._group) * gradient.numel()
        self._velocity = self.momentum * self._velocity + scaled
        sign = 1.0 if self.direction == "ascent" else -1.0
        self._weight = self._weight + sign * self.learning_rate * self._velocity

    def _warn_if_collapsed(self, gradient: Tensor) -> None:
        # g = 2 w e for squared errors e: W leaves sum w^2 e of the loss sum e.
        relative = self._weight.double() / self.initial
        errors = torch.where(relative == 0, 0.0, gradient / relative)
        share = float((errors * relative.square()).sum() / errors.sum())
        if share < COLLAPSED and not self._warned:
            self._warned = True
            warnings.warn(
                f"importance: the weights of 'paper' have made the loss {share:.2g} of what it was "
                "with those it began with, whatever the images do; use 'adaptive', whose weights "
                "keep their mean",
                UserWarning,
                stacklevel=3,
            )

    def current(self) -> Tensor:
        return self._weight

    def state(self) -> dict[str, Tensor]:
        return {"weight": self._weight, "velocity": self._velocity}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._weight = state["weight"].to(self._weight)
        self._velocity = state["velocity"].to(self._velocity)


def check_granularity(granularity: str) -> None:
    """Raise ``ValueError`` unless it names a granularity."""
    arguments.choice("granularity", granularity, GRANULARITIES)


def group_index(student: Student, granularity: Granularity) -> Tensor:
    """Group number of every parameter ``[P]`` (int64), empty for ``"scalar"``: no groups."""
    if granularity == "scalar":
        return torch.empty(0, dtype=torch.int64)
    names: dict[str, int] = {}
    parts = []
    for entry in student.parameters:
        name = entry.layer if granularity == "layer" else entry.name
        number = names.setdefault(name, len(names))
        parts.append(torch.full((entry.stop - entry.start,), number))
    return torch.cat(parts)


def group_mean(values: Tensor, group: Tensor) -> Tensor:
    """Every entry replaced by the mean of its group; a copy where there are no groups."""
    if group.numel() == 0:
        return values.clone()
    count = torch.bincount(group).to(values.dtype)
    total = torch.zeros_like(count).index_add_(0, group, values)
    return (total / count)[group]
