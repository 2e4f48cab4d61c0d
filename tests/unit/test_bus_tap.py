"""A tap gets copies and nothing else: nobody waits for it, and what is for the receiver stays the receiver's."""

from __future__ import annotations

import os
import signal
import time

import pytest

import ipcbus
from ipcbus.bus import meter
from ipcbus.bus.looking import StandIn
from ipcbus.testing import children, guests
from ipcbus.testing.children import PATIENCE
from ipcbus.testing.subject import Subject, raises

from .rig import until

METHODS = ("fork", "spawn", "forkserver")


@pytest.fixture(params=METHODS)
def subject(request):
    with Subject("pipe:", request.param) as subject:
        yield subject


@pytest.fixture
def bus():
    with ipcbus.Bus() as bus:
        yield bus


def taps(bus):
    (facts,) = bus.channels()
    return facts.taps


@pytest.mark.parametrize("url", ["pipe:", "queue:", "zmq:"])
def test_copies_of_what_is_sent_from_now_on(url):
    with ipcbus.Bus({"channels": {"orders": url}}) as bus:
        orders = bus.channel("orders")
        orders.send("before")
        with bus.tap("orders") as tap:
            assert taps(bus) == (os.getpid(),)
            orders.send({"n": 1}, headers={"key": "value"})
            copy = tap.recv_message(timeout=PATIENCE)
            assert (copy.body, dict(copy.headers)) == ({"n": 1}, {"key": "value"})
            raises(ipcbus.ChannelEmpty, tap.recv_message, timeout=0)
            assert tap.missed == 0
        assert taps(bus) == ()
        orders.send("after")
        assert [orders.recv(timeout=PATIENCE) for _ in range(3)] == ["before", {"n": 1}, "after"]


def test_every_sender_whoever_gave_it_the_channel(subject, bus):
    """By name or by argument, open before or after the tap came."""
    orders = bus.channel("orders")
    with bus.tap("orders") as tap:
        early = subject.start(guests.send_by_name, bus.address, "orders", ["a", "b"])
        handed = subject.start(guests.send_when_told, orders)
        for child in (early, handed, early):
            assert child.hear() == "ready"
            child.say()
        for child in (early, handed):
            child.result()
        orders.send("home")
        copies = [tap.recv_message(timeout=PATIENCE).body for _ in range(4)]
        assert sorted(copies) == ["a", "b", "home", "sent"]
        assert copies.index("a") < copies.index("b")
    assert sorted(orders.recv(timeout=PATIENCE) for _ in range(4)) == ["a", "b", "home", "sent"]


def test_a_child_forked_in_the_middle(bus):
    """It opens ends, a slot and ways to the tap of its own; its parent's go on."""
    orders, unused = bus.channel("orders"), ipcbus.open("pipe:")
    with bus.tap("orders") as tap, Subject("pipe:", "fork") as subject:
        orders.send("before")
        for number in range(2):
            unused.send(number)
        children.inherited[:] = [unused, orders]
        unused.sender.close()
        subject.start(children.use_inherited).result()
        children.inherited.clear()
        orders.send("after")
        copies = [tap.recv_message(timeout=PATIENCE).body for _ in range(3)]
        assert sorted(copies, key=str) == [[0, 1], "after", "before"]
        assert tap.missed == 0
    unused.close()


def test_threads_are_counted_each(bus):
    orders = bus.channel("orders")
    with bus.tap("orders", 10_000) as tap, Subject("pipe:", "fork") as subject:
        tasks = [subject.thread(lambda: [orders.send(number) for number in range(200)]) for _ in range(4)]
        for task in tasks:
            task.result()
        assert bus.channels()[0].sent == 800
        for _ in range(800):
            tap.recv_message(timeout=PATIENCE)


def test_a_tap_that_comes_to_a_sender_at_work(subject, bus):
    orders = bus.channel("orders")
    sender = subject.start(guests.send_by_name, bus.address, "orders", ["unseen", "seen", "unseen too"])
    assert sender.hear() == "ready"
    sender.say()
    assert sender.hear() == "ready"
    with bus.tap("orders") as tap:
        sender.say()
        assert tap.recv_message(timeout=PATIENCE).body == "seen"
        assert sender.hear() == "ready"
    sender.say()
    sender.result()
    assert [orders.recv(timeout=PATIENCE) for _ in range(3)] == ["unseen", "seen", "unseen too"]


def test_the_end_of_the_channel_is_the_end_of_the_tap(subject, bus):
    orders = bus.channel("orders")
    child = subject.start(guests.tap_until_end, bus.address, "orders")
    assert child.hear() == "tapping"
    orders.send(1)
    orders.receiver.shutdown()
    assert child.result() == ([1], 0)


