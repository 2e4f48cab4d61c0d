"""Spinning: looking again and again for a moment before going to sleep, where what is waited for is about to come.

To put a process to sleep and wake it up again takes some ten microseconds, on virtual machines fifty and more; a request
and its reply take that four times. So who waits for one of them looks first, for no longer than a sleep would cost, and
only as long as that pays.
"""

from __future__ import annotations

import os
from time import monotonic
from typing import TYPE_CHECKING

from ipcbus.errors import ChannelEmpty

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.transport import Frame, RecvLink

__all__ = ["Spin", "awake"]

_LIMIT = 50e-6
"""Seconds of the longest spin."""
_LEAST = 2e-6
"""Seconds below which none is worth its readings of the clock."""
_AGAIN = 32
"""Where spinning did not pay, it is tried again once in so many waits."""


def awake(link: RecvLink) -> Callable[[float | None], Frame]:
    """Return what does the same as a link's ``recv``, and spins, as that itself may do."""
    return link.recv if link.spins else Spin(link.recv).recv


class Spin:
    """How long to spin, learnt from how it went.

    Threads may share one: what they learn at the same time may be lost.

    Args:
        receive: what receives.
        limit: seconds; None for what suits this machine, which is nothing where whoever is waited for needs this processor.
    """

    __slots__ = ("_budget", "_limit", "_receive", "_skipped")

    def __init__(self, receive: Callable[[float | None], Frame], limit: float | None = None) -> None:
        if limit is None:
            limit = _LIMIT if len(os.sched_getaffinity(0)) > 1 else 0.0
        self._receive = receive
        self._limit = self._budget = limit
        self._skipped = 0

    def recv(self, timeout: float | None) -> Frame:
        """Receive; returns and raises what the function does."""
        budget, receive = self.budget(), self._receive
        if not budget or (timeout is not None and timeout <= budget):
            return receive(timeout)
        began: float | None = None
        while True:
            try:
                frame = receive(0)
            except ChannelEmpty:
                now = monotonic()
            else:
                if began is not None:
                    self.learn(paid=True)
                return frame
            if began is None:
                began = now
            elif now >= began + budget:
                break
        self.learn(paid=False)
        return receive(None if timeout is None else max(0.0, timeout - (now - began)))

    def budget(self) -> float:
        """Return how many seconds to spin now; 0 for not at all."""
        if self._budget >= _LEAST:
            return self._budget
        if self._limit < _LEAST or self._skipped < _AGAIN:
            self._skipped += 1
            return 0.0
        self._skipped = 0
        return self._limit

    def learn(self, *, paid: bool) -> None:
        """Learn from a spin."""
        self._budget = self._limit if paid else self._budget / 2
