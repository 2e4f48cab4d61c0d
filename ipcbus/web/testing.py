"""Drive a service in memory: no sockets, no processes, the real dispatch and codec.

::

    async with ServiceTest(Chat()) as test:
        ada = await test.connect(query="name=Ada")
        await ada.send({"op": "join", "room": "lobby"})
        assert ada.take() == [{"op": "users", "room": "lobby", "users": ["Ada"]}]
"""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from ipcbus.web.authorize import authorize
from ipcbus.web.hub import Hub
from ipcbus.web.link import OWN, Cid, Command, Event
from ipcbus.web.payload import codec
from ipcbus.web.rooms import Rooms
from ipcbus.web.service import Reject, Service

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

__all__ = ["ServiceTest", "TestClient"]


class TestClient:
    """A client in memory.

    Attributes:
        id: the connection's number, ``conn.id`` in the service.
        closed: the code and reason the service closed it with, or None.
        subprotocol: the one that ``authorize`` has chosen, or None.
    """

    __test__ = False  # for pytest: its name begins with Test, and it is none

    def __init__(self, test: ServiceTest, cid: int) -> None:
        self._test = test
        self.id = cid
        self.closed: tuple[int, str] | None = None
        self.subprotocol: str | None = None
        self._received: list[Any] = []

    async def send(self, message: Any) -> None:
        """Send what the service's codec can express, and wait until every handler has run."""
        await self.send_raw(*self._test.codec.encode(message))

    async def send_raw(self, kind: str, data: bytes) -> None:
        """Send any payload, ``"T"`` for text and ``"B"`` for binary, and wait until every handler has run."""
        self._test.hub.deliver([Event.MSG, self.id, kind, data])
        await self._test.settle()

    def take(self) -> list[Any]:
        """Return the messages that came since the last call."""
        received, self._received = self._received, []
        return received

    async def close(self, code: int = 1000) -> None:
        """Go away, and wait until every handler has run."""
        self._test.gone(self, code)
        await self._test.settle()

    def receive(self, message: Any) -> None:
        """Note a message; of one that the service has closed nothing is sent any more."""
        if self.closed is None:
            self._received.append(message)


