"""What a search tries: a range or a list for every setting that the user has not given."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from iadd_fast import arguments
from iadd_fast.importance import Adaptive
from iadd_fast.settings import DistillSettings

POLICIES = ("adaptive", "uniform")
#: The step of ``adaptive``; drawn in every trial, without effect in those of ``uniform``.
POLICY_STEP = "importance_learning_rate"
#: Epochs of published experts; those trained here have no more unless the settings ask for it.
LONGEST_EXPERTS = 50
#: Rounded to so many digits, so that the command that is printed is what ran.
DIGITS = 3

#: Settings whose default is another here than in a single distillation.
DEFAULTS: dict[str, Any] = {"validation_networks": 4}
#: Settings of :class:`~iadd_fast.settings.DistillSettings` that are searched unless given.
SEARCHED = (
    "lr_images", "lr_lr", "lr_init", "lr_labels", "steps", "expert_epochs", "max_start_epoch",
)  # fmt: skip


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, whole where both are; ``log``: even in the logarithm."""

    low: float
    high: float
    log: bool

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def nearest(self, value: float) -> float:
        """The value of the range that is closest to ``value``."""
        return min(max(value, self.low), self.high)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"low": self.low, "high": self.high, "log": self.log}


@dataclass(frozen=True)
class Choices:
    """One of these texts."""

    values: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"choices": list(self.values)}


