"""What a client gets that keeps up, lags behind, or is hopeless; the frames against the library's own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from websockets.frames import Frame, Opcode
from websockets.protocol import State

from ipcbus.web.counts import Counts
from ipcbus.web.delivery import Delivery, frame
from ipcbus.web.peers import Peer

LIMIT = 1000


class FakeTransport:
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.written))

    def abort(self) -> None:
        self.aborted = True


class FakeSocket:
    remote_address = ("192.0.2.1", 5)

    def __init__(self) -> None:
        self.transport = FakeTransport()
        self.protocol = type("Protocol", (), {"state": State.OPEN})()


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
def delivery(counts: Counts) -> Delivery:
    return Delivery(counts, LIMIT)


def peer(cid: int = 1) -> Any:
    return Peer(cid, FakeSocket(), 0, {}, b"")  # type: ignore[arg-type]  # what is looked at of a socket


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 70000])
@pytest.mark.parametrize(("kind", "opcode"), [("T", Opcode.TEXT), ("B", Opcode.BINARY)])
def test_frames_are_those_of_the_library(kind: str, opcode: Opcode, size: int) -> None:
    data = b"x" * size
    assert frame(kind, data) == Frame(opcode, data).serialize(mask=False, extensions=[])


def test_everybody_but_one_gets_it_and_those_that_are_closing_do_not(delivery: Delivery, counts: Counts) -> None:
    first, second, closing, closed = (peer(number) for number in range(4))
    closing.busy = closing.closing = True
    closed.protocol.state = State.CLOSING
    delivery.send([first, second, closing, closed], "T", b"hi", "close", left_out=second)
    assert [len(each.ws.transport.written) for each in (first, second, closing, closed)] == [1, 0, 0, 0]
    assert (counts.sent, counts.sent_bytes) == (1, 4)


def lag(who: Any) -> None:
    who.busy = who.congested = True


def test_close_cuts_only_who_is_over_the_limit(delivery: Delivery, counts: Counts) -> None:
    slow = peer()
    lag(slow)
    for _ in range(9):
        delivery.send([slow], "B", b"x" * 100, "close")
    assert not slow.ws.transport.aborted
    assert counts.sent == 9
    delivery.send([slow], "B", b"x" * 100, "close")
    assert slow.ws.transport.aborted
    assert (counts.slow, counts.sent) == (1, 9)
    delivery.send([slow], "B", b"x", "close")
    assert counts.sent == 9


def test_drop_is_counted(delivery: Delivery, counts: Counts) -> None:
    slow = peer()
    delivery.send([slow], "B", b"1", "drop")
    lag(slow)
    delivery.send([slow], "B", b"2", "drop")
    delivery.drained(slow)
    delivery.send([slow], "B", b"3", "drop")
    assert [data[-1:] for data in slow.ws.transport.written] == [b"1", b"3"]
    assert (counts.dropped, counts.sent) == (1, 2)


def test_latest_keeps_the_newest_of_each_key_in_the_order_of_their_age(delivery: Delivery, counts: Counts) -> None:
    slow = peer()
    lag(slow)
    for key, text in (("a", b"1"), ("b", b"2"), ("a", b"3"), ("c", b"4")):
        delivery.send([slow], "T", text, f"latest:{key}")
    assert slow.ws.transport.written == []
    assert slow.latest_bytes == 9
    delivery.drained(slow)
    assert [data[-1:] for data in slow.ws.transport.written] == [b"2", b"3", b"4"]
    assert (counts.superseded, counts.sent) == (1, 3)
    assert not slow.busy
    assert slow.latest_bytes == 0


def test_too_many_keys_are_too_much_as_well(delivery: Delivery, counts: Counts) -> None:
    slow = peer()
    lag(slow)
    for number in range(11):
        delivery.send([slow], "B", b"x" * 100, f"latest:{number}")
    assert slow.ws.transport.aborted
    assert counts.slow == 1
    assert slow.latest == {}


def test_who_lags_again_while_catching_up_keeps_the_rest(delivery: Delivery) -> None:
    slow = peer()
    lag(slow)
    delivery.send([slow], "T", b"1", "latest:a")
    delivery.send([slow], "T", b"2", "latest:b")

    def write(data: bytes) -> None:
        slow.ws.transport.written.append(data)
        lag(slow)

    slow.write = write
    delivery.drained(slow)
    assert [data[-1:] for data in slow.ws.transport.written] == [b"1"]
    assert list(slow.latest) == ["b"]


# ------------------------------------------------------------------ together


WINDOW = 0.02


class Window:
    """A delivery that gathers; the end of a window is an event that the tests make."""

    def __init__(self, counts: Counts, monkeypatch: pytest.MonkeyPatch) -> None:
        self.timers: list[tuple[Any, ...]] = []
        self.delivery = Delivery(counts, LIMIT, coalesce=WINDOW)
        monkeypatch.setattr(asyncio, "get_running_loop", lambda: self)

    def call_later(self, seconds: float, *call: Any) -> None:
        assert seconds == WINDOW
        self.timers.append(call)

    def end(self) -> None:
        ((function, *arguments),) = self.timers
        self.timers.clear()
        function(*arguments)


@pytest.fixture
def window(counts: Counts, monkeypatch: pytest.MonkeyPatch) -> Window:
    return Window(counts, monkeypatch)


def texts(who: Any) -> list[bytes]:
    """Return what was written, message by message; those of one write with a stroke between them."""
    return [bytes(data).replace(b"\x81\x01", b"|")[1:] for data in who.ws.transport.written]


def test_the_first_goes_at_once_and_what_follows_in_one_write(window: Window, counts: Counts) -> None:
    busy, calm = peer(1), peer(2)
    window.delivery.publish([busy, calm], "T", b"1", "close")
    for text in (b"2", b"3"):
        window.delivery.publish([busy], "T", text, "close")
    assert (texts(busy), texts(calm)) == ([b"1"], [b"1"])
    window.end()
    window.delivery.publish([busy, calm], "T", b"4", "close")  # busy was written to in this window, and calm was not
    assert (texts(busy), texts(calm)) == ([b"1", b"2|3"], [b"1", b"4"])
    window.end()
    assert texts(busy) == [b"1", b"2|3", b"4"]
    assert not busy.busy
    assert (counts.sent, counts.sent_bytes) == (6, 18)


def test_windows_end_with_the_traffic_and_a_lone_message_never_waits(window: Window) -> None:
    for number in b"123":
        who = peer()
        window.delivery.publish([who], "T", bytes((number,)), "close")
        assert texts(who) == [bytes((number,))]
        window.end()
        window.end()
        assert window.timers == []


def test_what_is_sent_to_a_client_itself_waits_for_nothing_and_overtakes_nothing(window: Window) -> None:
    who = peer()
    for text in (b"1", b"2"):
        window.delivery.publish([who], "T", text, "close")
    window.delivery.send([who], "T", b"3", "close")
    assert texts(who) == [b"1", b"2", b"3"]
    window.delivery.publish([who], "T", b"4", "close")
    window.end()
    assert texts(who) == [b"1", b"2", b"3", b"4"]


def test_what_was_said_before_a_close_is_written_before_it(window: Window) -> None:
    who, gone = peer(1), peer(2)
    for text in (b"1", b"2"):
        window.delivery.publish([who, gone], "T", text, "close")
    window.delivery.flush(who)
    who.busy = who.closing = True
    gone.busy = gone.closing = True  # it has gone by itself
    window.delivery.publish([who, gone], "T", b"3", "close")
    window.end()
    assert (texts(who), texts(gone)) == ([b"1", b"2"], [b"1"])
    assert who.busy


def test_who_lags_is_treated_as_the_policy_says_and_gets_first_what_waited(window: Window, counts: Counts) -> None:
    slow = peer()
    for text in (b"1", b"2"):
        window.delivery.publish([slow], "T", text, "close")
    lag(slow)
    window.delivery.publish([slow], "T", b"3", "drop")
    window.delivery.publish([slow], "T", b"4", "latest:x")
    assert texts(slow) == [b"1", b"2"]
    window.delivery.drained(slow)
    assert texts(slow) == [b"1", b"2", b"4"]
    assert counts.dropped == 1


def test_much_does_not_wait(window: Window) -> None:
    who, large = peer(), b"x" * (32 << 10)
    for _ in range(3):
        window.delivery.publish([who], "T", large, "close")
    assert [len(data) > len(large) * number for number, data in enumerate(who.ws.transport.written, 1)] == [True, True]
    window.end()
    assert len(who.ws.transport.written) == 2
