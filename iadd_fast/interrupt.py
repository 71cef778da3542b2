"""Ctrl-C at a moment of the program's own choosing."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self


class DelayedInterrupt:
    """Inside this context the first Ctrl-C only sets :attr:`requested`; a second one interrupts.

    The loop that looks at ``requested`` between two steps never leaves one half done. Outside the
    main thread, where Python delivers no signals, nothing changes. One that stands around another
    hears of its Ctrl-C when that one ends, so that it is not lost in a loop's last step.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            around = getattr(self._previous, "__self__", None)
            if self.requested and isinstance(around, DelayedInterrupt):
                around.requested = True
