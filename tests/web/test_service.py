from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from ipcbus.demo.chat import Chat
from ipcbus.errors import ConfigError, IpcbusError, MessageTooLarge
from ipcbus.web import Connection, Service
from ipcbus.web.hub import BACKLOG
from ipcbus.web.link import MAX_PAYLOAD
from ipcbus.web.testing import ServiceTest


def test_importing_a_service_needs_no_websocket_library() -> None:
    import subprocess
    import sys

    code = "import sys, ipcbus.web; assert 'websockets' not in sys.modules and 'asyncio' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


async def test_two_people_talk_and_a_third_elsewhere_hears_nothing() -> None:
    async with ServiceTest(Chat()) as test:
        ada = await test.connect(query="name=Ada")
        bob = await test.connect(query="name=Bob", front=1)
        cyd = await test.connect(query="name=Cyd")
        for client in (ada, bob, cyd):
            (welcome,) = client.take()
            assert welcome["id"] == f"{client.id:x}"
        await ada.send({"op": "join", "room": "tea"})
        await cyd.send({"op": "join", "room": "coffee"})
        await bob.send({"op": "join", "room": "tea"})
        assert ada.take() == [
            {"op": "users", "room": "tea", "users": ["Ada"]},
            {"op": "joined", "room": "tea", "name": "Bob"},
        ]
        assert bob.take() == [{"op": "users", "room": "tea", "users": ["Ada", "Bob"]}]
        assert cyd.take() == [{"op": "users", "room": "coffee", "users": ["Cyd"]}]
        await bob.send({"op": "say", "room": "tea", "text": "hi"})
        said = {"op": "said", "room": "tea", "name": "Bob", "text": "hi"}
        assert (ada.take(), bob.take(), cyd.take()) == ([said], [said], [])
        await cyd.send({"op": "say", "room": "tea", "text": "let me in"})
        assert ada.take() == []
        assert cyd.take()[0]["op"] == "error"
        await bob.close()
        assert ada.take() == [{"op": "left", "room": "tea", "name": "Bob"}]
        await ada.send({"op": "users", "room": "tea"})
        assert ada.take() == [{"op": "users", "room": "tea", "users": ["Ada"]}]


async def test_chat_names_are_unique_and_bounded() -> None:
    async with ServiceTest(Chat()) as test:
        names = [
            (await test.connect(query=query)).take()[0]["name"] for query in ("name=Eve", "name=Eve", "", "name=" + "x" * 99)
        ]
    assert names == ["Eve", "Eve 2", "guest", "x" * 24]


class Recorder(Service):
    """Writes down what happens; async handlers take a turn of the loop or wait for a gate."""

    path, codec = "/rec", "json"

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.gate = asyncio.Event()

    async def on_open(self, conn: Connection) -> None:
        await asyncio.sleep(0)
        self.seen.append(("open", conn.peer))

    async def on_message(self, conn: Connection, message: Any) -> None:
        if message == "wait":
            await self.gate.wait()
        if message == "raise":
            raise RuntimeError("on purpose")
        if message == "close":
            await conn.close(4000, "bye")
        self.seen.append((conn.peer, message))

    async def on_close(self, conn: Connection, code: int) -> None:
        self.seen.append(("close", conn.peer, code))


async def test_handlers_of_one_connection_run_in_order_while_others_go_on() -> None:
    service = Recorder()
    async with ServiceTest(service) as test:
        slow, quick = await test.connect(), await test.connect()
        service.seen.clear()
        waiting = asyncio.create_task(slow.send("wait"))
        behind = asyncio.create_task(slow.send("after"))
        await asyncio.sleep(0)
        for message in ("one", "two"):
            test.hub.deliver([3, quick.id, "T", f'"{message}"'.encode()])
        async with asyncio.timeout(5):
            while ("test:2", "two") not in service.seen:  # noqa: ASYNC110  turn by turn of the loop, to see what runs
                await asyncio.sleep(0)
        assert service.seen == [("test:2", "one"), ("test:2", "two")]
        test.gone(slow, 1001)
        service.gate.set()
        await asyncio.gather(waiting, behind)
        assert service.seen[2:] == [("test:1", "wait"), ("test:1", "after"), ("close", "test:1", 1001)]


async def test_a_failing_handler_closes_its_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    service = Recorder()
    async with ServiceTest(service) as test:
        bad, good = await test.connect(), await test.connect()
        with caplog.at_level(logging.ERROR, "ipcbus.web"):
            await bad.send("raise")
        assert bad.closed == (1011, "internal error")
        assert f"{bad.id:x}" in caplog.text
        assert "on purpose" in caplog.text
        assert ("close", "test:1", 1011) in service.seen
        await good.send("still here")
        assert service.seen[-1] == ("test:2", "still here")
        assert test.hub.counts.handler_failures == 1
        assert good.closed is None


async def test_what_follows_the_services_own_close_is_not_delivered() -> None:
    service = Recorder()
    async with ServiceTest(service) as test:
        client = await test.connect()
        test.hub.deliver([3, client.id, "T", b'"close"'])
        test.hub.deliver([3, client.id, "T", b'"late"'])
        await test.settle()
        assert client.closed == (4000, "bye")
        assert ("test:1", "late") not in service.seen
        assert service.seen[-1] == ("close", "test:1", 4000)


