"""A server without processes: front ends and services in one event loop over inproc: channels."""

from __future__ import annotations

import asyncio
import json
import multiprocessing.util
import socket
import tempfile
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

import ipcbus
import ipcbus.demo
from ipcbus.demo.chat import Chat
from ipcbus.web import Connection, Service
from ipcbus.web.config import FrontConfig, ServerConfig
from ipcbus.web.database import Database, DatabaseConfig
from ipcbus.web.frontend import FrontEnd
from ipcbus.web.host import Host
from ipcbus.web.processes import tls_context
from ipcbus.web.servicelink import ServiceInbox

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from websockets.asyncio.client import ClientConnection

    from ipcbus.web.server import Server

PATIENCE = 20.0


async def eventually(true: Callable[[], Any]) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110  nothing tells of what tests look at
            await asyncio.sleep(0.005)


def until_replaced(server: Server, pid: int) -> None:
    """Wait until a process that was killed is not listed any more, and another one works in its place."""
    while (event := server.events.recv(PATIENCE)).pid != pid or event.what != "died":
        pass
    name = event.name
    while (event := server.events.recv(PATIENCE)).name != name or event.what != "ready":
        pass


class Rig:
    """A server without processes."""

    def __init__(self, *services: Service, fronts: int = 1, grace: float = 30.0, **limits: Any) -> None:
        self.services = services
        self.grace = grace
        self.config = FrontConfig(**limits)
        self.stack = AsyncExitStack()
        self.inboxes = [self._channel() for _ in services]
        self.front_inboxes = [self._channel() for _ in range(fronts)]
        self.sockets = [self.stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(fronts)]
        self.hosts: list[Host] = []
        self.fronts: list[FrontEnd] = []
        self.tls = tls_context(self.config)
        self.raw: list[asyncio.StreamWriter] = []
        self.tasks: dict[Any, asyncio.Task[None]] = {}

    def _channel(self) -> ipcbus.Channel:
        return self.stack.enter_context(ipcbus.open("inproc:", serializer="msgpack", accept=("msgpack",)))

    async def start_service(self, index: int, service: Service | None = None) -> Host:
        host = Host(
            service or self.services[index],
            f"service{index}",
            index,
            self.inboxes[index],
            self.front_inboxes,
            link_timeout=self.config.link_timeout,
        )
        self.hosts.append(host)
        await self._run(host)
        return host

    async def start_front(self, index: int, incarnation: int = 0) -> FrontEnd:
        known = [
            ServiceInbox(f"service{number}", [(f"service{number}", channel)], grace=self.grace)
            for number, channel in enumerate(self.inboxes)
        ]
        sock = self.sockets[index].dup()  # as a process would: its closing leaves the original listening
        front = FrontEnd(self.config, index, incarnation, sock, self.front_inboxes[index], known, b"<h1>page</h1>", self.tls)
        self.fronts.append(front)
        await self._run(front)
        return front

    async def _run(self, part: Any) -> None:
        ready = asyncio.Event()
        await part.prepare()
        task = self.tasks[part] = asyncio.create_task(part.run(ready.set))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait((task, waiting), timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if task.done():
            task.result()
        assert ready.is_set()

    async def kill(self, part: Any) -> None:
        """End it without a farewell."""
        task = self.tasks.pop(part)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def __aenter__(self) -> Self:
        for index in range(len(self.services)):
            await self.start_service(index)
        await asyncio.gather(*(self.start_front(index) for index in range(len(self.front_inboxes))))
        self.fronts.sort(key=lambda front: front._index)
        return self

    async def __aexit__(self, *_: object) -> None:
        for writer in self.raw:  # they answer no closing handshake
            writer.transport.abort()
        for part, task in sorted(self.tasks.items(), key=lambda item: isinstance(item[0], Host)):  # front ends first
            part.stop()
            await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), PATIENCE)
        await self.stack.aclose()

    def url(self, path: str, front: int = 0) -> str:
        return f"ws://127.0.0.1:{self.sockets[front].getsockname()[1]}{path}"

    async def connect(self, path: str, front: int = 0, **options: Any) -> ClientConnection:
        ws = await connect(self.url(path, front), proxy=None, **options)
        self.stack.push_async_callback(ws.close)
        return ws

    async def http(self, request: str, front: int = 0) -> tuple[int, dict[str, str], bytes]:
        reader, writer = await asyncio.open_connection(*self.sockets[front].getsockname()[:2])
        writer.write(request.replace("\n", "\r\n").encode() + b"\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


async def receive(ws: ClientConnection) -> Any:
    async with asyncio.timeout(PATIENCE):
        return json.loads(await ws.recv())


async def until_closed(ws: ClientConnection) -> int | None:
    async with asyncio.timeout(PATIENCE):
        try:
            while True:
                await ws.recv()
        except ConnectionClosed:
            return ws.close_code


def new_database() -> str:
    """Return the URL of a database that does not exist yet, in a place that is removed when this run ends."""
    return f"sqlite:///{tempfile.mkdtemp(prefix='chat-', dir=multiprocessing.util.get_temp_dir())}/chat.db"


def chat_config(*args: Any, **options: Any) -> ServerConfig:
    """Return the demo's configuration, with a database of its own."""
    return ipcbus.demo.chat_config(*args, **{"database": new_database(), **options})


def chat(url: str | None = None) -> Chat:
    """Return the demo's service, with a database of its own unless one is given."""
    service = Chat()
    service.database = Database(DatabaseConfig(url or new_database(), connections=2))
    return service


class Echo(Service):
    path, codec = "/echo", "raw"

    def __init__(self) -> None:
        self.closed: list[tuple[int, int]] = []
        self.changed = asyncio.Event()

    async def on_message(self, conn: Connection, message: Any) -> None:
        match message:
            case "close":
                await conn.close(4321, "asked for")
                await conn.send("never seen")
            case "who":
                await conn.send(json.dumps([conn.query, conn.headers, conn.peer]))
            case _:
                await conn.send(message)

    def on_close(self, conn: Connection, code: int) -> None:
        self.closed.append((conn.id, code))
        self.changed.set()

    async def next_close(self) -> int:
        async with asyncio.timeout(PATIENCE):
            await self.changed.wait()
        self.changed.clear()
        return self.closed[-1][1]


async def refused(rig: Rig, path: str, **options: Any) -> int:
    with pytest.raises(InvalidStatus) as error:
        await rig.connect(path, **options)
    return error.value.response.status_code