def test_a_stopped_tap_delays_nobody_and_counts_what_it_missed(subject, bus):
    orders = bus.channel("orders")
    child = subject.start(guests.tap_until_end, bus.address, "orders", 10)
    assert child.hear() == "tapping"
    os.kill(child.pid, signal.SIGSTOP)
    longest = 0.0
    for number in range(500):
        started = time.monotonic()
        orders.send((number, bytes(20_000 if number % 10 == 0 else 10)), timeout=PATIENCE)
        longest = max(longest, time.monotonic() - started)
        assert orders.recv(timeout=PATIENCE)[0] == number
    assert longest < 1, "a send waited for the tap"
    os.kill(child.pid, signal.SIGCONT)
    orders.shutdown()
    copies, missed = child.result()
    assert [number for number, _ in copies] == sorted(number for number, _ in copies)
    assert len(copies) + missed == 500
    assert missed >= 400


def test_closing_does_not_wait_for_a_stopped_tap(bus):
    with Subject("pipe:", "fork") as subject:
        child = subject.start(guests.tap_until_end, bus.address, "orders", 10)
        assert child.hear() == "tapping"
        os.kill(child.pid, signal.SIGSTOP)
        orders = bus.channel("orders")
        for number in range(20):
            orders.send((number, bytes(100_000)), timeout=PATIENCE)
            orders.recv(timeout=PATIENCE)
        started = time.monotonic()
        orders.close()
        assert time.monotonic() - started < 1
        os.kill(child.pid, signal.SIGCONT)
        child.kill()


def test_a_killed_tap_is_forgotten(subject, bus):
    orders = bus.channel("orders")
    child = subject.start(guests.tap_until_end, bus.address, "orders", 10)
    assert child.hear() == "tapping"
    orders.send(0)
    link = orders._end.tx
    assert link._copies._links
    child.kill()
    for number in range(1, 100):  # more than it had room for
        orders.send(number, timeout=PATIENCE)
    until(lambda: taps(bus) == ())
    orders.send(100)
    assert not link._copies._links, "the sender still holds what it sent copies by"
    assert [orders.recv(timeout=PATIENCE) for _ in range(101)] == list(range(101))


def test_a_tap_that_is_closed(bus):
    """A child that was forked meanwhile, and has what its parent had, keeps nothing going."""
    orders = bus.channel("orders")
    with Subject("pipe:", "fork") as subject:
        tap = bus.tap("orders")
        child = subject.start(children.idle)
        orders.send(1)
        tap.close()
        tap.close()
        orders.send(2)
        assert taps(bus) == ()
        assert not orders._end.tx._copies._links
        child.say()
        child.result()


def test_a_forked_child_does_not_end_its_parents_tap(bus, child):
    child.run(
        """
import builtins, os
tap = obj.tap("orders")
pid = os.fork()
if not pid:
    tap.close()
    os._exit(0)
os.waitpid(pid, 0)
builtins.kept = tap
""",
        bus,
    )
    try:
        bus.channel("orders").send("copied")
        assert child.run("result = kept.recv_message(timeout=10).body") == "copied"
    finally:
        child.run("kept.close()")


def test_no_more_than_a_few(bus):
    held = [bus.tap("orders") for _ in range(4)]
    error = raises(ipcbus.Unsupported, bus.tap, "orders")
    assert str(os.getpid()) in str(error)
    held.pop().close()
    held.append(bus.tap("orders"))
    orders = bus.channel("orders")
    orders.send(1)
    assert [tap.recv_message(timeout=PATIENCE).body for tap in held] == [1, 1, 1, 1]
    for tap in held:
        tap.close()


def test_one_that_is_dropped_makes_room(bus, child):
    bus.channel("orders")
    for _ in range(5):
        with pytest.warns(ResourceWarning, match="never closed"):
            bus.tap("orders")
        until(lambda: not taps(bus))
    for _ in range(5):
        child.run("obj.tap('orders')", bus)
        until(lambda: not taps(bus))


def test_misses_are_each_taps_own(bus):
    with bus.tap("orders", 2) as small, bus.tap("orders", 100) as large:
        orders = bus.channel("orders")
        for number in range(10):
            orders.send(number)
        assert (small.missed, large.missed) == (8, 0)
    with bus.tap("orders", 100) as later:
        assert later.missed == 0


def test_a_moment_without_descriptors_costs_a_tap_what_is_sent_meanwhile(bus, no_descriptors, monkeypatch):
    monkeypatch.setattr(meter, "_RETRY", 0.0)
    orders = bus.channel("orders")
    orders.send("before")
    with bus.tap("orders") as tap:
        with no_descriptors():
            orders.send("meanwhile")
            assert tap.missed == 1

        def comes():
            orders.send("after")
            return tap.ready()

        until(comes)
        assert tap.recv_message(timeout=0).body == "after"


def test_a_copy_that_could_not_be_sent_is_missed_and_the_next_one_is_not(bus, monkeypatch):
    def refuse(*_):
        raise ipcbus.ChannelBroken("no descriptors")

    orders = bus.channel("orders")
    with bus.tap("orders") as tap:
        orders.send(1)
        ((_, _, link),) = orders._end.tx._copies._links.values()
        with monkeypatch.context() as patch:
            patch.setattr(type(link), "send", refuse)
            assert orders._end.tx._copies.send([b"2"]) == -1
        orders.send(3)
        assert [tap.recv_message(timeout=PATIENCE).body for _ in range(2)] == [1, 3]
        assert tap.missed == 1


