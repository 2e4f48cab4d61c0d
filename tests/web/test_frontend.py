"""Front ends and services in one event loop over inproc: channels, with real WebSocket clients."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from websockets.exceptions import ConnectionClosed

import ipcbus
from ipcbus.errors import ConfigError, PeerDied
from ipcbus.web import Connection, Limits, Service, frontend, peers
from ipcbus.web.gate import HELD_EVENTS
from ipcbus.web.host import Host
from ipcbus.web.hub import BACKLOG
from ipcbus.web.link import CREDIT, CUT, Cid, Command, Event, start
from ipcbus.web.pump import Pump

from .rig import PATIENCE, Echo, Rig, chat, eventually, receive, refused, until_closed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from websockets.asyncio.client import ClientConnection

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


@pytest.fixture
async def rooms() -> AsyncIterator[Rig]:
    """The chat, behind two front ends."""
    service = chat()
    async with Rig(service, fronts=2) as rig:
        yield rig
    service.database.close()


async def enter(rig: Rig, name: str, front: int) -> ClientConnection:
    """Connect to the chat and sign in."""
    ws = await rig.connect("/chat", front)
    await ws.send(json.dumps({"op": "sign-in", "name": name}))
    return ws


# ---------------------------------------------------------------------- messages


@pytest.mark.parametrize("message", ["", "é" * 1000, b"", b"\x00\xff" * 1000])
async def test_messages_go_there_and_back_unchanged(message: str | bytes) -> None:
    async with Rig(Echo()) as rig:
        ws = await rig.connect("/echo")
        for _ in range(3):
            await ws.send(message)
        for _ in range(3):
            assert await asyncio.wait_for(ws.recv(), PATIENCE) == message


async def test_rooms_span_front_ends(rooms: Rig) -> None:
    ada, bob = await enter(rooms, "Ada", 0), await enter(rooms, "Bob", 1)
    cyd = await enter(rooms, "Cyd", 1)
    ids = [int((await receive(ws))["id"], 16) for ws in (ada, bob, cyd)]
    assert [Cid.unpack(cid).front for cid in ids] == [0, 1, 1]
    for ws, room in ((ada, "tea"), (bob, "tea"), (cyd, "coffee")):
        await ws.send(json.dumps({"op": "join", "room": room}))
        assert (await receive(ws))["op"] == "users"
        assert (await receive(ws))["op"] == "history"
    assert (await receive(ada))["op"] == "joined"
    await ada.send(json.dumps({"op": "say", "room": "tea", "text": "hi"}))
    assert (await receive(ada))["text"] == (await receive(bob))["text"] == "hi"
    await cyd.send(json.dumps({"op": "users", "room": "coffee"}))
    assert await receive(cyd) == {"op": "users", "room": "coffee", "users": ["Cyd"]}  # and nothing before it
    assert [front.counts.opened for front in rooms.fronts] == [1, 2]


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
        good, most = await rig.connect("/flood"), 0
        for number in range(300):
            await good.send(number.to_bytes(2, "big"))
            message = await asyncio.wait_for(good.recv(), PATIENCE)
            assert message[:2] == number.to_bytes(2, "big")
            most = max(most, rig.fronts[0].gauges()["waiting_bytes"])
        assert most > 1 << 16  # what waited for it, until it was cut off
        assert rig.fronts[0].counts.slow == 1
        assert rig.fronts[0].counts.closed == 1


async def test_who_gets_messages_together_gets_all_of_them_in_order_and_before_the_end() -> None:
    class Burst(Service):
        path, codec = "/burst", "json"

        def on_open(self, conn: Connection) -> None:
            conn.join("all")

        async def on_message(self, conn: Connection, message: int) -> None:
            for number in range(message):
                await (conn.send(number) if number % 10 == 9 else self.publish("all", number))
            await conn.close(4000, "that is all")

    async with Rig(Burst(), coalesce=PATIENCE) as rig:  # no window ends during the test: the close writes what waits
        ws = await rig.connect("/burst")
        await ws.send("105")
        assert [await receive(ws) for _ in range(105)] == list(range(105))
        assert await until_closed(ws) == 4000
        assert rig.fronts[0].counts.sent == 105


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
    async with Rig(stuck, message_rate=0, byte_rate=0) as rig:
        ws = await rig.connect("/stuck", write_limit=1024)
        (front,), (host,) = rig.fronts, rig.hosts
        assert front.gauges() == {"connections": 1, "waiting_bytes": 0, "waiting_events": 0}
        total = 0

        async def pour() -> None:
            nonlocal total
            for _ in range(20_000):
                await ws.send(bytes(10_000))
                total += 1

        pouring = asyncio.create_task(pour())
        await eventually(lambda: front.gauges()["waiting_events"] + host.gauges()["waiting_events"] > HELD_EVENTS)
        before = -1
        while before != total:  # until nothing moves any more: every buffer on the way is full
            before = total
            await asyncio.wait((pouring,), timeout=0.5)
        assert not pouring.done()
        assert front.counts.received < BACKLOG + CREDIT + HELD_EVENTS
        assert front.gauges()["waiting_events"] + host.gauges()["waiting_events"] > HELD_EVENTS
        stuck.gate.set()
        await asyncio.wait_for(pouring, 30)
        await asyncio.wait_for(stuck.all.wait(), 30)
        await eventually(lambda: front.gauges()["waiting_events"] == host.gauges()["waiting_events"] == 0)
        assert host.gauges() == {"connections": 1, "waiting_events": 0, "waiting_commands": 0}


# ---------------------------------------------------------------------- HTTP and handshakes


async def test_http_on_the_same_port(rooms: Rig) -> None:
    status, headers, body = await rooms.http("GET / HTTP/1.1\nHost: x")
    assert (status, body) == (200, b"<h1>page</h1>")
    assert headers["content-type"].startswith("text/html")
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers
    status, headers, body = await rooms.http("HEAD / HTTP/1.1\nHost: x")
    assert (status, headers["content-length"], body) == (200, "13", b"")
    assert (await rooms.http("GET /healthz HTTP/1.1\nHost: x"))[0::2] == (200, b"ok\n")
    assert (await rooms.http("GET /nothing HTTP/1.1\nHost: x"))[0] == 404
    assert (await rooms.http("GET /chat HTTP/1.1\nHost: x"))[0] == 426
    status, headers, _ = await rooms.http("DELETE / HTTP/1.1\nHost: x")
    assert (status, headers["allow"]) == (405, "get, head")


async def test_strangers_cannot_fill_the_log(rooms: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for rubbish in (
        "\x16\x03\x01",
        "GET",
        "GET /\xe9 HTTP/1.1\nHost: x",
        "GET // HTTP/1.1\nHost: x",
        "GET //[ HTTP/1.1\nHost: x",
    ):
        reader, writer = await asyncio.open_connection(*rooms.sockets[0].getsockname()[:2])
        writer.write(rubbish.encode() + b"\r\n\r\nGET / HTTP/1.1\r\n\r\n")
        writer.write_eof()
        await asyncio.wait_for(reader.read(), PATIENCE)
        writer.close()
    assert (await rooms.http("GET /healthz HTTP/1.1\nHost: x"))[0] == 200
    assert caplog.records == []


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
    async with Rig(Echo(), origins=("https://*.friend.example", "http://*.other.example:81", "null")) as rig:
        for origin in ("https://a.friend.example", "https://a.b.friend.example", "http://a.other.example:81", "null"):
            await (await rig.connect("/echo", origin=origin)).close()
        for origin in (
            "https://friend.example",
            "https://.friend.example",
            "http://a.friend.example",
            "https://evil.example/.friend.example",
            "https://a.friend.example.evil.example",
            "http://a.other.example",
        ):
            assert await refused(rig, "/echo", origin=origin) == 403
    async with Rig(Echo(), origins=("*",)) as rig:
        await (await rig.connect("/echo", origin="https://anybody.example")).close()


async def test_a_path_without_a_service_is_refused(rooms: Rig) -> None:
    assert await refused(rooms, "/nothing") == 404


async def test_a_handshake_waits_for_its_service_and_not_for_ever() -> None:
    async with Rig(Echo(), open_timeout=1.0) as rig:
        await rig.kill(rig.hosts[0])
        rig.fronts[0].notice(0, start())  # what the supervisor says
        assert (await rig.http("GET /readyz HTTP/1.1\nHost: x"))[0::2] == (503, b"waiting for: service0\n")
        assert (await rig.http("GET /healthz HTTP/1.1\nHost: x"))[0] == 200
        assert await refused(rig, "/echo") == 503
        assert rig.fronts[0].counts.reasons == {"away": 1}
        waiting = asyncio.create_task(rig.connect("/echo"))
        await asyncio.sleep(0)
        await rig.start_service(0, Echo())
        ws = await waiting
        await ws.send("x")
        assert await ws.recv() == "x"


async def test_a_path_that_may_be_that_of_a_service_which_never_came_is_waited_for_until_that_is_gone() -> None:
    class Late(Service):
        path = "/late"

    async with AsyncExitStack() as stack:
        rig = Rig(Echo(), Late(), grace=0.1)
        await stack.enter_async_context(rig.stack)
        await rig.start_service(0)
        front = await rig.start_front(0, incarnation=1)  # one that takes the place of another waits for nobody
        await eventually(lambda: front.links[1].gone)
        async with asyncio.timeout(rig.config.open_timeout / 2):  # nobody waits any more
            for path in ("/late", "/nowhere"):
                assert await refused(rig, path) == 503
        await rig.start_service(1)
        assert await refused(rig, "/nowhere") == 404
        await rig.connect("/late")
        for part in (front, *rig.hosts):
            part.stop()
            await rig.tasks[part]


# ---------------------------------------------------------------------- one side begins anew


class Memory(Service):
    """Says what it remembers."""

    path, codec = "/memory", "json"

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_attach(self, conns: list[Connection]) -> None:
        self.seen.append(("attach", sorted((conn.state["name"], *conn.groups) for conn in conns)))

    async def on_open(self, conn: Connection) -> None:
        conn.state["name"] = conn.query["name"]
        await conn.join("all")
        await conn.send("hello")

    async def on_message(self, conn: Connection, message: Any) -> None:
        self.seen.append((conn.state["name"], message))
        await self.publish("all", [conn.state["name"], message, sorted(c.state["name"] for c in self.members("all"))])

    async def on_close(self, conn: Connection, code: int) -> None:
        self.seen.append(("close", conn.state["name"], code, *conn.groups))
        await self.publish("all", ["left", conn.state["name"]])


async def test_a_killed_service_loses_no_client_and_no_message() -> None:
    async with Rig(Memory(), Echo(), fronts=2) as rig:
        ada, bob, cyd = [
            await rig.connect(f"/memory?name={name}", front) for name, front in (("Ada", 0), ("Bob", 1), ("Cyd", 1))
        ]
        other = await rig.connect("/echo")
        for ws in (ada, bob, cyd):
            assert await receive(ws) == "hello"
        await rig.kill(rig.hosts[0])
        await ada.send("1")  # goes into the inbox of the dead one
        await eventually(lambda: rig.fronts[0].counts.received == 1)
        for front in rig.fronts:
            front.notice(0, start())
        await ada.send("2")  # and this is held
        await bob.send("3")
        await cyd.close(4001)
        await other.send("still here")
        assert await other.recv() == "still here"
        joining = asyncio.create_task(rig.connect("/memory?name=Dan", 0))
        again = Memory()
        await rig.start_service(0, again)
        dan = await joining
        got = [await receive(ada) for _ in range(4)]
        assert [entry for entry in got if entry[0] == "Ada"] == [["Ada", 1, ["Ada", "Bob", "Cyd"]], ["Ada", 2, got[1][2]]]
        assert ["left", "Cyd"] in got
        assert await receive(dan) == "hello"
        assert again.seen[0] == ("attach", [("Ada", "all"), ("Bob", "all"), ("Cyd", "all")])
        assert again.seen[1] == ("Ada", 1)
        assert sorted(again.seen[2:], key=str) == [("Ada", 2), ("Bob", 3), ("close", "Cyd", 4001, "all")]
        assert rig.hosts[-1].hub.counts.restored == 3
        assert not any(route.table.departed for front in rig.fronts for route in front.all_routes)


async def test_a_service_is_attached_whatever_its_clients_have_in_their_requests() -> None:
    class Narrow(Rig):
        def _channel(self) -> ipcbus.Channel:
            url = f"inproc:?max_message={3 << 20}"
            return self.stack.enter_context(ipcbus.open(url, serializer="msgpack", accept=("msgpack",)))

    async with Narrow(Echo()) as rig:
        much = [("User-Agent", "x" * 8000)] * 110  # as much as a request may have, nearly
        clients = [await rig.connect("/echo", user_agent_header=None, additional_headers=much) for _ in range(4)]
        await rig.kill(rig.hosts[0])
        await rig.start_service(0, Echo())
        for number, ws in enumerate(clients):
            await ws.send(str(number))
            assert await receive(ws) == number


async def test_a_replaced_service_hands_over_without_losing_anything() -> None:
    async with Rig(Memory(), fronts=2, message_rate=0) as rig:
        ada, bob = await rig.connect("/memory?name=Ada", 0), await rig.connect("/memory?name=Bob", 1)
        for ws in (ada, bob):
            assert await receive(ws) == "hello"

        async def pour(ws: ClientConnection) -> None:
            for number in range(600):
                await ws.send(str(number))
                if number % 20 == 0:
                    await asyncio.sleep(0.001)

        pouring = asyncio.gather(pour(ada), pour(bob))
        for _ in range(3):
            await asyncio.sleep(0.01)
            rig.hosts[-1].stop()
            await asyncio.wait_for(rig.tasks.pop(rig.hosts[-1]), PATIENCE)
            await rig.start_service(0, Memory())
        await pouring
        for ws in (ada, bob):
            got = [await receive(ws) for _ in range(1200)]
            for name in ("Ada", "Bob"):
                assert [number for who, number, _ in got if who == name] == list(range(600))


async def test_the_answer_to_the_goodbye_of_a_process_that_was_killed_is_not_for_the_next_one() -> None:
    async with Rig(Echo()) as rig:
        ws = await rig.connect("/echo")
        await rig.kill(rig.hosts[0])
        link = rig.fronts[0].links[0]
        link.leave()  # it has said goodbye, and does not live to see the answer
        link.pump.put((Event.BYE,))
        assert await link.pump.flush(PATIENCE)
        await rig.start_service(0, Echo())
        await ws.send("still here")
        assert await asyncio.wait_for(ws.recv(), PATIENCE) == "still here"


async def test_what_a_service_says_last_arrives_though_its_on_stop_fails(caplog: pytest.LogCaptureFixture) -> None:
    class Last(Memory):
        def on_stop(self) -> None:
            self.publish("all", "bye")
            raise RuntimeError("on purpose")

    async with Rig(Last()) as rig:
        ada = await rig.connect("/memory?name=Ada")
        assert await receive(ada) == "hello"
        rig.hosts[0].stop()
        await rig.tasks.pop(rig.hosts[0])
        assert await receive(ada) == "bye"
        await rig.start_service(0, Memory())
        await ada.send("1")
        assert await receive(ada) == ["Ada", 1, ["Ada"]]
    assert "service0: on_stop failed" in caplog.text


async def test_on_open_is_run_by_the_next_process_if_the_first_dies_over_it() -> None:
    class Never(Memory):
        async def on_open(self, conn: Connection) -> None:
            conn.state["half"] = True
            await asyncio.Event().wait()

    async with Rig(Never()) as rig:
        ws = await rig.connect("/memory?name=Ada")
        await eventually(lambda: rig.fronts[0].all_routes[0].table.peers and rig.hosts[0].hub.turns.waiting)
        await rig.kill(rig.hosts[0])
        rig.fronts[0].notice(0, start())
        again = Memory()
        await rig.start_service(0, again)
        assert await receive(ws) == "hello"
        assert again.seen == []  # nothing was attached: to this one the client is new


async def test_a_service_that_does_not_come_back_closes_its_clients_with_1013() -> None:
    async with Rig(Echo(), grace=0.1, link_timeout=1.0) as rig:
        ws = await rig.connect("/echo")
        await rig.kill(rig.hosts[0])
        rig.fronts[0].notice(0, start())
        assert await until_closed(ws) == 1013
        assert await refused(rig, "/echo") == 503
        await rig.start_service(0, Echo())
        await eventually(lambda: rig.fronts[0].links[0].up)
        ws = await rig.connect("/echo")
        await ws.send("x")
        assert await ws.recv() == "x"


async def test_who_is_closed_for_good_is_forgotten_though_nobody_takes_what_was_said() -> None:
    async with Rig(Echo(), link_timeout=1.0, message_rate=0, byte_rate=0) as rig:
        front, clients = rig.fronts[0], [await rig.connect("/echo") for _ in range(2)]
        link, table = front.links[0], front.all_routes[0].table
        await rig.kill(rig.hosts[0])
        front.notice(0, start())
        for ws in clients:
            for _ in range(HELD_EVENTS):
                await ws.send("x")
        await eventually(lambda: link.gate.full and all(peer.pausing for peer in table.peers.values()))
        link.route.grace = 0.0  # and now that time is over
        for ws in clients:
            assert await until_closed(ws) == 1013
        await eventually(lambda: front.counts.connections == 0)
        assert not table.peers
        assert front.counts.codes == {1013: 2}


@pytest.mark.parametrize("dead", ["service", "front end"])
async def test_silence_is_noticed(dead: str) -> None:
    """What happens where nobody tells that a process has ended, or where only the link has."""
    echo = Echo()
    async with Rig(echo, link_timeout=0.4) as rig:
        ws = await rig.connect("/echo")
        await ws.send("x")
        assert await ws.recv() == "x"
        await asyncio.sleep(1.0)  # as long as both are there, pings keep them together
        assert rig.fronts[0].all_routes[0].up
        if dead == "front end":
            rig.fronts[0].links[0].pump.put = lambda *_: None  # type: ignore[method-assign]  # it is struck dumb
            assert await echo.next_close() == 1006
            return
        await rig.kill(rig.hosts[0])
        await eventually(lambda: not rig.fronts[0].all_routes[0].up)
        await rig.start_service(0, Echo())
        await ws.send("y")
        assert await asyncio.wait_for(ws.recv(), PATIENCE) == "y"


async def test_who_stood_still_takes_nobody_for_dead(caplog: pytest.LogCaptureFixture) -> None:
    async with Rig(Echo(), link_timeout=0.4) as rig:
        ws = await rig.connect("/echo")
        for message in ("before", "after"):
            await ws.send(message)
            assert await asyncio.wait_for(ws.recv(), PATIENCE) == message
            time.sleep(0.6)  # noqa: ASYNC251  as a busy machine has it
        assert rig.fronts[0].all_routes[0].up
    assert "nothing was heard" not in caplog.text


async def test_connections_of_a_front_end_that_was_silent_and_lives_are_taken_over_once() -> None:
    told: list[tuple[str, int]] = []

    class Tells(Echo):
        def on_open(self, conn: Connection) -> None:
            told.append(("open", conn.id))

        def on_attach(self, conns: list[Connection]) -> None:
            told.extend(("attach", conn.id) for conn in conns)

        def on_close(self, conn: Connection, code: int) -> None:
            told.append((f"close {code}", conn.id))

    async with Rig(Tells(), link_timeout=0.4) as rig:
        ws = await rig.connect("/echo")
        await ws.send("x")
        assert await ws.recv() == "x"
        pump = rig.fronts[0].links[0].pump
        say = pump.put
        pump.put = lambda *_: None  # type: ignore[method-assign]  # it is struck dumb
        await eventually(lambda: len(told) == 2)
        pump.put = say  # type: ignore[method-assign]  # and recovers
        await eventually(lambda: len(told) == 3)
        await ws.close()
        await eventually(lambda: len(told) == 4)
        cid = told[0][1]
        assert told == [("open", cid), ("close 1006", cid), ("attach", cid), ("close 1000", cid)]


async def test_a_restarted_front_end_makes_the_service_forget_its_connections(rooms: Rig) -> None:
    ada, bob = await enter(rooms, "Ada", 0), await enter(rooms, "Bob", 1)
    for ws in (ada, bob):
        await receive(ws)
        await ws.send(json.dumps({"op": "join", "room": "tea"}))
        assert [(await receive(ws))["op"] for _ in range(2)] == ["users", "history"]
    assert (await receive(ada))["op"] == "joined"
    await rooms.kill(rooms.fronts[1])
    await rooms.start_front(1, incarnation=1)
    assert await receive(ada) == {"op": "left", "room": "tea", "name": "Bob"}
    again = await enter(rooms, "Bob", 1)
    assert Cid.unpack(int((await receive(again))["id"], 16)).incarnation == 1
    await again.send(json.dumps({"op": "join", "room": "tea"}))
    assert (await receive(again))["users"] == ["Ada", "Bob"]
    assert await receive(ada) == {"op": "joined", "room": "tea", "name": "Bob"}


async def test_after_a_missing_batch_both_sides_know_the_same_again(caplog: pytest.LogCaptureFixture) -> None:
    async with Rig(Memory()) as rig:
        front, host = rig.fronts[0], rig.hosts[0]
        ada = await rig.connect("/memory?name=Ada")
        assert await receive(ada) == "hello"
        # The service misses a batch of the front end, in which a client went away.
        bob = await rig.connect("/memory?name=Bob")
        assert await receive(bob) == "hello"
        front.links[0].pump._batcher._seq += 1
        await ada.send("1")
        assert (await receive(ada))[:2] == ["Ada", 1]
        # The front end misses one of the service's, in which a client joined a room.
        conn = next(conn for conn in host.hub.connections if conn.state["name"] == "Ada")
        host.hub._enter(host.hub._clients[conn.id], "unheard of")
        host._fronts[0].pump._batcher._seq += 1
        await ada.send("2")
        assert (await receive(ada))[:2] == ["Ada", 2]
        await eventually(lambda: front.all_routes[0].table.rooms.members("unheard of"))
        assert (await receive(bob))[:2] == ["Ada", 1]
        assert (await receive(bob))[:2] == ["Ada", 2]
        assert sum("is missing" in record.getMessage() for record in caplog.records) == 2


class Leaving(Memory):
    """Takes its time over who leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def on_close(self, conn: Connection, code: int) -> None:
        self.seen.append(("close", conn.state["name"], code))
        await self.gate.wait()


