"""Front ends under people who do not mean well: each is refused or cut, counted, and nobody else notices."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from ipcbus.web import Accept, Connection, Limits, Reject, Request, Service
from ipcbus.web.config import FrontConfig
from ipcbus.web.gate import HELD_BYTES, HELD_EVENTS
from ipcbus.web.processes import tls_context
from ipcbus.web.terms import Terms

from .rig import PATIENCE, Echo, Rig, eventually, receive, refused, until_closed

UPGRADE = (
    b"GET %s HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

HEALTH = "GET /healthz HTTP/1.1\nHost: x"


async def raw(rig: Rig, path: bytes = b"/echo", buffer: int | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Do a handshake by hand and return the streams behind it."""
    sock = socket.socket()
    if buffer is not None:  # small ones, on both sides: it takes less to fill them
        rig.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, rig.sockets[0].getsockname())
    reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 12)
    writer.write(UPGRADE % path)
    async with asyncio.timeout(PATIENCE):
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    rig.raw.append(writer)
    return reader, writer


def masked(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    return bytes(Frame(opcode, data, fin=fin).serialize(mask=True, extensions=[]))


async def close_code(reader: asyncio.StreamReader) -> int:
    """Read frames until the closing one."""
    async with asyncio.timeout(PATIENCE):
        while True:
            first, size = await reader.readexactly(2)
            if size == 126:
                size = int.from_bytes(await reader.readexactly(2), "big")
            data = await reader.readexactly(size)
            if first & 15 == Opcode.CLOSE:
                return int.from_bytes(data[:2], "big")


def ended(reader: asyncio.StreamReader) -> bool:
    return reader.at_eof() or reader.exception() is not None


async def fine(rig: Rig) -> None:
    """Make sure that others are served."""
    async with asyncio.timeout(PATIENCE), connect(rig.url("/echo"), proxy=None) as ws:
        await ws.send("well?")
        assert await ws.recv() == "well?"


# ---------------------------------------------------------------------- handshakes


async def test_half_open_handshakes_are_few_and_short() -> None:
    async with Rig(Echo(), half_open=5, open_timeout=0.6) as rig:
        idle = [await asyncio.open_connection(*rig.sockets[0].getsockname()) for _ in range(5)]
        reader, writer = await asyncio.open_connection(*rig.sockets[0].getsockname())
        assert b" 503 " in await asyncio.wait_for(reader.read(), PATIENCE)
        writer.close()
        assert rig.fronts[0].counts.reasons == {"half-open": 1}
        for reader, _ in idle:  # and they do not keep their places
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        await fine(rig)
        for _, writer in idle:
            writer.close()


async def test_a_handshake_of_one_byte_a_moment_ends() -> None:
    async with Rig(Echo(), open_timeout=0.5) as rig:
        reader, writer = await asyncio.open_connection(*rig.sockets[0].getsockname())
        for byte in UPGRADE % b"/echo":
            writer.write(bytes((byte,)))
            await asyncio.sleep(0.01)
            if ended(reader):
                break
        assert ended(reader)
        writer.close()
        await fine(rig)


async def test_connections_in_total_and_of_one_address() -> None:
    async with Rig(Echo(), max_connections=3, per_address=2, exempt=()) as rig:
        first, second = [await rig.connect("/echo") for _ in range(2)]
        assert await refused(rig, "/echo") == 503
        assert rig.fronts[0].counts.reasons == {"address": 1}
        await first.close()
        await eventually(lambda: rig.fronts[0]._doors.doorman.inside == 1)
        await rig.connect("/echo")
        await second.close()
    async with Rig(Echo(), max_connections=3) as rig:
        for _ in range(3):
            await rig.connect("/echo")
        assert await refused(rig, "/echo") == 503
        assert rig.fronts[0].counts.reasons == {"full": 1}


async def test_a_trusted_proxy_names_the_client() -> None:
    class Who(Service):
        path, codec = "/who", "json"

        def on_open(self, conn: Connection) -> None:
            conn.send(conn.peer)

    async with Rig(Who(), trusted_proxies=("127.0.0.1",), per_address=1) as rig:
        ws = await rig.connect("/who", additional_headers={"X-Forwarded-For": "6.6.6.6, 192.0.2.7"})
        assert (await receive(ws)).startswith("192.0.2.7:")
        assert await refused(rig, "/who", additional_headers={"X-Forwarded-For": "192.0.2.7"}) == 429
        await rig.connect("/who", additional_headers={"X-Forwarded-For": "192.0.2.8"})
    async with Rig(Who()) as rig:
        ws = await rig.connect("/who", additional_headers={"X-Forwarded-For": "192.0.2.7"})
        assert (await receive(ws)).startswith("127.0.0.1:")


async def test_who_comes_by_a_trusted_proxy_does_not_wait_for_the_others_that_do() -> None:
    async with Rig(Echo(), trusted_proxies=("127.0.0.1",), per_address=1, exempt=()) as rig:
        begun = [await asyncio.open_connection(*rig.sockets[0].getsockname()) for _ in range(3)]
        await eventually(lambda: rig.fronts[0]._doors.doorman.half_open == 3)
        ws = await rig.connect("/echo", additional_headers={"X-Forwarded-For": "192.0.2.7"})
        assert await refused(rig, "/echo", additional_headers={"X-Forwarded-For": "192.0.2.7"}) == 429
        assert await refused(rig, "/echo") == 429  # who says of nobody counts itself
        for _, writer in begun:
            writer.close()
        await ws.close()
        await eventually(lambda: not rig.fronts[0]._doors.doorman._addresses)


@pytest.mark.parametrize("trusted", [(), ("192.0.2.1",), ("127.0.0.1",)])
async def test_what_proxies_say_is_believed_of_trusted_ones_only(trusted: tuple[str, ...]) -> None:
    class Asks(Service):
        path, codec = "/asks", "json"

        def authorize(self, request: Request) -> Any:
            return {"asked": request.headers}

        def on_open(self, conn: Connection) -> None:
            conn.send([conn.state["asked"], conn.headers])

    said = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.7", "X-Forwarded-Host": "other", "X-Own": "1"}
    headers = {name.lower(): value for name, value in said.items()}
    async with Rig(Asks(), trusted_proxies=trusted, headers=("X-Forwarded-Host", "x-own")) as rig:
        asked, kept = await receive(await rig.connect("/asks", additional_headers=said))
    if "127.0.0.1" in trusted:
        assert asked == headers
        assert kept == {"x-forwarded-host": "other", "x-own": "1"}
    else:
        assert asked == kept == {"x-own": "1"}


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no sockets for both kinds of addresses")
async def test_addresses_are_the_same_behind_a_socket_for_both_kinds() -> None:
    def both(rig: Rig) -> Rig:
        where = ("::ffff:127.0.0.1", 0)
        listening = socket.create_server(where, family=socket.AF_INET6, dualstack_ipv6=True)
        rig.sockets = [rig.stack.enter_context(listening)]
        return rig

    async with both(Rig(Echo(), per_address=1)) as rig:  # 127.0.0.0/8 is exempt
        ws, _ = [await rig.connect("/echo") for _ in range(2)]
        await ws.send("who")
        assert (await receive(ws))[2] == f"127.0.0.1:{ws.local_address[1]}"
    async with both(Rig(Echo(), trusted_proxies=("127.0.0.1",), per_address=1, exempt=())) as rig:
        ws = await rig.connect("/echo", additional_headers={"X-Forwarded-For": "::ffff:192.0.2.7"})
        await ws.send("who")
        assert (await receive(ws))[2] == "192.0.2.7:0"
        assert await refused(rig, "/echo", additional_headers={"X-Forwarded-For": "192.0.2.7"}) == 429


async def test_accepting_has_a_rate() -> None:
    async with Rig(Echo(), accept_rate=0.001, accept_burst=3) as rig:
        for _ in range(3):
            await rig.connect("/echo")
        assert await refused(rig, "/echo") == 503
        assert rig.fronts[0].counts.reasons == {"rate": 1}


async def test_pipelined_posted_and_broken_requests_leave_no_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    get = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    async with Rig(Echo()) as rig:
        caplog.clear()
        for request in (
            get * 3,
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
            b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n",
            b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
            (UPGRADE % b"/echo").replace(b"13", b"12"),
            (UPGRADE % b"/echo").replace(b"AAAA", b"A"),
            (UPGRADE % b"/echo") + b"\xff" * 100,
            b"\x16\x03\x01\x02\x00",
            b"",
        ):
            for _ in range(5):
                reader, writer = await asyncio.open_connection(*rig.sockets[0].getsockname())
                writer.write(request)
                writer.write_eof()
                try:
                    await asyncio.wait_for(reader.read(), PATIENCE)
                except ConnectionResetError:
                    pass
                writer.close()
        await fine(rig)
        assert [record for record in caplog.records if record.levelno >= logging.INFO] == []


# ---------------------------------------------------------------------- authorization


class Guarded(Service):
    path, codec = "/guarded", "json"

    async def authorize(self, request: Request) -> Any:
        match request.cookies.get("user"):
            case None:
                raise Reject(401, "who are you?")
            case "banned":
                raise Reject(4403, "not you")
            case "slow":
                await asyncio.Event().wait()
        return Accept({"user": request.cookies["user"]}, "v2" if "v2" in request.protocols else None, {"X-Hello": "you"})

    def on_open(self, conn: Connection) -> None:
        conn.send([conn.state, conn.headers])


async def test_a_service_decides_who_comes_in() -> None:
    async with Rig(Guarded(), open_timeout=1.0) as rig:
        ws = await rig.connect("/guarded", additional_headers={"Cookie": "a=b; user=ada"}, subprotocols=["v1", "v2"])
        assert ws.subprotocol == "v2"
        assert ws.response is not None
        assert ws.response.headers["X-Hello"] == "you"
        state, headers = await receive(ws)
        assert state == {"user": "ada"}
        assert "cookie" not in headers  # what it was let in with is for authorize alone
        assert await refused(rig, "/guarded") == 401
        banned = await rig.connect("/guarded", additional_headers={"Cookie": "user=banned"})
        assert await until_closed(banned) == 4403
        assert banned.close_reason == "not you"
        assert await refused(rig, "/guarded", additional_headers={"Cookie": "user=slow"}) == 503
        assert rig.fronts[0].counts.reasons == {"authorize": 2, "away": 1}
        assert len(rig.hosts[0].hub.connections) == 1


@pytest.mark.parametrize("status", [420, 499, 590, 418])
async def test_a_service_refuses_with_any_status(status: int, caplog: pytest.LogCaptureFixture) -> None:
    class Picky(Echo):
        async def authorize(self, request: Request) -> Any:
            raise Reject(status, "not like this")

    async with Rig(Picky()) as rig:
        with pytest.raises(InvalidStatus) as error:
            await rig.connect("/echo")
        assert (error.value.response.status_code, error.value.response.body) == (status, b"not like this\n")
    assert caplog.records == []


async def test_who_is_to_decide_may_be_replaced_meanwhile() -> None:
    async with Rig(Guarded(), open_timeout=PATIENCE) as rig:
        await rig.kill(rig.hosts[0])
        joining = asyncio.create_task(rig.connect("/guarded", additional_headers={"Cookie": "user=ada"}))
        await eventually(lambda: rig.fronts[0].links[0].asking)
        rig.fronts[0].notice(0, 1 << 62)
        await rig.start_service(0, Guarded())
        assert (await receive(await joining))[0] == {"user": "ada"}


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("frames", [masked(Opcode.BINARY, bytes(2000)), masked(Opcode.PING, b"") * 500], ids=["large", "pings"])
async def test_nothing_may_be_said_before_the_handshake_is_answered(frames: bytes, together: bool) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    class Thinks(Echo):
        path = "/thinks"
        limits = Limits(message=1000)

        async def authorize(self, request: Request) -> Any:
            asked.set()
            await answer.wait()

    async with Rig(Thinks(), frame_rate=100) as rig:
        reader, writer = await asyncio.open_connection(*rig.sockets[0].getsockname())
        rig.raw.append(writer)
        writer.write(UPGRADE % b"/thinks" + (frames if together else b""))
        async with asyncio.timeout(PATIENCE):
            await asked.wait()
            if not together:
                writer.write(frames)
                await rig.http(HEALTH)  # what came before that has been read
            answer.set()
            answered = await reader.read()
        assert answered.startswith(b"HTTP/1.1 400 ")  # and no pong before it
        assert b"before the handshake is answered" in answered
        assert rig.fronts[0].counts.reasons == {"early": 1}


@pytest.mark.parametrize("last", range(1, 6))
async def test_a_request_ends_where_it_ends_however_it_is_cut(last: int) -> None:
    request = UPGRADE % b"/echo"
    async with Rig(Echo()) as rig:
        for more, status in ((b"", b"101"), (masked(Opcode.TEXT, b"early"), b"400")):
            reader, writer = await asyncio.open_connection(*rig.sockets[0].getsockname())
            rig.raw.append(writer)
            for piece in (request[:-last], request[-last:] + more):
                writer.write(piece)
                await rig.http(HEALTH)  # what came before that has been read
            async with asyncio.timeout(PATIENCE):
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 " + status)
        reader, writer = await asyncio.open_connection(*rig.sockets[0].getsockname())
        rig.raw.append(writer)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        async with asyncio.timeout(PATIENCE):
            assert (await reader.read()).count(b" 200 ") == 1  # that is no handshake, and only the first is answered


# ---------------------------------------------------------------------- terms


async def test_who_says_nothing_is_closed_and_who_says_something_is_not() -> None:
    async with Rig(Echo(), first_message=0.2) as rig:
        talks = await rig.connect("/echo")
        await talks.send("I am here")
        is_silent = await rig.connect("/echo")
        assert await until_closed(is_silent) == 4408
        await talks.send("still")
        assert [await asyncio.wait_for(talks.recv(), PATIENCE) for _ in range(2)] == ["I am here", "still"]
        await eventually(lambda: rig.fronts[0].counts.codes[4408] == 1)


async def test_who_stays_silent_for_too_long_is_closed_and_who_goes_on_talking_is_not() -> None:
    async with Rig(Echo(), idle_timeout=1.5) as rig:
        talks, is_silent = await rig.connect("/echo"), await rig.connect("/echo")
        await is_silent.send("I was here")
        ending = asyncio.create_task(until_closed(is_silent))
        said = 0
        while not ending.done():
            await talks.send("still")
            assert await asyncio.wait_for(talks.recv(), PATIENCE) == "still"
            said += 1
            await asyncio.wait((ending,), timeout=0.1)
        assert (ending.result(), said > 2) == (4408, True)
        await talks.send("and now")
        assert await until_closed(talks) == 4408


async def test_who_came_together_is_not_pinged_together() -> None:
    async with Rig(Echo(), ping_interval=20) as rig:
        for _ in range(5):
            await rig.connect("/echo")
        (route,) = rig.fronts[0].all_routes
        intervals = {peer.ws.ping_interval for peer in route.table.peers.values()}
        assert len(intervals) == 5
        assert all(18 <= interval <= 20 for interval in intervals)


async def test_time_in_which_nobody_listens_is_no_silence_of_the_client() -> None:
    class Term(Terms):
        closed: ClassVar[list[int]] = []

    limit = 0.05
    terms = Terms(FrontConfig(idle_timeout=limit), lambda code, _: Term.closed.append(code))
    terms.pause()
    await asyncio.sleep(4 * limit)  # the timer comes by several times
    assert Term.closed == []
    terms.spoke()
    await eventually(lambda: Term.closed == [4408])
    terms.end()


async def test_a_connection_does_not_last_for_ever() -> None:
    async with Rig(Echo(), max_lifetime=0.5) as rig:
        begun = asyncio.get_running_loop().time()
        clients = [await rig.connect("/echo") for _ in range(5)]
        assert [await until_closed(ws) for ws in clients] == [1001] * 5
        assert asyncio.get_running_loop().time() - begun >= 0.45


# ---------------------------------------------------------------------- messages


async def test_a_fast_sender_is_read_more_slowly_and_then_closed() -> None:
    echo = Echo()
    async with Rig(echo, message_rate=50, message_burst=5, rate_patience=0.3) as rig:
        ws = await rig.connect("/echo")
        begun = asyncio.get_running_loop().time()
        for number in range(15):
            await ws.send(str(number))
        for number in range(15):
            assert await asyncio.wait_for(ws.recv(), PATIENCE) == str(number)  # late, and none is missing
        assert asyncio.get_running_loop().time() - begun > 0.1
        assert rig.fronts[0].counts.delayed >= 5

        async def flood() -> None:
            while True:
                await ws.send("x" * 10_000)
                await asyncio.sleep(0)

        flooding = asyncio.create_task(flood())
        assert await until_closed(ws) == 4429
        with pytest.raises(ConnectionClosed):
            await flooding
        assert rig.fronts[0].counts.reasons == {"rate": 1}
        await fine(rig)


@pytest.mark.parametrize(("ends", "code"), [("service", 4000), ("client", 1000), ("server", 1001)])
async def test_the_end_of_who_has_sent_too_fast_is_told_at_once(ends: str, code: int) -> None:
    class Strict(Echo):
        limits = Limits(rate=0.01, burst=1)

    strict = Strict()
    async with Rig(strict) as rig:
        ws = await rig.connect("/echo")
        for number in range(3):  # the last of them may wait for 200 seconds to be read
            await ws.send(str(number))
        await eventually(lambda: rig.fronts[0].counts.delayed)
        if ends == "service":
            (conn,) = strict.connections
            conn.close(code)
        elif ends == "client":
            await ws.close()
        else:
            rig.fronts[0].stop()
        assert await until_closed(ws) == code
        assert await strict.next_close() == code


async def test_who_keeps_to_the_rate_while_it_is_not_read_has_not_sent_too_fast() -> None:
    async with Rig(
        Echo(),
        message_rate=100,
        message_burst=20,
        rate_patience=0.2,
        byte_rate=0,
        max_size=HELD_BYTES,
        write_limit=2 * HELD_BYTES,
    ) as rig:
        front = rig.fronts[0]
        ws, other = [await rig.connect("/echo", max_size=None) for _ in range(2)]
        await rig.kill(rig.hosts[0])
        front.notice(0, 1 << 62)
        await other.send("x" * HELD_BYTES)  # nobody is read from here on
        await eventually(lambda: front.links[0].full)
        for number in range(80):
            await ws.send(str(number))
            await asyncio.sleep(0.0125)  # that is 80 a second
        await rig.start_service(0, Echo())
        async with asyncio.timeout(PATIENCE):
            assert [await ws.recv() for _ in range(80)] == [str(number) for number in range(80)]
        assert front.counts.reasons == {}


async def test_limits_of_a_service_replace_those_of_the_configuration() -> None:
    class Tight(Echo):
        path = "/tight"
        limits = Limits(message=100, rate=0)

    async with Rig(Tight(), message_rate=1, message_burst=1) as rig:
        ws = await rig.connect("/tight")
        for _ in range(50):
            await ws.send("x" * 100)
        for _ in range(50):
            await asyncio.wait_for(ws.recv(), PATIENCE)
        assert rig.fronts[0].counts.delayed == 0
        await ws.send("x" * 101)
        assert await until_closed(ws) == 1009


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG, Opcode.CONT])
async def test_a_flood_of_small_frames_is_closed(opcode: Opcode) -> None:
    async with Rig(Echo(), frame_rate=100) as rig:
        reader, writer = await raw(rig)
        if opcode is Opcode.CONT:
            writer.write(masked(Opcode.BINARY, b"", fin=False))
        writer.write(masked(opcode, b"", fin=opcode is not Opcode.CONT) * 500)
        assert await close_code(reader) == 1008
        assert rig.fronts[0].counts.reasons == {"frames": 1}
        await fine(rig)


