"""What the bus puts around the ends of its channels: links that count, and that copy to taps.

Only channels that were opened by name have them; all others keep the bare links of their transport. A message costs one
store into the page, and one look into it.
"""

from __future__ import annotations

import logging
import pickle
import threading
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from ipcbus.bus import page
from ipcbus.channel import rebuild
from ipcbus.directory import client
from ipcbus.errors import ChannelClosed, IpcbusError, PeerDied
from ipcbus.plumbing.fds import unpacking
from ipcbus.plumbing.locks import is_mine
from ipcbus.transport import LINGER, RecvLink, SendLink

if TYPE_CHECKING:
    from ipcbus.bus.board import Board
    from ipcbus.endpoint import Endpoint
    from ipcbus.transport import Frame

__all__ = ["CountedReceiver", "CountedSender", "Meter"]

logger = logging.getLogger("ipcbus.bus")

_RETRY = 1.0
"""Seconds after which a tap that could not be reached is tried again, though the page says nothing new."""


class Meter:
    """Opens this process's ends of one channel of a bus. Picklable: a process that is handed the channel counts, too.

    Args:
        address: the bus's.
        key: the channel's in its directory.
        board: the home's, in the home.
    """

    def __init__(self, address: str, key: bytes, board: Board | None = None) -> None:
        self._address = address
        self._key = key
        self._board = board
        self._slot: _Slot | None = None
        self._asked = False

    def open_sender(self, end: Endpoint) -> SendLink:
        """Open a sending end that counts; one that does not where there is no home to ask."""
        slot = self._attach(end)
        link = end.handle.open_sender()
        return link if slot is None else CountedSender(link, slot, _Copies(self, slot))

    def open_receiver(self, end: Endpoint) -> RecvLink:
        """Open a receiving end that counts; the same."""
        slot = self._attach(end)
        link = end.handle.open_receiver()
        return link if slot is None else CountedReceiver(link, slot, _Copies(self, slot))

    def shut(self, end: Endpoint) -> bool:
        """End the stream without an end, for the taps as well; say whether the transport can."""
        slot = self._attach(end)
        if not end.handle.shut():
            return False
        if slot is not None:
            copies = _Copies(self, slot)
            copies.end()
            copies.close()
        return True

    def after_fork(self) -> None:
        """Start afresh in a forked child, which is another process with a slot of its own."""
        self._slot = self._board = None
        self._asked = False

    def taps(self) -> list[tuple[int, bytes]]:
        """Return who wants copies: the number of each tap, and the key of its channel.

        Raises:
            IpcbusError: the home does not answer.
        """
        if self._board is not None:
            return self._board.taps(self._key)
        said = client.call(self._address, "taps", self._key).content
        return [(said[at], said[at + 1 : at + 17]) for at in range(0, len(said), 17)]

    def open_tap(self, key: bytes) -> tuple[Endpoint, SendLink]:
        """Open the sending end of a tap's channel; the end closes with its last reference.

        Raises:
            IpcbusError: it has gone again.
        """
        found = client.get(self._address, key)
        with unpacking(found.fds):
            end = rebuild(*pickle.loads(found.content))
        end.shared.setdefault(self._address, client.current(self._address))
        return end, end.open_sender()

    def _attach(self, end: Endpoint) -> _Slot | None:
        """Return this process's slot; None where it has none, which must not keep the channel from working."""
        if not self._asked:
            began = monotonic()
            try:
                self._slot = self._ask(end)
                self._asked = True
            except (IpcbusError, OSError) as error:
                # The home has ended, or the channel came here from a bus that this process cannot reach.
                logger.info("%s is not counted here: %s", end.url, error)
                # One that is stopped keeps everybody waiting who asks; all else may be over when an end is opened again.
                self._asked = monotonic() - began >= _RETRY
        return self._slot

    def _ask(self, end: Endpoint) -> _Slot | None:
        if self._board is not None:
            return _Slot(self._board.words(self._key), page.HERE)
        found = client.call(self._address, "meter", self._key)
        number = int.from_bytes(found.content, "little")
        with unpacking(found.fds):  # closes it when it is mapped
            words = page.open_page(found.fds[0]) if number else None
        end.shared.setdefault(self._address, client.current(self._address))
        return None if words is None else _Slot(words, number)

    def __reduce__(self) -> tuple[Any, ...]:
        return Meter, (self._address, self._key)


class _Slot:
    """This process's place in a page."""

    __slots__ = ("start", "words")

    def __init__(self, words: page.Words, number: int) -> None:
        self.words = words
        self.start = page.slot(number)


