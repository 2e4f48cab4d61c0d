"""A lane as its sender sees it: the pipe, the credits, and what is still owed to the stream."""

from __future__ import annotations

import os
from itertools import count
from typing import TYPE_CHECKING

from ipcbus.plumbing import forks
from ipcbus.plumbing.wakeup import Wakeup

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["Debt", "SenderLane"]


class Debt:
    """What must still be written, before anything else, to take back a message written in part."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._written: list[int] = []

    def pay(self, fd: int) -> bool:
        """Write what the pipe takes; say whether that was all."""
        # Written and noted in one step in C: a signal handler that raises cannot come in between.
        if left := self._data[sum(self._written) :]:
            self._written.extend(map(os.write, (fd,), (left,)))
        return sum(self._written) == len(self._data)


class SenderLane:
    """A lane as its sender sees it: the pipe, the credits, and what is still owed to the stream."""

    def __init__(self, capacity: int, pipe_bytes: int, large: int) -> None:
        from multiprocessing.connection import Pipe

        self._credit = Wakeup()
        with forks.opening:  # in a child that kept the writing end, the lane would have no end
            reading, writing = Pipe(duplex=False)
            self.reading: Connection = reading
            self.writing: Connection = writing
            forks.close_in_child(self)
        self.fd = writing.fileno()
        self.credit_fd = self._credit.fileno()
        self.name = os.urandom(8)
        self.capacity = capacity
        self.sent = 0
        self.limit = capacity
        self.debt: Debt | None = None
        self._grants: list[int] = []
        self.numbers = count()
        os.set_blocking(self.fd, False)
        os.set_blocking(reading.fileno(), False)
        # What the pipe cannot hold at once could never be sent without waiting for the receiver half way.
        self.large = min(large, _grow(self.fd, pipe_bytes) // 2)

    def collect(self) -> bool:
        """Take the credits that the receiver has returned; say whether any are left now."""
        # Read and appended in one step in C: a signal handler that raises cannot come in between and lose credits.
        try:
            self._grants.extend(map(os.eventfd_read, (self.credit_fd,)))
        except BlockingIOError:
            pass  # none returned since the last time
        self._grants = [sum(self._grants)]
        # An interruption right after a write may have left it uncounted; what can be outstanding is bounded all the same.
        self.limit = min(self.capacity + self._grants[0], self.sent + self.capacity)
        return self.sent < self.limit

    def close(self) -> None:
        with forks.opening:
            self.reading.close()
            self.writing.close()
            self._credit.close()


def _grow(fd: int, size: int) -> int:
    """Ask for a larger pipe and return its size; the system's limit for all pipes of a user may leave it as it is."""
    import fcntl

    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
    except OSError:
        pass  # a smaller pipe is slower and works
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