async def test_of_many_small_messages_at_once_few_are_taken_at_once() -> None:
    class Sink(Service):
        path, codec = "/sink", "bytes"

        def __init__(self) -> None:
            self.most = 0
            self.got: list[bytes] = []

        def on_message(self, conn: Connection, message: bytes) -> None:
            self.got.append(message)
            (peer,) = rig.fronts[0].all_routes[0].table.peers.values()
            self.most = max(self.most, len(peer.ws.recv_messages.frames))

    sink, count = Sink(), 30_000
    async with Rig(sink, message_rate=0, byte_rate=0) as rig:
        _, writer = await raw(rig, b"/sink")
        writer.write(b"".join(masked(Opcode.BINARY, b"%d" % number) for number in range(count)))
        await eventually(lambda: len(sink.got) == count)
        assert sink.got == [b"%d" % number for number in range(count)]
        assert sink.most < 3000  # what is in 16 KiB; a read from the network brings 16 times as much


async def test_who_goes_with_much_that_is_unread_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    async with Rig(Echo(), message_rate=10, message_burst=1) as rig:
        _, writer = await raw(rig)
        await eventually(lambda: rig.fronts[0].counts.opened)
        (peer,) = rig.fronts[0].all_routes[0].table.peers.values()
        writer.write(masked(Opcode.TEXT, b"") * 20_000)
        await eventually(lambda: peer.ws._unread)
        peer.ws.transport.abort()
        peer.ws.recv_messages.resume()  # as by who reads, in the moment before it has heard
        await eventually(lambda: rig.fronts[0].counts.closed)
        await fine(rig)
    assert not caplog.records


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (masked(Opcode.TEXT, b"\xff\xfe"), 1007),
        (masked(Opcode.BINARY, bytes(2000)), 1009),
        (masked(Opcode.BINARY, bytes(600), fin=False) + masked(Opcode.CONT, bytes(600)), 1009),
        (b"\x82\xff" + (1 << 40).to_bytes(8, "big") + bytes(4), 1009),  # a length that nobody has memory for
        (b"\x83\x80" + bytes(4), 1002),
        (b"\x82\x00", 1002),  # not masked
        (masked(Opcode.CONT, b"x"), 1002),
    ],
    ids=["utf-8", "size", "size-of-fragments", "size-that-is-announced", "opcode", "unmasked", "continues-nothing"],
)
async def test_what_breaks_the_protocol_is_closed_with_its_code(
    frames: bytes, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with Rig(Echo(), max_size=1000) as rig:
        reader, writer = await raw(rig)
        writer.write(frames)
        assert await close_code(reader) == code
        writer.close()
        await eventually(lambda: rig.fronts[0].counts.codes)
        assert rig.fronts[0].counts.codes == {code: 1}
        await fine(rig)
    assert "Traceback" not in caplog.text


async def test_who_breaks_the_protocol_and_stays_is_cut_off() -> None:
    async with Rig(Echo(), max_size=1000) as rig:
        reader, writer = await raw(rig)
        writer.write(masked(Opcode.BINARY, bytes(2000)))
        assert await close_code(reader) == 1009
        await eventually(lambda: rig.fronts[0].counts.codes == {1009: 1})
        assert rig.fronts[0]._doors.doorman.inside == 0


async def test_codes_that_clients_choose_are_not_told_apart() -> None:
    async with Rig(Echo(), accept_rate=0) as rig:
        for code in (1000, 3000, *range(3100, 3110), 4000, 4999, 4429):
            await (await rig.connect("/echo")).close(code)
        counts = rig.fronts[0].counts
        await eventually(lambda: not counts.connections)
        assert counts.codes == {1000: 1, 3000: 1, "3xxx": 10, "4xxx": 2, 4429: 1}


async def test_a_message_of_one_byte_a_moment_holds_up_nobody_and_times_out() -> None:
    async with Rig(Echo(), ping_interval=0.2, ping_timeout=0.3) as rig:
        reader, writer = await raw(rig)
        begun = asyncio.get_running_loop().time()
        message = masked(Opcode.BINARY, bytes(1000))
        for byte in message:
            writer.write(bytes((byte,)))
            await asyncio.sleep(0.02)
            if ended(reader):
                break
            if asyncio.get_running_loop().time() - begun > PATIENCE:
                pytest.fail("a client that cannot answer a ping was kept")
        await fine(rig)


async def test_who_is_not_read_because_the_service_is_away_is_not_taken_for_dead() -> None:
    async with Rig(Echo(), ping_interval=0.1, ping_timeout=0.2, message_rate=0, byte_rate=0) as rig:
        front = rig.fronts[0]
        ws = await rig.connect("/echo", max_queue=None)
        _, mute = await raw(rig)  # the one that never answers a ping
        await rig.kill(rig.hosts[0])
        front.notice(0, 1 << 62)
        count = 2 * HELD_EVENTS
        mute.write(masked(Opcode.TEXT, b"0") * count)
        for number in range(count):
            await ws.send(str(number))
        sockets = [peer.ws for peer in front.all_routes[0].table.peers.values()]
        await eventually(lambda: all(socket.recv_messages.paused for socket in sockets))
        await asyncio.sleep(1.0)  # five times what an answer may take
        assert front.counts.codes == {}
        await rig.start_service(0, Echo())
        async with asyncio.timeout(PATIENCE):
            assert [await ws.recv() for _ in range(count)] == [str(number) for number in range(count)]
        await eventually(lambda: front.counts.codes == {1011: 1})  # read again, it is found out


async def test_who_is_read_more_slowly_is_not_taken_for_dead() -> None:
    async with Rig(Echo(), message_rate=50, message_burst=1, rate_patience=0, ping_interval=0.1, ping_timeout=0.2) as rig:
        ws = await rig.connect("/echo")
        for number in range(60):
            await ws.send(str(number))
        async with asyncio.timeout(PATIENCE):
            assert [await ws.recv() for _ in range(60)] == [str(number) for number in range(60)]


class Blare(Service):
    path, codec = "/blare", "bytes"

    def on_open(self, conn: Connection) -> None:
        conn.join("all")

    async def on_message(self, conn: Connection, message: bytes) -> None:
        await self.publish("all", bytes(10_000), slow=message.decode())


@pytest.mark.parametrize("policy", ["close", "drop", "latest:x"])
async def test_a_stalled_client_costs_no_more_than_its_limit(policy: str) -> None:
    async with Rig(Blare(), soft_limit=1 << 16, write_limit=1 << 18, message_rate=0, byte_rate=0) as rig:
        front = rig.fronts[0]
        await raw(rig, b"/blare", buffer=4096)
        await eventually(lambda: front.all_routes[0].table.peers)
        (stalled,) = front.all_routes[0].table.peers.values()
        good = await rig.connect("/blare")
        most = 0
        for _ in range(150):
            await good.send(policy.encode())
            await asyncio.wait_for(good.recv(), PATIENCE)
            waiting = stalled.ws.transport.get_write_buffer_size() + stalled.latest_bytes
            most = max(most, waiting)
        assert most <= 1 << 18
        if policy == "close":
            assert front.counts.slow == 1
            assert len(front.all_routes[0].table.peers) == 1
        else:
            assert most <= (1 << 16) + 20_050
            assert front.counts.slow == 0
            assert (front.counts.dropped if policy == "drop" else front.counts.superseded) > 50


async def test_who_answers_pings_and_reads_nothing_is_cut() -> None:
    async with Rig(Echo(), soft_limit=1000, write_limit=1 << 16, max_size=1 << 16, frame_rate=0) as rig:
        _, writer = await raw(rig, buffer=4096)
        ping = masked(Opcode.PING, bytes(125)) * 100
        async with asyncio.timeout(PATIENCE):
            while not rig.fronts[0].counts.slow:
                writer.write(ping)
                await asyncio.sleep(0.001)
        await fine(rig)


async def test_a_service_is_told_of_clients_that_do_not_keep_up() -> None:
    class Careful(Blare):
        def __init__(self) -> None:
            self.told: list[str] = []

        def on_pressure(self, conn: Connection, waiting: int) -> None:
            assert waiting > 1 << 14
            self.told.append("pressure")

        def on_drained(self, conn: Connection, waiting: int) -> None:
            assert waiting < 1 << 14
            self.told.append("drained")

    careful = Careful()
    async with Rig(careful, soft_limit=1 << 14, message_rate=0) as rig:
        reader, _ = await raw(rig, b"/blare", buffer=4096)
        good = await rig.connect("/blare")
        while not careful.told:
            await good.send(b"drop")
            await asyncio.wait_for(good.recv(), PATIENCE)
        assert careful.told == ["pressure"]

        async def read() -> None:
            while await reader.read(1 << 16):
                pass

        reading = asyncio.create_task(read())
        await eventually(lambda: careful.told == ["pressure", "drained"])
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


# ---------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"), "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run([*command, *files], check=True, capture_output=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("there is no openssl to make a certificate with")
    return folder


async def test_tls(certificate: Path) -> None:
    files = {"tls_certificate": str(certificate / "cert.pem"), "tls_key": str(certificate / "key.pem")}
    async with Rig(Echo(), **files) as rig:
        trust = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
        async with connect(rig.url("/echo").replace("ws:", "wss:"), proxy=None, ssl=trust) as ws:
            await ws.send("secret" * 1000)
            assert await ws.recv() == "secret" * 1000
        reader, writer = await asyncio.open_connection(*rig.sockets[0].getsockname())
        writer.write(UPGRADE % b"/echo")  # in clear
        assert b"101" not in await asyncio.wait_for(reader.read(), PATIENCE)
        writer.close()


def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    from ipcbus.errors import ConfigError

    (tmp_path / "cert.pem").write_text("nonsense")
    for name in ("cert.pem", "missing.pem"):
        with pytest.raises(ConfigError, match=name):
            tls_context(FrontConfig(tls_certificate=str(tmp_path / name)))
    assert tls_context(FrontConfig()) is None
