"""Two calls of the C library that keep the GIL where Python itself lets it go."""

from __future__ import annotations

import ctypes

__all__ = ["IGNORED", "eventfd_read", "flock"]

# PyDLL keeps the GIL. What is called through it never blocks and takes a fraction of a microsecond; letting the GIL go
# for that would pass it back and forth between a sender and its queue's thread, which halves the rate.
_libc = ctypes.PyDLL(None)

eventfd_read = _libc.eventfd_read
"""``eventfd_read(fd, IGNORED)``: take one from a non-blocking eventfd; 0, or -1 when there was nothing to take."""

IGNORED = ctypes.byref(ctypes.c_uint64())
"""Where the value read goes, which is 1 for an eventfd that is a semaphore."""

flock = _libc.flock
"""``flock(fd, operation)`` for operations that do not block: 0, or -1 when another has the lock."""
