"""The protocol between front ends and services: events, commands and the batches they travel in. No I/O.

A front end sends *events* to the inbox of a service, a service sends *commands* to the inbox of a front end. Both go in
batches: ``[version, sender, epoch, seq, [[op, field, ...], ...]]``. ``sender`` is the index of the front end (of the
service process), ``epoch`` says when that process was started, ``seq`` counts its batches for this receiver, so that a gap
shows. Payloads are bytes beside their kind, ``"T"`` for text and ``"B"`` for binary, and are never looked into here.

Attaching. A service process that starts sends ATTACH with a fresh *token* to every front end; a front end that starts
sends HELLO with token 0 to every service process, which answers with ATTACH. A front end answers an ATTACH whose token is
new with HELLO and that token, followed by SNAP: every connection it holds for the service, with state and rooms. When all
front ends that are expected have done so (the *barrier*), the service sends READY, and only then does anything else flow
to it. What either side left behind in an inbox before it died is told apart from what is meant now by its epoch, even if a
transport delivers it after what its successor sent.

``docs/reference/link-protocol.md`` has the whole of it in prose.
"""

from __future__ import annotations

import secrets
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ipcbus.errors import IpcbusError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "BINARY",
    "COMMANDS",
    "CREDIT",
    "CUT",
    "DROP",
    "EVENTS",
    "FRESH",
    "LATEST",
    "MAX_FRONTS",
    "MAX_PAYLOAD",
    "OWN",
    "SNAP_BYTES",
    "SNAP_ENTRIES",
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
    """What a front end tells a service process."""

    HELLO: Final = 1
    """``pid, token, count``: I am here; with the token of your ATTACH: and what follows is meant for you. ``count``
    connections follow in SNAP."""
    OPEN: Final = 2
    """``cid, request, state``: a client has connected. ``request`` has ``path``, ``query``, ``headers``, ``peer``, ``at``."""
    MSG: Final = 3
    """``cid, kind, payload``: one complete message of a client."""
    CLOSE: Final = 4
    """``cid, code, reason, clean``: the client is gone; the last event of its cid. Repeated to a successor until CLOSED."""
    BYE: Final = 5
    """I stop, and every connection of mine is closed; or the answer to your BYE: nothing more comes before your successor."""
    SNAP: Final = 6
    """``[[cid, request, state, [group, ...], flags], ...], last``: a part of the connections that there are. See ``OWN``
    and ``FRESH``."""
    AUTH: Final = 7
    """``cid, request``: may this client connect? ``request`` has ``cookies``, ``protocols`` and more headers besides."""
    PRESSURE: Final = 8
    """``cid, bytes``: more than ``soft_limit`` waits for a client."""
    DRAINED: Final = 9
    """``cid, bytes``: and now it does not any more."""
    RESULT: Final = 10
    """``ref, value``: the answer to QUERY."""
    PING: Final = 11
    """``time``: are you there?"""
    PONG: Final = 12
    """``time``: the answer, with what was asked."""
    PEER: Final = 13
    """``cid, request, state``: a connection that another process of the service is responsible for. CLOSE ends it, too."""
    JOINED: Final = 14
    """``cid, [group, ...]``: another process of the service put a connection into groups."""
    LEFT: Final = 15
    """``cid, [group, ...]``: or took it out of them."""
    STATE: Final = 16
    """``cid, state``: or changed its state."""


