"""Claims: one process at a time owns something, and the kernel knows which and lets go when it dies.

A claim is a lock on one byte of a shared file (a memfd, or a small file in a private directory), held through an open
file description that only the claiming process has. The kernel releases it when that process ends, however it ends. The
owner leaves its pid beside the lock, for others to name and to watch, and takes it away when it lets go: else the next
owner would pass for this one until it has written its own. See fcntl(2), "Open file description locks".
"""

from __future__ import annotations

import fcntl
import os
import struct

from ipcbus.plumbing import forks
from ipcbus.plumbing.fds import keep
from ipcbus.plumbing.finalizers import finalizer

__all__ = ["Claim", "claimant", "holder"]

_FLOCK = struct.Struct("hhqqi4x")  # struct flock on 64-bit Linux: type, whence, start, len, pid
_PID = struct.Struct("<i")
_PIDS_AT = 4096
"""Where the owners' pids are kept in the file, far from the bytes that are locked."""


class Claim:
    """This process's claim on one byte of a file.

    Args:
        fd: any descriptor of the file; only used to find it.
        byte: which byte, 0 to 1000.
    """

    __slots__ = ("__weakref__", "_byte", "_fd", "_pid")
    _fd: int

    def __init__(self, fd: int, byte: int = 0) -> None:
        self._byte = byte
        self._pid = 0
        # A description of our own: one that came by inheritance is shared with the parent, and so would be its locks.
        # In a child that kept it, it would go on owning the byte when this process has let go or died.
        with forks.opening:
            keep(self, "_fd", os.open, f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
            forks.close_in_child(self)

    def take(self) -> int | None:
        """Take it.

        Returns:
            None when this process now owns it, else the pid of the process that does (0 if that cannot be told).
        """
        while True:
            try:
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK, self._byte))
            except (BlockingIOError, PermissionError):
                owner = holder(self._fd, self._byte)
                if owner is not None:
                    return owner
                continue  # it let go between the two calls
            self._pid = os.getpid()
            self._say(self._pid)
            return None

    def close(self) -> None:
        """Give it up. Idempotent. In a forked child this frees the inherited descriptor and leaves the parent's claim."""
        with forks.opening:
            if self._pid == os.getpid() and self._fd >= 0:
                self._say(0)
            self._pid = 0
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def _say(self, pid: int) -> None:
        os.pwrite(self._fd, _PID.pack(pid), _PIDS_AT + _PID.size * self._byte)

    @finalizer
    def __del__(self) -> None:
        # An end that was interrupted while it opened is dropped half made; its claim must not outlive it.
        if hasattr(self, "_fd"):
            self.close()


def holder(fd: int, byte: int = 0) -> int | None:
    """Return the pid of the process that owns a byte (0 if it cannot be told), or None if nobody does or the file is closed."""
    if fd < 0:
        return None
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, byte))
    if _FLOCK.unpack(answer)[0] == fcntl.F_UNLCK:
        return None
    return claimant(fd, byte)


def claimant(fd: int, byte: int = 0) -> int:
    """Return the pid of the process that owns a byte, or died when it did; 0 if nobody does, or it has not said so yet."""
    written = os.pread(fd, _PID.size, _PIDS_AT + _PID.size * byte)
    return int(_PID.unpack(written)[0]) if len(written) == _PID.size else 0


def _flock(kind: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)
