"""The table of requests that wait for a reply: shared memory in which whoever takes a request says so, with one store.

An entry is ``u32 generation, u32 guest``. The process that asks writes the generation; who takes the request checks it
and writes its own number at the asker's directory, which learns of its death. A request's id is its generation and the
index of its entry, so that a reply that comes too late, or a stale note of who has it, is known as such.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections import deque

from ipcbus.errors import ChannelFull

__all__ = ["LIMIT", "Requests", "View"]

LIMIT = 1 << 16
"""Requests of one process that can wait for a reply at once."""
_entry = struct.Struct("<II")
_word = struct.Struct("<I")
SIZE = LIMIT * _entry.size
"""Bytes of the table; memory is used by those pages only that were ever needed."""
_GENERATIONS = 0xFFFFFFFF
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_SPARE = 64
"""Freed entries that are left alone while there are others."""


class Requests:
    """The table of the process that asks. Not for several threads at once."""

    __slots__ = ("_free", "_generations", "_memory", "_used", "fd")

    def __init__(self) -> None:
        self.fd = os.memfd_create("ipcbus-requests", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, SIZE)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        self._memory = mmap.mmap(self.fd, SIZE)
        self._free: deque[int] = deque()
        """Entries that were used, the one that was freed longest ago first: whoever comes late finds another generation."""
        self._used = 0
        self._generations: list[int] = []

    def open(self) -> int:
        """Enter a request and return its id.

        Raises:
            ChannelFull: too many wait already.
        """
        if len(self._free) > _SPARE or (self._free and self._used == LIMIT):
            index = self._free.popleft()
        elif self._used < LIMIT:
            index, self._used = self._used, self._used + 1
            self._generations.append(0)
        else:
            raise ChannelFull(f"{LIMIT} requests of this process wait for a reply already; wait for some of them first")
        generation = self._generations[index] = self._generations[index] % _GENERATIONS + 1
        _entry.pack_into(self._memory, index * _entry.size, generation, 0)
        return generation << 32 | index

    def close(self, number: int) -> None:
        """Take a request out: nobody need answer it any more."""
        index = number & 0xFFFFFFFF
        _entry.pack_into(self._memory, index * _entry.size, 0, 0)
        self._free.append(index)

    def holder(self, number: int) -> int:
        """Return the guest that has a request; 0 while nobody is known to have it."""
        generation, guest = _entry.unpack_from(self._memory, (number & 0xFFFFFFFF) * _entry.size)
        return int(guest) if generation == number >> 32 else 0

    def free(self) -> None:
        """Free the memory."""
        self._memory.close()
        os.close(self.fd)


class View:
    """The table of a process that asks, as seen by one that answers.

    Args:
        fd: its memory file; owned from here on.

    Raises:
        ValueError: it is no table.
    """

    __slots__ = ("_memory",)

    def __init__(self, fd: int) -> None:
        try:
            # Sealed, it cannot shrink under those who look at it: that would be the end of their process (SIGBUS).
            sound = os.fstat(fd).st_size == SIZE and fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
            if sound:
                self._memory = mmap.mmap(fd, SIZE)
        except OSError as error:
            raise ValueError(f"what should be a table of requests is none: {error.strerror}") from error
        finally:
            os.close(fd)
        if not sound:
            raise ValueError("what should be a table of requests has another size, or can change it")

    def take(self, number: int, guest: int) -> bool:
        """Say that a guest has a request; false if nobody waits for it any more."""
        at = self._find(number)
        if at is None:
            return False
        _word.pack_into(self._memory, at + _word.size, guest)
        return True

    def waits(self, number: int) -> bool:
        """Tell whether somebody still waits for a request's reply."""
        return self._find(number) is not None

    def _find(self, number: int) -> int | None:
        index = number & 0xFFFFFFFF
        if index >= LIMIT:
            return None
        at = index * _entry.size
        return at if _word.unpack_from(self._memory, at)[0] == number >> 32 else None

    def close(self) -> None:
        """Free the memory."""
        self._memory.close()
