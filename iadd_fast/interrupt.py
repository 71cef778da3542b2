"""Ctrl-C, or a polite request to end, at a moment of the program's own choosing."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

#: Ctrl-C, and what schedulers and ``kill`` send before they kill.
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class DelayedInterrupt:
    """Inside this context the first Ctrl-C or SIGTERM only sets :attr:`requested`.

    A second one interrupts. The loop that looks at ``requested`` between two steps never leaves one
    half done. Outside the main thread, where Python delivers no signals, nothing changes. One that
    stands around another hears of its signal when that one ends, so that it is not lost in a loop's
    last step.

    Attributes:
        requested: whether there was one.
        handed_on: at the end, whether one that stands around this has heard of it.
    """

    def __init__(self) -> None:
        self.requested = False
        self.handed_on = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
            around = getattr(handler, "__self__", None)
            if self.requested and isinstance(around, DelayedInterrupt):
                around.requested = self.handed_on = True
