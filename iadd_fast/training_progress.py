"""When networks in training are kept, so that a job that is stopped or killed goes on in them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

from iadd_fast.interrupt import DelayedInterrupt

#: Seconds of a network's training after which it is kept again.
KEEP_EVERY = 30.0
#: Share of the time that keeping may take; large networks are kept more seldom.
SHARE = 0.02


class Keeping:
    """Keeps networks while they train, and those that are training when the job is to stop.

    Inside this context Ctrl-C and SIGTERM wait for the epoch that is running; a second one does
    not. What is kept when moves no bit of any result.

    Attributes:
        spent: seconds that keeping has taken.
    """

    def __init__(self) -> None:
        self._interrupt = DelayedInterrupt()
        self._began = time.monotonic()
        self.spent = 0.0
        self._kept_at: dict[int, float] = {}
        self._unkept: set[int] = set()

    def __enter__(self) -> Self:
        self._interrupt.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._interrupt.__exit__()

    def after_epoch(
        self, network: int, epoch: int, last: bool, keep: Callable[[], None], name: str
    ) -> None:
        """Call ``keep`` where it is time to, always after the ``last`` epoch.

        Args:
            network: which. epoch: how many it has done. last: whether these are all.
            keep: saves its state. name: of the network, for people.

        Raises:
            KeyboardInterrupt: the job was asked to stop, and all networks that are training side
                by side are kept.
        """
        asked = self._interrupt.requested
        if epoch == 0:
            self._unkept.add(network)
            self._kept_at[network] = time.monotonic()
        if last or (epoch > 0 and (asked or self._is_time(network))):
            before = time.monotonic()
            keep()
            self._kept_at[network] = time.monotonic()
            self.spent += self._kept_at[network] - before
        if last or asked:
            self._unkept.discard(network)
        if asked and not self._unkept:
            raise KeyboardInterrupt(
                f"stopped after epoch {epoch} of {name}; the same call goes on there"
            )

    def _is_time(self, network: int) -> bool:
        now = time.monotonic()
        since = now - self._kept_at.get(network, self._began)
        return since >= KEEP_EVERY and self.spent <= SHARE * (now - self._began)
