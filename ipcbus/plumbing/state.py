"""The few bytes that all processes of a channel share: is it shut down, who receives, did that one die.

Kept in a memfd, so that nothing has a name and nothing is left behind, with an eventfd beside it on which every change
is announced. Flags are single bytes that only ever go one way or have one writer, so no lock guards them.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

from ipcbus.plumbing.claim import Claim, claimant, holder
from ipcbus.plumbing.fds import TravellingFd
from ipcbus.plumbing.finalizers import finalizer
from ipcbus.plumbing.wakeup import Wakeup

__all__ = ["Seat", "SharedState"]

_SHUT, _ATTACHED = 0, 1
_FLAGS = mmap.PAGESIZE
_SIZE = 2 * mmap.PAGESIZE
"""Flags live in the first page; claims leave their owner's pid in the second."""


class Seat(Claim):
    """Being the one receiver: left on purpose when it is closed or dropped, so that nobody thinks that its owner died.

    Args:
        fd: a descriptor of the state.
        flags: its shared bytes.
    """

    __slots__ = ("_flags",)

    def __init__(self, fd: int, flags: mmap.mmap) -> None:
        self._flags = flags
        super().__init__(fd)

    def take(self) -> int | None:
        """Take it; return as ``Claim.take``."""
        owner = super().take()
        if owner is None:
            self._flags[_ATTACHED] = 1
        return owner

    def close(self) -> None:
        """Leave it. Idempotent. In a forked child this frees the inherited descriptor and leaves the parent's seat."""
        if self._pid == os.getpid() and not self._flags.closed:
            self._flags[_ATTACHED] = 0
        super().close()


class SharedState:
    """The state of one channel; picklable wherever a descriptor is.

    Attributes:
        flags: the shared bytes; ``flags[0]`` is not zero once the channel is shut down (the one read on hot paths).
        news: set at every shutdown, attach and release; never cleared, so watch it edge-triggered, in an epoll set. That set
            is readable itself until it was asked (``epoll.poll(0)``): ask it before each look at what changed.
    """

    __slots__ = ("_fd", "flags", "news")

    def __init__(self, fd: TravellingFd | None = None, news: TravellingFd | None = None) -> None:
        self._fd = TravellingFd(os.memfd_create("ipcbus-state", os.MFD_CLOEXEC)) if fd is None else fd
        if fd is None:
            os.ftruncate(self._fd.fileno(), _SIZE)
        self.news = Wakeup(None if news is None else news.detach())
        self.flags = mmap.mmap(self._fd.fileno(), _FLAGS)

    def shut(self) -> None:
        """Mark the channel as shut down, for ever."""
        self.flags[_SHUT] = 1
        self.news.set()

    @property
    def is_shut(self) -> bool:
        """Whether the channel is shut down."""
        return self.flags[_SHUT] != 0

    def attach(self) -> tuple[Seat, int | None]:
        """Try to become the one receiver.

        Returns:
            The seat, and None if it was taken, else the pid of the process that has it (and this one is closed).
        """
        seat = Seat(self._fd.fileno(), self.flags)
        owner = seat.take()
        if owner is None:
            self.news.set()
        else:
            seat.close()
        return seat, owner

    def receiver(self) -> int | None:
        """Return the pid of the live receiver, or None."""
        return holder(self._fd.fileno())

    def died(self) -> int | None:
        """Return the pid of the receiver if it ended without letting go and nobody took over, else None."""
        if not self.flags[_ATTACHED] or self.receiver() is not None:
            return None
        dead = claimant(self._fd.fileno())
        # Looked at again: it may have let go, and another one have come, between the first two looks.
        return dead if self.flags[_ATTACHED] and self.receiver() is None else None

    def close(self) -> None:
        """Free this process's view of it. Idempotent."""
        self._fd.close()
        self.news.close()
        self.flags.close()

    @finalizer
    def __del__(self) -> None:
        # One that could not be made whole is dropped, and so is one whose handle could not be.
        if hasattr(self, "_fd"):
            self._fd.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedState, (self._fd, TravellingFd(self.news.fileno()))
