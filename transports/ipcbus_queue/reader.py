"""Taking messages out of the pipe of a ``multiprocessing.Queue``, without ever waiting for the rest of one.

A message is what ``Connection.send_bytes`` writes: its size as four bytes (or -1 and eight bytes), then a pickle, here
always of one ``bytes``. ``Queue.get`` is not used because it holds a lock while it waits, which a killed receiver takes
with it, because its timeout does not cover the reading, and because each call with a timeout builds a selector.
"""

from __future__ import annotations

import os
import select
import struct
from fcntl import LOCK_EX, LOCK_UN, flock
from os import eventfd_write, read
from pickle import UnpicklingError, loads
from typing import TYPE_CHECKING, Any

from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.finalizers import finalizer
from ipcbus_queue.shared import HELD, OVER, READING, SPILL_AT, TORN

if TYPE_CHECKING:
    from ipcbus_queue.shared import Shared

__all__ = ["Reader"]

_SHORT = struct.Struct("!i")
_LONG = struct.Struct("!Q")
_HEAD = _SHORT.size + _LONG.size
_HAVE = struct.Struct("<Q")
_HAVE_AT = 8
"""Where the page says how many bytes the file holds of the message that was begun."""

_CHUNK = 1 << 20
_AT_ONCE = 1 << 16
"""Bytes a pipe holds: what is larger never comes in one piece."""
_OVERHEAD = 64
"""More than pickle adds to one ``bytes``."""

_NEWS = slice(OVER, HELD + 1)
_NONE = bytes(HELD + 1 - OVER)
from_bytes = int.from_bytes
_FOUR = (_SHORT.size,)
_ONE = (1,)