@pytest.mark.parametrize(
    ("codec", "kind", "data", "code"),
    [
        ("json", "T", b"{", 1007),
        ("json", "T", b"[" * 100_000, 1007),
        ("json", "B", b"{}", 1003),
        ("text", "B", b"x", 1003),
        ("msgpack", "B", b"\xc1", 1007),
        ("msgpack", "T", b"x", 1003),
    ],
)
async def test_a_message_that_cannot_be_read_closes_the_connection(codec: str, kind: str, data: bytes, code: int) -> None:
    service = Recorder()
    service.codec = codec  # type: ignore[misc]  # a class variable, set on this instance for the test
    async with ServiceTest(service) as test:
        client = await test.connect()
        await client.send_raw(kind, data)
        assert client.closed is not None
        assert client.closed[0] == code
        assert test.hub.counts.bad_messages == 1
        assert [entry[0] for entry in service.seen] == ["open", "close"]


class Plain(Service):
    """Plain handlers, the raw codec, and every other thing a service can ask for."""

    path, codec = "/plain", "raw"

    def on_open(self, conn: Connection) -> None:
        conn.join("all")

    def on_message(self, conn: Connection, message: Any) -> Any:
        if message == "leave":
            conn.leave("all")
        elif message == "others":
            return self.publish("all", "x", exclude=conn)
        else:
            self.publish("all", message)
        return None

    def on_close(self, conn: Connection, code: int) -> None:
        self.last = (conn.groups, self.members("all"), conn.open)


@pytest.mark.parametrize("message", ["text é", b"\x00bytes", "", b""])
async def test_plain_handlers_and_both_kinds_of_payload(message: str | bytes) -> None:
    async with ServiceTest(Plain()) as test:
        first, second = await test.connect(), await test.connect(front=5)
        await first.send(message)
        assert first.take() == second.take() == [message]


async def test_leaving_and_excluding() -> None:
    service = Plain()
    async with ServiceTest(service) as test:
        first, second, third = [await test.connect(front=number) for number in (0, 0, 1)]
        await first.send("others")
        assert (first.take(), second.take(), third.take()) == ([], ["x"], ["x"])
        await third.send("leave")
        await first.send("hello")
        assert (second.take(), third.take()) == (["hello"], [])
        assert {conn.id for conn in service.members("all")} == {first.id, second.id}
        await second.close()
        groups, members, is_open = service.last
        assert groups == {"all"}
        assert {conn.id for conn in members} == {first.id}
        assert not is_open
    assert service.members("all") == service.connections == frozenset()


async def test_a_connection_that_is_gone_takes_orders_quietly() -> None:
    class Late(Service):
        codec = "text"

        def on_open(self, conn: Connection) -> None:
            self.conn = conn

    service = Late()
    async with ServiceTest(service) as test:
        client = await test.connect(query="a=1&b=&a=2", headers={"user-agent": "me"})
        assert service.conn.query == {"a": "2", "b": ""}
        assert service.conn.headers == {"user-agent": "me"}
        await client.close()
        await service.conn.send("x")
        await service.conn.join("room")
        await service.conn.leave("room")
        await service.conn.close()
        assert client.take() == []
        assert service.members("room") == frozenset()


async def test_mistakes_of_the_service_are_told_where_they_are_made() -> None:
    service = Plain()
    async with ServiceTest(service) as test:
        await test.connect()
        (conn,) = service.connections
        for code in (0, 999, 1005, 1006, 1015, 2999, 5000):
            with pytest.raises(ValueError, match="close code"):
                conn.close(code)
        with pytest.raises(ValueError, match="123 bytes"):
            conn.close(1000, "é" * 62)
        with pytest.raises(TypeError, match="bytes"):
            conn.send(5)
        with pytest.raises(MessageTooLarge):
            conn.send(bytes(MAX_PAYLOAD + 1))
        assert conn.open
        with pytest.raises(IpcbusError, match="runs already"):
            ServiceTest(service)


def test_a_service_that_does_not_run_says_so() -> None:
    with pytest.raises(IpcbusError, match="not running"):
        Chat().publish("room", {})


async def test_an_unknown_codec_is_named() -> None:
    service = Plain()
    service.codec = "jsno"  # type: ignore[misc]  # as above
    with pytest.raises(ConfigError, match="did you mean 'json'"):
        ServiceTest(service)


async def test_a_slow_handler_holds_back_the_inbox_and_not_memory() -> None:
    service = Recorder()
    async with ServiceTest(service) as test:
        client = await test.connect()
        for _ in range(BACKLOG):
            test.hub.deliver([3, client.id, "T", b'"wait"'])
        calm = asyncio.create_task(test.hub.turns.calm())
        await asyncio.sleep(0)
        assert not calm.done()
        service.gate.set()
        await calm


async def test_events_of_strangers_are_counted() -> None:
    async with ServiceTest(Plain()) as test:
        test.hub.deliver([3, 12345, "T", b"x"])
        test.hub.deliver([4, 12345, 1000, "", True])
        assert test.hub.counts.unknown == 2
