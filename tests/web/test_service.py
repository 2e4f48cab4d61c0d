from __future__ import annotations

import asyncio
import enum
import logging
from typing import Any

import msgspec
import pytest

from ipcbus.errors import ConfigError, IpcbusError, MessageTooLarge
from ipcbus.web import Accept, Connection, Limits, Reject, Request, Service
from ipcbus.web.hub import BACKLOG
from ipcbus.web.link import MAX_PAYLOAD, Cid, Command, Event
from ipcbus.web.state import State, decode_state, encode_state
from ipcbus.web.testing import ServiceTest
from ipcbus.web.ticker import Ticker


def test_importing_a_service_needs_no_websocket_library() -> None:
    import subprocess
    import sys

    code = "import sys, ipcbus.web; assert 'websockets' not in sys.modules and 'asyncio' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


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


class Cancels(Service):
    """Awaits something that is cancelled, as who ends a task of its own does."""

    path, codec = "/cancels", "text"

    def __init__(self) -> None:
        self.closed: list[int] = []
        self.every(1.0)(self.later)

    async def later(self) -> None:
        task = asyncio.create_task(asyncio.sleep(600))
        task.cancel()
        await task

    def now(self) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        future.result()

    async def authorize(self, request: Request) -> None:
        if request.query:
            await self.later()

    def on_message(self, conn: Connection, message: str) -> Any:
        return getattr(self, message)()

    def on_close(self, conn: Connection, code: int) -> None:
        self.closed.append(code)


@pytest.mark.parametrize("way", ["now", "later"])
async def test_what_a_handler_waits_for_may_be_cancelled_which_is_a_failure_like_any_other(way: str) -> None:
    service = Cancels()
    async with ServiceTest(service) as test:
        client = await test.connect()
        await client.send(way)
        assert client.closed == (1011, "internal error")
        assert service.closed == [1011]
        await test.tick()
        assert test.hub.counts.handler_failures == 2
        with pytest.raises(Reject) as refusal:
            await test.connect(query="later")
        assert refusal.value.status == 500
        assert test.hub.counts.handler_failures == 3


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
        client = await test.connect(query="a=1&b=&a=2", headers={"User-Agent": "me"})
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
        Recorder().publish("room", {})


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


# ---------------------------------------------------------------------- who may come in


class Guarded(Service):
    path, codec = "/guarded", "json"

    async def authorize(self, request: Request) -> Any:
        match request.cookies.get("user"):
            case None:
                raise Reject(401, "who are you?")
            case "banned":
                raise Reject(4403, "not you")
            case "broken":
                raise RuntimeError("on purpose")
            case user:
                chosen = "v2" if "v2" in request.protocols else None
                return Accept({"user": user}, chosen, {"X-Hello": user})

    async def on_message(self, conn: Connection, message: Any) -> None:
        conn.state["last"] = message
        await conn.send(conn.state)


async def test_a_client_that_was_closed_gets_nothing_more() -> None:
    class Farewell(Service):
        def on_open(self, conn: Connection) -> None:
            conn.join("all")

        def on_message(self, conn: Connection, message: Any) -> None:
            self.publish("all", "before")
            conn.close(4000, "bye")
            self.publish("all", "after")

    async with ServiceTest(Farewell()) as test:
        client, other = await test.connect(), await test.connect()
        await client.send("go")
        assert (client.take(), client.closed) == (["before"], (4000, "bye"))
        assert other.take() == ["before", "after"]


async def test_authorize_gives_the_state_or_refuses(caplog: pytest.LogCaptureFixture) -> None:
    async with ServiceTest(Guarded()) as test:
        client = await test.connect(cookies={"user": "ada"}, protocols=["v1", "v2"])
        assert client.subprotocol == "v2"
        await client.send(1)
        assert client.take() == [{"user": "ada", "last": 1}]
        for cookies, status in (({}, 401), ({"user": "banned"}, 4403), ({"user": "broken"}, 500)):
            with pytest.raises(Reject) as refused:
                await test.connect(cookies=cookies)
            assert refused.value.status == status
    assert [record.levelname for record in caplog.records] == ["ERROR"]


@pytest.mark.parametrize("status", [0, 200, 302, 1005, 1006, 1015, 2000, 5000])
def test_a_refusal_is_an_http_error_or_a_close_code(status: int) -> None:
    with pytest.raises(ValueError, match="neither"):
        Reject(status)


