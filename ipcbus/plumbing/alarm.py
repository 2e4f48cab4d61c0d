"""Alarms: a descriptor that becomes readable after some time, for waits that others carry out."""

from __future__ import annotations

import ctypes
import os
import time

from ipcbus.plumbing.fds import keep
from ipcbus.plumbing.finalizers import finalizer

__all__ = ["Alarm"]


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


_libc = ctypes.CDLL(None, use_errno=True)
"""The C library: ``os.timerfd_create`` came with Python 3.13."""


class Alarm:
    """A timer with a descriptor: readable from when it has gone off until it is set again. See timerfd_create(2).

    Raises:
        OSError: no descriptor is left.
    """

    __slots__ = ("_fd",)

    def __init__(self) -> None:
        self._fd = -1
        keep(self, "_fd", _libc.timerfd_create, time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        _check(self._fd)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._fd

    def set(self, seconds: float) -> None:
        """Let it go off after so many seconds, and not before; what was set earlier is forgotten."""
        whole, part = divmod(max(1, int(seconds * 1e9)), 10**9)  # zero would mean never
        spec = _Itimerspec(_Timespec(0, 0), _Timespec(whole, part))
        _check(_libc.timerfd_settime(self._fd, 0, ctypes.byref(spec), None))

    def close(self) -> None:
        """Free the descriptor. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @finalizer
    def __del__(self) -> None:
        if hasattr(self, "_fd"):  # not if an interruption came before the first line
            self.close()


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
