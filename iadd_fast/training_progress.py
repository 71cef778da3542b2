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
    not. One that comes after the last epoch ends the job where the context ends. What is kept when
    moves no bit of any result.

    Attributes:
        spent: seconds that keeping has taken.
    """

    def __init__(self) -> None:
        self._interrupt = DelayedInterrupt()
        self._began = time.monotonic()
        self.spent = 0.0
        self._kept_at: dict[int, float] = {}
        self._told = ""
        self._stopping = False

    def __enter__(self) -> Self:
        self._interrupt.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._interrupt.__exit__()
        if kind is None and self._interrupt.requested and not self._interrupt.handed_on:
            raise KeyboardInterrupt("stopped; the same call goes on there")

    def after_epoch(
        self, network: int, epoch: int, last: bool, keep: Callable[[], None], name: str
    ) -> None:
        """Call ``keep`` where it is time to, always after the ``last`` epoch.

        Args:
            network: which. epoch: how many it has done. last: whether these are all.
            keep: saves its state. name: of the network, for people.
        """
        if not self._told:
            # For the whole round: a signal between two of its networks waits for the next one, in
            # which all of them are kept.
            self._stopping = self._interrupt.requested
        self._told = f"epoch {epoch} of {name}"
        if epoch == 0:
            self._kept_at[network] = time.monotonic()
        elif last or self._stopping or self._is_time(network):
            before = time.monotonic()
            keep()
            self._kept_at[network] = time.monotonic()
            self.spent += self._kept_at[network] - before

    def after_round(self) -> None:
        """When :meth:`after_epoch` knows of all networks that are training side by side.

        A round without news does again what memory ran out in.

        Raises:
            KeyboardInterrupt: the job was asked to stop, and all of them are kept.
        """
        told, self._told = self._told, ""
        if self._stopping or (not told and self._interrupt.requested):
            after = f" after {told}" if told else ""
            raise KeyboardInterrupt(f"stopped{after}; the same call goes on there")

    def _is_time(self, network: int) -> bool:
        now = time.monotonic()
        since = now - self._kept_at.get(network, self._began)
        return since >= KEEP_EVERY and self.spent <= SHARE * (now - self._began)
