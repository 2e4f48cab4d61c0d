"""The connections of one service process: who is there, in which rooms, and whose turn it is. No channels in here."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ipcbus.errors import IpcbusError, MessageTooLarge
from ipcbus.web.link import MAX_PAYLOAD, Cid, Command, Event
from ipcbus.web.payload import BadPayload, codec
from ipcbus.web.rooms import Rooms
from ipcbus.web.service import Connection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterable

    from ipcbus.web.service import Service

__all__ = ["Counts", "Hub", "Sink"]

logger = logging.getLogger("ipcbus.web")

BACKLOG = 4096
"""Events that may wait for their handlers before nothing more is taken from the inbox."""

HANDLER_FAILED = 1011
ABNORMAL = 1006


class Sink(Protocol):
    """Where commands go: one queue per front end."""

    def put(self, front: int, command: tuple[Any, ...], size: int = 0) -> None:
        """Queue a command; never waits."""

    def full(self, front: int) -> bool:
        """Tell whether more waits than should."""

    async def room(self, front: int) -> None:
        """Wait until no more waits than should."""


@dataclass(slots=True)
class Counts:
    """What has happened in this service process."""

    opened: int = 0
    closed: int = 0
    messages: int = 0
    published: int = 0
    handler_failures: int = 0
    bad_messages: int = 0
    """Messages the codec could not read; each closed its connection."""
    unknown: int = 0
    """Events for a connection that is not known here."""


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


class _Client:
    """What the hub keeps beside a connection: the events that wait for their turn."""

    __slots__ = ("conn", "ended", "front", "steps", "task")

    def __init__(self, conn: Connection, front: int) -> None:
        self.conn = conn
        self.front = front
        self.steps: deque[Callable[[], Awaitable[None] | None]] = deque()
        self.task: asyncio.Task[None] | None = None
        self.ended = False


class Hub:
    """Runs one service: dispatches events to its handlers and turns its calls into commands.

    Args:
        service: the service; it belongs to this hub from here on.
        sink: where commands go.

    Raises:
        ConfigError: the service's codec is unknown.
        IpcbusError: the service runs already.
    """

    def __init__(self, service: Service, sink: Sink) -> None:
        if service._hub is not None:  # noqa: SLF001  the hub is the other half of Service
            raise IpcbusError(f"{type(service).__qualname__} runs already; make another instance")
        service._hub = self  # noqa: SLF001  as above
        self.counts = Counts()
        self._service = service
        self._sink = sink
        self._codec = codec(service.codec)
        self._clients: dict[int, _Client] = {}
        self._rooms: Rooms[Connection] = Rooms()
        self._fronts: dict[str, Counter[int]] = {}
        self._pending = 0
        self._calm = asyncio.Event()
        self._calm.set()
        self._idle = asyncio.Event()
        self._idle.set()

    # ------------------------------------------------------------------ events

    def deliver(self, event: list[Any]) -> None:
        """Take one checked OPEN, MSG or CLOSE event of a front end."""
        op, cid = event[0], event[1]
        if op == Event.OPEN:
            if cid not in self._clients:
                self._open(cid, event[2])
                return
        elif (client := self._clients.get(cid)) is not None:
            if op == Event.MSG:
                self.counts.messages += 1
                self._step(client, lambda: self._message(client, event[2], event[3]))
            else:
                self._close(client, event[2])
            return
        self.counts.unknown += 1

    def lose(self, front: int) -> None:
        """Close every connection of a front end that is gone or has begun anew, as if its network had failed."""
        for client in [client for client in self._clients.values() if client.front == front]:
            self._close(client, ABNORMAL)

    async def calm(self) -> None:
        """Wait until so few events wait for handlers that more may come."""
        await self._calm.wait()

    async def idle(self) -> None:
        """Wait until every handler has run."""
        await self._idle.wait()

    def _open(self, cid: int, request: dict[str, Any]) -> None:
        conn = Connection(self, cid, request)
        client = self._clients[cid] = _Client(conn, Cid.unpack(cid).front)
        self.counts.opened += 1
        self._step(client, lambda: self._service.on_open(conn))

    def _message(self, client: _Client, kind: str, data: bytes) -> Awaitable[None] | None:
        if client.ended:
            return None  # the service has closed it; what the client sent before it noticed is not wanted any more
        try:
            message = self._codec.decode(kind, data)
        except BadPayload as error:
            self.counts.bad_messages += 1
            logger.debug("connection %x of %s: %s", client.conn.id, client.conn.peer, error)
            return self.close(client.conn, error.code, str(error))
        return self._service.on_message(client.conn, message)

    def _close(self, client: _Client, code: int) -> None:
        conn = client.conn
        del self._clients[conn.id]
        conn.open = False
        self._step(client, lambda: self._closed(client, code))

    def _closed(self, client: _Client, code: int) -> Awaitable[None] | None:
        conn = client.conn
        groups = self._rooms.groups(conn)
        for group in groups:
            self._forget(conn, client.front, group)
        conn._left = groups  # noqa: SLF001  the hub is the other half of Connection
        self.counts.closed += 1
        return self._service.on_close(conn, code)

    # ------------------------------------------------------------------ turns

    def _step(self, client: _Client, step: Callable[[], Awaitable[None] | None]) -> None:
        """Run a step of a connection now, or after the ones before it."""
        if client.task is not None:
            client.steps.append(step)
            self._count(1)
            return
        pending = self._run(client, step)
        if pending is not None:
            self._count(1)
            client.task = asyncio.get_running_loop().create_task(self._work(client, pending))

    def _run(self, client: _Client, step: Callable[[], Awaitable[None] | None]) -> Awaitable[None] | None:
        try:
            result = step()
        except Exception as error:  # noqa: BLE001  whatever a user's handler raises concerns one connection only
            self._failed(client, error)
            return None
        # A plain handler may well return the last send's awaitable, or something of its own: only the former is awaited.
        return result if inspect.isawaitable(result) else None

    async def _work(self, client: _Client, pending: Awaitable[None] | None) -> None:
        while True:
            if pending is not None:
                try:
                    await pending
                except Exception as error:  # noqa: BLE001  as in _run
                    self._failed(client, error)
            self._count(-1)
            if not client.steps:
                client.task = None
                return
            pending = self._run(client, client.steps.popleft())

    def _count(self, change: int) -> None:
        self._pending += change
        if self._pending >= BACKLOG:
            self._calm.clear()
        elif self._pending < BACKLOG // 2:
            self._calm.set()
        if self._pending:
            self._idle.clear()
        else:
            self._idle.set()

    def _failed(self, client: _Client, error: Exception) -> None:
        self.counts.handler_failures += 1
        name = type(self._service).__qualname__
        where = f"connection {client.conn.id:x} of {client.conn.peer}"
        logger.error("%s: a handler failed for %s, which is closed", name, where, exc_info=error)
        self.close(client.conn, HANDLER_FAILED, "internal error")

    # ------------------------------------------------------------------ what services ask for

    def send(self, conn: Connection, message: Any) -> Awaitable[None]:
        """Send to one connection."""
        kind, data = self._encode(message)
        if not conn.open:
            return _Room(self._sink, ())
        return self._put(conn, (Command.SEND, conn.id, kind, data), len(data))

    def publish(self, room: str, message: Any, exclude: Connection | None) -> Awaitable[None]:
        """Send to everybody in a room: one command for each front end that has members."""
        kind, data = self._encode(message)
        fronts = tuple(self._fronts.get(room, ()))
        command = (Command.PUB, room, kind, data, 0 if exclude is None else exclude.id)
        for front in fronts:
            self._sink.put(front, command, len(data))
        self.counts.published += 1
        return _Room(self._sink, fronts)

    def join(self, conn: Connection, room: str) -> Awaitable[None]:
        """Put a connection into a room."""
        client = self._clients.get(conn.id)
        if client is None or not conn.open or not self._rooms.join(conn, room):
            return _Room(self._sink, ())
        self._fronts.setdefault(room, Counter())[client.front] += 1
        return self._put(conn, (Command.JOIN, conn.id, [room]), len(room))

    def leave(self, conn: Connection, room: str) -> Awaitable[None]:
        """Take a connection out of a room."""
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
        """All connections that are open."""
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
