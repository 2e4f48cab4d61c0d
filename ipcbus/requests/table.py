"""The table of requests that wait for a reply: shared memory in which whoever takes a request says so, with one store.

An entry is one number of 64 bits, the guest in its upper half and the generation in its lower. The process that asks
writes the generation; who takes the request checks it and writes its own number at the asker's directory, which learns of
its death. A request's id is its generation and the index of its entry, so that a reply that comes too late, or a stale
note of who has it, is known as such.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import sys
from collections import deque

from ipcbus.errors import ChannelClosed, ChannelFull

__all__ = ["ANSWERED", "GIVEN_UP", "LIMIT", "Requests", "View"]

ANSWERED = 0xFFFFFFFF
"""Stands for a guest where the reply has been sent: whoever dies now has nothing any more."""
GIVEN_UP = 0xFFFFFFFE
"""Stands for a guest where the reply could not be sent, and nobody tries any more."""

LIMIT = 1 << 16
"""Requests of one process that can wait for a reply at once."""
SIZE = LIMIT * 8
"""Bytes of the table; memory is used by those pages only that were ever needed."""
_INDEX = 0xFFFFFFFF
_NEXT = 1 << 32
"""From an id to the next one of the same entry, and the first id of the first entry: generation 0 is nobody's."""
_LAST = 0xFFFFFFFF << 32
"""From here on ids have no next one, and their entries begin again."""
_FIRST, _SECOND = (0, 1) if sys.byteorder == "little" else (1, 0)
"""Where in an entry, which is one number for who asks, the words for the generation and the guest are."""
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_MORE = 128
"""Entries that are taken into use at a time. A freed one is left alone until all others were used since."""


class Requests:
    """The table of the process that asks. Threads may share it without a lock: each step that counts is one in C."""

    __slots__ = ("_entries", "_free", "_memory", "_unused", "fd")

    def __init__(self) -> None:
        self.fd = os.memfd_create("ipcbus-requests", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, SIZE)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        self._memory = mmap.mmap(self.fd, SIZE)
        self._entries = memoryview(self._memory).cast("Q")
        self._free: deque[int] = deque()
        """The next ids of entries that were used, the one that was freed longest ago first: who comes late finds another."""
        self._unused = itertools.count(0, _MORE)
        """Where the entries that were never used begin."""

    def open(self) -> int:
        """Enter a request and return its id.

        Raises:
            ChannelFull: too many wait already.
            ChannelClosed: the memory was freed.
        """
        try:
            number = self._free.popleft()
        except IndexError:
            number = self._take_more()
        try:
            self._entries[number & _INDEX] = number >> 32
        except ValueError as error:  # it was released
            raise ChannelClosed("the inbox of this process is closed") from error
        return number

    def _take_more(self) -> int:
        """Take entries into use that never were; return the id of one of them."""
        begin = next(self._unused)
        if begin >= LIMIT:
            raise ChannelFull(f"{LIMIT} requests of this process wait for a reply already; wait for some of them first")
        self._free.extend(range(_NEXT | begin + 1, _NEXT | begin + _MORE))
        return _NEXT | begin

    def close(self, number: int) -> None:
        """Take a request out: nobody need answer it any more."""
        try:
            self._entries[number & _INDEX] = 0
        except ValueError:
            return  # all was freed
        self._free.append(number + _NEXT if number < _LAST else _NEXT | number & _INDEX)

    def holder(self, number: int) -> int:
        """Return the guest that has a request; 0 while nobody is known to have it."""
        try:
            entry = self._entries[number & _INDEX]
        except ValueError:
            return 0  # all was freed
        return entry >> 32 if entry & _INDEX == number >> 32 else 0

    def free(self) -> None:
        """Free the memory."""
        self._entries.release()
        self._memory.close()
        os.close(self.fd)


class View:
    """The table of a process that asks, as seen by one that answers.

    Args:
        fd: its memory file; owned from here on.

    Raises:
        ValueError: it is no table.
    """

    __slots__ = ("_memory", "_words")

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
        self._words = memoryview(self._memory).cast("I")

    def take(self, number: int, guest: int) -> bool:
        """Say that a guest has a request; false if nobody waits for it any more."""
        words, at, generation = self._words, 2 * (number & _INDEX), number >> 32
        try:
            if words[at + _FIRST] != generation or not generation:  # 0 is what entries have that nobody uses
                return False
            words[at + _SECOND] = guest  # this word alone: who asked may have written the other one anew by now
        except (IndexError, ValueError):
            return False  # there is no such entry, or it was freed
        return True

    def waits(self, number: int) -> bool:
        """Tell whether somebody still waits for a request's reply."""
        generation = number >> 32
        try:
            return self._words[2 * (number & _INDEX) + _FIRST] == generation != 0
        except (IndexError, ValueError):
            return False

    def holds(self, number: int, guest: int) -> bool:
        """Tell whether somebody still waits for a request's reply, and a guest has it."""
        at = 2 * (number & _INDEX)
        try:
            return self._words[at + _FIRST] == number >> 32 != 0 and self._words[at + _SECOND] == guest
        except (IndexError, ValueError):
            return False

    def close(self) -> None:
        """Free the memory."""
        self._words.release()
        self._memory.close()