def attach_anew(host: Host) -> None:
    host._detach(host._fronts[0])
    host._greet(host._fronts[0])


@pytest.mark.parametrize("when", ["before it has answered", "once it has"])
async def test_who_leaves_while_a_front_end_is_asked_anew_is_told_of_once(when: str) -> None:
    leaving = Leaving()
    async with Rig(leaving) as rig:
        host, table = rig.hosts[0], rig.fronts[0].all_routes[0].table
        ada, bob = await rig.connect("/memory?name=Ada"), await rig.connect("/memory?name=Bob")
        for ws in (ada, bob):
            assert await receive(ws) == "hello"
        await bob.close()
        await eventually(lambda: leaving.seen == [("close", "Bob", 1000)])
        seen = list(leaving.seen)
        attach_anew(host)
        if when == "before it has answered":
            leaving.gate.set()
        await eventually(lambda: host._fronts[0].ready)
        leaving.gate.set()
        await eventually(lambda: not table.departed)
        await ada.send("1")
        assert await receive(ada) == ["Ada", 1, ["Ada"]]
        assert leaving.seen == [*seen, ("Ada", 1)]
        assert not host.hub._gone


async def test_what_is_said_while_a_front_end_is_asked_anew_is_not_lost() -> None:
    memory = Memory()
    async with Rig(memory) as rig:
        ada = await rig.connect("/memory?name=Ada")
        assert await receive(ada) == "hello"
        attach_anew(rig.hosts[0])
        (conn,) = memory.connections
        await conn.send("meanwhile")
        assert await receive(ada) == "meanwhile"


