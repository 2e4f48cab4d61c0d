"""Service: what users write. A class with a path, a codec and handlers; no transport, no process, no socket in sight."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qsl

from ipcbus.errors import IpcbusError
from ipcbus.web.limits import Limits
from ipcbus.web.payload import REASON_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from ipcbus.bus.bus import Bus
    from ipcbus.web.database import Database
    from ipcbus.web.hub import Hub
    from ipcbus.web.outside import Outside
    from ipcbus.web.ticker import Ticker

__all__ = ["Accept", "Connection", "Reject", "Request", "Service"]

_OWN_CODES = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})


def _check_reason(reason: str) -> None:
    if (size := len(reason.encode())) > REASON_BYTES:
        raise ValueError(f"a close reason has at most {REASON_BYTES} bytes of UTF-8, this one has {size}; make it shorter")


class Request:
    """A client that wants to connect, for ``authorize``.

    Attributes:
        path: of the URL.
        query: what followed ``?``; of a key given twice, the last.
        headers: those that the configuration lets through, ``authorization`` and ``cookie``, by lower-case name; and
            ``x-forwarded-for`` and ``x-forwarded-proto``, if they come from one of the ``trusted_proxies``.
        cookies: by name.
        peer: the client's address, ``host:port``.
        protocols: the subprotocols it offers, in its order of preference.
    """

    __slots__ = ("cookies", "headers", "path", "peer", "protocols", "query")

    def __init__(self, question: Mapping[str, Any]) -> None:
        self.path: str = question["path"]
        self.query: dict[str, str] = dict(parse_qsl(question["query"], keep_blank_values=True))
        self.headers: dict[str, str] = question["headers"]
        self.cookies: dict[str, str] = question["cookies"]
        self.peer: str = question["peer"]
        self.protocols: list[str] = question["protocols"]


@dataclass(frozen=True, slots=True)
class Accept:
    """What ``authorize`` returns if it has more to say than the state."""

    state: dict[str, Any] = field(default_factory=dict)
    """``conn.state``."""
    subprotocol: str | None = None
    """One of those that the client offers."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of the response, such as ``Set-Cookie``."""


class Reject(Exception):
    """Raised by ``authorize``: this client may not connect.

    Args:
        status: of the HTTP response, such as 401 or 403. Pages cannot read it, all they see is 1006; from 1000 on it is a
            close code instead, such as 4401: the client is let in and closed with it at once.
        reason: for the client's program; with a close code at most 123 bytes of UTF-8.

    Raises:
        ValueError: the status or the reason cannot be sent.
    """

    def __init__(self, status: int = 403, reason: str = "") -> None:
        super().__init__(status, reason)
        if not (400 <= status <= 599 or status in _OWN_CODES or 3000 <= status <= 4999):
            raise ValueError(f"{status} is neither an HTTP status that refuses nor a close code that may be sent")
        if status >= 1000:
            _check_reason(reason)
        reason.encode()  # what is no text raises here, where the mistake is
        self.status = status
        self.reason = reason


class Connection:
    """One client of a service, as the service sees it. Made by the server, handed to the handlers.

    What ``send``, ``join``, ``leave`` and ``close`` do is under way when they return, in the order of the calls. Awaiting
    what they return waits while the link to the front end is full; a plain ``def`` handler simply does not await it.
    """

    __slots__ = (
        "__weakref__",
        "_hub",
        "_left",
        "_state",
        "headers",
        "id",
        "local",
        "open",
        "opened_at",
        "path",
        "peer",
        "query",
    )

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
        self.opened_at: float = request["at"]
        """When it connected, in seconds since 1970 (UTC)."""
        self._state: dict[str, Any] = {}
        self.local: dict[str, Any] = {}
        """Yours as well: any objects, which end with this process."""
        self.open = True
        """False once the client is gone or ``close`` was called."""

    @property
    def state(self) -> dict[str, Any]:
        """Yours: what the service is to remember about this client when its process is replaced.

        Plain data of at most 4 KiB, kept by the front end. It may be assigned as a whole; a change *inside* a value is not
        noticed, assign the value anew.
        """
        return self._state

    @state.setter
    def state(self, values: Mapping[str, Any]) -> None:
        if values is not self._state:  # as it is after ``conn.state |= ...``
            values = dict(values)
            self._state.clear()
            self._state.update(values)

    @property
    def groups(self) -> frozenset[str]:
        """The rooms it is in; in ``on_close``, those it was in."""
        return self._hub.groups(self) if self._left is None else self._left

    def send(self, message: Any, *, slow: str = "close") -> Awaitable[None]:
        """Send a message to this client. If the client is gone already, nothing happens.

        Args:
            message: what the codec can express.
            slow: what happens if the client does not keep up; see ``Service.publish``.

        Raises:
            TypeError, ValueError: the service's codec cannot express the message.
            MessageTooLarge: it is over 16 MiB.
        """
        return self._hub.send(self, message, slow)

    def join(self, room: str) -> Awaitable[None]:
        """Put this client into a room: it gets what is published there from now on. Idempotent.

        In more rooms than ``limits.groups`` it is not: it is closed with 1008.

        Raises:
            TypeError: the name is no str.
            ValueError: it is empty or longer than 128 characters.
        """
        return self._hub.join(self, room)

    def leave(self, room: str) -> Awaitable[None]:
        """Take this client out of a room. Idempotent.

        Raises:
            TypeError: the name is no str.
        """
        return self._hub.leave(self, room)

    def close(self, code: int = 1000, reason: str = "") -> Awaitable[None]:
        """Close the connection after what was sent before; ``on_close`` follows when it is closed.

        Args:
            code: 1000 (done), another code of RFC 6455 that may be sent, or one of yours in 3000 to 4999.
            reason: at most 123 bytes of UTF-8, for the client's program.

        Raises:
            TypeError: the code is no int, or the reason no str.
            ValueError: they cannot be sent.
        """
        if not isinstance(code, int):
            raise TypeError(f"a close code is an int, not {code!r}")
        if not isinstance(reason, str):
            raise TypeError(f"a close reason is a str, not {type(reason).__qualname__}")
        if code not in _OWN_CODES and not 3000 <= code <= 4999:
            raise ValueError(f"close code {code} cannot be sent; use 1000, 1008, 1011 or one of yours in 3000 to 4999")
        _check_reason(reason)
        return self._hub.close(self, int(code), reason)

    def __repr__(self) -> str:
        return f"<ipcbus.web.Connection {self.id:x} {self.path} {self.peer}{'' if self.open else ' closed'}>"