def test_a_signal_handler_sends_while_copies_are_made(bus, monkeypatch):
    """It used to wait for ever for what it interrupts."""
    orders = bus.channel("orders")
    said = bytearray(b"handler")
    pending = [signal.SIGUSR1]
    refresh = meter._Copies._refresh

    def interrupted(copies):
        if pending:
            signal.raise_signal(pending.pop())
        refresh(copies)

    def handle(*_):
        orders.send(said)
        said[:] = b"changed"

    monkeypatch.setattr(meter._Copies, "_refresh", interrupted)
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with bus.tap("orders") as tap:
            orders.send("first")
            orders.send("last")
            assert [tap.recv_message(timeout=PATIENCE).body for _ in range(3)] == ["first", b"handler", "last"]
            assert tap.missed == 0
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [orders.recv(timeout=PATIENCE) for _ in range(3)] == ["first", b"handler", "last"]


def test_what_did_not_fit_into_the_channel_has_no_copy():
    with ipcbus.Bus({"channels": {"orders": {"url": "pipe:", "capacity": 1, "overflow": "drop_new"}}}) as bus:
        orders = bus.channel("orders")
        with bus.tap("orders") as tap:
            orders.send(1)
            orders.send(2)
            assert tap.recv_message(timeout=PATIENCE).body == 1
            raises(ipcbus.ChannelEmpty, tap.recv_message, timeout=0)
        assert orders.recv(timeout=PATIENCE) == 1


def test_a_keyed_channel(tmp_path):
    key = tmp_path / "key"
    key.write_bytes(b"sixteen bytes and more")
    key.chmod(0o600)
    with ipcbus.Bus({"channels": {"orders": {"url": "pipe:", "key_file": str(key)}}}) as bus:
        orders = bus.channel("orders")
        with bus.tap("orders") as tap:
            orders.send({"n": 1})
            assert tap.recv_message(timeout=PATIENCE).body == {"n": 1}
        assert orders.recv(timeout=PATIENCE) == {"n": 1}


class TestWhatOnlyItsReceiverMayHave:
    def test_a_descriptor(self, bus):
        """It can be had once."""
        orders = bus.channel("orders")
        reading, writing = os.pipe()
        with bus.tap("orders") as tap, ipcbus.Fd(writing) as descriptor:
            orders.send({"descriptor": descriptor, "other": [1]})
            copy = tap.recv_message(timeout=PATIENCE).body
            assert isinstance(copy["descriptor"], StandIn)
            assert repr(copy) == "{'descriptor': <a fd, for its receiver>, 'other': [1]}"
        with orders.recv(timeout=PATIENCE)["descriptor"] as arrived:
            os.write(arrived.fileno(), b"x")
        assert os.read(reading, 1) == b"x"
        os.close(reading)

    def test_a_channel(self, bus):
        with bus.tap("orders") as tap, ipcbus.open("pipe:") as own:
            bus.channel("orders").send([own, ipcbus.Stats(1, 2, 3, 4, 5, None, 7)])
            assert repr(tap.recv_message(timeout=PATIENCE).body[0]) == "<a channel, for its receiver>"
            assert bus.channel("orders").recv(timeout=PATIENCE)[0] == own

    def test_a_request(self, bus):
        """The receiver answers, and who asked does not hear of the tap."""
        orders = bus.channel("orders")
        with bus.tap("orders") as tap:
            future = orders.submit("question", timeout=PATIENCE)
            copy = tap.recv_message(timeout=PATIENCE)
            assert (copy.body, copy.reply_to) == ("question", None)
            assert not future.is_done
            orders.recv_message(timeout=PATIENCE).reply("answer")
            assert future.result(PATIENCE) == "answer"

    def test_what_is_by_value(self):
        with ipcbus.Bus({"channels": {"orders": {"url": "pipe:", "serializer": "cloudpickle"}}}) as bus:
            with bus.tap("orders") as tap:
                bus.channel("orders").send(lambda: 7)
                assert tap.recv_message(timeout=PATIENCE).body() == 7
            assert bus.channel("orders").recv(timeout=PATIENCE)() == 7


def test_copies_and_the_wait(bus):
    with bus.tap("orders") as tap:
        assert ipcbus.wait([tap], timeout=0) == []
        bus.channel("orders").send(1)
        assert ipcbus.wait([tap], timeout=PATIENCE) == [tap]
        assert tap.ready()


def test_a_process_that_lost_its_connection_has_its_tap(bus, child):
    orders = bus.channel("orders")
    pid = child.run("import builtins, os; builtins.kept = obj.tap('orders'); result = os.getpid()", bus)
    try:
        child.run("import ipcbus.directory.client as c; [place.close() for place in c._here.places.values()]")
        until(lambda: not bus._home.directory.guests())
        assert taps(bus) == (pid,)
        orders.send("copied")  # by a process that has not sent before: it fetches the tap's channel
        assert child.run("result = kept.recv_message(timeout=10).body") == "copied"
    finally:
        child.run("kept.close()")
    assert taps(bus) == ()
