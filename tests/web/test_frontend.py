"""Front ends and services in one event loop over inproc: channels, with real WebSocket clients."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

import ipcbus
from ipcbus.demo.chat import Chat
from ipcbus.errors import ConfigError
from ipcbus.web import Connection, Service
from ipcbus.web.config import FrontConfig
from ipcbus.web.frontend import FrontEnd
from ipcbus.web.host import Host
from ipcbus.web.link import Cid, Command

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Self

    from websockets.asyncio.client import ClientConnection

PATIENCE = 5.0
HANDSHAKE = b"\r\n".join(
    [
        b"GET /flood HTTP/1.1",
        b"Host: x",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        b"Sec-WebSocket-Version: 13",
        b"",
        b"",
    ]
)


class Rig:
    """A server without processes."""

    def __init__(self, *services: Service, fronts: int = 1, **limits: Any) -> None:
        self.services = services
        self.config = FrontConfig(**limits)
        self.stack = AsyncExitStack()
        self.inboxes = [self._channel() for _ in services]
        self.front_inboxes = [self._channel() for _ in range(fronts)]
        self.sockets = [self.stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(fronts)]
        self.hosts: list[Host] = []
        self.fronts: list[FrontEnd] = []
        self.tasks: dict[Any, asyncio.Task[None]] = {}

    def _channel(self) -> ipcbus.Channel:
        return self.stack.enter_context(ipcbus.open("inproc:", serializer="msgpack", accept=("msgpack",)))

    async def start_service(self, index: int, service: Service | None = None) -> Host:
        host = Host(service or self.services[index], f"service{index}", index, self.inboxes[index], self.front_inboxes)
        self.hosts.append(host)
        await self._run(host)
        return host

    async def start_front(self, index: int, incarnation: int = 0) -> FrontEnd:
        known = [(f"service{number}", channel) for number, channel in enumerate(self.inboxes)]
        sock = self.sockets[index].dup()  # as a process would: its closing leaves the original listening
        front = FrontEnd(self.config, index, incarnation, sock, self.front_inboxes[index], known, b"<h1>page</h1>")
        self.fronts.append(front)
        await self._run(front)
        return front

    async def _run(self, part: Any) -> None:
        ready = asyncio.Event()
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
        for index in range(len(self.front_inboxes)):
            await self.start_front(index)
        return self

    async def __aexit__(self, *_: object) -> None:
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


@pytest.fixture
async def chat() -> AsyncIterator[Rig]:
    async with Rig(Chat(), fronts=2) as rig:
        yield rig


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


# ---------------------------------------------------------------------- messages


@pytest.mark.parametrize("message", ["", "é" * 1000, b"", b"\x00\xff" * 1000])
async def test_messages_go_there_and_back_unchanged(message: str | bytes) -> None:
    async with Rig(Echo()) as rig:
        ws = await rig.connect("/echo")
        for _ in range(3):
            await ws.send(message)
        for _ in range(3):
            assert await asyncio.wait_for(ws.recv(), PATIENCE) == message


async def test_rooms_span_front_ends(chat: Rig) -> None:
    ada, bob = await chat.connect("/chat?name=Ada", 0), await chat.connect("/chat?name=Bob", 1)
    cyd = await chat.connect("/chat?name=Cyd", 1)
    ids = [int((await receive(ws))["id"], 16) for ws in (ada, bob, cyd)]
    assert [Cid.unpack(cid).front for cid in ids] == [0, 1, 1]
    for ws, room in ((ada, "tea"), (bob, "tea"), (cyd, "coffee")):
        await ws.send(json.dumps({"op": "join", "room": room}))
        assert (await receive(ws))["op"] == "users"
    assert (await receive(ada))["op"] == "joined"
    await ada.send(json.dumps({"op": "say", "room": "tea", "text": "hi"}))
    assert (await receive(ada))["text"] == (await receive(bob))["text"] == "hi"
    await cyd.send(json.dumps({"op": "users", "room": "coffee"}))
    assert await receive(cyd) == {"op": "users", "room": "coffee", "users": ["Cyd"]}  # and nothing before it
    assert [front.counts.opened for front in chat.fronts] == [1, 2]


async def test_the_service_sees_query_allowed_headers_and_address() -> None:
    async with Rig(Echo(), headers=("X-Seen",)) as rig:
        ws = await rig.connect("/echo?a=%C3%A9", additional_headers={"x-seen": "1", "Cookie": "secret"})
        await ws.send("who")
        query, headers, peer = await receive(ws)
        assert query == {"a": "é"}
        assert headers == {"x-seen": "1"}
        assert peer == "{}:{}".format(*ws.local_address[:2])


async def test_the_service_closes_with_its_code_and_nothing_after_it() -> None:
    echo = Echo()
    async with Rig(echo) as rig:
        ws = await rig.connect("/echo")
        await ws.send("close")
        with pytest.raises(ConnectionClosed):
            await ws.recv()
        assert (ws.close_code, ws.close_reason) == (4321, "asked for")
        assert await echo.next_close() == 4321


async def test_the_clients_close_code_reaches_the_service_once() -> None:
    echo = Echo()
    async with Rig(echo) as rig:
        ws = await rig.connect("/echo")
        await ws.close(4000)
        assert await echo.next_close() == 4000
        ws = await rig.connect("/echo")
        ws.transport.abort()
        assert await echo.next_close() == 1006
        assert len(echo.closed) == 2


# ---------------------------------------------------------------------- limits


async def test_a_message_over_the_limit_closes_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    echo = Echo()
    with caplog.at_level(logging.INFO):
        async with Rig(echo, max_size=1000) as rig:
            ws = await rig.connect("/echo")
            await ws.send("x" * 1000)
            assert len(await ws.recv()) == 1000
            await ws.send("x" * 1001)
            assert await until_closed(ws) == 1009
            await echo.next_close()
    assert "Traceback" not in caplog.text


async def test_a_slow_receiver_is_cut_off_and_the_others_get_everything() -> None:
    class Flood(Service):
        path, codec = "/flood", "bytes"

        def on_open(self, conn: Connection) -> None:
            conn.join("all")

        async def on_message(self, conn: Connection, message: bytes) -> None:
            await self.publish("all", message + bytes(50_000))

    async with Rig(Flood(), write_limit=1 << 17) as rig:
        # This one finishes its handshake and then never reads: the kernel's buffers fill, then the server's.
        stalled = rig.stack.enter_context(socket.socket())
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(stalled, rig.sockets[0].getsockname())
        await loop.sock_sendall(stalled, HANDSHAKE)
        assert b" 101 " in await loop.sock_recv(stalled, 100)
        good = await rig.connect("/flood")
        for number in range(300):
            await good.send(number.to_bytes(2, "big"))
            message = await asyncio.wait_for(good.recv(), PATIENCE)
            assert message[:2] == number.to_bytes(2, "big")
        assert rig.fronts[0].counts.slow == 1
        assert rig.fronts[0].counts.closed == 1


async def test_a_service_that_does_not_take_messages_stops_the_reading_of_sockets() -> None:
    class Stuck(Service):
        path, codec = "/stuck", "bytes"

        def __init__(self) -> None:
            self.gate = asyncio.Event()
            self.got = 0
            self.all = asyncio.Event()

        async def on_message(self, conn: Connection, message: bytes) -> None:
            await self.gate.wait()
            self.got += 1
            if self.got == 20_000:
                self.all.set()

    stuck = Stuck()
    async with Rig(stuck) as rig:
        ws = await rig.connect("/stuck", write_limit=1024)
        total = 0

        async def pour() -> None:
            nonlocal total
            for _ in range(20_000):
                await ws.send(bytes(10_000))
                total += 1

        pouring = asyncio.create_task(pour())
        before = -1
        while before != total:  # until nothing moves any more: every buffer on the way is full
            before = total
            await asyncio.wait((pouring,), timeout=0.5)
        assert not pouring.done()
        assert rig.fronts[0].counts.received < 10_000
        stuck.gate.set()
        await asyncio.wait_for(pouring, 30)
        await asyncio.wait_for(stuck.all.wait(), 30)


# ---------------------------------------------------------------------- HTTP and handshakes


async def test_http_on_the_same_port(chat: Rig) -> None:
    status, headers, body = await chat.http("GET / HTTP/1.1\nHost: x")
    assert (status, body) == (200, b"<h1>page</h1>")
    assert headers["content-type"].startswith("text/html")
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers
    status, headers, body = await chat.http("HEAD / HTTP/1.1\nHost: x")
    assert (status, headers["content-length"], body) == (200, "13", b"")
    assert (await chat.http("GET /healthz HTTP/1.1\nHost: x"))[0::2] == (200, b"ok\n")
    assert (await chat.http("GET /nothing HTTP/1.1\nHost: x"))[0] == 404
    assert (await chat.http("GET /chat HTTP/1.1\nHost: x"))[0] == 426
    status, headers, _ = await chat.http("DELETE / HTTP/1.1\nHost: x")
    assert (status, headers["allow"]) == (405, "get, head")


async def test_strangers_cannot_fill_the_log(chat: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for rubbish in (
        "\x16\x03\x01",
        "GET",
        "GET /\xe9 HTTP/1.1\nHost: x",
        "GET // HTTP/1.1\nHost: x",
        "GET //[ HTTP/1.1\nHost: x",
    ):
        reader, writer = await asyncio.open_connection(*chat.sockets[0].getsockname()[:2])
        writer.write(rubbish.encode() + b"\r\n\r\nGET / HTTP/1.1\r\n\r\n")
        writer.write_eof()
        await asyncio.wait_for(reader.read(), PATIENCE)
        writer.close()
    assert (await chat.http("GET /healthz HTTP/1.1\nHost: x"))[0] == 200
    assert caplog.records == []


async def refused(rig: Rig, path: str, **options: Any) -> int:
    with pytest.raises(InvalidStatus) as error:
        await rig.connect(path, **options)
    return error.value.response.status_code


async def test_pages_of_other_hosts_may_not_connect() -> None:
    async with Rig(Echo(), origins=("https://friend.example",)) as rig:
        host = rig.url("")[len("ws://") :]
        for origin in (None, f"http://{host}", f"https://{host.upper()}", "https://friend.example"):
            await (await rig.connect("/echo", origin=origin)).close()
        for origin in (
            "https://evil.example",
            f"http://{host}.evil.example",
            "null",
            "http://127.0.0.1",
            "https://friend.example:1",
        ):
            assert await refused(rig, "/echo", origin=origin) == 403
        assert rig.fronts[0].counts.refused == 5
    async with Rig(Echo(), origins=("*",)) as rig:
        await (await rig.connect("/echo", origin="https://anybody.example")).close()


async def test_a_path_without_a_service_is_refused(chat: Rig) -> None:
    assert await refused(chat, "/nothing") == 404


async def test_a_handshake_waits_for_its_service_and_not_for_ever() -> None:
    async with Rig(Echo(), open_timeout=1.0) as rig:
        await rig.kill(rig.hosts[0])
        front = rig.fronts[0]
        front._detach(front._services[0])  # what a gap in the service's batches does
        assert (await rig.http("GET /readyz HTTP/1.1\nHost: x"))[0] == 503
        assert await refused(rig, "/echo") == 503
        waiting = asyncio.create_task(rig.connect("/echo"))
        await asyncio.sleep(0)
        await rig.start_service(0, Echo())
        ws = await waiting
        await ws.send("x")
        assert await ws.recv() == "x"


# ---------------------------------------------------------------------- one side begins anew


async def test_a_restarted_service_closes_its_connections_with_1012_and_serves_new_ones(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Rig(Chat(), Echo(), fronts=2) as rig:
        old = [await rig.connect("/chat?name=A", front) for front in (0, 1)]
        other = await rig.connect("/echo")
        for ws in old:
            await receive(ws)
        await rig.kill(rig.hosts[0])
        await old[0].send(json.dumps({"op": "join", "room": "x"}))  # goes into the inbox of the dead one
        again = Chat()
        await rig.start_service(0, again)
        for ws in old:
            assert await until_closed(ws) == 1012
        new = await rig.connect("/chat?name=A", 1)
        assert (await receive(new))["name"] == "A"
        await new.send(json.dumps({"op": "join", "room": "x"}))
        assert (await receive(new))["users"] == ["A"]  # nothing of what the dead one was told
        assert len(again.connections) == 1
        await other.send("still here")
        assert await other.recv() == "still here"
        assert rig.hosts[-1].stale > 0


async def test_a_restarted_front_end_makes_the_service_forget_its_connections(chat: Rig) -> None:
    ada, bob = await chat.connect("/chat?name=Ada", 0), await chat.connect("/chat?name=Bob", 1)
    for ws in (ada, bob):
        await receive(ws)
        await ws.send(json.dumps({"op": "join", "room": "tea"}))
        await receive(ws)
    assert (await receive(ada))["op"] == "joined"
    await chat.kill(chat.fronts[1])
    await chat.start_front(1, incarnation=1)
    assert await receive(ada) == {"op": "left", "room": "tea", "name": "Bob"}
    again = await chat.connect("/chat?name=Bob", 1)
    assert Cid.unpack(int((await receive(again))["id"], 16)).incarnation == 1
    await again.send(json.dumps({"op": "join", "room": "tea"}))
    assert (await receive(again))["users"] == ["Ada", "Bob"]
    assert await receive(ada) == {"op": "joined", "room": "tea", "name": "Bob"}


async def test_a_missing_batch_is_noticed_on_either_side(chat: Rig) -> None:
    ada = await chat.connect("/chat?name=Ada", 0)
    await receive(ada)
    # The service misses one of the front end's batches.
    chat.fronts[0]._services[0].pump._batcher._seq += 1
    await ada.send(json.dumps({"op": "join", "room": "tea"}))
    assert await until_closed(ada) == 1012
    # The front end misses one of the service's.
    eve = await chat.connect("/chat?name=Eve", 0)
    await receive(eve)
    chat.hosts[0]._fronts[0].pump._batcher._seq += 1
    await eve.send(json.dumps({"op": "join", "room": "tea"}))
    assert await until_closed(eve) == 1012
    last = await chat.connect("/chat?name=Eve", 0)
    await receive(last)
    await last.send(json.dumps({"op": "join", "room": "tea"}))
    assert await receive(last) == {"op": "users", "room": "tea", "users": ["Eve"]}


async def test_nonsense_in_an_inbox_is_dropped(chat: Rig, caplog: pytest.LogCaptureFixture) -> None:
    for channel in (chat.inboxes[0], chat.front_inboxes[0]):
        channel.send("nonsense")
        channel.send([1, 99, 1, 1, []])
        channel.send([1, 0, 1, 1, [[Command.SEND, 5, "T", b"x"]]])
    ada = await chat.connect("/chat?name=Ada", 0)
    assert (await receive(ada))["op"] == "welcome"
    assert chat.hosts[0].refused == 3
    assert len(caplog.records) == 5


async def test_late_commands_hit_nobody(chat: Rig) -> None:
    ada = await chat.connect("/chat?name=Ada", 0)
    cid = int((await receive(ada))["id"], 16)
    host = chat.hosts[0]
    earlier = Cid.unpack(cid)._replace(incarnation=5).pack()
    for command in ((Command.SEND, earlier, "T", b"1"), (Command.JOIN, earlier, ["a"]), (Command.CLOSE, earlier, 1000, "")):
        host.put(0, command)
    # A batch of an earlier start of the service.
    chat.front_inboxes[0].send([1, 0, 5, 77, [[Command.SEND, cid, "T", b"2"]]])
    host.put(0, (Command.SEND, cid, "T", b"3"))
    host.put(0, (Command.SEND, cid, "T", b"4"))
    assert [await receive(ada), await receive(ada)] == [3, 4]
    assert chat.fronts[0].counts.unknown == 3
    assert chat.fronts[0].counts.stale == 1


async def test_two_services_for_one_path_are_refused() -> None:
    rig = Rig(Echo(), Echo())
    await rig.start_service(0)
    await rig.start_service(1)
    with pytest.raises(ConfigError, match="both want the path '/echo'"):
        await rig.start_front(0)
    rig.tasks.pop(rig.fronts[0])
    await rig.__aexit__()


async def test_stopping_tells_clients_and_services() -> None:
    echo = Echo()
    async with Rig(echo) as rig:
        ws = await rig.connect("/echo")
        rig.fronts[0].stop()
        assert await until_closed(ws) == 1001
        assert await echo.next_close() == 1001
        await asyncio.wait_for(rig.tasks.pop(rig.fronts[0]), PATIENCE)
        assert rig.front_inboxes[0].stats().depth == 0  # it has read all that was sent to it
        rig.hosts[0].put(0, (Command.SEND, 5, "T", b"x"))
        rig.hosts[0].stop()
        await asyncio.wait_for(rig.tasks.pop(rig.hosts[0]), PATIENCE)
        assert rig.front_inboxes[0].stats().depth == 0  # and nothing was sent after that