class Service:
    """The logic behind one WebSocket path; subclass it and configure it as ``factory = "module:Class"``.

    Handlers are plain or async functions. Those of one connection run one after another, in the order in which the
    client sent; those of different connections interleave wherever one awaits. A plain handler runs at once, so it
    should not take long. An exception in a handler is logged, counted, and closes that one connection with 1011.

    All of it belongs to the thread of the event loop. What runs in another one, such as a function given to ``database.run``,
    returns what there is to say, or has it said by ``loop.call_soon_threadsafe``.
    """

    path: ClassVar[str] = "/ws"
    """Where clients connect, as in a URL: ASCII, without ``?`` and ``#``."""
    codec: ClassVar[str] = "json"
    """What messages are: ``"json"``, ``"text"``, ``"bytes"``, ``"msgpack"``, ``"protobuf"`` or ``"raw"``. What a client sends
    and the codec cannot read closes its connection with 1007, or 1003 if it came in the wrong kind of frame. The reason of the
    close says what is wrong."""
    message_type: ClassVar[Any] = None
    """What ``on_message`` gets: for ``json`` and ``msgpack`` a type that msgspec can check (a Struct, a union of tagged
    Structs, a dataclass, a TypedDict), else whatever came; for ``protobuf`` the message class, which is required."""
    limits: ClassVar[Limits] = Limits()
    """What one of its connections may do, where that is not what the configuration says."""

    database: Database
    """The database of the configuration's ``[database]``; there is none without that table."""

    _hub: Hub | None = None
    _outside: Outside | None = None

    # ------------------------------------------------------------------ what you may define

    def authorize(self, request: Request) -> Awaitable[Any] | Any:
        """Decide whether a client may connect, before its handshake is answered. Not called unless you define it.

        Returns:
            ``conn.state`` as a dict (None: empty), or :class:`Accept` to choose a subprotocol or to add headers.

        Raises:
            Reject: it may not. Anything else that is raised refuses it, too, with 500, and is logged.
        """

    def on_start(self) -> Awaitable[None] | None:
        """Prepare: called once in each process, before it is told of any client. It has ``start_timeout`` seconds.

        It is cancelled if the process is asked to stop meanwhile; ``on_stop`` is not called then.
        """

    def on_attach(self, conns: list[Connection]) -> Awaitable[None] | None:
        """Take over connections of an earlier process of this service; rooms and states are there already.

        Called before any other handler of these connections, and not at all if there are none. So are those of a front end
        that was silent for ``link_timeout`` and lives after all: ``on_close`` was called for them, and they are new here.
        """

    def on_open(self, conn: Connection) -> Awaitable[None] | None:
        """Handle a client that has connected. Called again by the next process if this one dies before it returns."""

    def on_message(self, conn: Connection, message: Any) -> Awaitable[None] | None:
        """Handle one message of a client. It is not repeated if this process dies over it."""

    def on_close(self, conn: Connection, code: int) -> Awaitable[None] | None:
        """Handle a client that is gone; called once for every connection that ``on_open`` or ``on_attach`` was called for.

        ``members`` does not list it any more, ``conn.groups`` still has the rooms it was in. If this process dies before
        it returns, it is called again by the next one.

        Args:
            conn: the connection.
            code: the close code; 1006 if there was none (the network or a process failed), 1001 if the page was left.
        """

    def on_pressure(self, conn: Connection, waiting: int) -> Awaitable[None] | None:
        """Handle that ``waiting`` bytes, more than the soft limit, wait for a client. Front ends tell only if it is defined."""

    def on_drained(self, conn: Connection, waiting: int) -> Awaitable[None] | None:
        """Handle that it has caught up."""

    def on_request(self, message: Any) -> Any:
        """Answer another service's ``request``; plain or async. Called only if you define it; several may run at a time."""

    def on_stop(self) -> Awaitable[None] | None:
        """Clean up: called once when this process is asked to stop, after every other handler has run.

        What it raises is logged and counted.
        """

    # ------------------------------------------------------------------ what you may call

    def publish(
        self, room: str | Iterable[str], message: Any, *, exclude: Connection | None = None, slow: str = "close"
    ) -> Awaitable[None]:
        """Send a message to everybody in a room, or once to everybody who is in at least one of several.

        Encoded once, sent once to each front end that has members of the room. Use the result as that of
        ``Connection.send``.

        Args:
            room: the room's name; names belong to this service alone.
            message: what the codec can express.
            exclude: a connection that does not get it.
            slow: what happens to a client that does not keep up. ``"close"``: it gets the message, until so much waits for
                it that it is cut off. ``"drop"``: it does not get this message. ``"latest:KEY"``: once it has caught up it
                gets the newest message of that key, and none of those before.

        Raises:
            TypeError, ValueError: the service's codec cannot express the message, a room's name is no str, or ``slow`` is none
                of the three.
            MessageTooLarge: it is over 16 MiB.
        """
        return self._running().publish(room, message, exclude, slow)

    def send_to(self, conns: Iterable[Connection], message: Any, *, slow: str = "close") -> Awaitable[None]:
        """Send a message to several clients: encoded once, sent once to each front end that has some of them."""
        return self._running().send(conns, message, slow)

    def members(self, room: str) -> frozenset[Connection]:
        """Return the connections that are in a room now, on whichever front end, in whichever process of this service."""
        return self._running().members(room)

    @property
    def connections(self) -> frozenset[Connection]:
        """All open connections of this service."""
        return self._running().connections

    def every(self, seconds: float) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
        """Return a decorator: have a plain or async function called every so many seconds while the service runs.

        Use it in ``__init__``, ``on_start`` or later: ``self.every(1.0)(self.tick)``. What it raises is logged and counted.

        Raises:
            ValueError: the time is not positive.
        """

        def register(function: Callable[[], Any]) -> Callable[[], Any]:
            self._ticker.add(seconds, function)
            return function

        return register

    async def request(self, service: str, message: Any, timeout: float | None = 5.0) -> Any:  # noqa: ASYNC109  as Channel.request
        """Ask another service, by its name in the configuration, and return what its ``on_request`` returns.

        If that service has several processes, one of them answers.

        Raises:
            RemoteError: its ``on_request`` raised.
            ChannelEmpty: no answer came in time (a ``TimeoutError`` too).
            PeerDied: the process that had the request died.
            ConfigError: there is no such service, or it does not define ``on_request``.
        """
        return await self._beyond().request(service, message, timeout)

    async def front_counts(self) -> list[dict[str, Any]]:
        """Return what has happened in each front end, by the names of ``ipcbus.web.frontend.Counts``.

        Raises:
            TimeoutError: one did not answer in time.
            PeerDied: one ended before it answered.
        """
        return await self._beyond().front_counts()

    @property
    def bus(self) -> Bus:
        """The server's bus: channels and topics by name, for this and every other process of yours."""
        return self._beyond().bus

    @property
    def shard(self) -> tuple[int, int]:
        """Which process of this service it is, and of how many: ``(0, 1)`` where there is one."""
        return (0, 1) if self._outside is None else self._outside.shard

    # ------------------------------------------------------------------ inside

    @property
    def _ticker(self) -> Ticker:
        ticker = self.__dict__.get("_own_ticker")
        if ticker is None:  # __init__ is the user's, and need not call ours
            from ipcbus.web.ticker import Ticker

            ticker = self.__dict__["_own_ticker"] = Ticker(lambda: self._running().count_failure())
        return ticker

    def _running(self) -> Hub:
        if self._hub is None:
            raise IpcbusError(f"{type(self).__qualname__} is not running: rooms exist once the server has started it")
        return self._hub

    def _beyond(self) -> Outside:
        if self._outside is None:
            raise IpcbusError(f"{type(self).__qualname__} is not running in a server, so nobody else is there to be asked")
        return self._outside