@dataclass(frozen=True)
class Space:
    """What is searched and what stands.

    Attributes:
        searched: name -> range or list.
        first: name -> value of the first trial: the default, or the preset's.
        fixed: the other settings of :class:`~iadd_fast.settings.DistillSettings`.
        importance: the policy, where it is not searched.
        reach: the last epoch of an expert that a trial may look at.
    """

    searched: dict[str, Range | Choices]
    first: dict[str, Any]
    fixed: dict[str, Any]
    importance: str | None
    reach: int

    def chosen(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """The searched settings as they run: numbers rounded to three digits."""
        return {name: _rounded(drawn[name]) for name in self.searched}

    def keywords(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """What :func:`iadd_fast.distill` takes for a draw; settings that are None are left out."""
        chosen = self.chosen(drawn)
        policy = chosen.pop("importance", self.importance)
        step = chosen.pop(POLICY_STEP, None)
        if step is not None and policy == "adaptive":
            policy = f"adaptive:learning_rate={step!r}"
        settings = DistillSettings.of(**{**self.fixed, **chosen}).to_dict()
        return {
            "importance": policy,
            **{name: value for name, value in settings.items() if value is not None},
        }


def make_space(
    given: Mapping[str, Any],
    preset: Mapping[str, Any] | None,
    importance: str | None,
    samples: int,
    last_epoch: int | None,
) -> Space:
    """The space around the defaults, or around a preset.

    ======================== =========================================================== =====
    setting                  from .. to (x is the default, or the preset's)              scale
    ======================== =========================================================== =====
    lr_images                0.1 .. 100 per synthetic sample of an inner step; around a  log
                             preset x / 10 .. 10 x
    lr_lr                    x / 100 .. 100 x                                            log
    lr_init                  x / 10 .. 10 x                                              log
    lr_labels                x / 10 .. 10 x, with ``soft_labels`` alone                  log
    steps (J)                x / 5 .. 3 x                                                log
    expert_epochs (K)        1 .. 2 x                                                    even
    max_start_epoch          the window's begin .. 2 x + 2; as far as given experts      even
                             reach
    importance               adaptive or uniform
    importance_learning_rate x / 10 .. 10 x of adaptive                                  log
    ======================== =========================================================== =====

    The image step grows with the samples because the loss is their mean: the gradient of each is
    smaller by their number. Learning rates, J and K of every published run
    (:func:`iadd_fast.presets`) lie inside of what is searched for its data without a preset; later
    windows (MTT's end at epoch 20 or 40 for many samples per class) need a preset, experts that
    reach so far, or the setting itself.

    Args:
        given: settings of the user, which stand. preset: settings to search around.
        importance: the user's policy; None: searched.
        samples: of the synthetic set.
        last_epoch: of the experts, where they are given; else they are trained as far as the space
            reaches, which is 50 epochs at most unless the settings ask for more.

    Raises:
        TypeError, ValueError: an unknown setting or a value out of range; a window that begins
            after ``last_epoch``; nothing left to search.
    """
    values = {**DEFAULTS, **(preset or {}), **given}
    begin = 0
    for name in ("min_start_epoch", "first_max_start_epoch"):
        if values.get(name) is not None:
            begin = max(begin, arguments.whole(name, values[name], 0, arguments.MOST))
    if "max_start_epoch" not in given:
        default = values.get("max_start_epoch", DistillSettings.max_start_epoch)
        values["max_start_epoch"] = max(default, begin)
    base = DistillSettings.of(**values)
    inner = min(samples, base.batch_size or samples)
    window = base.window or 1
    searched: dict[str, Range | Choices] = {
        "lr_images": Range(0.1 * inner, 100.0 * inner, True),
        "lr_lr": _around(base.lr_lr, 100),
        "lr_init": _around(base.lr_init, 10),
        "steps": Range(max(base.steps // 5, window), 3 * max(base.steps, window), True),
        **_epochs(base, given, begin, last_epoch),
    }
    if preset is not None:
        searched["lr_images"] = _around(base.lr_images, 10)
    if base.soft_labels:
        searched["lr_labels"] = _around(base.lr_labels, 10)
    searched = {name: kind for name, kind in searched.items() if name not in given}
    first = {name: getattr(base, name) for name in searched}
    if importance is None:
        step = inspect.signature(Adaptive).parameters["learning_rate"].default
        searched |= {"importance": Choices(POLICIES), POLICY_STEP: _around(step, 10)}
        first |= {"importance": POLICIES[0], POLICY_STEP: step}
    fixed = {name: value for name, value in base.to_dict().items() if name not in searched}
    for name, kind in list(searched.items()):
        if isinstance(kind, Range):
            first[name] = kind.nearest(first[name])
            if kind.low == kind.high:
                fixed[name] = kind.low
                del searched[name], first[name]

    if not searched:
        raise ValueError("settings: all of those that are searched are given; leave one out")

    def highest(name: str) -> int:
        kind = searched.get(name)
        return int(kind.high if isinstance(kind, Range) else fixed[name])

    return Space(
        searched, first, fixed, importance, highest("max_start_epoch") + highest("expert_epochs")
    )


def _around(value: float, factor: int) -> Range:
    return Range(_rounded(value / factor), _rounded(float(value * factor)), True)


def _epochs(
    base: DistillSettings, given: Collection[str], begin: int, last_epoch: int | None
) -> dict[str, Range]:
    """Ranges of K and of the window's end whose largest sum is at most ``last_epoch``."""
    shortest, longest = 1, 2 * base.expert_epochs
    end = 2 * base.max_start_epoch + 2 if last_epoch is None else last_epoch
    if "expert_epochs" in given:
        shortest = longest = base.expert_epochs
    if "max_start_epoch" in given:
        begin = end = base.max_start_epoch
    if last_epoch is None:
        last_epoch = max(LONGEST_EXPERTS, base.max_start_epoch + base.expert_epochs)
    if begin + shortest > last_epoch:
        raise ValueError(
            f"experts: reach epoch {last_epoch}; a start at epoch {begin} and a target {shortest} "
            f"later need {begin + shortest}"
        )
    if "expert_epochs" not in given:
        left = last_epoch - begin
        # Without a window that is given, half of the epochs are for where it ends.
        longest = min(longest, left if begin == end else max(1, left // 2))
    end = min(end, last_epoch - longest)
    return {
        "expert_epochs": Range(shortest, longest, False),
        "max_start_epoch": Range(begin, end, False),
    }


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
