"""The protocol between front ends and services: events, commands and the batches they travel in. No I/O.

A front end sends *events* to the inbox of a service, a service sends *commands* to the inbox of a front end. Both go in
batches: ``[version, sender, epoch, seq, [[op, field, ...], ...]]``. ``sender`` is the index of the front end (of the
service), ``epoch`` says when that process was started, ``seq`` counts its batches for this receiver, so that a gap shows.
Payloads are bytes beside their kind, ``"T"`` for text and ``"B"`` for binary, and are never looked into here.

Attaching. A service that starts sends READY with a fresh *token* to every front end; a front end that starts sends HELLO
with token 0 to every service. A front end answers a READY whose token is new with HELLO and that token, and only from
there on does the service listen to it. Whatever either side left behind in an inbox before it died is thus told apart
from what is meant now, even if a transport delivers it after what its successor sent: its epoch is an earlier one.
"""

from __future__ import annotations

import secrets
from time import time_ns
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ipcbus.errors import IpcbusError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "BINARY",
    "COMMANDS",
    "EVENTS",
    "MAX_FRONTS",
    "MAX_PAYLOAD",
    "TEXT",
    "VERSION",
    "Batch",
    "Batcher",
    "Cid",
    "Command",
    "Event",
    "LinkError",
    "Sequence",
    "decode",
    "draw",
    "start",
]

VERSION: Final = 1
"""The protocol between front ends and services; both are of one server, so it only guards against a mix-up."""
TEXT: Final = "T"
"""The kind of a payload that is UTF-8 text."""
BINARY: Final = "B"
"""The kind of a payload that is bytes."""

MAX_FRONTS: Final = 1 << 10
"""Front ends that a connection's id has room for."""
MAX_PAYLOAD: Final = 16 << 20
"""Bytes of the largest WebSocket message in either direction."""

BATCH_EVENTS: Final = 256
BATCH_BYTES: Final = 64 << 10
"""Where a batch is cut: its size bounds how long the first event of it waits for the last."""

_OVERHEAD = 32  # bytes that an event takes besides its payload, about


class Event:
    """What a front end tells a service."""

    HELLO: Final = 1
    """``pid, token``: I am here; with the token of your READY: and what follows is meant for you."""
    OPEN: Final = 2
    """``cid, request``: a client has connected. ``request`` has ``path``, ``query``, ``headers`` and ``peer``."""
    MSG: Final = 3
    """``cid, kind, payload``: one complete message of a client."""
    CLOSE: Final = 4
    """``cid, code, reason, clean``: the client is gone; the last event of its cid, exactly once."""
    BYE: Final = 5
    """I stop, and every connection of mine is closed. Answered with BYE: what is sent after that would not be read."""


class Command:
    """What a service tells a front end."""

    READY: Final = 33
    """``service, path, token, front_epoch``: I take connections for ``path``; ``front_epoch`` 0 if I do not know you yet."""
    SEND: Final = 34
    """``cid, kind, payload``: to one client."""
    PUB: Final = 35
    """``group, kind, payload, except``: to every client in the group but the cid ``except`` (0: none is left out)."""
    JOIN: Final = 36
    """``cid, [group, ...]``."""
    LEAVE: Final = 37
    """``cid, [group, ...]``."""
    CLOSE: Final = 38
    """``cid, code, reason``: close it after what was sent before."""
    BYE: Final = 39
    """The answer to BYE, and the last command."""


class LinkError(IpcbusError):
    """A batch makes no sense: another version, an unknown op, a missing field or one of the wrong type."""


class Cid(NamedTuple):
    """A connection's number, taken apart: which front end, which start of it, which of its connections.

    A command that arrives late, after its front end was started anew, can thus hit nobody else.
    """

    front: int
    incarnation: int
    counter: int

    def pack(self) -> int:
        """Return it as one integer of 62 bits.

        Raises:
            ValueError: the front end's index or the counter is out of range.
        """
        if not 0 <= self.front < MAX_FRONTS or not 0 < self.counter < 1 << 40:
            raise ValueError(f"{self} does not fit: 10 bits for the front end, 40 for the counter, which starts at 1")
        return self.front << 52 | (self.incarnation & 0xFFF) << 40 | self.counter

    @classmethod
    def unpack(cls, cid: int) -> Cid:
        """Take an integer made by ``pack`` apart."""
        return cls(cid >> 52, cid >> 40 & 0xFFF, cid & (1 << 40) - 1)


class Batch(NamedTuple):
    """What one channel message says."""

    sender: int
    epoch: int
    seq: int
    events: list[Any]
    """Lists ``[op, field, ...]``, each of a known op with fields of the right types."""


def start() -> int:
    """Return this moment as an epoch: later than that of every process of this machine that was started before."""
    return time_ns()  # the wall clock: it goes on over a restart of the machine, where channels may be durable


def draw() -> int:
    """Draw a token: never 0, and never the same twice as far as that matters."""
    return secrets.randbits(52) | 1 << 52


def _is_groups(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is str for item in value)


