from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipcbus import serializers
from ipcbus.web import link
from ipcbus.web.link import (
    BATCH_BYTES,
    BATCH_EVENTS,
    COMMANDS,
    CUT,
    DROP,
    EVENTS,
    FRESH,
    MAX_FRONTS,
    OWN,
    VERSION,
    Batch,
    Batcher,
    Cid,
    Command,
    Event,
    LinkError,
    Sequence,
    decode,
    draw,
    start,
)

REQUEST = {"path": "/chat", "query": "a=1", "headers": {"user-agent": "x"}, "peer": "127.0.0.1:5", "at": 1.5}
WANTS = {"auth": True, "pressure": False, "limits": {"rate": 1.5, "groups": 3}}
CID = Cid(3, 7, 12).pack()

QUESTION = {**REQUEST, "cookies": {"a": "b"}, "protocols": ["x"]}

GOOD_EVENTS = [
    (Event.HELLO, 4711, 0, 3),
    (Event.OPEN, CID, REQUEST, b"state"),
    (Event.MSG, CID, "T", "é".encode()),
    (Event.MSG, CID, "B", b""),
    (Event.CLOSE, CID, 1000, "", True),
    (Event.BYE,),
    (Event.SNAP, [[CID, REQUEST, b"", ["a", "b"], OWN | FRESH]], False),
    (Event.SNAP, [], True),
    (Event.AUTH, CID, QUESTION),
    (Event.PRESSURE, CID, 300_000),
    (Event.DRAINED, CID, 0),
    (Event.RESULT, 1, {"opened": 5}),
    (Event.RESULT, 1, None),
    (Event.PING, 1.5),
    (Event.PONG, 1.5),
    (Event.PEER, CID, REQUEST, b""),
    (Event.JOINED, CID, ["a"]),
    (Event.LEFT, CID, []),
    (Event.STATE, CID, b"x"),
]
GOOD_COMMANDS = [
    (Command.ATTACH, "chat", "/chat", 5, 0, WANTS),
    (Command.SEND, CID, "B", b"\x00\xff", CUT),
    (Command.SEND, [CID, CID + 1], "T", b"", DROP),
    (Command.PUB, "room", "T", b"{}", 0, "latest:key"),
    (Command.PUB, ["room", "other"], "T", b"{}", CID, CUT),
    (Command.JOIN, CID, ["a", "b"]),
    (Command.LEAVE, CID, []),
    (Command.CLOSE, CID, 1011, "why"),
    (Command.CLOSE, [CID], 1011, "why"),
    (Command.CLOSE, "room", 1011, "why"),
    (Command.BYE,),
    (Command.READY, 5, 1024),
    (Command.CREDIT, 256),
    (Command.ACCEPT, CID, b"state", "x", {"Set-Cookie": "a=b"}),
    (Command.ACCEPT, CID, b"", None, {}),
    (Command.REJECT, CID, 401, ""),
    (Command.STATE, CID, b""),
    (Command.OPENED, CID),
    (Command.CLOSED, CID),
    (Command.QUERY, 1, "counts"),
    (Command.PING, 1.5),
    (Command.PONG, 1.5),
]


def test_every_op_is_here() -> None:
    assert {event[0] for event in GOOD_EVENTS} == set(EVENTS)
    assert {command[0] for command in GOOD_COMMANDS} == set(COMMANDS)
    assert not set(EVENTS) & set(COMMANDS)  # a batch on the wrong side is never taken for another


def travel(obj: Any) -> Any:
    msgpack = serializers.get("msgpack")()
    payload, buffers = msgpack.dumps(obj)
    return msgpack.loads(payload, buffers)


@pytest.mark.parametrize(("events", "shapes"), [(GOOD_EVENTS, EVENTS), (GOOD_COMMANDS, COMMANDS)])
def test_a_batch_survives_the_channel(events: list[Any], shapes: Any) -> None:
    batcher = Batcher(3, 99)
    for event in events:
        batcher.add(event)
    batch = decode(travel(batcher.take()), shapes)
    assert batch == Batch(3, 99, 1, [list(event) for event in events], [])
    assert batcher.take() is None
    assert len(batcher) == batcher.bytes == 0