class Reader:
    """Takes whole messages out of the pipe, one process at a time.

    What was read of a message that is not whole yet lies in the shared file, so whoever looks next goes on with it, in
    this process or in another.

    Args:
        shared: the channel.
    """

    __slots__ = ("_base", "_fd", "_fds", "_parts", "_poller", "_reading", "_room", "_shared")

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        # Opened anew, so that it can be non-blocking and locked for this process alone.
        self._fd = shared.reopen(shared.reader, os.O_RDONLY | os.O_NONBLOCK)
        self._fds = (self._fd,)
        self._poller = select.poll()
        self._poller.register(self._fd, select.POLLIN)
        self._base = 0  # bytes of the message that were there, in the file, when this reader began
        self._reading = False
        self._room = (shared.room.fileno(),)
        self._parts: list[Any] = []  # what was read of a message, then None once its room was given back

    def fileno(self) -> int:
        """Return the pipe's descriptor."""
        return self._fd

    def readable(self) -> bool:
        """Tell whether some of a message is there."""
        return bool(self._poller.poll(0))

    def held(self) -> int:
        """Return how many bytes were read of a message whose rest has not come, by any process."""
        page = self._shared.page
        return int(_HAVE.unpack_from(page, _HAVE_AT)[0]) if page[HELD] else 0

    def take(self, patience: float) -> bytes | None:
        """Take the next message and give its room back; None when no whole one is there.

        Args:
            patience: seconds to wait for the rest of a message that has begun to arrive.

        Raises:
            ChannelBroken: a process was killed in the middle of a message.
        """
        page, parts = self._shared.page, self._parts
        try:
            flock(self._fd, LOCK_EX)  # held while a message arrives, and let go by the kernel if this process dies
            try:
                if page[_NEWS] != _NONE:
                    self._begin()
                else:
                    self._base = 0
                    self._reading = True
                    page[READING] = 1
                if not self._base:
                    # extend(map(...)) reads and keeps in one step: an interrupt comes before or after, not in between.
                    parts.extend(map(read, self._fds, _FOUR))
                    size = from_bytes(parts[0], "big")
                    if 0 < size <= _AT_ONCE and len(parts[0]) == _SHORT.size:
                        try:
                            parts.extend(map(read, self._fds, (size,)))
                        except BlockingIOError:
                            pass  # the rest is still being written
                        else:
                            if len(parts[1]) == size:
                                frame: bytes = loads(parts[1])
                                parts.extend(map(eventfd_write, self._room, _ONE))
                                return frame
                frame = loads(self._rest(patience))
                parts.extend(map(eventfd_write, self._room, _ONE))
                return frame
            except BlockingIOError:
                return None
            except (UnpicklingError, EOFError) as error:
                raise self._shared.tear() from error
            finally:
                if len(parts) == 3 and parts[2] is None and not self._base:
                    parts.clear()  # as _settle does
                elif parts:
                    self._settle()
                page[READING] = 0
                self._reading = False
        finally:
            flock(self._fd, LOCK_UN)

    def peek(self) -> bool:
        """Tell whether a whole message is there; it stays there, for anybody who takes the next one."""
        try:
            flock(self._fd, LOCK_EX)
            try:
                self._begin()
                self._rest(0)
                return True
            except BlockingIOError:
                return False
            finally:
                if self._parts:
                    self._settle()
                self._shared.page[READING] = 0
                self._reading = False
        finally:
            flock(self._fd, LOCK_UN)

    def close(self) -> None:
        """Free the descriptor. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @finalizer
    def __del__(self) -> None:
        # For an end that an interrupt kept from whoever was opening it.
        if hasattr(self, "_fd"):
            self.close()

    def _begin(self) -> None:
        """Mark the stream as being read. Locked."""
        page = self._shared.page
        if page[READING] or page[OVER] == TORN:
            # Our own mark was left by an interrupt that came while another was being dealt with.
            if not self._reading or page[OVER] == TORN:
                raise self._shared.tear()
            if self._parts:
                self._settle()
        self._base = self.held()
        self._reading = True
        page[READING] = 1

    def _rest(self, patience: float) -> memoryview:
        """Read on until a message is whole; raises ``BlockingIOError`` when there is no more for now. Locked."""
        file, base, parts = self._shared.file.fileno(), self._base, self._parts
        have = base + sum(map(len, parts))
        prefix = os.pread(file, min(base, _HEAD), SPILL_AT)
        size, deadline = 0, None
        while True:
            if not size:
                size, head = self._measure((prefix + b"".join(parts))[:_HEAD])
            missing = head + size - have
            if not missing:
                return memoryview(b"".join((os.pread(file, base, SPILL_AT), *parts)))[head:]
            try:
                parts.extend(map(read, self._fds, (min(missing, _CHUNK),)))
            except BlockingIOError:
                deadline = deadline or Deadline(patience)
                if not have or not self._poller.poll(deadline.milliseconds()):
                    raise
            else:
                if not parts[-1]:
                    raise self._shared.tear()  # an end that nobody can have written: this process can write, too
                have += len(parts[-1])

    def _measure(self, start: bytes) -> tuple[int, int]:
        """Return the sizes of body and head as far as the first bytes tell them: with a body of 0, the head goes on."""
        if len(start) < _SHORT.size:
            return 0, _SHORT.size
        size, head = _SHORT.unpack_from(start)[0], _SHORT.size
        if size == -1:
            head += _LONG.size
            if len(start) < head:
                return 0, head
            size = _LONG.unpack_from(start, _SHORT.size)[0]
        if not 0 < size <= self._shared.limit + _OVERHEAD:
            raise self._shared.tear()
        return size, head

    def _settle(self) -> None:
        """Forget a message whose room was given back; put what was read of any other where the next one finds it. Locked.

        Whatever interrupts it, it may be done again.
        """
        page, parts, file = self._shared.page, self._parts, self._shared.file.fileno()
        if parts[-1] is None:
            if page[HELD]:
                page[HELD] = 0
                os.ftruncate(file, SPILL_AT)
        else:
            data = b"".join(parts)
            os.pwrite(file, data, SPILL_AT + self._base)
            _HAVE.pack_into(page, _HAVE_AT, self._base + len(data))
            page[HELD] = 1
        parts.clear()
