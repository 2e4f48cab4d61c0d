"""The home's notes about the channels that were opened by name: who counts where, who taps, and what it all adds up to."""

from __future__ import annotations

import os
import threading
from time import monotonic
from typing import TYPE_CHECKING

from ipcbus.bus import page
from ipcbus.bus.deaths import Deaths
from ipcbus.bus.facts import ChannelFacts
from ipcbus.errors import ChannelBroken, Unsupported
from ipcbus.plumbing.rundir import start_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ipcbus.channel import Channel
    from ipcbus.directory.server import Directory, Guest

__all__ = ["Board"]


class Board:
    """What the home of a bus knows of its channels. All methods may be called by any thread.

    Args:
        directory: the home's.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._notes: dict[bytes, _Note] = {}
        self._lock = threading.RLock()
        self._deaths = Deaths(directory, self._died)

    def enter(self, key: bytes) -> None:
        """Begin to count for a channel.

        Raises:
            ChannelBroken: the system refused.
        """
        with self._lock:
            self._notes[key] = _Note()

    def words(self, key: bytes) -> page.Words:
        """Return the page of a channel; raises ``ChannelBroken`` if there is no such channel."""
        return self._note(key).words

    def attach(self, guest: Guest, key: bytes) -> tuple[int, int]:
        """Return the slot of a process, and the page's descriptor, which is the caller's; slot 0 if all are taken.

        Raises:
            ChannelBroken: there is no such channel.
        """
        with self._lock:
            note = self._note(key)
            return note.slot(guest.pid), os.dup(note.fd)

    def tap(self, pid: int, key: bytes, tap: bytes) -> tuple[int, int]:
        """Have copies sent to a tap from now on, until it is taken away or its process ends.

        Args:
            pid: whose it is.
            key: the channel's.
            tap: the key of the tap's channel in the directory.

        Returns:
            The number of the tap, and the page's descriptor, which is the caller's.

        Raises:
            ChannelBroken: there is no such channel, or the system refused.
            Unsupported: it has as many taps as it can have.
        """
        with self._lock:
            note = self._note(key)
            free = set(range(page.MOST_TAPS)) - {number for number, _ in note.taps.values()}
            if not free:
                pids = sorted(owner for _, owner in note.taps.values())
                raise Unsupported(f"{page.MOST_TAPS} taps are on this channel already, and it has no room for more: end {pids}")
            self._deaths.watch(pid)
            self._directory.hold(tap)  # senders fetch it, also while its owner has no connection
            note.taps[tap] = min(free), pid
            note.turn()
            return min(free), os.dup(note.fd)

    def taps(self, key: bytes) -> list[tuple[int, bytes]]:
        """Return number and key of each tap; raises ``ChannelBroken`` if there is no such channel."""
        with self._lock:
            return [(number, tap) for tap, (number, _) in self._note(key).taps.items()]

    def untap(self, tap: bytes) -> None:
        """Have no more copies sent to a tap. Idempotent."""
        with self._lock:
            for note in self._notes.values():
                if note.taps.pop(tap, None) is not None:
                    note.turn()
        self._directory.forget(tap)

    def facts(self, name: str, channel: Channel) -> ChannelFacts:
        """Return what is known of a channel."""
        end = channel._end  # noqa: SLF001  this package's
        users = self._directory.users(end.key)
        with self._lock:
            note = self._note(end.key)
            note.reap()
            sent, received = page.total(note.words, page.SENT), page.total(note.words, page.RECEIVED)
            waiting = note.waiting()
            taps = sorted(owner for _, owner in note.taps.values())
        sends, receives = end.tx is not None, end.rx is not None
        if (sends and not end.closed_for("sender")) or (receives and not end.closed_for("receiver")):
            users = sorted({*users, os.getpid()})
        return ChannelFacts(
            name=name,
            url=channel.url,
            transport=end.transport.scheme,
            capacity=end.spec.capacity,
            users=tuple(users),
            taps=tuple(taps),
            depth=waiting,
            sent=sent,
            received=received,
            moment=monotonic(),
        )

    def close(self) -> None:
        """Free the pages; who has one mapped keeps it. Idempotent."""
        with self._lock:
            notes, self._notes = self._notes, {}
        for note in notes.values():
            os.close(note.fd)

    def abandon(self) -> None:
        """Free what a forked child inherited."""
        notes, self._notes = self._notes, {}
        for note in notes.values():
            os.close(note.fd)

    def _note(self, key: bytes) -> _Note:
        note = self._notes.get(key)
        if note is None:
            raise ChannelBroken("the bus has no such channel any more")
        return note

    def _died(self, pid: int) -> None:
        with self._lock:
            gone = [tap for note in self._notes.values() for tap, (_, owner) in note.taps.items() if owner == pid]
        for tap in gone:
            self.untap(tap)


class _Note:
    """What is known of one channel. The board's lock is held."""

    def __init__(self) -> None:
        self.fd, self.words = page.create()
        self.slots: dict[int, tuple[int, str]] = {}
        """By number: the process that counts there, and when it started, for pids come again."""
        self.taps: dict[bytes, tuple[int, int]] = {}
        """By key: number and owner."""
        self.lossy = False
        """Whether a process was killed that may have taken messages with it."""

    def slot(self, pid: int) -> int:
        """Return the number of a process's slot; 0 if all are taken."""
        who = pid, start_time(pid)
        for number, owner in self.slots.items():
            if owner == who:  # it connected anew, which an interrupted call makes it do
                return number
        self.reap()
        number = next(self._free(), 0)
        if number:
            self.slots[number] = who
            page.take(self.words, number)
        return number

    def reap(self) -> None:
        """Empty the slots of processes that have ended. Not at the end of their connections: they may connect anew."""
        for number, (pid, started) in list(self.slots.items()):
            try:
                if start_time(pid) == started:
                    continue
            except OSError:
                continue  # there is no descriptor to look with, and its figures count where they are
            if self.words[page.slot(number) + page.RECEIVES] and self.waiting() != 0:
                self.lossy = True
            page.fold(self.words, number)
            del self.slots[number]

    def waiting(self) -> int | None:
        """Return how many messages were sent and not received, None if the counters cannot tell."""
        sent, received, discarded = (page.total(self.words, what) for what in (page.SENT, page.RECEIVED, page.DISCARDED))
        return None if self.lossy or sent < received + discarded else sent - received - discarded

    def turn(self) -> None:
        """Have senders ask who taps."""
        self.words[page.GENERATION] += 1

    def _free(self) -> Iterator[int]:
        return (number for number in range(page.HERE + 1, page.SLOTS) if number not in self.slots)
