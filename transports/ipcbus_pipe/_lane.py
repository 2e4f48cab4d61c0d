"""A lane as its two ends see it: a pipe and its credits; what its sender has begun to write, what its receiver has read."""

from __future__ import annotations

import os
import select
import sys
from collections import deque
from itertools import count, islice, repeat
from operator import add
from typing import TYPE_CHECKING

from ipcbus.plumbing import forks
from ipcbus.plumbing.buffers import behind
from ipcbus.plumbing.wakeup import Wakeup
from ipcbus_pipe._stream import State, cancelled, lone, parse

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

    from ipcbus.transport import Buffer, Frame
    from ipcbus_pipe._door import Lane

__all__ = ["Begun", "ReceiverLane", "SenderLane", "ordinals", "process_name"]

_read, _write, _repay = os.read, os.writev, os.eventfd_write
_IOV_MAX = 1024
_BLOCK = 64 * 1024
"""Bytes asked for by one read: many small messages per system call. Python allocates as many for each, and from 128 KiB on the
C library would map and unmap them every time, which costs twenty times the read."""


_identity = (0, b"")
ordinals = count()
"""Numbers the lanes that this process opens."""


def process_name() -> bytes:
    """Return eight bytes that name this process as a sender, whichever end of a channel it opens, and how often."""
    global _identity  # noqa: PLW0603  a forked child is another process
    if _identity[0] != os.getpid():
        _identity = (os.getpid(), os.urandom(8))
    return _identity[1]


class Begun:
    """A message that is written in as many pieces as the pipe wants, before anything else is: to its end, or to be taken back.

    Whoever finds one goes on with it: it was left by an interruption, or this is the interruption, as a signal handler is that
    sends, and it is in the hands of the call that was interrupted.
    """

    __slots__ = ("_buffers", "_done", "_total")

    def __init__(self, buffers: Sequence[Buffer], total: int) -> None:
        self._buffers = buffers
        self._total = total
        self._done = deque((0,), 1)

    @property
    def is_whole(self) -> bool:
        """Whether all of it is written."""
        return self._done[0] == self._total

    def go_on(self, fd: int) -> bool:
        """Write what the pipe takes; say whether that was all."""
        seen = self._done
        done = seen[0]
        left = behind(self._buffers, done) if done else self._buffers
        # Written and noted in one step in C: a signal handler that raises cannot come in between.
        step = map(add, (done,), map(_write, (fd,), (left[:_IOV_MAX],)))
        try:
            # Nor can one that goes on with this come between the look and the step: handlers run behind calls only.
            if seen[0] == done < self._total:
                seen.extend(step)
        except BlockingIOError:
            pass  # it is full
        return seen[0] == self._total

    def take_back(self) -> None:
        """Have what is left of it make it no message."""
        if not self._done[0]:
            self._total = 0
        else:
            self._buffers = [cancelled(self._buffers)]


class SenderLane:
    """A lane as its sender sees it: the pipe, the credits, and a message that was begun."""

    def __init__(self, capacity: int, pipe_bytes: int, large: int) -> None:
        from multiprocessing.connection import Pipe

        self._credit = Wakeup()
        with forks.opening:  # in a child that kept the writing end, the lane would have no end
            reading, writing = Pipe(duplex=False)
            self.reading: Connection = reading
            self.writing: Connection = writing
            forks.close_in_child(self)
        self.fd = writing.fileno()
        self.credit_fd = self._credit.fileno()
        self.name = os.urandom(8)
        self.capacity = capacity
        self.sent = 0
        self.limit = capacity
        self.begun: Begun | None = None
        self._granted = deque((0,), 1)
        self.number = 0
        """Of the large message that was begun last."""
        os.set_blocking(self.fd, False)
        os.set_blocking(reading.fileno(), False)
        # What the pipe cannot hold at once could never be sent without waiting for the receiver half way.
        self.large = min(large, _grow(self.fd, pipe_bytes) // 2)

    def collect(self) -> bool:
        """Take the credits that the receiver has returned; say whether any are left now."""
        granted = self._granted[0]
        # Read and added in one step in C: a signal handler that raises cannot come in between and lose credits.
        step = map(add, (granted,), map(os.eventfd_read, (self.credit_fd,)))
        try:
            if self._granted[0] == granted:  # else a signal handler has taken them, meanwhile
                self._granted.extend(step)
        except BlockingIOError:
            pass  # none returned since the last time
        # An interruption right after a write may have left it uncounted; what can be outstanding is bounded all the same.
        # Nothing is called here: what a signal handler that came in between has taken would be forgotten.
        limit, most = self.capacity + self._granted[0], self.sent + self.capacity
        self.limit = limit if limit < most else most  # noqa: FURB136  min() is a call
        return self.sent < self.limit

    def settle(self) -> bool:
        """Go on with what was begun; say whether something else can be written now."""
        begun = self.begun
        if begun is not None and begun.go_on(self.fd) and self.begun is begun:
            self.begun = None
        return self.begun is None

    def look(self) -> int:
        """Return ``POLLOUT`` if there is room in the pipe, ``POLLERR`` and maybe more if nobody will ever read it."""
        poller = select.poll()
        poller.register(self.fd, select.POLLOUT)
        return sum(events for _, events in poller.poll(0))

    def close(self) -> None:
        self.fd = self.credit_fd = -1  # their numbers may soon be other files'
        with forks.opening:
            self.reading.close()
            self.writing.close()
            self._credit.close()


def _grow(fd: int, size: int) -> int:
    """Ask for a larger pipe and return its size; the system's limit for all pipes of a user may leave it as it is."""
    import fcntl

    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
    except OSError:
        pass  # a smaller pipe is slower and works
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)


