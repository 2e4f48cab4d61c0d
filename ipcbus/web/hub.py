"""The connections of one service process: who is there, in which rooms, and whose turn it is. No channels in here."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ipcbus.errors import IpcbusError, MessageTooLarge
from ipcbus.web.authorize import authorize
from ipcbus.web.failures import FAILURES
from ipcbus.web.link import CUT, DROP, FRESH, LATEST, MAX_PAYLOAD, OWN, Cid, Command, Event
from ipcbus.web.payload import BadPayload, codec
from ipcbus.web.rooms import Rooms
from ipcbus.web.service import Connection, Service
from ipcbus.web.state import State, become, decode_state, encode_state
from ipcbus.web.turns import BACKLOG, Line, Turns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Generator, Iterable

__all__ = ["BACKLOG", "Counts", "Hub", "Sink"]

logger = logging.getLogger("ipcbus.web")

HANDLER_FAILED = 1011
POLICY = 1008
ABNORMAL = 1006
MAX_ROOM = 128
"""Characters of a room's name."""


class Sink(Protocol):
    """Where commands go: one queue per front end."""

    def put(self, front: int, command: tuple[Any, ...], size: int = 0) -> None:
        """Queue a command; never waits."""

    def full(self, front: int) -> bool:
        """Tell whether more waits than should."""

    async def room(self, front: int) -> None:
        """Wait until no more waits than should."""

    def settled(self, front: int) -> bool:
        """Tell whether no snapshot of a front end is under way that may be older than what is put now."""


@dataclass(slots=True)
class Counts:
    """What has happened in this service process."""

    opened: int = 0
    closed: int = 0
    messages: int = 0
    published: int = 0
    handler_failures: int = 0
    """Handlers that raised, ``authorize`` and what is called at regular times included."""
    bad_messages: int = 0
    """Messages the codec could not read; each closed its connection."""
    unknown: int = 0
    """Events for a connection that is not known here."""
    restored: int = 0
    """Connections taken over from an earlier process."""
    rejected: int = 0
    """Clients that ``authorize`` did not let in."""
    too_many_rooms: int = 0
    """Connections closed because they wanted to be in more rooms than they may."""
    nonsense: int = 0
    """Batches and events of front ends that made no sense."""
    stale: int = 0
    """Batches of an earlier start of a front end, and events meant for an earlier start of this process."""

    @property
    def connections(self) -> int:
        """Connections that are open now and belong to this process."""
        return self.opened + self.restored - self.closed


class _Room:
    """What a command returns: done unless a link is full, and then awaiting it waits for room."""

    __slots__ = ("_fronts", "_sink")

    def __init__(self, sink: Sink, fronts: Iterable[int]) -> None:
        self._sink = sink
        self._fronts = fronts

    def __await__(self) -> Generator[Any, None, None]:
        for front in self._fronts:
            if self._sink.full(front):
                yield from self._sink.room(front).__await__()


class _Client(Line):
    """What the hub keeps beside a connection."""

    __slots__ = ("conn", "dirty", "ended", "front", "own")

    def __init__(self, conn: Connection, *, own: bool) -> None:
        super().__init__()
        self.conn = conn
        self.front = Cid.unpack(conn.id).front
        self.own = own
        self.ended = self.dirty = False


