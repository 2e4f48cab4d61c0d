"""Two things of the C library that Python 3.11 does not offer: a timer with a descriptor, and a read that keeps the GIL."""

from __future__ import annotations

import ctypes
import os
import struct

__all__ = ["IGNORED", "Timer", "eventfd_read", "flock"]

# PyDLL keeps the GIL. What is called through it never blocks and takes a fraction of a microsecond; letting the GIL go
# for that would pass it to and fro between a sender and its queue's thread, which halves the rate.
_libc = ctypes.PyDLL(None, use_errno=True)

eventfd_read = _libc.eventfd_read
"""``eventfd_read(fd, IGNORED)``: take one from a non-blocking eventfd; 0, or -1 when there was nothing to take."""

IGNORED = ctypes.byref(ctypes.c_uint64())
"""Where the value read goes, which is 1 for an eventfd that is a semaphore."""

flock = _libc.flock
"""``flock(fd, operation)`` for operations that do not block: 0, or -1 when another has the lock."""

_CLOCK_MONOTONIC = 1
_ITIMERSPEC = struct.Struct("llll")  # the interval, then the time until the first expiration: seconds, nanoseconds


class Timer:
    """Readable once the time it was set to has passed; ``os.timerfd_create`` came with Python 3.13."""

    __slots__ = ("_fd",)

    def __init__(self) -> None:
        # TFD_NONBLOCK and TFD_CLOEXEC have the values of these, see timerfd_create(2).
        self._fd: int = _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "a timer cannot be made")

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._fd

    def set(self, seconds: float) -> None:
        """Start anew."""
        whole = int(seconds)
        spec = _ITIMERSPEC.pack(0, 0, whole, int((seconds - whole) * 1e9))
        if _libc.timerfd_settime(self._fd, 0, spec, None):
            raise OSError(ctypes.get_errno(), "a timer cannot be set")

    def close(self) -> None:
        """Free the descriptor. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