class Command:
    """What a service process tells a front end."""

    ATTACH: Final = 33
    """``service, path, token, front_epoch, wants``: send me HELLO with this token, and SNAP. ``front_epoch`` is 0 if I do
    not know you yet. ``wants`` has ``auth`` and ``pressure`` (booleans) and ``limits`` (by name)."""
    SEND: Final = 34
    """``cid or [cid, ...], kind, payload, policy``: to these clients. See ``CUT`` for policies."""
    PUB: Final = 35
    """``group or [group, ...], kind, payload, except, policy``: to every client in one of the groups, but not to the cid
    ``except`` (0: none is left out)."""
    JOIN: Final = 36
    """``cid, [group, ...]``."""
    LEAVE: Final = 37
    """``cid, [group, ...]``."""
    CLOSE: Final = 38
    """``cid, [cid, ...] or group, code, reason``: close after what was sent before."""
    BYE: Final = 39
    """The answer to BYE and the last command; or, unasked: I am being replaced, send BYE and then nothing more to me."""
    READY: Final = 40
    """``token, credit``: send me what you have, at most ``credit`` MSG events."""
    CREDIT: Final = 41
    """``n``: and so many more."""
    ACCEPT: Final = 42
    """``cid, state, subprotocol, headers``: the answer to AUTH."""
    REJECT: Final = 43
    """``cid, status, reason``: or this; an HTTP status, or from 1000 on a close code, for which it is let in and closed."""
    STATE: Final = 44
    """``cid, state``: what the next process of the service is to know of a connection."""
    OPENED: Final = 45
    """``cid``: on_open has returned."""
    CLOSED: Final = 46
    """``cid``: on_close has returned."""
    QUERY: Final = 47
    """``ref, what``: tell me ``"counts"``."""
    PING: Final = 48
    """``time``: are you there?"""
    PONG: Final = 49
    """``time``: the answer, with what was asked."""


OWN: Final = 1
"""Flag in SNAP: this process of the service is responsible for the connection."""
FRESH: Final = 2
"""Flag in SNAP: no process of the service has said OPENED of it."""

CUT: Final = "close"
"""Policy: a client that too much waits for is cut off."""
DROP: Final = "drop"
"""Policy: a client that much waits for does not get this message."""
LATEST: Final = "latest:"
"""Policy, followed by a key: a client that much waits for gets the newest message of that key, once it has caught up."""

SNAP_ENTRIES: Final = 500
"""Connections in one SNAP, at most."""
SNAP_BYTES: Final = 1 << 20
"""Bytes that these take, about, unless a single one takes more: a request may bring a megabyte of headers."""
CREDIT: Final = 1024
"""MSG events that may be on their way from one front end to one service process."""


class LinkError(IpcbusError):
    """A batch makes no sense: no list of five, another version, a sender or a number that is none."""


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
    wrong: list[str] | tuple[()] = ()
    """What was wrong with those that were left out."""


def start() -> int:
    """Return this moment as an epoch: later than that of every process of this machine that was started before."""
    return monotonic_ns()  # one clock for all processes; the wall clock may be set back, and who starts then is stale for good


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
        and type(value.get("at")) is float
        and _is_texts(value.get("headers"))
    )


def _is_texts(value: object) -> bool:
    return isinstance(value, dict) and all(type(key) is str and type(item) is str for key, item in value.items())


def _is_question(value: object) -> bool:
    return (
        isinstance(value, dict)
        and _is_request(value)
        and _is_texts(value.get("cookies"))
        and _is_groups(value.get("protocols"))
    )


def _is_snapshot(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, list)
        and len(entry) == 5
        and all(check(item) for check, item in zip((_INT, _is_request, _BYTES, _is_groups, _INT), entry, strict=True))
        for entry in value
    )


def _is_wants(value: object) -> bool:
    return (
        isinstance(value, dict)
        and type(value.get("auth")) is type(value.get("pressure")) is bool
        and isinstance(limits := value.get("limits"), dict)
        and all(type(key) is str and type(item) in (int, float) for key, item in limits.items())
    )


def _is_policy(value: object) -> bool:
    return value in (CUT, DROP) or (type(value) is str and value.startswith(LATEST))


def _is_cids(value: object) -> bool:
    return type(value) is int or (isinstance(value, list) and all(type(item) is int for item in value))


def _is_rooms(value: object) -> bool:
    return type(value) is str or _is_groups(value)


def _is_target(value: object) -> bool:
    return type(value) is str or _is_cids(value)


def _is_text_or_none(value: object) -> bool:
    return value is None or type(value) is str


def _is_anything(_: object) -> bool:
    return True


def _is(kind: type) -> Callable[[object], bool]:
    return lambda value: type(value) is kind


_INT, _STR, _BYTES, _BOOL, _FLOAT = _is(int), _is(str), _is(bytes), _is(bool), _is(float)
Shapes = dict[int, tuple["Callable[[object], bool]", ...]]

