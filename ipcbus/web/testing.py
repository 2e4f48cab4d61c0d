"""Drive a service in memory: no sockets, no processes, the real dispatch and codec.

::

    async with ServiceTest(Chat()) as test:
        ada = await test.connect(query="name=Ada")
        await ada.send({"op": "join", "room": "lobby"})
        assert ada.take() == [{"op": "users", "room": "lobby", "users": ["Ada"]}]
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ipcbus.web.hub import Hub
from ipcbus.web.link import Cid, Command, Event
from ipcbus.web.payload import codec
from ipcbus.web.rooms import Rooms

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from ipcbus.web.service import Service

__all__ = ["ServiceTest", "TestClient"]


class TestClient:
    """A client in memory.

    Attributes:
        id: the connection's number, ``conn.id`` in the service.
        closed: the code and reason the service closed it with, or None.
    """

    __test__ = False  # for pytest: its name begins with Test, and it is none

    def __init__(self, test: ServiceTest, cid: int) -> None:
        self._test = test
        self.id = cid
        self.closed: tuple[int, str] | None = None
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
        """Note a message."""
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
        self.codec = codec(service.codec)
        self._path = service.path
        self._timeout = timeout
        self._count = 0
        self._clients: dict[int, TestClient] = {}
        self._rooms: Rooms[TestClient] = Rooms()
        self._leaving: list[tuple[TestClient, int]] = []

    async def connect(self, *, query: str = "", headers: Mapping[str, str] | None = None, front: int = 0) -> TestClient:
        """Connect a client, and wait until ``on_open`` has run.

        Args:
            query: what would follow ``?`` in the URL.
            headers: request headers.
            front: index of the front end that has the client's socket, below 1024.
        """
        self._count += 1
        client = TestClient(self, Cid(front, 1, self._count).pack())
        self._clients[client.id] = client
        request = {"path": self._path, "query": query, "headers": dict(headers or {}), "peer": f"test:{self._count}"}
        self.hub.deliver([Event.OPEN, client.id, request])
        await self.settle()
        return client

    async def settle(self) -> None:
        """Wait until every handler has run.

        Raises:
            TimeoutError: one took too long.
        """
        async with asyncio.timeout(self._timeout):
            await self.hub.idle()
            while self._leaving:
                self.gone(*self._leaving.pop(0))
                await self.hub.idle()

    def gone(self, client: TestClient, code: int) -> None:
        """Tell the service that a client is gone."""
        if self._clients.pop(client.id, None) is not None:
            self._rooms.drop(client)
            self.hub.deliver([Event.CLOSE, client.id, code, "", True])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in list(self._clients.values()):
            self.gone(client, 1001)
        await self.settle()

    # ------------------------------------------------------------------ the front end's part

    def put(self, front: int, command: tuple[Any, ...], size: int = 0) -> None:  # noqa: ARG002  the signature is Sink's
        """Do what a front end does with a command."""
        op, target, *fields = command
        if op == Command.PUB:
            kind, data, left_out = fields
            for client in self._rooms.members(target):
                if Cid.unpack(client.id).front == front and client.id != left_out:
                    client.receive(self.codec.decode(kind, data))
            return
        addressed = self._clients.get(target)
        if addressed is None:
            return
        if op == Command.SEND:
            addressed.receive(self.codec.decode(*fields))
        elif op == Command.JOIN:
            for group in fields[0]:
                self._rooms.join(addressed, group)
        elif op == Command.LEAVE:
            for group in fields[0]:
                self._rooms.leave(addressed, group)
        elif op == Command.CLOSE:
            addressed.closed = (fields[0], fields[1])
            self._leaving.append((addressed, fields[0]))  # told later, as by a front end: a handler is running now

    def full(self, front: int) -> bool:  # noqa: ARG002  as above
        """Return False: memory takes everything."""
        return False

    async def room(self, front: int) -> None:
        """Return at once."""