class ReceiverLane:
    """One sender's pipe as the receiver sees it."""

    def __init__(self, note: Lane) -> None:
        self.name = note.lane
        self.sender = note.sender
        self.ordinal = note.ordinal
        self.fd, self.credit_fd = note.fds[:2]
        self._own = [self.fd, self.credit_fd]
        self.state = self._between = State(deque())
        self.large: dict[int, tuple[int, int]] = {}
        self._forgotten = 0
        """The number that the next large message has at least."""
        self.delivered = 0
        self.repay_at = 0
        self._repaid: deque[tuple[None, int]] = deque([(None, 0)], maxlen=1)
        self.ended = False
        self.blocks: deque[tuple[int, bytes]] = deque()
        if len(note.fds) > 2:
            self.blocks.append((-2, _read_all(note.fds[2])))
        self._reads = zip(count(), map(_read, repeat(self.fd), repeat(_BLOCK)))

    def read(self) -> None:
        """Read one block, if there is one."""
        # Read and kept in one step in C: a signal handler that raises cannot come in between and lose bytes.
        try:
            self.blocks.extend(islice(self._reads, 1))
        except BlockingIOError:
            pass  # somebody looked before us

    def take_lone(self) -> Frame | None:
        """Take the message in what was just read, if that is all there is; ``parse`` would come to the same, later."""
        blocks = self.blocks
        entry = blocks[0] if blocks else None  # before anything is called: a signal handler may take it then
        if entry is not None and len(blocks) == 1:
            number, block = entry
            if self.state is self._between or self._is_between(number):
                message = lone(block)
                # Looked at again: a signal handler may have received it meanwhile.
                if message is not None and blocks and blocks[0] is entry:
                    self.delivered += 1
                    blocks.clear()
                    return (message,)
        return None

    def _is_between(self, number: int) -> bool:
        """Tell whether everything before a block was delivered, and nothing of the block itself."""
        state = self.state
        if state.rest or state.part is not None or state.items or state.block == number:
            return False
        self._between = state
        return True

    def parse(self, max_message: int) -> None:
        """Bring the state up to the blocks that were read. May be interrupted anywhere and is then taken up again."""
        while self.blocks:
            entry, state = self.blocks[0], self.state
            number, block = entry
            if not block:
                self.ended = True
            elif number != state.block:
                parsed = parse(state, block, number, max_message)
                if self.state is state:  # else a signal handler has done it, and perhaps received what came of it
                    self.state = parsed
            if self.blocks and self.blocks[0] is entry:
                self.blocks.popleft()

    def repay(self, batch: int) -> None:
        """Give the sender back its room for what was delivered; say when to do so next, after ``batch`` more."""
        delivered, repaid = self.delivered, self._repaid[0]
        owed = delivered - repaid[1]
        if owed:
            # Written and noted in one step in C: a signal handler that raises cannot come in between and lose room.
            step = zip(map(_repay, (self.credit_fd,), (owed,)), (delivered,))  # noqa: B905  one of each
            if self._repaid[0] is repaid:  # else a signal handler has given it back, and it would be given twice
                self._repaid.extend(step)
                self.repay_at = delivered + batch

    def keep_large(self, files: dict[int, tuple[int, int]]) -> None:
        """Take over memory files, but for numbers that are here already or were.

        May be interrupted anywhere and is then done again, when some of them may have been delivered, and closed.
        """
        for number, entry in files.items():
            if number >= self._forgotten:
                self.large.setdefault(number, entry)

    def forget_large(self, end: int) -> None:
        """Close the memory files with numbers below ``end``: those left over are of sends that were interrupted."""
        self._forgotten = max(self._forgotten, end)
        for number in [known for known in tuple(self.large) if known < end]:
            if (entry := self.large.pop(number, None)) is not None:  # else a signal handler has done it
                os.close(entry[0])

    def close(self) -> None:
        """Free the descriptors. Idempotent."""
        while self._own:
            os.close(self._own.pop())
        self.forget_large(sys.maxsize)


def _read_all(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)
