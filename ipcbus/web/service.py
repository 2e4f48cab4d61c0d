"""Service: what users write. A class with a path, a codec and handlers; no transport, no process, no socket in sight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qsl

from ipcbus.errors import IpcbusError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from ipcbus.web.database import Database
    from ipcbus.web.hub import Hub

__all__ = ["Connection", "Service"]

_OWN_CODES = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})
_REASON_BYTES = 123


class Connection:
    """One client of a service, as the service sees it. Made by the server, handed to the handlers.

    What ``send``, ``join``, ``leave`` and ``close`` do is under way when they return, in the order of the calls. Awaiting
    what they return waits while the link to the front end is full; a plain ``def`` handler simply does not await it.
    """

    __slots__ = ("__weakref__", "_hub", "_left", "headers", "id", "open", "path", "peer", "query", "state")

    def __init__(self, hub: Hub, cid: int, request: Mapping[str, Any]) -> None:
        self._hub = hub
        self._left: frozenset[str] | None = None
        self.id = cid
        """A number no other connection of this server has."""
        self.path: str = request["path"]
        self.query: dict[str, str] = dict(parse_qsl(request["query"], keep_blank_values=True))
        """What followed ``?`` in the URL; of a key given twice, the last."""
        self.headers: dict[str, str] = request["headers"]
        """The request headers that the configuration lets through, by lower-case name."""
        self.peer: str = request["peer"]
        """The client's address, ``host:port``."""
        self.state: dict[str, Any] = {}
        """Yours: whatever the service wants to remember about this client."""
        self.open = True
        """False once the client is gone or ``close`` was called."""

    @property
    def groups(self) -> frozenset[str]:
        """The rooms it is in; in ``on_close``, those it was in."""
        return self._hub.groups(self) if self._left is None else self._left

    def send(self, message: Any) -> Awaitable[None]:
        """Send a message to this client. If the client is gone already, nothing happens.

        Raises:
            TypeError, ValueError: the service's codec cannot express the message.
            MessageTooLarge: it is over 16 MiB.
        """
        return self._hub.send(self, message)

    def join(self, room: str) -> Awaitable[None]:
        """Put this client into a room: it gets what is published there from now on. Idempotent."""
        return self._hub.join(self, room)

    def leave(self, room: str) -> Awaitable[None]:
        """Take this client out of a room. Idempotent."""
        return self._hub.leave(self, room)

    def close(self, code: int = 1000, reason: str = "") -> Awaitable[None]:
        """Close the connection after what was sent before; ``on_close`` follows when it is closed.

        Args:
            code: 1000 (done), another code of RFC 6455 that may be sent, or one of yours in 3000 to 4999.
            reason: at most 123 bytes of UTF-8, for the client's program.

        Raises:
            ValueError: the code or the reason cannot be sent.
        """
        if code not in _OWN_CODES and not 3000 <= code <= 4999:
            raise ValueError(f"close code {code} cannot be sent; use 1000, 1008, 1011 or one of yours in 3000 to 4999")
        if len(reason.encode()) > _REASON_BYTES:
            raise ValueError(f"a close reason has at most {_REASON_BYTES} bytes, this one has {len(reason.encode())}")
        return self._hub.close(self, code, reason)

    def __repr__(self) -> str:
        return f"<ipcbus.web.Connection {self.id:x} {self.path} {self.peer}{'' if self.open else ' closed'}>"


class Service:
    """The logic behind one WebSocket path; subclass it and configure it as ``factory = "module:Class"``.

    Handlers are plain or async functions. Those of one connection run one after another, in the order in which the
    client sent; those of different connections interleave wherever one awaits. A plain handler runs at once, so it
    should not take long. An exception in a handler is logged, counted, and closes that one connection with 1011.
    """

    path: ClassVar[str] = "/ws"
    """Where clients connect."""
    codec: ClassVar[str] = "json"
    """What messages are: ``"json"``, ``"text"``, ``"bytes"``, ``"msgpack"`` or ``"raw"``. What a client sends and the
    codec cannot read closes its connection with 1007, or 1003 if it came in the wrong kind of frame."""

    database: Database
    """The database of the configuration's ``[database]``; there is none without that table."""

    _hub: Hub | None = None

    def on_open(self, conn: Connection) -> Awaitable[None] | None:
        """Handle a client that has connected."""

    def on_message(self, conn: Connection, message: Any) -> Awaitable[None] | None:
        """Handle one message of a client."""

    def on_close(self, conn: Connection, code: int) -> Awaitable[None] | None:
        """Handle a client that is gone; called once for every connection that ``on_open`` was called for.

        ``members`` does not list it any more, ``conn.groups`` still has the rooms it was in.

        Args:
            conn: the connection.
            code: the close code; 1006 if there was none (the network or a process failed), 1001 if the page was left.
        """

    def publish(self, room: str, message: Any, *, exclude: Connection | None = None) -> Awaitable[None]:
        """Send a message to everybody in a room.

        Encoded once, sent once to each front end that has members of the room. Use the result as that of
        ``Connection.send``.

        Args:
            room: the room's name; names belong to this service alone.
            message: what the codec can express.
            exclude: a connection that does not get it.

        Raises:
            TypeError, ValueError: the service's codec cannot express the message.
            MessageTooLarge: it is over 16 MiB.
        """
        return self._running().publish(room, message, exclude)

    def members(self, room: str) -> frozenset[Connection]:
        """Return the connections that are in a room now."""
        return self._running().members(room)

    @property
    def connections(self) -> frozenset[Connection]:
        """All open connections of this service."""
        return self._running().connections

    def _running(self) -> Hub:
        if self._hub is None:
            raise IpcbusError(f"{type(self).__qualname__} is not running: rooms exist once the server has started it")
        return self._hub
