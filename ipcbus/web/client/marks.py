"""Marks: which connections have ended for good, in memory that outlives the process that had them."""

from __future__ import annotations

import os
from typing import Any

from ipcbus.plumbing.fds import TravellingFd
from ipcbus.plumbing.mapping import map_shared

__all__ = ["Marks"]


class Marks:
    """A mark for each of some numbers, set or not; pickles into a child that is being started.

    Args:
        count: how many numbers, from 0 on.
        fd: the descriptor of marks that there are already, owned from here on; None makes new ones.

    Raises:
        OSError: the system refused.
    """

    def __init__(self, count: int, fd: TravellingFd | None = None) -> None:
        self._count = count
        self._fd = TravellingFd(os.memfd_create("ipcbus-marks", os.MFD_CLOEXEC)) if fd is None else fd
        try:
            os.ftruncate(self._fd.fileno(), count)
            self._memory = map_shared(self._fd.fileno(), count)
        except BaseException:
            self._fd.close()
            raise

    def set(self, number: int) -> None:
        """Set a mark."""
        self._memory[number] = 1

    def __contains__(self, number: int) -> bool:
        return bool(self._memory[number])

    def close(self) -> None:
        """Free the descriptor: they cannot be passed on any more, and can still be read. Idempotent."""
        self._fd.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Marks, (self._count, self._fd)