def wrap(*events: Any) -> list[Any]:
    return [VERSION, 0, 1, 1, list(events)]


@pytest.mark.parametrize(
    "bad",
    [
        None,
        b"bytes",
        {},
        [],
        [VERSION, 0, 1, 1],
        [VERSION + 1, 0, 1, 1, []],
        [VERSION, "0", 1, 1, []],
        [VERSION, 0, 1.0, 1, []],
        [VERSION, 0, 1, True, []],
        [VERSION, 0, 1, 1, {}],
    ],
)
def test_what_is_no_batch_is_refused(bad: Any) -> None:
    with pytest.raises(LinkError):
        decode(bad, EVENTS)


@pytest.mark.parametrize(
    "bad",
    [
        wrap(5),
        wrap([]),
        wrap(["MSG", CID, "T", b""]),
        wrap([True, CID, "T", b""]),
        wrap([[], CID]),
        wrap([99, CID]),
        wrap([Event.MSG, CID, "T"]),
        wrap([Event.MSG, CID, "T", b"", 1]),
        wrap([Event.MSG, str(CID), "T", b""]),
        wrap([Event.MSG, CID, "X", b""]),
        wrap([Event.MSG, CID, ["T"], b""]),
        wrap([Event.MSG, CID, "T", "text"]),
        wrap([Event.CLOSE, CID, 1000, None, True]),
        wrap([Event.CLOSE, CID, 1000, "", 1]),
        wrap([Event.OPEN, CID, "/chat"]),
        wrap([Event.OPEN, CID, {**REQUEST, "headers": {"a": 1}}]),
        wrap([Event.OPEN, CID, {"path": "/chat"}]),
        wrap([Event.OPEN, CID, REQUEST, "state"]),
        wrap([Event.OPEN, CID, {**REQUEST, "at": 1}, b""]),
        wrap([Event.SNAP, [[CID, REQUEST, b"", [], True]], True]),
        wrap([Event.SNAP, [[CID, REQUEST, b"", []]], True]),
        wrap([Event.SNAP, [5], True]),
        wrap([Event.AUTH, CID, REQUEST]),
        wrap([Event.AUTH, CID, {**QUESTION, "cookies": {"a": 1}}]),
        wrap([Command.SEND, CID, "T", b"", CUT]),  # right, but from the other side
    ],
)
def test_an_event_that_is_nonsense_is_left_out_and_no_other(bad: Any) -> None:
    before, after = [Event.MSG, CID, "T", b"before"], [Event.MSG, CID, "T", b"after"]
    batch = decode([*bad[:4], [before, *bad[4], after]], EVENTS)
    assert batch.events == [before, after]
    assert len(batch.wrong) == 1


@pytest.mark.parametrize(
    "bad",
    [
        wrap([Command.JOIN, CID, "room"]),
        wrap([Command.JOIN, CID, [1]]),
        wrap([Event.MSG, CID, "T", b""]),
        wrap([Command.SEND, [CID, "x"], "T", b"", CUT]),
        wrap([Command.SEND, CID, "T", b"", "later"]),
        wrap([Command.PUB, 5, "T", b"", 0, CUT]),
        wrap([Command.ATTACH, "chat", "/chat", 5, 0, {}]),
        wrap([Command.ATTACH, "chat", "/chat", 5, 0, {**WANTS, "limits": {"rate": "x"}}]),
        wrap([Command.ACCEPT, CID, b"", 5, {}]),
    ],
)
def test_wrong_commands_are_left_out(bad: Any) -> None:
    batch = decode(bad, COMMANDS)
    assert batch.events == []
    assert len(batch.wrong) == 1


anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(st.one_of(anything, st.lists(anything, max_size=4).map(lambda events: [VERSION, 0, 1, 1, events])))
def test_anything_at_all_is_a_batch_or_a_link_error(obj: Any) -> None:
    try:
        batch = decode(obj, EVENTS)
    except LinkError:
        return
    assert all(event[0] in EVENTS for event in batch.events)
    assert len(batch.events) + len(batch.wrong) == len(obj[4])