async def test_who_has_no_time_to_listen_takes_nobody_for_dead() -> None:
    class Busy(Echo):
        def __init__(self) -> None:
            super().__init__()
            self.gate = asyncio.Event()

        async def on_message(self, conn: Connection, message: Any) -> None:
            await self.gate.wait()
            await conn.send(message)

    busy = Busy()
    async with Rig(busy, link_timeout=0.4, message_rate=0, byte_rate=0) as rig:
        host, ws = rig.hosts[0], await rig.connect("/echo")
        for _ in range(BACKLOG + CREDIT):
            await ws.send("x")
        await eventually(lambda: host.hub.turns.crowded)
        await asyncio.sleep(1.0)  # in which nothing can be heard
        assert len(busy.connections) == 1
        busy.gate.set()
        for _ in range(BACKLOG + CREDIT):
            assert await asyncio.wait_for(ws.recv(), PATIENCE) == "x"
        await asyncio.sleep(0.2)  # nor is that held against anybody afterwards
        assert not busy.closed


def lose(monkeypatch: pytest.MonkeyPatch, op: int) -> list[Any]:
    """Have the next batch with such an event or command lost on its way; return where it is to be found then."""
    lost: list[Any] = []
    send = Pump._send

    async def lossy(pump: Pump, aio: Any, batch: tuple[Any, ...]) -> None:
        if not lost and any(event[0] == op for event in batch[4]):
            lost.append(batch)
        else:
            await send(pump, aio, batch)

    monkeypatch.setattr(Pump, "_send", lossy)
    return lost


