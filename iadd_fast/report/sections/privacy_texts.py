"""How the privacy section names and writes its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def attack_name(attack: str) -> str:
    """``"calibrated loss"``."""
    return attack.replace("_", " ")


def spread(values: Mapping[str, float]) -> str:
    """Median and 5th to 95th percentile."""
    return f"{values['median']:.3g} ({values['low']:.3g} to {values['high']:.3g})"


def number(value: float, interval: Sequence[float]) -> str:
    """A value and its interval."""
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def signed(value: float, interval: Sequence[float]) -> str:
    """A difference and its interval."""
    return f"{value:+.3f} ({interval[0]:+.3f} to {interval[1]:+.3f})"


def share_of(value: float, interval: Sequence[float]) -> str:
    """A share and its interval in percent."""
    return f"{100 * value:.1f} % ({percents(interval)})"


def percents(interval: Sequence[float]) -> str:
    """An interval of shares in percent."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def rate_of(found: Mapping[str, Any]) -> str:
    """A true-positive rate and its interval, or that the counts do not resolve it."""
    if found["tpr"] is None:
        return "not resolved"
    return f"{100 * found['tpr']:.2f} % ({percents(found['interval'])})"


def target_of(
    targets: Sequence[Mapping[str, Any]], method: str, population: str | None = None
) -> Mapping[str, Any] | None:
    """The first target of this method (and kind of members), if there is one."""
    for target in targets:
        if target["method"] == method and population in (None, target["population"]):
            return target
    return None