def test_the_reason_of_a_close_code_has_to_fit_and_that_of_an_http_error_has_not() -> None:
    assert Reject(4403, "x" * 123).reason == "x" * 123
    for reason in ("x" * 124, "é" * 62):
        with pytest.raises(ValueError, match="at most 123 bytes of UTF-8, this one has 124; make it shorter"):
            Reject(4403, reason)
        assert Reject(403, reason).reason == reason
    for status in (403, 4403):
        with pytest.raises(ValueError, match="surrogates"):
            Reject(status, "\ud800")


# ---------------------------------------------------------------------- what outlives a process


async def test_another_instance_takes_over_rooms_and_states() -> None:
    class Keeper(Service):
        codec = "json"

        def __init__(self) -> None:
            self.attached: list[Any] = []

        def on_attach(self, conns: list[Connection]) -> None:
            self.attached = sorted((conn.state["n"], sorted(conn.groups)) for conn in conns)

        def on_open(self, conn: Connection) -> None:
            conn.state["n"] = int(conn.query["n"])
            conn.join("odd" if conn.state["n"] % 2 else "even")

        def on_message(self, conn: Connection, message: Any) -> None:
            conn.state["n"] += 10
            self.publish(["odd", "even"], conn.state["n"])

    async with ServiceTest(Keeper()) as test:
        clients = [await test.connect(query=f"n={number}", front=number) for number in range(3)]
        await clients[0].send("x")
        again = Keeper()
        await test.restart(again)
        assert again.attached == [(1, ["odd"]), (2, ["even"]), (10, ["even"])]
        assert [client.take() for client in clients] == [[10]] * 3
        await clients[1].send("x")
        assert [client.take() for client in clients] == [[11]] * 3


def test_a_state_notices_every_kind_of_change() -> None:
    changes = 0

    def changed() -> None:
        nonlocal changes
        changes += 1

    state = State(changed, {"a": 1})
    assert changes == 0
    for change in (
        lambda: state.__setitem__("b", 2),
        lambda: state.__delitem__("b"),
        lambda: state.update(c=3),
        lambda: state.pop("c"),
        lambda: state.setdefault("d", 4),
        lambda: state.popitem(),
        lambda: state.__ior__({"e": 5}),
        lambda: state.clear(),
    ):
        before = changes
        change()
        assert changes == before + 1
    state.setdefault("f")
    before = changes
    assert state.setdefault("f", 1) is None
    assert changes == before


async def test_a_state_that_is_assigned_as_a_whole_is_kept() -> None:
    service = Recorder()
    async with ServiceTest(service) as test:
        client = await test.connect()
        (conn,) = service.connections
        for change in ({"name": "ada", "age": 36}, {"name": "bob"}):
            conn.state = change
            test.hub.flush()
            assert decode_state(test._states[client.id]) == change
        conn.state |= {"age": 7}
        conn.state["more"] = True
        test.hub.flush()
        assert decode_state(test._states[client.id]) == {"name": "bob", "age": 7, "more": True} == conn.state


async def test_a_state_that_another_thread_has_tried_to_change_is_told_after_the_next_change() -> None:
    service = Recorder()
    async with ServiceTest(service) as test:
        client = await test.connect()
        (conn,) = service.connections
        with pytest.raises(RuntimeError, match="no running event loop"):
            await asyncio.to_thread(conn.state.update, {"by": "a thread"})
        conn.state["then"] = 1
        test.hub.flush()
        assert decode_state(test._states[client.id]) == {"by": "a thread", "then": 1}


async def test_the_state_of_another_processs_connection_is_what_that_process_says() -> None:
    service = Plain()
    async with ServiceTest(service) as test:
        cid = Cid(0, 1, 1 << 20).pack()
        request = {"path": "/plain", "query": "", "headers": {}, "peer": "", "at": 0.0}
        told: list[Any] = []
        test.put = lambda front, command, size=0: told.append(command)  # type: ignore[method-assign]  # to see what it says
        test.hub.deliver([Event.PEER, cid, request, encode_state({"admin": True, "name": "ada"})])
        (conn,) = service.connections
        test.hub.deliver([Event.STATE, cid, encode_state({"name": "ada"})])
        assert conn.state == {"name": "ada"}
        test.hub.restore(0, [[cid, request, encode_state({"age": 36}), [], 0]])
        assert service.connections == {conn}
        assert conn.state == {"age": 36}
        test.hub.deliver([Event.STATE, cid, encode_state({})])
        assert conn.state == {}
        test.hub.flush()
        assert told == []  # it is not for this one to say