def test_a_batch_has_at_most_so_many_events_and_keeps_their_order() -> None:
    batcher = Batcher(0, 1)
    for number in range(BATCH_EVENTS * 2 + 1):
        batcher.add((Event.MSG, number, "T", b""))
    batches = [decode(batch, EVENTS) for batch in iter(batcher.take, None)]
    assert [len(batch.events) for batch in batches] == [BATCH_EVENTS, BATCH_EVENTS, 1]
    assert [event[1] for batch in batches for event in batch.events] == list(range(BATCH_EVENTS * 2 + 1))
    assert [batch.seq for batch in batches] == [1, 2, 3]


def test_a_batch_has_at_most_so_many_bytes_unless_one_event_has_more() -> None:
    batcher = Batcher(0, 1)
    sizes = [BATCH_BYTES // 2, BATCH_BYTES // 3, BATCH_BYTES // 2, BATCH_BYTES * 3, 1]
    for size in sizes:
        batcher.add((Event.MSG, 1, "B", bytes(size)), size)
    assert [len(batch[4]) for batch in iter(batcher.take, None)] == [2, 1, 1, 1]
    assert batcher.bytes == 0


def test_discarding_leaves_no_gap_in_the_numbers() -> None:
    batcher, sequence = Batcher(0, 1), Sequence()
    batcher.add((Event.MSG, 1, "T", b""))
    first = batcher.take()
    batcher.add((Event.MSG, 2, "T", b""))
    assert batcher.discard() == 1
    batcher.add((Event.MSG, 3, "T", b""))
    second = batcher.take()
    assert sequence.follows(decode(first, EVENTS))
    assert sequence.follows(decode(second, EVENTS))


def test_what_was_not_sent_comes_back_in_order_and_leaves_no_gap() -> None:
    batcher, sequence = Batcher(0, 1), Sequence()
    for number in range(BATCH_EVENTS + 5):
        batcher.add((Event.MSG, number, "B", b"12345"), 5)
    size = batcher.bytes
    batch = batcher.take()
    assert batch is not None
    batcher.back(batch)
    assert batcher.bytes == size
    batches = [decode(batch, EVENTS) for batch in iter(batcher.take, None)]
    assert [event[1] for batch in batches for event in batch.events] == list(range(BATCH_EVENTS + 5))
    assert all(sequence.follows(batch) for batch in batches)
    batcher.add((Event.BYE,))
    assert batcher.reclaim() == [(Event.BYE,)]
    assert len(batcher) == batcher.bytes == 0


def test_a_gap_shows_once() -> None:
    sequence = Sequence()
    assert [sequence.follows(Batch(0, 1, seq, [])) for seq in (1, 2, 4, 5, 5)] == [True, True, False, True, False]


def test_connection_numbers_carry_front_end_and_incarnation() -> None:
    cid = Cid(MAX_FRONTS - 1, 4095, (1 << 40) - 1)
    assert Cid.unpack(cid.pack()) == cid
    assert cid.pack() < 1 << 62
    assert Cid.unpack(Cid(1, 4096 + 5, 9).pack()) == Cid(1, 5, 9)
    assert Cid(0, 0, 1).pack() != 0  # 0 means nobody


@pytest.mark.parametrize("cid", [Cid(MAX_FRONTS, 0, 1), Cid(-1, 0, 1), Cid(0, 0, 0), Cid(0, 0, 1 << 40)])
def test_connection_numbers_do_not_run_over(cid: Cid) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        cid.pack()


def test_a_wall_clock_that_is_set_back_makes_nobody_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    before, earlier = start(), time.time_ns() - 60 * 10**9
    monkeypatch.setattr(link, "time_ns", lambda: earlier, raising=False)
    assert start() > before


def test_epochs_of_processes_are_in_the_order_of_their_starts() -> None:
    code = "from ipcbus.web.link import start; print(start())"
    before = start()
    there = int(subprocess.run([sys.executable, "-c", code], check=True, timeout=30, capture_output=True).stdout)
    assert before < there < start()


def test_tokens_are_never_zero_and_differ() -> None:
    drawn = {draw() for _ in range(1000)}
    assert len(drawn) == 1000
    assert 0 not in drawn
