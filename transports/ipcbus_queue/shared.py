"""What the processes that use a channel share: a pipe, the room that is left, a page of flags, and a latch for its end."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipcbus.errors import ChannelBroken, ChannelClosed
from ipcbus.plumbing.fds import TravellingFd
from ipcbus.transport import LINGER

if TYPE_CHECKING:
    from ipcbus_queue.feeder import Feeder

__all__ = ["HELD", "OVER", "READING", "SHUT", "SPILL_AT", "TORN", "WRITING", "Shared"]

OVER = 0
"""Byte of the page: 0 while the channel is in use, then ``SHUT`` or ``TORN``."""
READING = 1
"""Byte of the page: a reader is between the first and the last byte of a message."""
WRITING = 3
"""Byte of the page: a sender is writing more than the kernel writes in one piece."""
HELD = 2
"""Byte of the page: the beginning of a message, or a whole one, was read and lies in the file at ``SPILL_AT``."""

SHUT = 1
"""A value of the state byte: shut down."""
TORN = 2
"""A value of the state byte: somebody was killed in the middle of a message."""

SPILL_AT = 8192
"""Where the file keeps what was read ahead of its time; before it come the page and the pids of claims."""

_TORN_TEXT = (
    "a process was killed in the middle of a message of this queue: channel, so the rest of its stream makes no sense; "
    "open a new channel, on a transport with capabilities.survives_kill if processes are killed here"
)


_forks = 0
"""How often this process or its ancestors forked since this module was imported."""


def _count() -> None:
    global _forks  # noqa: PLW0603  forks are a matter of the whole process
    _forks += 1


os.register_at_fork(before=_count)


class Shared:
    """The descriptors of one channel in this process, with what can be told from them.

    Args:
        capacity: messages accepted and not yet received.
        limit: bytes of the largest message.
        fds: the pipe's reading and writing end, the eventfd whose count is the room left, the eventfd that is set when
            the channel is over, the file with the page.

    Attributes:
        unfinished: a closed sender's queue that still moves what it was given.
        closing: ends that close when the call is over that a signal handler closed them amid.
    """

    __slots__ = (
        "_forks_before",
        "_released",
        "capacity",
        "closing",
        "file",
        "latch",
        "limit",
        "page",
        "reader",
        "room",
        "unfinished",
        "writer",
    )

    def __init__(self, capacity: int, limit: int, *fds: TravellingFd) -> None:
        self.capacity = capacity
        self.limit = limit
        self.reader, self.writer, self.room, self.latch, self.file = fds
        self.page = mmap.mmap(self.file.fileno(), mmap.PAGESIZE)
        self._forks_before = -1
        self.unfinished: Feeder | None = None
        self.closing = 0
        self._released = False

    @classmethod
    def create(cls, capacity: int, limit: int) -> Shared:
        """Make all of it; raises ``OSError`` and leaves nothing behind when the system refuses."""
        made: list[int] = []
        try:
            made += os.pipe2(os.O_CLOEXEC)
            made.append(os.eventfd(capacity, os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            made.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            made.append(os.memfd_create("ipcbus-queue", os.MFD_CLOEXEC))
            os.ftruncate(made[-1], SPILL_AT)
            shared = cls(capacity, limit, *map(TravellingFd, made))
        except OSError:
            for fd in made:
                os.close(fd)
            raise
        shared._forks_before = _forks
        return shared

    @property
    def alone(self) -> bool:
        """Whether no other process can have the channel: this one made it, and has not forked or pickled it since."""
        return self._forks_before == _forks

    def reopen(self, fd: TravellingFd, flags: int) -> int:
        """Open a file anew: what is inherited shares its locks and its flags with the parent, what is opened does not."""
        return os.open(f"/proc/self/fd/{fd.fileno()}", flags | os.O_CLOEXEC)

    def end(self, how: int) -> None:
        """Say that the channel is over, to everybody and for ever."""
        if self.file.fileno() < 0:
            return  # a sender's thread that outlived the handle
        # Torn outdoes shut: there is no draining a stream that makes no sense.
        self.page[OVER] = max(how, self.page[OVER])
        os.eventfd_write(self.latch.fileno(), 1)

    def refusal(self) -> ChannelClosed | ChannelBroken:
        """Return the error for a sender once the channel is over."""
        if self.page[OVER] == TORN:
            return ChannelBroken(_TORN_TEXT)
        return ChannelClosed("the queue: channel was shut down and takes no more messages")

    def tear(self) -> ChannelBroken:
        """Say that the stream makes no sense any more and return the error for it."""
        self.end(TORN)
        return ChannelBroken(_TORN_TEXT)

    def outstanding(self) -> int:
        """Return how many messages are accepted and not received; raises ``OSError`` without ``/proc``."""
        # The count of an eventfd can be read without taking from it only here, in hexadecimal; see proc_pid_fdinfo(5).
        for line in Path(f"/proc/self/fdinfo/{self.room.fileno()}").read_text("ascii").splitlines():
            if line.startswith("eventfd-count:"):
                return self.capacity - int(line.partition(":")[2], 16)
        raise OSError("this kernel does not tell the count of an eventfd")

    def depth(self) -> int | None:
        """Return what ``outstanding`` does, None where it cannot be told."""
        try:
            return self.outstanding()
        except OSError:
            return None

    def close(self) -> None:
        """Free the descriptors. Idempotent. The page goes with the last who uses it, which may be a sender's thread."""
        if self.closing:
            self._released = True
            return
        alone = self.alone
        for fd in (self.reader, self.writer, self.room, self.latch, self.file):
            fd.close()
        if hasattr(self, "page"):
            del self.page  # it has a descriptor of its own
        if self.unfinished is not None:
            # Where nobody can read any more, that ends its writing at once.
            self.unfinished.join(LINGER if alone else 0.1)
        self.unfinished = None

    def closed_late(self) -> None:
        """Note that an end of ``closing`` has closed, and free the descriptors if that was asked for meanwhile."""
        self.closing -= 1
        if self._released:
            self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        self._forks_before = -1
        return Shared, (self.capacity, self.limit, self.reader, self.writer, self.room, self.latch, self.file)