@pytest.mark.parametrize("op", [Event.HELLO, Command.ATTACH, Event.SNAP, Command.READY])
async def test_attaching_anew_gets_over_the_loss_of_any_batch_of_it(op: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "SNAP_ENTRIES", 1)  # the first of two is lost: the other one alone is not all that there is
    async with Rig(Memory(), link_timeout=1.0) as rig:
        ada, bob = await rig.connect("/memory?name=Ada"), await rig.connect("/memory?name=Bob")
        for ws in (ada, bob):
            assert await receive(ws) == "hello"
        lost, pump = lose(monkeypatch, op), rig.fronts[0].links[0].pump
        pump._batcher._seq += 1  # what makes them attach anew
        pump.put((Event.PING, 0.0))
        await eventually(lambda: lost)
        await ada.send("1")
        for ws in (ada, bob):
            assert await receive(ws) == ["Ada", 1, ["Ada", "Bob"]]
        assert rig.hosts[0].hub.counts.closed == 0


@pytest.mark.parametrize("op", [Event.HELLO, Command.ATTACH, Event.SNAP, Command.READY])
async def test_the_next_process_is_attached_though_a_batch_of_that_is_lost(op: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Rig(Memory(), link_timeout=1.0) as rig:
        ada = await rig.connect("/memory?name=Ada")
        assert await receive(ada) == "hello"
        await rig.kill(rig.hosts[0])
        rig.fronts[0].notice(0, start())
        lost = lose(monkeypatch, op)
        await rig.start_service(0, Memory())
        await ada.send("1")
        assert await receive(ada) == ["Ada", 1, ["Ada"]]
        assert lost


@pytest.mark.parametrize("end", ["killed", "stopped"])
async def test_a_restarted_front_end_is_attached_though_its_first_word_is_lost(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Rig(Memory(), link_timeout=1.0) as rig:
        if end == "stopped":
            rig.fronts[0].stop()
            await rig.tasks[rig.fronts[0]]
        await rig.kill(rig.fronts[0])
        rig.hosts[0].notice(0, start())
        lost = lose(monkeypatch, Event.HELLO)
        await rig.start_front(0, incarnation=1)
        assert lost
        assert await receive(await rig.connect("/memory?name=Ada")) == "hello"


async def test_who_asks_the_front_ends_is_told_that_one_of_them_has_ended() -> None:
    class Curious(Echo):
        async def on_message(self, conn: Connection, message: Any) -> None:
            try:
                await asyncio.gather(*rig.hosts[0].query("counts"))
            except PeerDied as error:
                await conn.send(str(error))

    async with Rig(Curious(), fronts=2) as rig:
        ws = await rig.connect("/echo")
        await rig.kill(rig.fronts[1])
        await ws.send("ask")
        await eventually(lambda: rig.hosts[0]._queries)
        rig.hosts[0].notice(1, start())
        assert "front end 1 has ended" in str(await asyncio.wait_for(ws.recv(), PATIENCE))


async def test_what_is_told_anew_while_connections_are_taken_over_is_taken_over_too() -> None:
    class Slow(Memory):
        def __init__(self) -> None:
            super().__init__()
            self.gate = asyncio.Event()

        async def on_attach(self, conns: list[Connection]) -> None:
            self.seen.append("attach")
            await self.gate.wait()

    async with Rig(Memory()) as rig:
        ada = await rig.connect("/memory?name=Ada")
        assert await receive(ada) == "hello"
        await rig.kill(rig.hosts[0])
        rig.fronts[0].notice(0, start())
        slow = Slow()
        host, link = await rig.start_service(0, slow), rig.fronts[0].links[0]
        await eventually(lambda: slow.seen)
        token, table = link.token, link.route.table
        for peer in table.peers.values():
            table.rooms.join(peer, "unheard of")  # as if the service had missed that
        link.pump._batcher._seq += 1
        link.pump.put((Event.PING, 0.0))
        await eventually(lambda: link.token != token and host._fronts[0].attached)
        slow.gate.set()
        await eventually(lambda: link.up and not table.rooms.members("unheard of"))
        await ada.send("1")
        assert await receive(ada) == ["Ada", 1, ["Ada"]]


async def test_nonsense_in_an_inbox_is_dropped(rooms: Rig, caplog: pytest.LogCaptureFixture) -> None:
    for channel in (rooms.inboxes[0], rooms.front_inboxes[0]):
        channel.send("nonsense")
        channel.send([1, 99, 1, 1, []])
        channel.send([1, 0, 1, 1, [[Command.SEND, 5, "T", b"x"]]])
    ada = await enter(rooms, "Ada", 0)
    assert (await receive(ada))["op"] == "welcome"
    assert rooms.hosts[0].hub.counts.nonsense == rooms.fronts[0].counts.nonsense == 3
    assert len(caplog.records) == 6


async def test_a_wrong_command_takes_no_other_with_it(rooms: Rig, caplog: pytest.LogCaptureFixture) -> None:
    ada = await enter(rooms, "Ada", 0)
    cid = int((await receive(ada))["id"], 16)
    for command in (
        (Command.SEND, cid, "T", b"1", CUT),
        (Command.JOIN, cid, [b"abc"]),
        (Command.SEND, cid, "T", b"2", CUT),
    ):
        rooms.hosts[0].put(0, command)
    assert [await receive(ada), await receive(ada)] == [1, 2]
    (record,) = caplog.records  # and so there was no gap
    assert "a command of service0 is dropped: op 36: field 2" in record.getMessage()
    assert rooms.fronts[0].counts.nonsense == 1


async def test_a_command_that_cannot_be_sent_takes_no_other_with_it(rooms: Rig, caplog: pytest.LogCaptureFixture) -> None:
    ada = await enter(rooms, "Ada", 0)
    cid = int((await receive(ada))["id"], 16)
    for command in (
        (Command.SEND, cid, "T", b"1", CUT),
        (Command.REJECT, 5, 403, "\ud800"),  # half of a surrogate pair, which no serializer can express
        (Command.SEND, cid, "T", b"2", CUT),
        (Command.REJECT, 6, 403, "\ud800"),
    ):
        rooms.hosts[0].put(0, command)
    assert [await receive(ada), await receive(ada)] == [1, 2]
    await ada.send(json.dumps({"op": "join", "room": "tea"}))
    assert (await receive(ada))["op"] == "users"
    assert rooms.hosts[0]._fronts[0].pump.lost == 2
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "what was to be said to front end 0 cannot be sent and is left out (op 43)"
    ] * 2  # and so there was no gap


async def test_late_commands_hit_nobody(rooms: Rig) -> None:
    ada = await enter(rooms, "Ada", 0)
    cid = int((await receive(ada))["id"], 16)
    host = rooms.hosts[0]
    earlier = Cid.unpack(cid)._replace(incarnation=5).pack()
    for command in (
        (Command.SEND, earlier, "T", b"1", CUT),
        (Command.JOIN, earlier, ["a"]),
        (Command.CLOSE, earlier, 1000, ""),
    ):
        host.put(0, command)
    # A batch of an earlier start of the service.
    rooms.front_inboxes[0].send([1, 0, 5, 77, [[Command.SEND, cid, "T", b"2", CUT]]])
    host.put(0, (Command.SEND, cid, "T", b"3", CUT))
    host.put(0, (Command.SEND, cid, "T", b"4", CUT))
    assert [await receive(ada), await receive(ada)] == [3, 4]
    assert rooms.fronts[0].counts.unknown == 3
    assert rooms.fronts[0].counts.stale == 1


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"path": None}, "service0: path = None is no path"),
        ({"path": "echo"}, "service0: path = 'echo' is no path"),
        ({"path": "/café"}, "service0: path = '/café' is no path"),
        ({"path": "/two words"}, "service0: path = '/two words' is no path"),
        ({"limits": {"rate": 5}}, "service0: limits = {'rate': 5} are no ipcbus.web.Limits"),
        ({"limits": Limits(rate=-5)}, "service0: limits: rate must be at least 0, not -5"),
    ],
)
async def test_what_is_wrong_with_a_class_is_said_at_its_start(wrong: dict[str, Any], why: str) -> None:
    with ipcbus.open("inproc:") as inbox, pytest.raises(ConfigError) as error:
        Host(type("Wrong", (Echo,), wrong)(), "service0", 0, inbox, [])
    assert why in str(error.value)