EVENTS: Final[Shapes] = {
    Event.HELLO: (_INT, _INT, _INT),
    Event.OPEN: (_INT, _is_request, _BYTES),
    Event.MSG: (_INT, _is_kind, _BYTES),
    Event.CLOSE: (_INT, _INT, _STR, _BOOL),
    Event.BYE: (),
    Event.SNAP: (_is_snapshot, _BOOL),
    Event.AUTH: (_INT, _is_question),
    Event.PRESSURE: (_INT, _INT),
    Event.DRAINED: (_INT, _INT),
    Event.RESULT: (_INT, _is_anything),
    Event.PING: (_FLOAT,),
    Event.PONG: (_FLOAT,),
    Event.PEER: (_INT, _is_request, _BYTES),
    Event.JOINED: (_INT, _is_groups),
    Event.LEFT: (_INT, _is_groups),
    Event.STATE: (_INT, _BYTES),
}
"""What a service accepts."""

COMMANDS: Final[Shapes] = {
    Command.ATTACH: (_STR, _STR, _INT, _INT, _is_wants),
    Command.SEND: (_is_cids, _is_kind, _BYTES, _is_policy),
    Command.PUB: (_is_rooms, _is_kind, _BYTES, _INT, _is_policy),
    Command.JOIN: (_INT, _is_groups),
    Command.LEAVE: (_INT, _is_groups),
    Command.CLOSE: (_is_target, _INT, _STR),
    Command.BYE: (),
    Command.READY: (_INT, _INT),
    Command.CREDIT: (_INT,),
    Command.ACCEPT: (_INT, _BYTES, _is_text_or_none, _is_texts),
    Command.REJECT: (_INT, _INT, _STR),
    Command.STATE: (_INT, _BYTES),
    Command.OPENED: (_INT,),
    Command.CLOSED: (_INT,),
    Command.QUERY: (_INT, _STR),
    Command.PING: (_FLOAT,),
    Command.PONG: (_FLOAT,),
}
"""What a front end accepts."""


def decode(obj: object, shapes: Mapping[int, tuple[Callable[[object], bool], ...]]) -> Batch:
    """Check what came out of a channel and return it as a batch.

    An event that makes no sense is left out, and no other: those around it concern other clients.

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
    wrong = [fault for event in events if (fault := _fault(event, shapes)) is not None]
    if wrong:
        events = [event for event in events if _fault(event, shapes) is None]
    return Batch(sender, epoch, seq, events, wrong)


def _fault(event: Any, shapes: Mapping[int, tuple[Callable[[object], bool], ...]]) -> str | None:
    """Return what is wrong with an event, or None."""
    if not isinstance(event, (list, tuple)) or not event:
        return f"an event that is no list but {type(event).__name__}"
    shape = shapes.get(event[0]) if type(event[0]) is int else None
    if shape is None:
        return f"op {event[0]!r} is not known on this side of the link"
    if len(event) != len(shape) + 1:
        return f"op {event[0]} has {len(shape)} fields, {len(event) - 1} came"
    for position, check in enumerate(shape, 1):
        if not check(event[position]):
            return f"op {event[0]}: field {position} cannot be a {type(event[position]).__name__} like that"
    return None


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

    def take(self, most: int = BATCH_EVENTS) -> tuple[Any, ...] | None:
        """Return the next batch as it goes into the channel, of at most so many events, or None when nothing waits."""
        if not self._events:
            return None
        count = total = 0
        for size in self._sizes:
            # The first event always goes, however large: it has to travel some time.
            if count == most or (count and total + size > BATCH_BYTES):
                break
            count += 1
            total += size
        events = self._events[:count]
        del self._events[:count], self._sizes[:count]
        self.bytes -= total
        self._seq += 1
        return VERSION, self._sender, self._epoch, self._seq, events

    def back(self, batch: tuple[Any, ...]) -> None:
        """Put the batch that was taken last in front again: it was not sent."""
        self._seq -= 1
        events = batch[4]
        sizes = [_OVERHEAD + sum(len(field) for field in event if type(field) is bytes) for event in events]
        self._events[:0] = events
        self._sizes[:0] = sizes
        self.bytes += sum(sizes)

    def reclaim(self) -> list[tuple[Any, ...]]:
        """Take out what waits, and return it."""
        events = list(self._events)
        self.discard()
        return events

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
