"""Descriptors that travel inside pickles, to children and to other processes of this machine."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["TravellingFd"]


class TravellingFd:
    """A descriptor that pickles: into a child being started by any start method, else through the sending process.

    While ``multiprocessing`` starts a child the descriptor is passed with it. At any other time the process that
    pickled it serves it once to the process that unpickles it, and must live until then.

    Args:
        fd: the descriptor; owned from here on.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor, -1 after close."""
        return self._fd

    def detach(self) -> int:
        """Return the descriptor and forget it: it is the caller's from here on."""
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        """Free the descriptor. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing.reduction import DupFd

        if self._fd < 0:
            raise ValueError("a closed descriptor cannot travel")
        return _arrive, (DupFd(self._fd),)


def _arrive(ticket: Any) -> TravellingFd:
    fd = ticket.detach()
    os.set_inheritable(fd, False)  # noqa: FBT003  the standard library takes it by position
    return TravellingFd(fd)