def nested(depth: int) -> list[Any]:
    """Return lists in one another."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("x", object(), "object"),
        ("x", "x" * 5000, "5006 bytes"),
        ("x", 1 << 64, "serialize ints"),
        ("x", nested(3000), "recursion"),
        (5, "x", "Expected `str`, got `int`"),
        ("x", msgspec.msgpack.Ext(-1, b"x"), "timestamp"),
    ],
)
async def test_a_state_that_cannot_travel_closes_its_connection(
    key: Any, value: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(Service):
        codec = "json"

        def on_open(self, conn: Connection) -> None:
            conn.local["any"] = value
            conn.state[key] = value

    async with ServiceTest(Wrong()) as test:
        client = await test.connect()
        assert client.closed == (1011, "internal error")
    assert why in caplog.text


# ---------------------------------------------------------------------- what else services do


async def test_what_is_done_regularly() -> None:
    class Ticking(Service):
        codec = "json"

        def __init__(self) -> None:
            self.every(3600)(self.tick)
            self.every(3600)(self.fail)
            self.started = self.stopped = 0

        async def on_start(self) -> None:
            self.started += 1

        def on_stop(self) -> None:
            self.stopped += 1

        def on_open(self, conn: Connection) -> None:
            conn.join("all")

        async def tick(self) -> None:
            await self.publish("all", "tick", slow="latest:tick")

        def fail(self) -> None:
            raise RuntimeError("on purpose")

    service = Ticking()
    async with ServiceTest(service) as test:
        client = await test.connect()
        await test.tick()
        await test.tick()
        assert client.take() == ["tick", "tick"]
        assert service.started == 1
    assert service.stopped == 1
    assert test.hub.counts.handler_failures == 2
    with pytest.raises(ValueError, match="more than 0"):
        service.every(0)(service.tick)


async def test_a_ticker_keeps_its_times(monkeypatch: pytest.MonkeyPatch) -> None:
    ticker = Ticker(lambda: None)
    now, due = 0.0, []
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def until(moment: float) -> None:
        nonlocal now
        await asyncio.sleep(0)
        due.append(moment)
        now = moment + 0.25  # a little late

    async def tick() -> None:
        nonlocal now
        if len(due) == 2:
            now += 2  # two are missed, and not made up for
        if len(due) == 4:
            done.set()

    monkeypatch.setattr("ipcbus.web.ticker.until", until)
    ticker.add(1, tick)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "time", lambda: now)
        ticker.start()
        await done.wait()
        await ticker.stop()
    assert due[:4] == [1, 2, 5, 6]


class Move(msgspec.Struct, tag="move"):
    x: int
    y: int


class Shout(msgspec.Struct, tag="shout"):
    text: str


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_messages_of_a_type(codec: str) -> None:
    class Typed(Service):
        message_type = Move | Shout

        def on_message(self, conn: Connection, message: Move | Shout) -> None:
            match message:
                case Move(x, y):
                    conn.send({"sum": x + y})
                case Shout(text):
                    conn.send(Shout(text.upper()))

    Typed.codec = codec
    async with ServiceTest(Typed()) as test:
        client = await test.connect()
        await client.send(Move(1, 2))
        await client.send({"type": "shout", "text": "hi"})
        assert client.take() == [{"sum": 3}, {"type": "shout", "text": "HI"}]
        await client.send({"type": "move", "x": "1", "y": 2})
        noun = {"json": "JSON", "msgpack": "MessagePack"}[codec]
        assert client.closed == (1007, f"{noun} that does not fit: Expected `int`, got `str` - at `$.x`")
        other = await test.connect()
        await other.send({"type": "é" * 200})
        assert other.closed is not None
        assert other.closed[1].startswith(f"{noun} that does not fit: Invalid value 'éé")
        assert len(other.closed[1].encode()) <= 123
        third = await test.connect()
        await third.send_raw("T" if codec == "json" else "B", b"\xc1")
        assert third.closed == (1007, f"not valid {noun}")


async def test_protobuf_messages() -> None:
    from google.protobuf.wrappers_pb2 import StringValue

    class Proto(Service):
        codec, message_type = "protobuf", StringValue

        def on_message(self, conn: Connection, message: StringValue) -> None:
            conn.send(StringValue(value=message.value * 2))

    async with ServiceTest(Proto()) as test:
        client = await test.connect()
        await client.send(StringValue(value="é"))
        assert client.take() == [StringValue(value="éé")]
        await client.send_raw("B", b"\xff\xff")
        assert client.closed is not None
        assert client.closed[0] == 1007


@pytest.mark.parametrize(("codec", "kind"), [("protobuf", None), ("protobuf", int), ("text", int), ("json", object())])
def test_a_type_that_does_not_go_with_the_codec(codec: str, kind: Any) -> None:
    class Wrong(Service):
        message_type = kind

    Wrong.codec = codec
    with pytest.raises(ConfigError, match="message_type"):
        ServiceTest(Wrong())


async def test_rooms_have_a_number_and_names_a_length() -> None:
    class Joins(Service):
        codec, limits = "json", Limits(groups=2)

        def on_message(self, conn: Connection, message: Any) -> None:
            conn.join(message)

    service = Joins()
    async with ServiceTest(service) as test:
        client = await test.connect()
        for room in ("a", "b", "a"):
            await client.send(room)
        assert client.closed is None
        await client.send("c")
        assert client.closed == (1008, "too many rooms")
        other = await test.connect()
        await other.send("x" * 129)
        assert other.closed == (1011, "internal error")
        assert test.hub.counts.too_many_rooms == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"join": b"abc"},
        {"join": ["a"]},
        {"join": "\ud800"},
        {"leave": b"abc"},
        {"leave": {"a": 1}},
        {"publish": 5},
        {"publish": ["lobby", 5]},
        {"publish": b"lobby"},
        {"close": 4000.0},
        {"close": "4000"},
        {"close": True},
        {"reason": 5},
    ],
)
async def test_what_a_client_sends_for_a_room_or_a_code_closes_that_client_and_goes_no_further(wrong: dict[str, Any]) -> None:
    class Trusting(Service):
        codec = "raw"

        def on_message(self, conn: Connection, message: Any) -> None:
            match wrong:
                case {"join": room}:
                    conn.join(room)
                case {"leave": room}:
                    conn.leave(room)
                case {"publish": rooms}:
                    self.publish(rooms, "x")
                case {"close": code}:
                    conn.close(code)
                case {"reason": reason}:
                    conn.close(4000, reason)

    async with ServiceTest(Trusting()) as test:
        client = await test.connect()
        commands: list[Any] = []
        put = test.put

        def record(front: int, command: tuple[Any, ...], size: int = 0) -> None:
            commands.append(command)
            put(front, command, size)

        test.put = record  # type: ignore[method-assign]  # to see what would go to the front end
        await client.send("now")
        assert client.closed == (1011, "internal error")
        assert [command[0] for command in commands] == [Command.CLOSE, Command.CLOSED]


async def test_names_and_codes_of_classes_of_their_own_travel_as_plain_ones() -> None:
    class Name(str):
        __slots__ = ()

    class Code(enum.IntEnum):
        DONE = 4000

    class Named(Service):
        codec = "raw"

        def on_open(self, conn: Connection) -> None:
            conn.join(Name("room"))

        def on_message(self, conn: Connection, message: Any) -> None:
            assert {type(room) for room in conn.groups} == {str}
            self.publish([Name("room")], message)
            conn.close(Code.DONE)

    async with ServiceTest(Named()) as test:
        client = await test.connect()
        await client.send("x")
        assert client.take() == ["x"]
        assert client.closed is not None
        assert [type(part) for part in client.closed] == [int, str]


@pytest.mark.parametrize(
    "headers", [{"X-Number": 5}, {5: "x"}, {"X-Name": "a\r\nSet-Cookie: b"}, {"X-Name": "5 €"}, {"X Name": "a"}, {"": "a"}]
)
async def test_headers_that_cannot_be_sent_refuse_the_client(headers: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(Service):
        def authorize(self, request: Request) -> Accept:
            return Accept(headers=headers)

    async with ServiceTest(Wrong()) as test:
        with pytest.raises(Reject) as refused:
            await test.connect()
        assert refused.value.status == 500
    assert "authorize failed" in caplog.text


async def test_sending_to_several_and_wrong_policies() -> None:
    service = Plain()
    async with ServiceTest(service) as test:
        clients = [await test.connect(front=front) for front in (0, 0, 1)]
        await service.send_to(list(service.connections), "all of you")
        await service.publish(["all", "nobody"], "once", slow="drop")
        assert [client.take() for client in clients] == [["all of you", "once"]] * 3
        for wrong in ("later", "latest:", "latest"):
            with pytest.raises(ValueError, match="'latest:KEY'"):
                service.publish("all", "x", slow=wrong)
        with pytest.raises(IpcbusError, match="nobody else is there"):
            await service.request("other", 1)
        assert service.shard == (0, 1)
