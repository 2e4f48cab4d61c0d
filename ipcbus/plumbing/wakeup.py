"""Wake-ups: an eventfd that another thread or process sets and a wait sees."""

from __future__ import annotations

import os

from ipcbus.plumbing.fds import keep
from ipcbus.plumbing.finalizers import finalizer

__all__ = ["Echo", "Wakeup"]


class Wakeup:
    """A flag with a descriptor: readable while set.

    Args:
        fd: an eventfd to adopt; a new one is made without.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int | None = None) -> None:
        self._fd = -1  # for the finalizer, where the system refuses the next line
        if fd is None:
            keep(self, "_fd", os.eventfd, 0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._fd

    def set(self) -> None:
        """Make it readable, for everybody who holds it. Setting it again changes nothing that can be seen."""
        os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Make it not readable."""
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            pass  # it was not set

    def close(self) -> None:
        """Free the descriptor. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @finalizer
    def __del__(self) -> None:
        # So that threads may share one, and the last to let go of it closes it.
        if hasattr(self, "_fd"):  # not if an interruption came before the first line
            self.close()


class Echo:
    """Wakes other threads that wait on the descriptor of an end, which may not show any more what was taken note of here.

    Does nothing before that descriptor was given out, nor once the end is closed.
    """

    __slots__ = ("_wakeup",)

    def __init__(self) -> None:
        self._wakeup: Wakeup | None = None

    def __bool__(self) -> bool:
        """Tell whether others may wait."""
        return self._wakeup is not None

    def begin(self, wakeup: Wakeup) -> None:
        """Begin, by what the descriptor shows: it is given out. Rings the first time, for somebody is to look what there is."""
        if self._wakeup is None:
            wakeup.set()
            self._wakeup = wakeup

    def ring(self) -> None:
        """Have the descriptor show that there is something."""
        wakeup = self._wakeup  # kept alive: another thread may close
        if wakeup is not None:
            wakeup.set()

    def hush(self) -> None:
        """Have the descriptor show only what comes from now on, before a look that rings again if there is something."""
        wakeup = self._wakeup
        if wakeup is not None:
            wakeup.clear()

    def end(self) -> None:
        """Let go of it. Idempotent."""
        self._wakeup = None
