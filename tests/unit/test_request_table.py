"""The table of requests and the frames that carry them: no processes, no channels."""

import fcntl
import os
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ipcbus import frame
from ipcbus.errors import ChannelClosed, ChannelFull, DecodeError
from ipcbus.requests.table import LIMIT, SIZE, Requests, View

GUESTS = st.integers(1, 2**32 - 1) | st.just(7)


@pytest.fixture
def table():
    made = Requests()
    yield made
    made.free()


@pytest.fixture
def view(table):
    made = View(os.dup(table.fd))
    yield made
    made.close()


class Life(RuleBasedStateMachine):
    """Requests come and go, are taken and are taken too late; what the table says is compared with a plain dict."""

    def __init__(self):
        super().__init__()
        self.table = Requests()
        self.view = View(os.dup(self.table.fd))
        self.open = {}
        self.used = set()

    @rule()
    def ask(self):
        number = self.table.open()
        assert number not in self.used, "an id was given twice"
        assert number
        self.used.add(number)
        self.open[number] = 0

    @rule(data=st.data(), guest=GUESTS)
    def take(self, data, guest):
        if self.used:
            number = data.draw(st.sampled_from(sorted(self.used)))
            assert self.view.take(number, guest) is (number in self.open)
            if number in self.open:
                self.open[number] = guest

    @rule(data=st.data())
    def answer(self, data):
        if self.open:
            number = data.draw(st.sampled_from(sorted(self.open)))
            self.table.close(number)
            del self.open[number]

    @invariant()
    def the_table_says_what_is_so(self):
        for number in self.used:
            assert self.view.waits(number) is (number in self.open)
            assert self.view.holds(number, 7) is (self.open.get(number) == 7)
            assert self.table.holder(number) == self.open.get(number, 0)

    def teardown(self):
        self.view.close()
        self.table.free()


TestLife = Life.TestCase


@given(st.integers(0, 2**64 - 1), GUESTS)
def test_an_id_out_of_nowhere_is_nobodys(number, guest):
    made = Requests()
    view = View(os.dup(made.fd))
    try:
        real = made.open()
        assert view.take(number, guest) is (number == real)
        assert made.holder(real) == (guest if number == real else 0)
        assert view.holds(number, guest) is (number == real)
    finally:
        view.close()
        made.free()


def test_it_is_full_in_the_end_and_room_comes_back(table):
    numbers = [table.open() for _ in range(LIMIT)]
    assert len(set(numbers)) == LIMIT
    with pytest.raises(ChannelFull, match="wait for some of them first"):
        table.open()
    table.close(numbers[7])
    again = table.open()
    assert again & 0xFFFFFFFF == numbers[7] & 0xFFFFFFFF
    assert again not in numbers


def test_after_the_last_generation_comes_the_first_and_never_none(table, view):
    numbers = {table.open() for _ in range(LIMIT)}
    table.close(0xFFFFFFFF << 32 | 3)
    number = table.open()
    assert number == 1 << 32 | 3
    assert number in numbers
    assert view.waits(number)


def test_threads_that_share_it_never_have_one_id_at_once(table):
    had: list[int] = []
    errors = []

    def use():
        for _ in range(40):
            mine = [table.open() for _ in range(50)]
            had.extend(mine)
            if not all(table.holder(number) == 0 for number in mine):
                errors.append(mine)
            for number in mine:
                table.close(number)

    threads = [threading.Thread(target=use) for _ in range(6)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert len(had) == 6 * 40 * 50
    assert len(set(had)) == len(had), "an id was given twice"
    assert not errors


def test_after_its_end_it_refuses_and_its_views_know_nobody():
    made = Requests()
    number = made.open()
    view = View(os.dup(made.fd))
    made.free()
    with pytest.raises(ChannelClosed):
        made.open()
    view.close()
    assert not view.waits(number)
    assert not view.take(number, 1)


@pytest.mark.parametrize("kind", ["pipe", "too small", "not sealed", "growing"])
def test_what_is_no_table_is_refused_and_closed(kind):
    """A file that could shrink would end who looks at it by SIGBUS."""
    if kind == "pipe":
        fd, other = os.pipe()
        os.close(other)
    else:
        fd = os.memfd_create("no table", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, SIZE - (kind == "too small"))
        seals = {"too small": fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW, "not sealed": 0, "growing": fcntl.F_SEAL_SHRINK}
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals[kind])
    with pytest.raises(ValueError, match="table of requests"):
        View(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@given(
    st.integers(1, 255),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=200),
    st.none() | st.floats(allow_nan=False),
    st.binary(max_size=300),
)
def test_a_routed_frame_is_what_encode_makes(serializer, number, address, deadline, payload):
    sections = frame.Sections(route=(number, address), deadline=deadline)
    short = frame.Routed(address).start(serializer, number, deadline) + payload
    assert short == b"".join(frame.encode(serializer, "", payload, (), sections))
    assert frame.unroute(short) == (serializer, number, address, deadline, payload)
    parsed = frame.parse([short], 1 << 20)
    assert (parsed.serializer, parsed.route, parsed.deadline, bytes(parsed.payload)) == (
        serializer,
        (number, address),
        deadline,
        payload,
    )


@given(st.binary(max_size=40), st.none() | st.floats(allow_nan=False), st.binary(max_size=40), st.data())
def test_a_routed_frame_that_is_cut_short_is_the_same_to_both_readers(address, deadline, payload, data):
    whole = frame.Routed(address).start(1, 7, deadline) + payload
    piece = whole[: data.draw(st.integers(0, len(whole) - 1))]
    _agree(piece)


@given(st.binary(max_size=64), st.integers(0, 255), st.integers(0, 255))
def test_whatever_comes_is_the_same_to_both_readers(rest, flags, serializer):
    _agree(bytes((frame.MAGIC, frame.VERSION, flags, serializer)) + rest)
    _agree(rest)


def _agree(block):
    """What the short reader takes, the long one takes, and as the same."""
    short = frame.unroute(block)
    try:
        parsed = frame.parse([block], 1 << 20)
    except DecodeError:
        assert short is None
        return
    routed = parsed.route is not None and not parsed.content_type and not parsed.buffers and not parsed.headers
    if short is None:
        flags = block[2]
        assert not routed or flags & ~(frame.ROUTE | frame.DEADLINE)
    else:
        serializer, number, address, deadline, payload = short
        assert (parsed.serializer, parsed.route, bytes(parsed.payload)) == (serializer, (number, address), payload)
        assert repr(parsed.deadline) == repr(deadline)  # nan is nan
