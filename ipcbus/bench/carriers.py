"""Carriers: what takes a message from one process to another, a channel or a peer, with one face for the measurement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ipcbus.bench.case import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ipcbus.bench.messages import Message

__all__ = ["CAPACITY", "END", "Carrier", "Ends", "Room", "Talk", "room_for"]

CAPACITY = 1024
"""Messages that may wait, where they are small; every carrier that can be told is told the same."""
_MOST_BYTES = 128 << 20
"""Bytes that may wait; large messages lower the capacity, or memory would be what is measured."""
_ROOM_FOR_HEAD = 1 << 20
END = b""
"""What most carriers send behind the last message where several receive, once for each of them."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a carrier is told about what it is to carry."""

    size: int
    """Bytes of the message, about."""
    raw: bool
    """Whether it is bytes, and needs no pickle."""
    capacity: int
    senders: int
    receivers: int
    place: Path
    """A directory for what has a name; it goes when the measurement is over."""

    @property
    def most(self) -> int:
        """Bytes that any one message may have on the wire."""
        return 2 * self.size + _ROOM_FOR_HEAD


def room_for(message: Any, size: int, senders: int, receivers: int, place: Path) -> Room:
    """Return the room that a message of about so many bytes needs."""
    return Room(size, type(message) is bytes, max(2, min(CAPACITY, _MOST_BYTES // max(size, 1))), senders, receivers, place)


@dataclass(frozen=True, slots=True)
class Ends:
    """One direction. Each function is called in the process that uses the end, and returns what sends or receives there."""

    sender: Callable[[], Callable[[Any], object]]
    receiver: Callable[[], Callable[[], Any]]


@dataclass(frozen=True, slots=True)
class Talk:
    """Both directions. Each function is called in the process that uses it.

    ``asker`` returns a function that sends a message and returns what comes back; ``answerer`` one that sends back as many
    messages as it is told.
    """

    asker: Callable[[], Callable[[Any], Any]]
    answerer: Callable[[], Callable[[int], None]]


class Carrier(ABC):
    """What carries messages, by the name under which it is reported."""

    name: str
    ours: bool = False
    """Whether it is a channel, not a peer."""
    many_senders: bool = True
    many_receivers: bool = False
    """Whether several processes can compete for the messages."""

    scenarios: frozenset[str] = frozenset(SCENARIOS)
    """In which it takes part."""

    @property
    def key(self) -> str:
        """What it is found by in another process: the name of a peer, the URL of a channel."""
        return self.name

    @abstractmethod
    def connect(self, room: Room) -> Ends:
        """Make what the processes share; called in the process that starts them."""

    def end(self, message: Any) -> Any:
        """Return what tells receivers that compete for such messages that there are no more."""
        del message
        return END

    def talk(self, room: Room) -> Talk:
        """Make what a round trip needs: one of it there, one back, unless the carrier has its own way."""
        there, back = self.connect(room), self.connect(room)

        def asker() -> Callable[[Any], Any]:
            send, recv = there.sender(), back.receiver()

            def ask(obj: Any) -> Any:
                send(obj)
                return recv()

            return ask

        def answerer() -> Callable[[int], None]:
            recv, send = there.receiver(), back.sender()

            def answer(count: int) -> None:
                for _ in range(count):
                    send(recv())

            return answer

        return Talk(asker, answerer)

    def refuses(self, scenario: str, message: Message, senders: int, receivers: int) -> str | None:
        """Say why this cannot be measured, None if it can."""
        del scenario, message
        if senders > 1 and not self.many_senders:
            return "has one sender"
        if receivers > 1 and not self.many_receivers:
            return "several receivers cannot compete for its messages"
        return None
