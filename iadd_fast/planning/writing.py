"""Times and sizes as people write them."""

from __future__ import annotations

from iadd_fast.planning.prediction import Prediction, Range

MIB = 2**20


def duration(seconds: float) -> str:
    """``"35 s"``, ``"4.2 min"``, ``"3.1 h"``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def span(seconds: Range) -> str:
    """``"4.2 min (4.0 min to 4.6 min)"``."""
    return f"{duration(seconds.middle)} ({duration(seconds.low)} to {duration(seconds.high)})"


def size(count: int) -> str:
    """In MiB, two digits where it is less than ten of them."""
    return f"{count / MIB:,.2f} MiB" if count < 10 * MIB else f"{count / MIB:,.0f} MiB"


def totals(prediction: Prediction) -> str:
    """Time, memory and disk of everything, in half a sentence."""
    return (
        f"{span(prediction.seconds)}, at most {size(prediction.memory)} of memory and "
        f"{size(prediction.disk_peak)} of disk"
    )
