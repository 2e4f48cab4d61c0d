"""The client: what it puts on a channel, what it sends from another, and what it does when something ends."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Response
from websockets.sync.server import Server, ServerConnection, serve

import ipcbus
from ipcbus.errors import ChannelEmpty, ConfigError, EncodeError
from ipcbus.web import Incoming, connect
from ipcbus.web.client import ClientOptions, Counts, Mailbox
from ipcbus.web.client.connection import Connection
from ipcbus.web.client.retry import Backoff, is_final

PATIENCE = 20.0
QUICK: dict[str, Any] = {"first_delay": 0.01, "longest_delay": 0.05}


class Place:
    """A server whose connections do what a test says."""

    def __init__(self, server: Server) -> None:
        self.port = server.socket.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}/"


@contextmanager
def served(talk: Callable[[ServerConnection], None], **more: Any) -> Iterator[Place]:
    def quiet(ws: ServerConnection) -> None:
        try:
            talk(ws)
        except ConnectionClosed:
            pass

    with serve(quiet, "127.0.0.1", 0, **more) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Place(server)
        finally:
            server.shutdown()
            thread.join()


def obey(ws: ServerConnection) -> None:
    """Echo; close when told how."""
    for message in ws:
        if isinstance(message, str) and message.startswith("close "):
            ws.close(int(message.split()[1]), "as you wish")
            return
        ws.send(message)


@pytest.fixture(params=["thread", "process"])
def run(request: pytest.FixtureRequest) -> Any:
    return request.param


def news(feed: ipcbus.Channel) -> Incoming:
    item: Incoming = feed.recv(PATIENCE)
    return item


def rest(channel: ipcbus.Channel) -> list[Any]:
    """Receive what there is."""
    items = []
    with suppress(ChannelEmpty):
        while True:
            items.append(channel.recv(0))
    return items


# ---------------------------------------------------------------------- whole clients


def test_messages_in_and_out(run: Any) -> None:
    with served(obey) as place, ipcbus.open("unix:") as feed, ipcbus.open("unix:") as out:
        with connect(place.url, feed, out, run=run) as client:
            assert news(feed).kind == "connected"
            for message in ("grün", b"\x00\xff", ""):
                out.send(message)
                item = news(feed)
                assert item.data == message
                assert item.kind == ("text" if isinstance(message, str) else "binary")
                assert item.is_message
                assert item.at > 1e9
            assert bool(client.pids) == (run == "process")
        ended = news(feed)
        assert (ended.kind, ended.code) == ("ended", 1000)
        stats = client.stats()
        assert (stats.connected, stats.disconnected, stats.received, stats.sent, stats.missed) == (1, 1, 3, 3, 0)


def test_it_connects_again_and_says_so(run: Any) -> None:
    with (
        served(obey) as place,
        ipcbus.open("unix:") as feed,
        ipcbus.open("unix:") as out,
        connect(place.url, feed, out, run=run, **QUICK),
    ):
        for _ in range(3):
            assert news(feed).kind == "connected"
            out.send("close 1011")
            gap = news(feed)
            assert (gap.kind, gap.code, gap.data) == ("disconnected", 1011, "as you wish")
        assert news(feed).kind == "connected"
        out.send("close 4401")
        end = news(feed)
        assert (end.kind, end.code) == ("ended", 4401)


def test_what_is_told_of_a_connection_that_was_cut_needs_nothing_but_ipcbus(run: Any) -> None:
    with (
        served(lambda ws: ws.socket.shutdown(socket.SHUT_RDWR)) as place,
        ipcbus.open("unix:") as feed,
        connect(place.url, feed, run=run, reconnect=False),
    ):
        assert news(feed).kind == "connected"
        end = news(feed)
        assert (end.kind, type(end.code), end.code) == ("ended", int, 1006)
        assert end.data == "no close frame received or sent"


def test_why_a_server_is_given_up_that_answers_no_ping_is_said() -> None:
    over = threading.Event()

    def hear_nothing(ws: ServerConnection) -> None:
        ws.protocol.receive_data = lambda data: None  # type: ignore[method-assign]  # what comes is read, and pings are not answered
        over.wait(PATIENCE)

    with (
        served(hear_nothing) as place,
        ipcbus.open("unix:") as feed,
        connect(place.url, feed, run="thread", reconnect=False, ping_interval=0.05, ping_timeout=0.05, close_timeout=0.1),
    ):
        assert news(feed).kind == "connected"
        end = news(feed)
        over.set()
        assert (end.kind, end.code) == ("ended", 1006)
        assert "keepalive ping timeout" in end.data


def test_it_waits_until_it_is_over(run: Any) -> None:
    with served(obey) as place, ipcbus.open("unix:") as feed, ipcbus.open("unix:") as out:
        with connect(place.url, feed, out, run=run, give_up_on=(3000,), **QUICK) as client:
            assert client.wait(0) is False
            out.send("close 3000")
            assert client.wait(PATIENCE)
        assert [news(feed).kind for _ in range(2)] == ["connected", "ended"]


def test_what_is_sent_while_there_is_no_connection_waits(run: Any) -> None:
    gate = threading.Event()

    def turned_away(ws: ServerConnection, request: Any) -> Any:
        return None if gate.is_set() else ws.respond(503, "later\n")

    with (
        served(obey, process_request=turned_away) as place,
        ipcbus.open("unix:") as feed,
        ipcbus.open("unix:") as out,
        connect(place.url, feed, out, run=run, **QUICK),
    ):
        for number in range(5):
            out.send(str(number))
        gate.set()
        assert [news(feed).data for _ in range(6)] == ["", "0", "1", "2", "3", "4"]


def test_nothing_is_taken_after_a_connection_has_ended(run: Any) -> None:
    once = threading.Lock()  # taken by the first connection

    def first_only(ws: ServerConnection, request: Any) -> Any:
        return None if once.acquire(blocking=False) else ws.respond(503, "later\n")

    with served(obey, process_request=first_only) as place, ipcbus.open("unix:") as feed, ipcbus.open("unix:") as out:
        with connect(place.url, feed, out, run=run, **QUICK) as client:
            assert news(feed).kind == "connected"
            out.send("close 1011")
            assert news(feed).kind == "disconnected"
            for number in range(3):
                out.send(str(number))
            while client.stats().refused < 3:
                assert not client.wait(0.02)
        assert [out.recv(PATIENCE) for _ in range(3)] == ["0", "1", "2"]
        stats = client.stats()
        assert (stats.sent, stats.unsent) == (1, 0)


def test_every_message_that_was_taken_is_counted(run: Any) -> None:
    """A server that reads nothing, so that a message is on its way when the client is closed."""
    done = threading.Event()

    def stall(ws: ServerConnection) -> None:
        done.wait(PATIENCE)

    with (
        served(stall, max_size=None, max_queue=1, close_timeout=0.1) as place,
        ipcbus.open("unix:") as feed,
        ipcbus.open("unix:") as out,
    ):
        for _ in range(4):
            out.send(bytes(16 << 20))
        with connect(place.url, feed, out, run=run, close_timeout=0.1) as client:
            while not client.stats().sent:
                assert not client.wait(0.02)
            began = time.monotonic()
            client.close()
            assert time.monotonic() - began < 5  # nothing is written any more, and it does not wait for that
        done.set()
        stats = client.stats()
        assert stats.unsent == 1
        assert len(rest(out)) == 4 - stats.sent - 1


def test_a_refusal_for_good_ends_it(run: Any) -> None:
    with served(obey, process_request=lambda ws, request: ws.respond(403, "no\n")) as place, ipcbus.open("unix:") as feed:
        with connect(place.url, feed, run=run, **QUICK) as client:
            end = news(feed)
            assert (end.kind, end.code, end.data) == ("ended", 403, "refused with HTTP 403 Forbidden")
            assert client.wait(PATIENCE)
        assert client.stats().refused == 1


def test_a_redirect_to_nowhere_is_no_connection(run: Any) -> None:
    def away(ws: ServerConnection, _: Any) -> Response:
        answer = ws.respond(302, "there\n")
        answer.headers["Location"] = "ws://a..b/"
        return answer

    with (
        served(obey, process_request=away) as place,
        ipcbus.open("unix:") as feed,
        connect(place.url, feed, run=run, reconnect=False) as client,
    ):
        end = news(feed)
        assert (end.kind, end.code) == ("ended", 0)
        assert "cannot be reached" in end.data
        assert client.wait(PATIENCE)


def test_nobody_there_and_no_second_try(run: Any) -> None:
    with ipcbus.open("unix:") as feed, connect("ws://127.0.0.1:1/", feed, run=run, reconnect=False) as client:
        end = news(feed)
        assert (end.kind, end.code) == ("ended", 0)
        assert "cannot be reached" in end.data
        assert client.wait(PATIENCE)


def test_many_connections_in_several_processes() -> None:
    with served(obey) as place, ipcbus.open("unix:", capacity=100) as feed:
        outs = [ipcbus.open("unix:") for _ in range(7)]
        with connect([place.url] * 7, feed, outs, processes=2) as client:
            assert len(client.pids) == 2
            assert {news(feed).connection for _ in range(7)} == set(range(7))
            for number, out in enumerate(outs):
                out.send(str(number))
            echoed = [news(feed) for _ in range(7)]
            assert sorted((item.connection, item.data) for item in echoed) == [(n, str(n)) for n in range(7)]
        for out in outs:
            out.close()


@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_other_start_methods(start_method: Any) -> None:
    with served(obey) as place, ipcbus.open("unix:") as feed, ipcbus.open("unix:") as out:
        with connect(place.url, feed, out, start_method=start_method) as client:
            out.send("hi")
            assert [news(feed).data for _ in range(2)] == ["", "hi"]
        assert client.stats().received == 1


def test_a_killed_process_is_replaced_and_the_gap_is_marked() -> None:
    with (
        served(obey) as place,
        ipcbus.open("unix:") as feed,
        ipcbus.open("unix:") as out,
        connect(place.url, feed, out, **QUICK) as client,
    ):
        assert news(feed).kind == "connected"
        out.send("before")
        assert news(feed).data == "before"
        (pid,) = client.pids
        os.kill(pid, signal.SIGKILL)
        gap = news(feed)
        assert (gap.kind, gap.code) == ("disconnected", 1006)
        assert news(feed).kind == "connected"
        out.send("after")
        assert news(feed).data == "after"


def test_what_has_ended_is_not_tried_again_by_the_next_process() -> None:
    with served(obey) as place, ipcbus.open("unix:") as feed, ExitStack() as stack:
        outgoing = [stack.enter_context(ipcbus.open("unix:")) for _ in range(2)]
        with connect([place.url, place.url], feed, outgoing, **QUICK) as client:
            assert {news(feed).connection for _ in range(2)} == {0, 1}
            outgoing[0].send("close 4400")
            assert news(feed)[:2] == ("ended", "as you wish")
            deadline = time.monotonic() + PATIENCE
            while 0 not in client._over and time.monotonic() < deadline:
                time.sleep(0.005)  # nothing tells of it
            (pid,) = client.pids
            os.kill(pid, signal.SIGKILL)
            assert [news(feed)[:3:2] for _ in range(2)] == [("disconnected", 1), ("connected", 1)]
            outgoing[1].send("close 4400")
            assert news(feed)[:3] == ("ended", "as you wish", 1)
            assert client.wait(PATIENCE)
        assert rest(feed) == []


def read_and_report(feed: ipcbus.Channel, report: ipcbus.Channel) -> None:
    while (item := feed.recv(PATIENCE)).data != "last":
        report.send(item.data)


def test_another_process_reads() -> None:
    def count(ws: ServerConnection) -> None:
        for number in range(100):
            ws.send(str(number))
        ws.send("last")
        ws.recv()

    with served(count) as place, ipcbus.open("unix:", capacity=10) as feed, ipcbus.open("unix:") as report:
        reader = multiprocessing.get_context("spawn").Process(target=read_and_report, args=(feed, report))
        reader.start()
        with connect(place.url, feed, run="thread"):
            assert [report.recv(PATIENCE) for _ in range(101)] == ["", *map(str, range(100))]
            reader.join()


@pytest.mark.parametrize("serializer", ["msgpack", "pickle"])
def test_serializers(serializer: str) -> None:
    with (
        served(obey) as place,
        ipcbus.open("unix:", serializer=serializer) as feed,
        ipcbus.open("unix:") as out,
        connect(place.url, feed, out, run="thread"),
    ):
        out.send(b"\xff")
        assert Incoming.of(feed.recv(PATIENCE)).kind == "connected"
        assert Incoming.of(feed.recv(PATIENCE)).data == b"\xff"


# ---------------------------------------------------------------------- overflow


FLOOD = 3000


def flood(ws: ServerConnection) -> None:
    """Send numbers, and then what must arrive."""
    for number in range(FLOOD):
        ws.send(f"{number:06}" + "x" * 1000)
    ws.close(4400, "done")


def drained(feed: ipcbus.Channel) -> list[Incoming]:
    items = [news(feed)]
    while items[-1].kind != "ended":
        items.append(news(feed))
    return items


def test_block_loses_nothing_and_holds_the_server_back() -> None:
    sent = threading.Event()

    def count(ws: ServerConnection) -> None:
        for _ in range(100):
            ws.send("x" * (1 << 20))
        sent.set()
        ws.close(4400)

    with (
        served(count) as place,
        ipcbus.open("unix:", capacity=2) as feed,
        connect(place.url, feed, run="thread", buffer=2, max_size=2 << 20),
    ):
        assert news(feed).kind == "connected"
        assert not sent.wait(1.0)  # so much fits into no socket: it is waiting for us
        items = drained(feed)
    assert sent.is_set()
    assert [item.kind for item in items] == ["text"] * 100 + ["ended"]
    assert not any(item.missed for item in items)


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
def test_every_gap_is_counted(overflow: Any) -> None:
    with served(flood) as place, ipcbus.open("unix:", capacity=10) as feed:
        with connect(place.url, feed, run="thread", overflow=overflow, buffer=10) as client:
            # Nobody takes anything until the server has sent all, which it does without waiting for us.
            while client.stats().disconnected == 0:
                assert not client.wait(0.02)
            items = drained(feed)
            assert client.wait(PATIENCE)
        stats = client.stats()
    messages = [int(item.data[:6]) for item in items if item.is_message]
    assert messages == sorted(set(messages))
    assert len(messages) + sum(item.missed for item in items) == FLOOD
    assert stats.missed == sum(item.missed for item in items) > FLOOD - 100
    assert stats.received == FLOOD
    assert (messages[-1] == FLOOD - 1) == (overflow == "drop_oldest")
    following = -1
    for item in items:
        if item.is_message:
            assert int(item.data[:6]) == following + 1 + item.missed
            following = int(item.data[:6])


ITEMS = st.lists(st.one_of(st.just("put"), st.just("news"), st.just("take"), st.just("lose")), max_size=200)


@given(ITEMS, st.sampled_from(["block", "drop_oldest", "drop_newest"]), st.integers(1, 5))
def test_the_mailbox_accounts_for_every_message(steps: list[str], overflow: Any, limit: int) -> None:
    box = Mailbox(overflow, limit)
    came, out = 0, []
    for step in steps:
        if step in ("put", "news"):
            accepted = box.put(Incoming("text" if step == "put" else "connected", came))
            assert accepted or overflow == "block"
            came += accepted and step == "put"
        elif (item := box.take()) is not None:
            if step == "lose":
                box.lost(item)
            else:
                out.append(item)
        assert len(box) <= limit
    box.put(Incoming("connected", -1)) if len(box) < limit else None
    while (item := box.take()) is not None:
        out.append(item)
    numbers = [item.data for item in out if item.is_message]
    assert numbers == sorted(set(numbers))
    assert len(numbers) + box.missed == came
    if out and out[-1].data == -1:
        assert sum(item.missed for item in out) == box.missed


# ---------------------------------------------------------------------- the ends of its life


def test_close_with_a_full_channel_is_quick(run: Any) -> None:
    with served(flood) as place, ipcbus.open("unix:", capacity=1) as feed:
        client = connect(place.url, feed, run=run, buffer=1)
        assert news(feed).kind == "connected"
        client.close()
        client.close()


def test_close_counts_what_found_no_room(run: Any) -> None:
    def count(ws: ServerConnection) -> None:
        for number in range(50):
            ws.send(str(number))
        ws.recv()

    with served(count) as place, ipcbus.open("unix:", capacity=4) as feed:
        with connect(place.url, feed, run=run, buffer=20) as client:
            while client.stats().received < 24:  # three in the channel, twenty in the buffer, and one before it
                assert not client.wait(0.02)
        connected, *messages = rest(feed)
        assert connected.kind == "connected"
        assert [item.data for item in messages] == ["0", "1", "2"]
        stats = client.stats()
        assert stats.missed == stats.received - 3 >= 21


async def test_ended_is_said_once() -> None:
    def bye(ws: ServerConnection) -> None:
        ws.send("bye")
        ws.close(4400, "done")

    with served(bye) as place, ipcbus.open("inproc:", capacity=2) as feed:
        connection = Connection(0, place.url, ClientOptions(), feed, None, Counts(), asyncio.Semaphore(1))
        running = asyncio.create_task(connection.run(again=False))
        async with asyncio.timeout(PATIENCE):
            while not connection._pumping:  # noqa: ASYNC110  nothing tells that there is something that found no room
                await asyncio.sleep(0.005)
        assert [item.kind for item in rest(feed)] == ["connected", "text"]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert [(item.kind, item.code) for item in rest(feed)] == [("ended", 4400)]


def test_the_end_of_the_channel_ends_the_connections(run: Any) -> None:
    gone = threading.Event()

    def talk(ws: ServerConnection) -> None:
        try:
            for number in range(10_000_000):
                ws.send(str(number))
        except ConnectionClosed:
            gone.set()

    with served(talk) as place, ipcbus.open("unix:") as feed, connect(place.url, feed, run=run) as client:
        assert news(feed).kind == "connected"
        feed.shutdown()
        assert gone.wait(PATIENCE)
        assert client.wait(PATIENCE)


def test_the_end_of_what_is_sent_ends_nothing() -> None:
    def late(ws: ServerConnection) -> None:
        ws.send(f"got {ws.recv()}")
        ws.send("and more")
        ws.recv()

    with (
        served(late) as place,
        ipcbus.open("unix:") as feed,
        ipcbus.open("unix:") as out,
        connect(place.url, feed, out, run="thread"),
    ):
        out.send("this")
        out.shutdown()
        assert [news(feed).data for _ in range(3)] == ["", "got this", "and more"]


def test_what_cannot_be_sent_is_counted() -> None:
    with served(obey) as place, ipcbus.open("unix:") as feed, ipcbus.open("unix:") as out:
        with connect(place.url, feed, out, run="thread") as client:
            out.send({"not": "a message"})
            out.send("half of a pair: \ud83d")
            out.send("a message")
            assert [news(feed).data for _ in range(2)] == ["", "a message"]
        assert client.stats() == Counts(connected=1, disconnected=1, received=1, sent=1, unsent=2)


def test_a_receiver_that_dies_costs_messages_which_are_counted() -> None:
    context = multiprocessing.get_context("spawn")

    def steady(ws: ServerConnection) -> None:
        for number in range(1_000_000):
            ws.send(str(number))

    with served(steady) as place, ipcbus.open("pipe:", capacity=5) as feed, ipcbus.open("unix:") as report:
        reader = context.Process(target=read_and_report, args=(feed, report))
        reader.start()
        with connect(place.url, feed.sender, run="thread", overflow="block") as client:
            assert report.recv(PATIENCE) == ""
            reader.kill()
            reader.join()
            while not client.stats().missed:
                assert not client.wait(0.02)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"url": "http://127.0.0.1/"}, "ws://host:port"),
        ({"url": []}, "no URL"),
        ({"url": ["ws://h/", "ws://h/"], "outgoing": []}, "2 URLs and 0 outgoing"),
        ({"processes": 2}, "processes must be 1 to the number of URLs"),
        ({"run": "greenlet"}, "must be 'process' or 'thread'"),
        ({"overflow": "drop"}, "overflow must be one of"),
        ({"bufer": 3}, "did you mean 'buffer'"),  # codespell:ignore bufer
        ({"buffer": 0}, "buffer must be more than 0"),
        ({"first_delay": 60}, "first_delay must be"),
        ({"url": "wss://h/", "ca_file": "none.pem"}, "ca_file"),
        ({"url": "ws://a..b/"}, "names no host"),
        ({"headers": {"Authorization": "Bearer of a file\n"}}, "'Authorization' cannot be sent"),
        ({"headers": {"X Y": "z"}}, "'X Y' cannot be sent"),
        ({"subprotocols": ("two words",)}, "invalid subprotocol: two words"),
        ({"proxy": "ftp://127.0.0.1/"}, "scheme ftp isn't supported"),
        ({"proxy": "http://127.0.0.1:port/"}, "Port could not be cast"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], why: str) -> None:
    with ipcbus.open("unix:") as feed, pytest.raises(ConfigError, match=why):
        connect(**{"url": "ws://127.0.0.1:1/", "into": feed, **arguments})


def test_a_proxy_that_needs_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_socks", None)
    with ipcbus.open("unix:") as feed, pytest.raises(ConfigError, match="needs python-socks"):
        connect("ws://127.0.0.1:1/", feed, proxy="socks5://127.0.0.1/")


def test_channels_that_do_not_fit_are_refused() -> None:
    with ipcbus.open("unix:", overflow="drop_new") as feed, pytest.raises(ConfigError, match="without a mark"):
        connect("ws://127.0.0.1:1/", feed)
    with ipcbus.open("unix:", serializer="json") as feed, pytest.raises(EncodeError):
        connect("ws://127.0.0.1:1/", feed)


def test_a_busy_outgoing_channel_is_told_at_once() -> None:
    with ipcbus.open("unix:") as feed, ipcbus.open("unix:") as out:
        out.receiver.fileno()
        with pytest.raises(ipcbus.StartFailed, match="receiver"):
            connect("ws://127.0.0.1:1/", feed, out)


# ---------------------------------------------------------------------- the rules


def test_delays_grow_to_a_limit_and_begin_anew() -> None:
    backoff = Backoff(0.5, 30.0, chance=lambda: 1.0)
    assert [backoff.delay() for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    backoff.lasted(29.0)  # no longer than it might have to wait: a server that accepts and hangs up is no good one
    assert backoff.delay() == 30
    backoff.lasted(31.0)
    assert backoff.delay() == 0.5


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 2000))
def test_delays_are_drawn_from_all_that_is_allowed(chance: float, failures: int) -> None:
    backoff = Backoff(0.5, 30.0, chance=lambda: chance)
    for _ in range(failures):
        backoff.delay()
    assert 0 <= backoff.delay() <= 30


@pytest.mark.parametrize(
    ("code", "refused", "final"),
    [
        (1000, False, False),
        (1006, False, False),
        (1012, False, False),
        (4401, False, True),
        (1008, False, True),
        (0, True, False),
        (404, True, True),
        (401, True, True),
        (429, True, False),
        (503, True, False),
    ],
)
def test_when_it_is_given_up(code: int, refused: bool, final: bool) -> None:
    assert is_final(code, refused=refused, give_up_on={1008, 4401}) is final