def _is_kind(value: object) -> bool:
    return value in (TEXT, BINARY)


def _is_request(value: object) -> bool:
    return (
        isinstance(value, dict)
        and type(value.get("path")) is str
        and type(value.get("query")) is str
        and type(value.get("peer")) is str
        and isinstance(value.get("headers"), dict)
        and all(type(key) is str and type(item) is str for key, item in value["headers"].items())
    )


def _is(kind: type) -> Callable[[object], bool]:
    return lambda value: type(value) is kind


_INT, _STR, _BYTES, _BOOL = _is(int), _is(str), _is(bytes), _is(bool)
Shapes = dict[int, tuple["Callable[[object], bool]", ...]]

EVENTS: Final[Shapes] = {
    Event.HELLO: (_INT, _INT),
    Event.OPEN: (_INT, _is_request),
    Event.MSG: (_INT, _is_kind, _BYTES),
    Event.CLOSE: (_INT, _INT, _STR, _BOOL),
    Event.BYE: (),
}
"""What a service accepts."""

COMMANDS: Final[Shapes] = {
    Command.READY: (_STR, _STR, _INT, _INT),
    Command.SEND: (_INT, _is_kind, _BYTES),
    Command.PUB: (_STR, _is_kind, _BYTES, _INT),
    Command.JOIN: (_INT, _is_groups),
    Command.LEAVE: (_INT, _is_groups),
    Command.CLOSE: (_INT, _INT, _STR),
    Command.BYE: (),
}
"""What a front end accepts."""


def decode(obj: object, shapes: Mapping[int, tuple[Callable[[object], bool], ...]]) -> Batch:
    """Check what came out of a channel and return it as a batch.

    Args:
        obj: the object received.
        shapes: ``EVENTS`` or ``COMMANDS``.

    Raises:
        LinkError: it is no batch of this version of the protocol; nothing of it may be used.
    """
    if not isinstance(obj, (list, tuple)) or len(obj) != 5:
        raise LinkError(f"not a batch of [version, sender, epoch, seq, events]: {type(obj).__name__}")
    version, sender, epoch, seq, events = obj
    if version != VERSION:
        raise LinkError(f"link protocol version {version!r} came, version {VERSION} is spoken here; restart the whole server")
    if not (type(sender) is type(epoch) is type(seq) is int and isinstance(events, list)):
        raise LinkError("a batch whose sender, epoch or seq is no integer, or whose events are no list")
    for event in events:
        if not isinstance(event, (list, tuple)) or not event:
            raise LinkError(f"an event that is no list but {type(event).__name__}")
        shape = shapes.get(event[0]) if type(event[0]) is int else None
        if shape is None:
            raise LinkError(f"op {event[0]!r} is not known on this side of the link")
        if len(event) != len(shape) + 1:
            raise LinkError(f"op {event[0]} has {len(shape)} fields, {len(event) - 1} came")
        for position, check in enumerate(shape, 1):
            if not check(event[position]):
                raise LinkError(f"op {event[0]}: field {position} cannot be a {type(event[position]).__name__} like that")
    return Batch(sender, epoch, seq, events)


class Batcher:
    """Gathers events for one receiver and cuts them into batches.

    Args:
        sender: this process's index among its kind.
        epoch: when it started, see ``start``.
    """

    __slots__ = ("_epoch", "_events", "_sender", "_seq", "_sizes", "bytes")

    def __init__(self, sender: int, epoch: int) -> None:
        self._sender = sender
        self._epoch = epoch
        self._seq = 0
        self._events: list[tuple[Any, ...]] = []
        self._sizes: list[int] = []
        self.bytes = 0
        """Bytes that wait, about."""

    def __len__(self) -> int:
        return len(self._events)

    def add(self, event: tuple[Any, ...], size: int = 0) -> None:
        """Add an event whose payload has ``size`` bytes."""
        size += _OVERHEAD
        self._events.append(event)
        self._sizes.append(size)
        self.bytes += size

    def take(self) -> tuple[Any, ...] | None:
        """Return the next batch as it goes into the channel, or None when nothing waits."""
        if not self._events:
            return None
        count = total = 0
        for size in self._sizes:
            # The first event always goes, however large: it has to travel some time.
            if count == BATCH_EVENTS or (count and total + size > BATCH_BYTES):
                break
            count += 1
            total += size
        events = self._events[:count]
        del self._events[:count], self._sizes[:count]
        self.bytes -= total
        self._seq += 1
        return VERSION, self._sender, self._epoch, self._seq, events

    def discard(self) -> int:
        """Forget what waits and return how many events that were."""
        count = len(self._events)
        self._events.clear()
        self._sizes.clear()
        self.bytes = 0
        return count


class Sequence:
    """Watches the batches that one start of a sender makes, for gaps."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = 0

    def follows(self, batch: Batch) -> bool:
        """Note a batch and say whether it comes right after the one noted before."""
        whole = batch.seq == self._last + 1
        self._last = batch.seq
        return whole