async def test_two_services_for_one_path_are_refused() -> None:
    rig = Rig(Echo(), Echo())
    await rig.start_service(0)
    await rig.start_service(1)
    with pytest.raises(ConfigError, match="both want the path '/echo'"):
        await rig.start_front(0)
    rig.tasks.pop(rig.fronts[0])
    await rig.__aexit__()


async def test_a_later_process_that_wants_the_path_of_another_service_gets_no_clients(caplog: pytest.LogCaptureFixture) -> None:
    class Other(Echo):
        path = "/other"

    first = Echo()
    async with Rig(first, Other()) as rig:
        (front,) = rig.fronts
        ws, waiting = await rig.connect("/echo"), await rig.connect("/other")
        await rig.kill(rig.hosts[1])
        front.notice(1, start())
        rival = await rig.start_service(1, Echo())
        await eventually(lambda: "service1 and service0 both want the path '/echo'" in caplog.text)
        for client in (ws, await rig.connect("/echo")):
            await client.send("still here")
            assert await asyncio.wait_for(client.recv(), PATIENCE) == "still here"
        await rig.kill(rival)
        front.notice(1, start())
        mended = await rig.start_service(1, Other())
        await waiting.send("again")
        assert await asyncio.wait_for(waiting.recv(), PATIENCE) == "again"
        # A front end that is started later serves whoever came first, and so the other services.
        await rig.kill(mended)
        await rig.kill(front)
        await rig.start_service(1, Echo())
        await rig.start_front(0, incarnation=1)
        ws = await rig.connect("/echo")
        await ws.send("and here")
        assert await asyncio.wait_for(ws.recv(), PATIENCE) == "and here"


