"""What a directory keeps: things under keys, with descriptors; and for how long it keeps what nobody uses."""

from __future__ import annotations

import logging
import os
import resource
from typing import TYPE_CHECKING, Generic, TypeVar

from ipcbus.errors import ChannelBroken

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Entry", "Shelf", "copies"]

logger = logging.getLogger("ipcbus.directory")

U = TypeVar("U")

_LEAST = 16
"""Descriptors that things without users may have in all, however few this process may have."""


class Entry(Generic[U]):
    """What is kept under one key.

    Attributes:
        key: the key.
        content: bytes.
        fds: descriptors of its own.
        users: those outside who use it.
        held: whether the directory's own process uses it.
        pinned: whether it stays until it is forgotten by its key, whoever uses it.
    """

    __slots__ = ("content", "fds", "held", "key", "pinned", "users")

    def __init__(self, key: bytes, content: bytes, fds: list[int]) -> None:
        self.key = key
        self.content = content
        self.fds = fds
        self.users: set[U] = set()
        self.held = False
        self.pinned = False

    def close(self) -> None:
        """Free the descriptors. Idempotent."""
        while self.fds:
            os.close(self.fds.pop())


class Shelf(Generic[U]):
    """Entries by key. Nobody uses what is in a message that was not received yet: it must stay, and yet messages get lost.

    So of what nobody uses that goes which was used longest ago, beyond a quarter of the descriptors that this process may
    have; never the last. Not safe for threads, but for finalizers that run inside one of its calls.

    Attributes:
        forgotten: is told the content of everything without descriptors that nobody can have any more.
    """

    def __init__(self) -> None:
        self.forgotten: Callable[[bytes], None] = _forget
        self._entries: dict[bytes, Entry[U]] = {}
        self._idle: dict[bytes, int] = {}
        """What nobody uses, that which was used longest ago first, and how many descriptors each counts for."""
        self._cost = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Entry[U] | None:
        """Return what is under a key."""
        return self._entries.get(key)

    def enter(self, key: bytes, content: bytes, fds: list[int]) -> Entry[U]:
        """Keep something, and then call ``sort``. The descriptors are the entry's from here on."""
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Entry(key, content, fds)
        else:
            entry.close()
            entry.content, entry.fds = content, fds
        return entry

    def sort(self, entry: Entry[U]) -> None:
        """Note whether an entry is used now, and forget what is too much."""
        self._wake(entry.key)
        if entry.users or entry.held or entry.pinned:
            return
        self._idle[entry.key] = cost = len(entry.fds) + 1
        self._cost += cost
        budget = max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4, _LEAST)
        while self._cost > budget and len(self._idle) > 1:
            oldest = next(iter(self._idle))
            self._wake(oldest)
            self._discard(self._entries.pop(oldest))

    def forget(self, key: bytes) -> None:
        """Keep what is under a key no longer, whoever uses it; they keep what they have."""
        self._wake(key)
        entry = self._entries.pop(key, None)
        if entry is not None:
            entry.close()

    def disown(self) -> None:
        """Tell nobody of what is forgotten from here on: it is another process's."""
        self.forgotten = _forget

    def clear(self) -> None:
        """Forget everything."""
        self._idle.clear()
        self._cost = 0
        while self._entries:
            self._discard(self._entries.popitem()[1])

    def _wake(self, key: bytes) -> None:
        cost = self._idle.pop(key, 0)
        self._cost -= cost

    def _discard(self, entry: Entry[U]) -> None:
        if not (entry.fds or entry.held or entry.pinned):
            try:
                self.forgotten(entry.content)
            except Exception:  # a mistake in what was left here must not end the directory for all
                logger.exception("what was left with this process cannot be removed")
        entry.close()


def copies(fds: Sequence[int]) -> list[int]:
    """Duplicate descriptors: all of them or, with ``ChannelBroken``, none."""
    made: list[int] = []
    try:
        made.extend(map(os.dup, fds))
    except OSError as error:
        while made:
            os.close(made.pop())
        raise ChannelBroken(f"descriptors cannot be kept: {error.strerror}; see 'ulimit -n'") from error
    return made


def _forget(_content: bytes) -> None:
    """Do nothing: what was kept has nothing to remove."""
