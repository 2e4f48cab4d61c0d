"""Lines: what ties a process to its supervisor, and by which the two speak.

The *tether* is a pipe nobody ever writes to. The supervisor alone has its writing end; the process asks the kernel to
kill it when the pipe has no writer any more. So it ends with its supervisor however that ends, by whichever start
method it was made, whatever signals it ignores, and even while a C call keeps every thread of it from running.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
from typing import TYPE_CHECKING, Any

from ipcbus.plumbing import forks
from ipcbus.plumbing.fds import TravellingFd

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import BaseContext

__all__ = ["Line", "Tether", "has_room"]

_PR_SET_PDEATHSIG = 1


class Tether:
    """The process's end. It is fastened as soon as it arrives, before anything that follows it is imported.

    Args:
        fd: the reading end.
        parent: the supervisor, where that is the process's parent; 0 where the fork server is.
    """

    def __init__(self, fd: TravellingFd, parent: int) -> None:
        self._fd = fd
        self._parent = parent

    def fasten(self) -> None:
        """Have the kernel kill this process (SIGKILL) when its supervisor ends. See fcntl(2), F_SETSIG, and prctl(2)."""
        import ctypes

        # The parent's death is the second rope, for a program that closes descriptors it does not know. The fork server
        # has no business dying before its children either: multiprocessing takes them for dead then.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if self._parent and os.getppid() != self._parent:
            os._exit(1)  # it ended before the kernel was asked
        fd = self._fd.fileno()
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(fd, fcntl.F_SETSIG, int(signal.SIGKILL))
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        try:
            os.read(fd, 1)
        except BlockingIOError:
            return  # there is a writer
        os._exit(1)  # it ended before the kernel was asked

    def close(self) -> None:
        """Free the supervisor's copy. Idempotent."""
        self._fd.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (self._fd, self._parent)


def _arrive(fd: TravellingFd, parent: int) -> Tether:
    tether = Tether(fd, parent)
    tether.fasten()
    return tether


class Line:
    """The supervisor's end.

    Args:
        context: where the connection comes from.
        parent: as for the tether.

    Attributes:
        heard: what the process says arrives here, and what it is told goes out.
        voice: the process's end of that.
        tether: what the process is given to hold.
    """

    def __init__(self, context: BaseContext, parent: int) -> None:
        self._own = own = _Own()
        with forks.opening:
            forks.close_in_child(own)  # first, for with the first of all, forks begin to wait
            own.heard, self.voice = context.Pipe(duplex=True)
            reading, own.writing = os.pipe()
        self.heard: Connection[Any, Any] = own.heard
        self.tether = Tether(TravellingFd(reading), parent)

    def hand_over(self) -> None:
        """Free what the process has now."""
        self.voice.close()
        self.tether.close()

    def close(self) -> None:
        """Let go; the process is killed if it still runs. Idempotent."""
        self.hand_over()
        self._own.close()


class _Own:
    """What no other process may have: with a writing end in there, nothing would tell that the supervisor died."""

    def __init__(self) -> None:
        self.heard: Connection[Any, Any] | None = None
        self.writing = -1

    def close(self) -> None:
        with forks.opening:
            if self.heard is not None:
                self.heard.close()
            fd, self.writing = self.writing, -1
            if fd >= 0:
                os.close(fd)


def has_room(end: Connection[Any, Any]) -> bool:
    """Tell whether one of the two can say something of some thousand bytes without waiting for the other to listen."""
    # A Unix socket is writable while three quarters of its buffer are free: that is room for all of it.
    poller = select.poll()
    poller.register(end, select.POLLOUT)
    return bool(poller.poll(0))
