"""Wake-ups: an eventfd that another thread or process sets and a wait sees."""

from __future__ import annotations

import os

from ipcbus.plumbing.fds import keep

__all__ = ["Wakeup"]


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

    def __del__(self) -> None:
        # So that threads may share one, and the last to let go of it closes it.
        if hasattr(self, "_fd"):  # not if an interruption came before the first line
            self.close()