class _Copies:
    """The taps that this process sends copies to, asked for anew whenever the page says that they are others."""

    def __init__(self, meter: Meter, slot: _Slot) -> None:
        self._meter = meter
        self._slot = slot
        self._lock = threading.RLock()
        self._late: list[Frame] = []
        """What a signal handler sent while it interrupted this: it is copied behind what it came amid."""
        self._links: dict[bytes, tuple[int, Endpoint, SendLink]] = {}
        self._unreached: list[int] = []
        """The numbers of those that could not be reached when they were asked for last."""
        self._generation = 0
        self._ask_at = inf
        """When they are asked for again, though the page says nothing new."""

    def send(self, frame: Frame) -> int:
        """Offer a message to every tap. Never waits for one, never fails: the message itself is sent already.

        Returns:
            What the page says for as long as this need not be called; -1 if it must be for the next message, too.
        """
        if is_mine(self._lock):
            self._late.append([bytes(part) for part in frame])  # its sender may change what is in there
            return -1
        with self._lock:
            while True:
                self._refresh()
                for number in self._unreached:
                    self._miss(number)
                for key, (number, _, link) in list(self._links.items()):
                    try:
                        link.send(frame, 0)
                    except IpcbusError as error:
                        self._refused(key, number, error)
                if not self._late:
                    return -1 if self._links or self._ask_at < inf else self._generation
                frame = self._late.pop(0)

    def _refused(self, key: bytes, number: int, error: IpcbusError) -> None:
        if isinstance(error, ChannelClosed) or (isinstance(error, PeerDied) and error.pid is not None):
            self._links.pop(key, None)  # it has ended; the home will say so, too
        else:
            self._miss(number)  # it may be over with the next message, a lack of descriptors for one

    def end(self) -> None:
        """Tell every tap that the channel was shut down."""
        with self._lock:
            self._refresh()
            for _, _, link in self._links.values():
                try:
                    link.shutdown()
                except IpcbusError:
                    continue  # it has ended

    def close(self) -> None:
        """Let go of the taps."""
        with self._lock:
            self._links.clear()

    def _miss(self, number: int) -> None:
        self._slot.words[self._slot.start + page.MISSED + number] += 1

    def _refresh(self) -> None:
        generation = self._slot.words[page.GENERATION]
        if generation == self._generation and (self._ask_at == inf or monotonic() < self._ask_at):
            return
        self._generation, began = generation, monotonic()
        trouble: Exception | None = None
        links, unreached = self._links, self._unreached
        try:
            taps = self._meter.taps()
            links, unreached = {}, []
            for number, key in taps:
                try:
                    links[key] = self._links.get(key) or (number, *self._meter.open_tap(key))
                except (IpcbusError, OSError) as error:
                    trouble = error
                    unreached.append(number)
        except (IpcbusError, OSError) as error:
            trouble = error  # who is known gets copies, as before
        self._links, self._unreached = links, unreached
        if trouble is None:
            self._ask_at = inf
            return
        level = logging.WARNING if self._ask_at == inf else logging.DEBUG
        logger.log(level, "a tap gets nothing from this process for now: %s", trouble)
        # A home that hangs takes long to find out about, and must not take most of a sender's time.
        now = monotonic()
        self._ask_at = now + max(_RETRY, 10 * (now - began))


class CountedSender(SendLink):
    """A sending end that counts and copies."""

    __slots__ = ("_calm", "_copies", "_link", "_needed", "_sent", "_slot")

    def __init__(self, link: SendLink, slot: _Slot, copies: _Copies) -> None:
        self._link = link
        self._slot = slot
        self._copies = copies
        self._sent = slot.words[slot.start + page.SENT]
        self._calm = 0
        """What the page says while there is nobody to copy to."""
        self._needed = link.send, slot.words, slot.start + page.SENT

    def send(self, frame: Frame, timeout: float | None) -> None:
        """Hand over one message, and copies of it."""
        # This runs for every message: what it needs is had with one look at an attribute. Between reading a count and
        # writing it no other thread runs, for there is no call.
        hand_over, words, where = self._needed
        hand_over(frame, timeout)
        self._sent = words[where] = self._sent + 1
        if words[0] != self._calm:
            self._calm = self._copies.send(frame)

    def receiver(self) -> int | None:
        """Return what the link says."""
        return self._link.receiver()

    def discard_oldest(self, timeout: float | None = LINGER) -> bool:
        """Take the oldest waiting message out of the channel."""
        found = self._link.discard_oldest(timeout)
        if found:
            self._slot.words[self._slot.start + page.DISCARDED] += 1
        return found

    def shutdown(self) -> None:
        """End the stream, for the taps as well."""
        self._link.shutdown()
        self._copies.end()

    def close(self) -> None:
        """Release this end."""
        self._link.close()
        self._copies.close()

    def abandon(self) -> None:
        """Free what a forked child inherited; the taps' ends are told by themselves."""
        self._link.abandon()

    def fileno(self) -> int:
        """Return the link's descriptor."""
        return self._link.fileno()

    def ready(self) -> bool:
        """Tell whether the link is ready."""
        return self._link.ready()

    def depth(self) -> int | None:
        """Return what the link says."""
        return self._link.depth()


class CountedReceiver(RecvLink):
    """A receiving end that counts."""

    __slots__ = ("_copies", "_link", "_needed", "_received", "_slot")

    def __init__(self, link: RecvLink, slot: _Slot, copies: _Copies) -> None:
        self._link = link
        self._slot = slot
        self._copies = copies
        self._received = slot.words[slot.start + page.RECEIVED]
        self._needed = link.recv, slot.words, slot.start + page.RECEIVED
        slot.words[slot.start + page.RECEIVES] = 1

    @property
    def spins(self) -> bool:
        """Whether the link spins."""
        return self._link.spins

    def recv(self, timeout: float | None) -> Frame:
        """Take the next message."""
        take, words, where = self._needed
        frame = take(timeout)
        self._received = words[where] = self._received + 1
        return frame

    def shutdown(self) -> None:
        """End the stream, for the taps as well."""
        self._link.shutdown()
        self._copies.end()

    def close(self) -> None:
        """Release this end."""
        self._link.close()
        self._copies.close()
        self._slot.words[self._slot.start + page.RECEIVES] = 0

    def abandon(self) -> None:
        """Free what a forked child inherited."""
        self._link.abandon()

    def fileno(self) -> int:
        """Return the link's descriptor."""
        return self._link.fileno()

    def ready(self) -> bool:
        """Tell whether the link is ready."""
        return self._link.ready()

    def depth(self) -> int | None:
        """Return what the link says."""
        return self._link.depth()