class Hub:
    """Runs one service: dispatches events to its handlers and turns its calls into commands.

    Args:
        service: the service; it belongs to this hub from here on.
        sink: where commands go.
        everywhere: the front ends that a publication goes to though nobody there is known to be in the room: other
            processes of the service put clients into rooms, too.
        max_groups: rooms that a connection may be in, unless the service says so.

    Raises:
        ConfigError: the service's codec is unknown.
        IpcbusError: the service runs already.
    """

    def __init__(self, service: Service, sink: Sink, everywhere: Collection[int] = (), max_groups: int = 128) -> None:
        if service._hub is not None:  # noqa: SLF001  the hub is the other half of Service
            raise IpcbusError(f"{type(service).__qualname__} runs already; make another instance")
        service._hub = self  # noqa: SLF001  as above
        self.counts = Counts()
        self.turns = Turns(self._failed)
        self._service = service
        self._sink = sink
        self._everywhere = everywhere
        self._max_groups = max_groups if service.limits.groups is None else service.limits.groups
        self._codec = codec(service.codec, service.message_type)
        self._clients: dict[int, _Client] = {}
        self._rooms: Rooms[Connection] = Rooms()
        self._fronts: dict[str, Counter[int]] = {}
        self._asked: set[asyncio.Task[None]] = set()
        self._changed: list[_Client] = []
        self._gone: dict[int, bool] = {}
        """Connections that a snapshot may still list though the service was told that they are gone, and whether it has
        dealt with that."""

    # ------------------------------------------------------------------ events

    def deliver(self, event: list[Any]) -> None:
        """Take one checked event of a front end that concerns a connection."""
        op, cid = event[0], event[1]
        client = self._clients.get(cid)
        if op == Event.MSG and (writer := client) is not None and writer.own:
            self.counts.messages += 1
            self.turns.step(writer, lambda: self._message(writer, event[2], event[3]))
        elif op in (Event.OPEN, Event.PEER):
            if client is None:
                client = self._add(cid, event[2], event[3], own=op == Event.OPEN)
                if client.own:
                    self.begin([client.conn])
        elif op == Event.AUTH:
            self._authorize(cid, event[2])
        elif client is None:
            self.counts.unknown += 1
        elif op == Event.CLOSE:
            if client.own:
                self._gone[cid] = False
            self._close(client, event[2])
        elif op in (Event.PRESSURE, Event.DRAINED):
            hook = self._service.on_pressure if op == Event.PRESSURE else self._service.on_drained
            self.turns.step(client, lambda: hook(client.conn, event[2]))
        elif op == Event.JOINED:
            for room in event[2]:
                self._enter(client, room)
        elif op == Event.LEFT:
            for room in event[2]:
                self._forget(client.conn, client.front, room)
        elif op == Event.STATE:
            become(client.conn.state, decode_state(event[2]))

    def restore(self, front: int, entries: Iterable[list[Any]]) -> tuple[list[Connection], list[Connection]]:
        """Make what is known of a front end what its snapshot says; no handler runs yet.

        Of a connection of this process that is known already its rooms and its state are what they are here, and the front
        end is told: what this process has said lately may not have reached it. Of one of another process they are as told.

        Returns:
            Connections of this process that an earlier one has opened, and those that none has.
        """
        entries = list(entries)
        present = {entry[0] for entry in entries}
        for client in [client for client in self._clients.values() if client.front == front and client.conn.id not in present]:
            self._close(client, ABNORMAL)
        restored: list[Connection] = []
        fresh: list[Connection] = []
        for cid, request, state, groups, flags in entries:
            if cid in self._gone:
                continue  # its on_close runs, or has returned since the front end was asked
            known = self._clients.get(cid)
            if known is not None and known.own:
                self._correct(known, frozenset(groups))
                continue
            if known is not None:
                become(known.conn.state, decode_state(state))
            client = known or self._add(cid, request, state, own=bool(flags & OWN))
            for room in self._rooms.groups(client.conn) - frozenset(groups):
                self._forget(client.conn, front, room)
            for room in groups:
                self._enter(client, room)
            if client.own:
                (fresh if flags & FRESH else restored).append(client.conn)
        for cid in [cid for cid, done in self._gone.items() if done and Cid.unpack(cid).front == front]:
            del self._gone[cid]
        self.counts.restored += len(restored)
        return restored, fresh

    def begin(self, conns: Iterable[Connection]) -> None:
        """Run ``on_open`` for connections."""
        for conn in conns:
            client = self._clients.get(conn.id)
            if client is not None:
                self.counts.opened += 1
                self._step(client, lambda conn=conn: self._service.on_open(conn), Command.OPENED)  # type: ignore[misc]  # a lambda's default

    def lose(self, front: int) -> None:
        """Close every connection of a front end that is gone or has begun anew, as if its network had failed."""
        for client in [client for client in self._clients.values() if client.front == front]:
            self._close(client, ABNORMAL)

    async def stop(self) -> None:
        """Cancel what authorizes."""
        for task in self._asked:
            task.cancel()
        await asyncio.gather(*self._asked, return_exceptions=True)

    def _add(self, cid: int, request: dict[str, Any], state: bytes, *, own: bool) -> _Client:
        conn = Connection(self, cid, request)
        client = self._clients[cid] = _Client(conn, own=own)
        conn._state = State(lambda: self._touch(client), decode_state(state))  # noqa: SLF001  the hub is the other half of Connection
        return client

    def _message(self, client: _Client, kind: str, data: bytes) -> Awaitable[None] | None:
        if client.ended:
            return None  # the service has closed it; what the client sent before it noticed is not wanted any more
        try:
            message = self._codec.decode(kind, data)
        except BadPayload as error:
            self.counts.bad_messages += 1
            logger.debug("connection %x of %s: %s", client.conn.id, client.conn.peer, error)
            return self.close(client.conn, error.code, error.reason)
        return self._service.on_message(client.conn, message)

    def _close(self, client: _Client, code: int) -> None:
        conn = client.conn
        del self._clients[conn.id]
        conn.open = False
        if client.own:
            self._step(client, lambda: self._closed(client, code), Command.CLOSED)
        else:
            self._leave_all(client)

    def _closed(self, client: _Client, code: int) -> Awaitable[None] | None:
        client.conn._left = self._leave_all(client)  # noqa: SLF001  as in _add
        self.counts.closed += 1
        return self._service.on_close(client.conn, code)

    def _leave_all(self, client: _Client) -> frozenset[str]:
        groups = self._rooms.groups(client.conn)
        for group in groups:
            self._forget(client.conn, client.front, group)
        return groups

    def _step(self, client: _Client, handler: Callable[[], Awaitable[None] | None], op: int) -> None:
        """Run a handler of which the front end is told that it has run."""

        async def finish(pending: Awaitable[None]) -> None:
            try:
                await pending
            finally:
                self._tell(client, op)

        def step() -> Awaitable[None] | None:
            try:
                pending = handler()
            except FAILURES:
                self._tell(client, op)
                raise
            if inspect.isawaitable(pending):
                return finish(pending)
            self._tell(client, op)
            return None

        self.turns.step(client, step)

    def _tell(self, client: _Client, op: int) -> None:
        self.flush()
        cid = client.conn.id
        if op == Command.CLOSED and cid in self._gone:
            if self._sink.settled(client.front):
                del self._gone[cid]
            else:
                self._gone[cid] = True
        self._sink.put(client.front, (op, cid))

    def count_failure(self) -> None:
        """Count something of the service's that raised."""
        self.counts.handler_failures += 1

    def _failed(self, line: Line, error: BaseException) -> None:
        assert isinstance(line, _Client)  # no others are made here
        self.count_failure()
        name = type(self._service).__qualname__
        where = f"connection {line.conn.id:x} of {line.conn.peer}"
        logger.error("%s: a handler failed for %s, which is closed", name, where, exc_info=error)
        self.close(line.conn, HANDLER_FAILED, "internal error")

    # ------------------------------------------------------------------ who may come in

    def _authorize(self, cid: int, question: dict[str, Any]) -> None:
        async def answer() -> None:
            reply = await authorize(self._service, cid, question, self.count_failure)
            self.counts.rejected += reply[0] == Command.REJECT
            self._sink.put(Cid.unpack(cid).front, reply)

        task = asyncio.get_running_loop().create_task(answer())
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    # ------------------------------------------------------------------ state

    def _touch(self, client: _Client) -> None:
        if client.dirty:
            return
        if not self._changed:
            asyncio.get_running_loop().call_soon(self.flush)  # raises in another thread, and nothing may be noted then
        client.dirty = True
        self._changed.append(client)

    def flush(self) -> None:
        """Have the front ends keep the states that have changed."""
        changed, self._changed = self._changed, []
        for client in changed:
            client.dirty = False
            if client.conn.id not in self._clients:
                continue
            try:
                blob = encode_state(client.conn.state)
            except (TypeError, ValueError) as error:
                self._failed(client, error)
                continue
            self._sink.put(client.front, (Command.STATE, client.conn.id, blob), len(blob))

    def _correct(self, client: _Client, there: frozenset[str]) -> None:
        conn, here = client.conn, self._rooms.groups(client.conn)
        if here - there:
            self._sink.put(client.front, (Command.JOIN, conn.id, sorted(here - there)))
        if there - here:
            self._sink.put(client.front, (Command.LEAVE, conn.id, sorted(there - here)))
        self._touch(client)

    # ------------------------------------------------------------------ what services ask for

    def send(self, conns: Connection | Iterable[Connection], message: Any, slow: str) -> Awaitable[None]:
        """Send to one connection, or to several: one command for each front end that has some of them."""
        kind, data = self._encode(message)
        policy = _policy(slow)
        if isinstance(conns, Connection):
            if not conns.open:
                return _Room(self._sink, ())
            return self._put(conns, (Command.SEND, conns.id, kind, data, policy), len(data))
        chosen: dict[int, list[int]] = {}
        for conn in conns:
            if conn.open:
                chosen.setdefault(Cid.unpack(conn.id).front, []).append(conn.id)
        for front, cids in chosen.items():
            self._sink.put(front, (Command.SEND, cids, kind, data, policy), len(data))
        return _Room(self._sink, tuple(chosen))

    def publish(self, rooms: str | Iterable[str], message: Any, exclude: Connection | None, slow: str) -> Awaitable[None]:
        """Send to everybody in a room, or in one of several: one command for each front end that has members."""
        kind, data = self._encode(message)
        target: str | list[str]
        if isinstance(rooms, str):
            target = _room(rooms)
            fronts = self._everywhere or tuple(self._fronts.get(target, ()))
        else:
            target = [_room(room) for room in rooms]
            fronts = self._everywhere or tuple({front for room in target for front in self._fronts.get(room, ())})
        command = (Command.PUB, target, kind, data, 0 if exclude is None else exclude.id, _policy(slow))
        for front in fronts:
            self._sink.put(front, command, len(data))
        self.counts.published += 1
        return _Room(self._sink, fronts)

    def join(self, conn: Connection, room: str) -> Awaitable[None]:
        """Put a connection into a room."""
        room = _room(room)
        if not 0 < len(room) <= MAX_ROOM:
            raise ValueError(f"a room's name has 1 to {MAX_ROOM} characters, not {len(room)}")
        client = self._clients.get(conn.id)
        if client is None or not conn.open or room in self._rooms.groups(conn):
            return _Room(self._sink, ())
        if len(self._rooms.groups(conn)) >= self._max_groups:
            self.counts.too_many_rooms += 1
            return self.close(conn, POLICY, "too many rooms")
        self._enter(client, room)
        return self._put(conn, (Command.JOIN, conn.id, [room]), len(room))

    def leave(self, conn: Connection, room: str) -> Awaitable[None]:
        """Take a connection out of a room."""
        room = _room(room)
        front = Cid.unpack(conn.id).front
        if not self._forget(conn, front, room) or not conn.open:
            return _Room(self._sink, ())
        return self._put(conn, (Command.LEAVE, conn.id, [room]), len(room))

    def close(self, conn: Connection, code: int, reason: str) -> Awaitable[None]:
        """Close a connection."""
        client = self._clients.get(conn.id)
        if client is None or not conn.open:
            return _Room(self._sink, ())
        conn.open = False
        client.ended = True
        return self._put(conn, (Command.CLOSE, conn.id, code, reason))

    def members(self, room: str) -> frozenset[Connection]:
        """Return who is in a room."""
        return frozenset(self._rooms.members(room))

    def groups(self, conn: Connection) -> frozenset[str]:
        """Return the rooms of a connection."""
        return self._rooms.groups(conn)

    @property
    def connections(self) -> frozenset[Connection]:
        """All connections that are open, whichever process of the service they belong to."""
        return frozenset(client.conn for client in self._clients.values() if client.conn.open)

    # ------------------------------------------------------------------ inside

    def _encode(self, message: Any) -> tuple[str, bytes]:
        kind, data = self._codec.encode(message)
        if len(data) > MAX_PAYLOAD:
            raise MessageTooLarge(
                f"a WebSocket message has at most {MAX_PAYLOAD} bytes, this one has {len(data)}", len(data), MAX_PAYLOAD
            )
        return kind, data

    def _put(self, conn: Connection, command: tuple[Any, ...], size: int = 0) -> Awaitable[None]:
        front = Cid.unpack(conn.id).front
        self._sink.put(front, command, size)
        return _Room(self._sink, (front,))

    def _enter(self, client: _Client, room: str) -> None:
        if self._rooms.join(client.conn, room):
            self._fronts.setdefault(room, Counter())[client.front] += 1

    def _forget(self, conn: Connection, front: int, room: str) -> bool:
        if not self._rooms.leave(conn, room):
            return False
        fronts = self._fronts[room]
        fronts[front] -= 1
        if not fronts[front]:
            del fronts[front]
        if not fronts:
            del self._fronts[room]
        return True


def _room(room: object) -> str:
    """Check the name of a room here, where the mistake is made: it may well come from a client."""
    if not isinstance(room, str):
        raise TypeError(
            f"a room's name is a str, not {type(room).__qualname__}; check what clients send before it is used as one"
        )
    return _text(room)


def _text(text: str) -> str:
    if not text.isascii():
        text.encode()  # half of a surrogate pair is no text that could travel
    return str.__str__(text)  # and a plain one, whatever class of its own it has


def _policy(slow: str) -> str:
    if not isinstance(slow, str):
        raise TypeError(f"slow is a str, not {type(slow).__qualname__}")
    if slow in (CUT, DROP):
        return slow
    if slow.startswith(LATEST) and len(slow) > len(LATEST):
        return slow if slow.isascii() else _text(slow)
    raise ValueError(f"slow={slow!r} must be 'close', 'drop' or 'latest:KEY'")
