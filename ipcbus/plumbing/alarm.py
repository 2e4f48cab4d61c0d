"""Alarms: a descriptor that becomes readable after some time, for waits that others carry out."""

from __future__ import annotations

import ctypes
import os

__all__ = ["Alarm"]

_CLOCK_MONOTONIC = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


_libc = ctypes.CDLL(None, use_errno=True)
"""The C library: ``os.timerfd_create`` came with Python 3.13."""


class Alarm:
    """A timer with a descriptor: readable from when it has gone off until it is set again. See timerfd_create(2)."""

    __slots__ = ("_fd",)

    def __init__(self) -> None:
        fd = _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._fd = int(fd)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._fd

    def set(self, seconds: float) -> None:
        """Let it go off after so many seconds, and not before; what was set earlier is forgotten."""
        whole, part = divmod(max(1, int(seconds * 1e9)), 10**9)  # zero would mean never
        spec = _Itimerspec(_Timespec(0, 0), _Timespec(whole, part))
        if _libc.timerfd_settime(self._fd, 0, ctypes.byref(spec), None) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def close(self) -> None:
        """Free the descriptor. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
