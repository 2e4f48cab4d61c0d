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
from ipcbus.plumbing.wakeup import Wakeup

__all__ = ["SharedState"]

_SHUT, _ATTACHED = 0, 1
_FLAGS = mmap.PAGESIZE
_SIZE = 2 * mmap.PAGESIZE
"""Flags live in the first page; claims leave their owner's pid in the second."""


class SharedState:
    """The state of one channel; picklable wherever a descriptor is.

    Attributes:
        flags: the shared bytes; ``flags[0]`` is not zero once the channel is shut down (the one read on hot paths).
        news: set at every shutdown, attach and release; never cleared, so watch it edge-triggered.
    """

    __slots__ = ("_fd", "flags", "news")

    def __init__(self, fd: TravellingFd | None = None, news: TravellingFd | None = None) -> None:
        if fd is None:
            fd = TravellingFd(os.memfd_create("ipcbus-state", os.MFD_CLOEXEC))
            os.ftruncate(fd.fileno(), _SIZE)
        self._fd = fd
        self.news = Wakeup(None if news is None else news.fileno())
        self.flags = mmap.mmap(fd.fileno(), _FLAGS)

    def shut(self) -> None:
        """Mark the channel as shut down, for ever."""
        self.flags[_SHUT] = 1
        self.news.set()

    @property
    def is_shut(self) -> bool:
        """Whether the channel is shut down."""
        return self.flags[_SHUT] != 0

    def attach(self) -> tuple[Claim, int | None]:
        """Try to become the one receiver.

        Returns:
            The claim, and None if it was taken, else the pid of the process that has it (and the claim is closed).
        """
        claim = Claim(self._fd.fileno())
        owner = claim.take()
        if owner is None:
            self.flags[_ATTACHED] = 1
            self.news.set()
        else:
            claim.close()
        return claim, owner

    def detach(self, claim: Claim) -> None:
        """Stop being the one receiver, on purpose: nobody is to think that it died."""
        self.flags[_ATTACHED] = 0
        claim.close()
        self.news.set()

    def receiver(self) -> int | None:
        """Return the pid of the live receiver, or None."""
        return holder(self._fd.fileno())

    def died(self) -> int | None:
        """Return the pid of the receiver if it ended without letting go and nobody took over, else None."""
        if not self.flags[_ATTACHED] or self.receiver() is not None:
            return None
        return claimant(self._fd.fileno()) if self.flags[_ATTACHED] else None

    def close(self) -> None:
        """Free this process's view of it. Idempotent."""
        self._fd.close()
        self.news.close()
        self.flags.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedState, (self._fd, TravellingFd(self.news.fileno()))