async def test_stopping_tells_clients_and_services() -> None:
    echo = Echo()
    async with Rig(echo) as rig:
        ws = await rig.connect("/echo")
        rig.fronts[0].stop()
        assert await until_closed(ws) == 1001
        assert await echo.next_close() == 1001
        await asyncio.wait_for(rig.tasks.pop(rig.fronts[0]), PATIENCE)
        assert rig.front_inboxes[0].stats().depth == 0  # it has read all that was sent to it
        rig.hosts[0].put(0, (Command.SEND, 5, "T", b"x", CUT))
        rig.hosts[0].stop()
        await asyncio.wait_for(rig.tasks.pop(rig.hosts[0]), PATIENCE)
        assert rig.front_inboxes[0].stats().depth == 0  # and nothing was sent after that


async def test_where_everything_is_told_to_stop_services_hear_of_the_last_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a signal to the whole group of processes does, which the front end here gets last."""
    monkeypatch.setattr(frontend, "_MOMENT", PATIENCE)  # the machine may be slow
    closed = []

    class Farewell(Echo):
        def on_close(self, conn: Connection, code: int) -> None:
            closed.append(code)

        def on_stop(self) -> None:
            closed.append("stop")

    async with Rig(Farewell()) as rig:
        for _ in range(3):
            await rig.connect("/echo")
        (host,), (front,) = rig.hosts, rig.fronts
        link, bye = front.links[0], front._bye
        heard = asyncio.Event()
        monkeypatch.setattr(front, "_bye", lambda *args: heard.set() or bye(*args))
        host.stop()
        await asyncio.wait_for(heard.wait(), PATIENCE)
        front.stop()
        await asyncio.wait_for(asyncio.gather(rig.tasks[front], rig.tasks[host]), PATIENCE)
        assert not link.leaving
    assert closed == [1001, 1001, 1001, "stop"]
