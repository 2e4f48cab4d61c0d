"""The board: what the processes of a channel tell each other without a system call, in memory that all of them map.

Every sending process has a *slot*, held by a claim that the kernel lets go of when the process dies, and numbers its
messages in it. A number and a slot make a *tag*, which travels with the message. Whoever takes a message writes its tag
on the board, and so the sender sees how many of its own are still on their way. Tags are absolute: a receiver that was
killed before it wrote one down is made good for by the next that is written.

Each cell is eight aligned bytes that are read and written in one piece, and no lock guards it. It has one writer at a time,
or only ever tells somebody to look again, or does no harm for long: of two receivers that write down what they took of one
sender, the later number stays, unless they do so in the same instant; then the next that is written counts again.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

from ipcbus.errors import ChannelBroken
from ipcbus.plumbing.claim import Claim
from ipcbus.plumbing.fds import TravellingFd
from ipcbus.plumbing.finalizers import finalizer

__all__ = ["LARGE", "LARGE_ANNOUNCED", "LARGE_MAY_COME", "LARGE_WAITS", "NEVER", "SLOT", "STEP", "WAITING", "Board"]

STEP = 1024
"""From one tag of a slot to the next: the slot takes the lower ten bits."""
SLOT = STEP - 1
"""The bits of a tag that say which slot it is of."""
LARGE = 1 << 63
"""The bit of a tag that marks a message whose content is in a memory file."""
NEVER = LARGE
"""A tag that no message has."""
SLOTS = 1000
"""As many as there are claims in a file."""

WAITING = 0
"""Flag: a sender waits for room."""
LARGE_MAY_COME = 1
"""Flag: a message with a descriptor was ever about to be sent. Set before that is announced in the stream."""
LARGE_ANNOUNCED = 2
"""Flag: it was announced in the stream, ahead of whatever is sent from now on."""
LARGE_WAITS = 3
"""Flag: a message with a descriptor may be waiting now. Set around each, cleared when nothing waits."""

_BLOCK = (1 << 24) * STEP
"""Numbers are reserved by so many, for the case that a sender is killed before it could say which it has used."""
_PIDS_END = 4096 + 4096
_TABLE = STEP * 8


class Board:
    """The shared memory of one channel; picklable wherever a descriptor is.

    Attributes:
        flags: single bytes, by the constants of this module.
        taken: by slot, the tag of the latest message that was taken out.
        wake: by slot, the tag from which on whoever takes a message is to announce it, since the sender waits.
    """

    __slots__ = ("_fd", "_given", "flags", "taken", "wake")

    def __init__(self, fd: TravellingFd | None = None) -> None:
        size = _PIDS_END + 3 * _TABLE
        self._fd = TravellingFd(os.memfd_create("ipcbus-board", os.MFD_CLOEXEC)) if fd is None else fd
        if fd is None:
            os.ftruncate(self._fd.fileno(), size)
        # The first page has the flags and the bytes that claims lock, the second the pids that claims leave.
        memory = memoryview(mmap.mmap(self._fd.fileno(), size))
        self.flags = memory[:8]
        words = memory[_PIDS_END:].cast("Q")
        self.taken, self.wake, self._given = (words[at : at + STEP] for at in range(0, 3 * STEP, STEP))

    def enter(self) -> tuple[Claim, int]:
        """Become a sender: return the claim on a slot, and the tag that comes before the first of this sender's.

        Raises:
            ChannelBroken: a thousand processes send already.
        """
        for slot in range(SLOTS):
            claim = Claim(self._fd.fileno(), slot)
            if claim.take() is None:
                self.wake[slot] = NEVER
                return claim, self._given[slot] & ~SLOT | slot
            claim.close()
        raise ChannelBroken(f"{SLOTS} processes send to this unix: channel already; close it in some of them")

    def reserve(self, tag: int) -> int:
        """Keep whoever has the slot next from using the tags that follow; return the last of those that are reserved."""
        self._given[tag & SLOT] = tag + _BLOCK
        return tag + _BLOCK

    def expect_taking(self, slot: int, tag: int) -> None:
        """Ask to be told when a tag, or a later one, is taken out."""
        self.wake[slot] = tag
        self.flags[WAITING] = 1

    def somebody_waits(self) -> bool:
        """Tell, once, whether a sender has asked to be told."""
        if not self.flags[WAITING]:
            return False
        self.flags[WAITING] = 0
        return True

    def close(self) -> None:
        """Free this process's descriptor. Idempotent. The memory goes with the last who uses it."""
        self._fd.close()
        nothing = memoryview(b"")
        self.flags = self.taken = self.wake = self._given = nothing

    @finalizer
    def __del__(self) -> None:
        # As of the state: what could not be made whole is dropped.
        if hasattr(self, "_fd"):
            self._fd.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Board, (self._fd,)
