"""Events: the stream of what happens to the processes of a supervisor."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from ipcbus.errors import ChannelClosed, ChannelEmpty, EndOfChannel
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.wakeup import Wakeup
from ipcbus.wait import wait

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ipcbus.endpoint import Watcher
    from ipcbus.supervisor.program import Occurrence

__all__ = ["Events"]


class Events:
    """A bounded stream of occurrences, received like messages of a channel: ``recv``, ``for``, :func:`ipcbus.wait`.

    It works in the supervisor's process only, needs no thread, and never makes the supervisor wait: when nobody
    receives, the oldest are dropped. Several threads that receive compete.

    Args:
        capacity: how many may wait.
    """

    def __init__(self, capacity: int) -> None:
        self._waiting: deque[Occurrence] = deque()
        self._capacity = capacity
        self._dropped = 0
        self._ended = self._closed = False
        self._lock = threading.RLock()  # which a signal handler that closes this may have
        self._bell: Wakeup | None = None  # made for who waits; set while a receiver would not have to
        self._waiters: set[Watcher] = set()

    def recv(self, timeout: float | None = None) -> Occurrence:
        """Receive the next occurrence.

        Args:
            timeout: seconds to wait; None waits without limit, 0 never blocks.

        Raises:
            ChannelEmpty: nothing happened within the timeout.
            EndOfChannel: the supervisor has stopped, and everything that happened was received.
            ChannelClosed: the stream was closed.
        """
        deadline = Deadline(timeout)
        while (occurrence := self._take()) is None:
            if deadline.expired:
                raise ChannelEmpty(f"nothing happened to the supervised processes within {timeout:g} seconds")
            wait([self], deadline.remaining())
        return occurrence

    def __iter__(self) -> Iterator[Occurrence]:
        """Receive until the supervisor has stopped."""
        while True:
            try:
                occurrence = self.recv()
            except EndOfChannel:
                return
            yield occurrence

    def ready(self) -> bool:
        """Tell whether ``recv(timeout=0)`` would do something other than find nothing."""
        with self._lock:
            return bool(self._waiting) or self._ended or self._closed

    def fileno(self) -> int:
        """Return a descriptor that polls readable when ``recv(timeout=0)`` should be tried; ``ChannelClosed`` after close."""
        with self._lock:
            self._check()
            bell = self._bell
            if bell is None:
                bell = self._bell = Wakeup()
                if self._waiting or self._ended:
                    bell.set()
            return bell.fileno()

    @property
    def dropped(self) -> int:
        """How many were dropped because nobody received them in time."""
        return self._dropped

    def close(self) -> None:
        """Stop receiving; wakes whoever waits, with ``ChannelClosed``. The supervisor goes on. Idempotent."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            self._bell = (
                None  # which frees itself with its last user: a call that this one interrupts, if it is a signal handler's
            )
        for waiter in tuple(self._waiters):
            waiter.closed()

    # ------------------------------------------------------------------ what the supervisor calls

    def add(self, occurrence: Occurrence) -> None:
        """Append an occurrence, in place of the oldest if there is no room."""
        with self._lock:
            if self._closed:
                return
            if len(self._waiting) >= self._capacity:
                self._waiting.popleft()
                self._dropped += 1
            self._waiting.append(occurrence)
            self._ring()

    def end(self) -> None:
        """Say that nothing will happen any more."""
        with self._lock:
            self._ended = True
            self._ring()

    # ------------------------------------------------------------------ inside

    def _watchers(self) -> set[Watcher]:
        """Return who is told when the stream is closed; for :func:`ipcbus.wait`."""
        return self._waiters

    def _ring(self) -> None:
        if self._bell is not None:
            self._bell.set()

    def _check(self) -> None:
        if self._closed:
            raise ChannelClosed("the events of this supervisor were closed")

    def _take(self) -> Occurrence | None:
        with self._lock:
            self._check()
            if self._waiting:
                return self._waiting.popleft()
            if self._ended:
                raise EndOfChannel("the supervisor has stopped; nothing more happens to its processes")
            if self._bell is not None:
                self._bell.clear()
            return None
