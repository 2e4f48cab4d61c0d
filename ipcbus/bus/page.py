"""The page of a channel that was opened by name: what each process did with it, in memory that all of them have mapped.

The home makes one for each name and hands it to every process that opens an end. A process writes into its own slot only,
with plain stores of eight bytes, so nobody locks and nobody can leave anything half done; whoever reads adds up. The first
line is the home's: a sender looks there, before it goes on, whether somebody wants copies.
"""

from __future__ import annotations

import fcntl
import os
from typing import TypeAlias

from ipcbus.plumbing.fds import refused
from ipcbus.plumbing.mapping import map_shared

__all__ = [
    "DISCARDED",
    "GENERATION",
    "HERE",
    "HIGH",
    "LEFT",
    "MISSED",
    "MOST_TAPS",
    "RECEIVED",
    "RECEIVES",
    "SENT",
    "SLOTS",
    "Words",
    "create",
    "fold",
    "open_page",
    "slot",
    "take",
    "total",
]

Words: TypeAlias = memoryview
"""A page as unsigned numbers of eight bytes."""

GENERATION = 0
"""In the first line: grows whenever a tap comes or goes."""
HIGH = 1
"""In the first line: how many slots have ever been used."""

SENT = 0
"""In a slot: messages sent."""
RECEIVED = 1
"""In a slot: messages received."""
DISCARDED = 2
"""In a slot: messages taken out to make room (overflow ``drop_old``)."""
RECEIVES = 3
"""In a slot: 1 while a receiving end is open."""
MISSED = 4
"""In a slot, and the following words: copies for which each tap had no room."""
MOST_TAPS = 4
"""Taps that a channel can have."""

_LINE = 8
"""Words in a line of the processor's cache: two processes that count must not write into one."""
_SIZE = 64 * 1024
"""Bytes. Only what is written to takes memory."""
SLOTS = _SIZE // 8 // _LINE - 1
"""How many there are."""
LEFT = 0
"""The slot of those processes that have ended, all together."""
HERE = 1
"""The slot of the home."""
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def create() -> tuple[int, Words]:
    """Make a page and return its descriptor, for others, and its memory.

    Raises:
        ChannelBroken: the system refused.
    """
    try:
        fd = os.memfd_create("ipcbus-page", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise refused("no memory can be shared for the counters of a bus", error) from error
    try:
        os.ftruncate(fd, _SIZE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)  # nobody can make it shorter under those who have it mapped
        words = open_page(fd)
    except BaseException:
        os.close(fd)
        raise
    words[HIGH] = HERE + 1
    return fd, words


def open_page(fd: int) -> Words:
    """Map a page; the descriptor stays the caller's and may be closed at once. Raises ``ChannelBroken``."""
    try:
        return map_shared(fd, _SIZE).cast("B").cast("Q")
    except OSError as error:
        raise refused("the counters of a bus cannot be mapped", error) from error


def slot(number: int) -> int:
    """Return where a slot begins."""
    return _LINE * (number + 1)


def total(words: Words, what: int) -> int:
    """Add up one number over all slots."""
    return sum(words[slot(number) + what] for number in range(words[HIGH]))


def take(words: Words, number: int) -> None:
    """Begin to use a slot."""
    words[HIGH] = max(words[HIGH], number + 1)


def fold(words: Words, number: int) -> None:
    """Add the slot of a process that has ended to those of the others, and empty it."""
    start, left = slot(number), slot(LEFT)
    for word in range(_LINE):
        if word != RECEIVES:
            words[left + word] += words[start + word]
        words[start + word] = 0
