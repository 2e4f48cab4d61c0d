"""Snapshots: what each process last said about itself, in memory that outlives all of them.

A page has a slot for each process, and a slot has two halves. A process writes what it has to say into the half that
nobody reads and then turns the slot over, which is one store of eight bytes. So whoever is killed at whichever instant
leaves a whole snapshot behind, the one before its last at worst, and nobody ever waits for anybody.
"""

from __future__ import annotations

import json
import os
import zlib
from typing import TYPE_CHECKING, Any

from ipcbus.plumbing.fds import TravellingFd
from ipcbus.plumbing.mapping import map_shared

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["HALF", "Slot", "Snapshots"]

_WORD = 8
_HEAD = 64
"""Bytes at the head of a slot: how often it was turned, alone in a line of the processor's cache."""
HALF = 8192
"""Bytes of a half: the checksum, the length, and a snapshot as JSON."""
_SLOT = _HEAD + 2 * HALF
_TRIES = 100
"""How often a reader begins anew when it was overtaken by two writings: far more than any process can do meanwhile."""


class Slot:
    """One process's place; pickles into a child that is being started.

    Args:
        memory: the whole page.
        fd: the page's descriptor; None where the slot is not passed on.
        index: which slot.
    """

    def __init__(self, memory: memoryview, fd: TravellingFd | None, index: int) -> None:
        self._fd = fd
        self._index = index
        start = index * _SLOT
        self._turns = memory[start : start + _WORD].cast("Q")
        halves = start + _HEAD
        self._halves = [memory[halves : halves + HALF], memory[halves + HALF : halves + 2 * HALF]]

    def write(self, values: Mapping[str, Any]) -> None:
        """Replace the snapshot.

        Args:
            values: what JSON can express.

        Raises:
            ValueError: it takes more than a slot has.
        """
        text = json.dumps(values, separators=(",", ":")).encode()
        if len(text) > HALF - 2 * _WORD:
            raise ValueError(f"a snapshot of {len(text)} bytes does not fit into the {HALF - 2 * _WORD} that a process has")
        turns = self._turns[0]
        half = self._halves[(turns + 1) % 2]
        half[: 2 * _WORD] = _head(text)
        half[2 * _WORD : 2 * _WORD + len(text)] = text
        self._turns[0] = turns + 1

    def read(self) -> dict[str, Any]:
        """Return the snapshot; empty if there never was one."""
        for _ in range(_TRIES):
            turns = self._turns[0]
            if not turns:
                return {}
            half = bytes(self._halves[turns % 2])
            text = half[2 * _WORD : 2 * _WORD + int.from_bytes(half[_WORD : 2 * _WORD], "little")]
            if self._turns[0] == turns and half[: 2 * _WORD] == _head(text):
                found: dict[str, Any] = json.loads(text)
                return found
        raise ValueError("the page of snapshots was overwritten by something that does not know it")

    def __reduce__(self) -> tuple[Any, ...]:
        if self._fd is None:
            raise ValueError("this slot came from another process and cannot be passed on")
        return _arrive, (self._fd, self._index)


def _head(text: bytes) -> bytes:
    return zlib.crc32(text).to_bytes(_WORD, "little") + len(text).to_bytes(_WORD, "little")


def _arrive(fd: TravellingFd, index: int) -> Slot:
    try:
        return Slot(map_shared(fd.fileno(), (index + 1) * _SLOT), None, index)
    finally:
        fd.close()


class Snapshots:
    """A page with a slot for each of some processes; pickles into a child that is being started.

    Args:
        names: the processes'.
        fd: the descriptor of a page that there is already, owned from here on; None makes a new one.

    Raises:
        OSError: the system refused.
    """

    def __init__(self, names: Iterable[str], fd: TravellingFd | None = None) -> None:
        names = list(names)
        self._fd = TravellingFd(os.memfd_create("ipcbus-snapshots", os.MFD_CLOEXEC)) if fd is None else fd
        try:
            size = max(1, len(names)) * _SLOT
            os.ftruncate(self._fd.fileno(), size)
            memory = map_shared(self._fd.fileno(), size)
        except BaseException:
            self._fd.close()
            raise
        self._slots = {name: Slot(memory, self._fd, index) for index, name in enumerate(names)}

    def slot(self, name: str) -> Slot:
        """Return the slot of a process, to be passed to it."""
        return self._slots[name]

    def read(self) -> dict[str, dict[str, Any]]:
        """Return what each process last said, by its name; empty where it has said nothing."""
        return {name: slot.read() for name, slot in self._slots.items()}

    def close(self) -> None:
        """Free the descriptor: no slot can be passed on any more, and all can still be read. Idempotent."""
        self._fd.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Snapshots, (list(self._slots), self._fd)