class ServiceTest:
    """Runs one service in memory; an async context manager that closes what is open at its end.

    Args:
        service: the service.
        timeout: seconds that handlers may take before a call here raises ``TimeoutError``.
    """

    __test__ = False  # for pytest

    def __init__(self, service: Service, *, timeout: float = 5.0) -> None:
        self.hub = Hub(service, self)
        self.codec = codec(service.codec, service.message_type)
        self._plain = self.codec if service.codec == "protobuf" else codec(service.codec)
        self._service = service
        self._path = service.path
        self._timeout = timeout
        self._count = 0
        self._clients: dict[int, TestClient] = {}
        self._rooms: Rooms[TestClient] = Rooms()
        self._requests: dict[int, dict[str, Any]] = {}
        self._states: dict[int, bytes] = {}
        self._leaving: list[tuple[TestClient, int]] = []

    async def connect(
        self,
        *,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        cookies: Mapping[str, str] | None = None,
        protocols: Sequence[str] = (),
        front: int = 0,
    ) -> TestClient:
        """Connect a client, and wait until ``on_open`` has run.

        Args:
            query: what would follow ``?`` in the URL.
            headers: request headers, in any case. The service sees all of them, whatever a configuration would let through.
            cookies: for ``authorize``.
            protocols: the subprotocols the client offers.
            front: index of the front end that has the client's socket, below 1024.

        Raises:
            Reject: ``authorize`` does not let it in.
        """
        self._count += 1
        client = TestClient(self, Cid(front, 1, self._count).pack())
        request = {
            "path": self._path,
            "query": query,
            "headers": {name.lower(): value for name, value in (headers or {}).items()},
            "peer": f"test:{self._count}",
            "at": float(self._count),
        }
        state = b""
        if type(self._service).authorize is not Service.authorize:
            question = {**request, "cookies": dict(cookies or {}), "protocols": list(protocols)}
            op, _, *answer = await authorize(self._service, client.id, question, self.hub.count_failure)
            if op == Command.REJECT:
                raise Reject(*answer)
            state, client.subprotocol = answer[:2]
        self._clients[client.id] = client
        self._requests[client.id] = request
        self.hub.deliver([Event.OPEN, client.id, request, state])
        await self.settle()
        return client

    async def restart(self, service: Service) -> None:
        """Have another instance of the service take over all that there is, as after the death of its process.

        ``on_start``, ``on_attach``, and whatever ``on_attach`` is there for, can be tested with it.
        """
        self.hub.flush()
        await self.hub.stop()
        before, self.hub = self.hub, Hub(service, self)
        self._service = service
        await _call(service.on_start)
        restored = []
        for front in {Cid.unpack(cid).front for cid in self._clients}:
            entries = [
                [conn.id, self._requests[conn.id], self._states.get(conn.id, b""), sorted(conn.groups), OWN]
                for conn in before.connections
                if Cid.unpack(conn.id).front == front
            ]
            restored += self.hub.restore(front, entries)[0]
        if restored:
            await _call(lambda: service.on_attach(restored))
        await self.settle()

    async def tick(self) -> None:
        """Call once, now, what the service does at regular times (``every``), and wait until every handler has run."""
        await self._service._ticker.call_all()  # noqa: SLF001  this is the rest of Service here
        await self.settle()

    async def settle(self) -> None:
        """Wait until every handler has run.

        Raises:
            TimeoutError: one took too long.
        """
        async with asyncio.timeout(self._timeout):
            await self.hub.turns.idle()
            while self._leaving:
                self.gone(*self._leaving.pop(0))
                await self.hub.turns.idle()

    def gone(self, client: TestClient, code: int) -> None:
        """Tell the service that a client is gone."""
        if self._clients.pop(client.id, None) is not None:
            self._rooms.drop(client)
            self.hub.deliver([Event.CLOSE, client.id, code, "", True])

    async def __aenter__(self) -> Self:
        await _call(self._service.on_start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in list(self._clients.values()):
            self.gone(client, 1001)
        await self.settle()
        await self.hub.stop()
        await _call(self._service.on_stop)

    # ------------------------------------------------------------------ the front end's part

    def put(self, front: int, command: tuple[Any, ...], size: int = 0) -> None:  # noqa: ARG002  the signature is Sink's
        """Do what a front end does with a command."""
        op, target, *fields = command
        if op == Command.PUB:
            kind, data, left_out, _ = fields
            rooms = [target] if isinstance(target, str) else target
            for client in set().union(*(self._rooms.members(room) for room in rooms)):
                if Cid.unpack(client.id).front == front and client.id != left_out:
                    client.receive(self.decode(kind, data))
            return
        for cid in target if isinstance(target, list) else [target]:
            if (addressed := self._clients.get(cid)) is not None:
                self._obey(addressed, op, fields)

    def _obey(self, client: TestClient, op: int, fields: list[Any]) -> None:
        if op == Command.SEND:
            client.receive(self.decode(*fields[:2]))
        elif op == Command.STATE:
            self._states[client.id] = fields[0]
        elif op == Command.JOIN:
            for group in fields[0]:
                self._rooms.join(client, group)
        elif op == Command.LEAVE:
            for group in fields[0]:
                self._rooms.leave(client, group)
        elif op == Command.CLOSE:
            client.closed = (fields[0], fields[1])
            self._leaving.append((client, fields[0]))  # told later, as by a front end: a handler is running now

    def decode(self, kind: str, data: bytes) -> Any:
        """Return a message as a client that knows nothing of the service's types would read it."""
        return self._plain.decode(kind, data)

    def full(self, front: int) -> bool:  # noqa: ARG002  as above
        """Return False: memory takes everything."""
        return False

    async def room(self, front: int) -> None:
        """Return at once."""

    def settled(self, front: int) -> bool:  # noqa: ARG002  as above
        """Return True: memory is never asked twice."""
        return True


async def _call(handler: Callable[[], Any]) -> None:
    result = handler()
    if inspect.isawaitable(result):
        await result
