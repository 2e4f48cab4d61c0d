"""Topics: what is not the same on every transport, and what no transport can see."""

import asyncio
import multiprocessing
import os
import pickle
import signal
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import ipcbus
from ipcbus import endpoint
from ipcbus.bus import route, topics_home
from ipcbus.bus.bulletin import BULLETIN, Bulletin
from ipcbus.directory import place
from ipcbus.plumbing.fds import close_all
from ipcbus.testing.subject import raises

from .rig import Amid, until

PATIENCE = 10


@pytest.fixture
def bus():
    with ipcbus.Bus({"topics": {"*": "pipe:"}}) as bus:
        yield bus
    settle()


def settle():
    for thread in route.partings():
        thread.join(PATIENCE)


class Counted:
    """Counts how often it is pickled."""

    def __init__(self):
        self.times = 0

    def __reduce__(self):
        self.times += 1
        return int, ()


def test_encodes_once(bus):
    with ExitStack() as stack:
        subs = [stack.enter_context(bus.topic("a").subscribe()) for _ in range(50)]
        value = Counted()
        bus.topic("a").publish(value)
        assert value.times == 1
        assert [sub.recv(timeout=PATIENCE) for sub in subs] == [0] * 50


@pytest.mark.timeout(20)
def test_a_signal_handler_unsubscribes_amid_a_look_at_what_was_dropped(bus, monkeypatch):
    sub = bus.topic("a").subscribe(capacity=1)
    for number in range(3):
        bus.topic("a").publish(number)
    monkeypatch.setattr(sub, "_lock", Amid(sub, "_lock", sub.close))
    assert sub.dropped == 2
    with pytest.raises(ipcbus.ChannelClosed):
        sub.recv()


@pytest.mark.timeout(20)
def test_a_signal_handler_publishes_amid_a_first_publish(bus, monkeypatch):
    with bus.topic(">").subscribe() as sub:
        monkeypatch.setattr(route, "_lock", Amid(route, "_lock", lambda: bus.topic("a").publish("handler")))
        bus.topic("a").publish("first")
        assert [sub.recv(timeout=PATIENCE) for _ in range(2)] == ["handler", "first"]


def test_more_subscribers_than_one_answer_has_room_for(bus):
    topic = bus.topic("a")
    with ExitStack() as stack:
        subs = [stack.enter_context(bus.topic("*").subscribe()) for _ in range(40)]
        assert topic.subscribers() == 40
        topic.publish(1)
        assert all(sub.recv(timeout=PATIENCE) == 1 for sub in subs)
    assert topic.subscribers() == 0


def test_subscribers_of_different_ways_get_what_they_can_read():
    ways = {"a": "pipe:?serializer=json&accept=json", "*.>": "zmq:?checksum=yes", "*": "pipe:", ">": "queue:"}
    with ipcbus.Bus({"topics": ways}) as bus, bus.topic("a").subscribe() as json, bus.topic(">").subscribe() as pickled:
        topic = bus.topic("a")
        topic.publish({"n": 1})
        assert json.recv_message(timeout=PATIENCE).content_type == "application/json"
        assert pickled.recv_message(timeout=PATIENCE).content_type == "application/x-python-pickle"
        raises(ipcbus.EncodeError, topic.publish, object())
        raises(ipcbus.ChannelEmpty, pickled.recv, timeout=0)
        with bus.topic("*.b").subscribe() as other, bus.topic("*.>").subscribe() as checked:
            bus.topic("a.b").publish(2)
            assert [sub.recv(timeout=PATIENCE) for sub in (other, checked, pickled)] == [2, 2, 2]
    settle()


@pytest.mark.parametrize(
    ("topics", "said"),
    [
        ({"*": "pipe:?overflow=block"}, "drop_new or drop_old"),
        ({"*": {"url": "pipe:", "overflow": "fail"}}, "drop_new or drop_old"),
        ({"*": {"url": "queue:", "receivers": "many"}}, "receivers='many'"),
        ({"a": {"b": "pipe:"}}, 'topics."a"'),
        ({"a": 1}, "topics.a must be"),
        ({"*": "pipe:?capacty=1"}, "did you mean 'capacity'"),
    ],
)
def test_wrong_configuration(topics, said):
    with ipcbus.Bus({"topics": topics}) as bus, pytest.raises(ipcbus.ConfigError, match=said):
        bus.topic("a").subscribe()


def test_wrong_key():
    with pytest.raises(ipcbus.ConfigError, match="can only come last"):
        ipcbus.Bus({"topics": {"a.>.b": "pipe:"}})


def test_strict():
    with ipcbus.Bus({"topics": {"prices.>": "pipe:"}, "bus": {"strict": True}}) as bus:
        bus.topic("prices.eu").publish(1)
        with pytest.raises(ipcbus.ConfigError, match=r"did you mean 'prices\.>'"):
            bus.topic("price.eu").publish(1)
        with bus.topic("prices.*").subscribe():
            pass


def test_threads_are_not_processes():
    with ipcbus.Bus({"topics": {"*": "inproc:"}}) as bus, pytest.raises(ipcbus.Unsupported, match="pipe:"):
        bus.topic("a").subscribe()


def test_the_topics_name_is_a_header_that_is_taken(bus):
    with pytest.raises(ipcbus.ConfigError, match="topic"):
        bus.topic("a").publish(1, headers={"topic": "b"})
    with pytest.raises(ipcbus.EncodeError):
        bus.topic("a").publish(1, headers={"n": 1})


def test_closed(bus):
    sub = bus.topic("a").subscribe()
    sub.close()
    sub.close()
    assert sub.dropped == 0
    raises(ipcbus.ChannelClosed, sub.recv)
    raises(ipcbus.ChannelClosed, sub.fileno)
    assert list(sub) == []
    bus.close()
    raises(ipcbus.ChannelClosed, bus.topic, "a")


def test_closing_wakes_who_receives(bus):
    sub = bus.topic("a").subscribe()
    got = []
    thread = threading.Thread(target=lambda: got.extend(sub))
    thread.start()
    bus.topic("a").publish(1)
    while not got:
        time.sleep(0.001)
    sub.close()
    thread.join(PATIENCE)
    assert got == [1]


def test_never_closed(bus, child):
    topic = bus.topic("a")
    with pytest.warns(ResourceWarning, match="never closed"):
        assert topic.subscribe().dropped == 0
    until(lambda: topic.subscribers() == 0)
    child.run("obj.subscribe()", topic)
    until(lambda: topic.subscribers() == 0)


AMID_A_QUESTION = """
import signal
from ipcbus.directory import wire

sub, tap, receive = obj.topic("a").subscribe(), obj.tap("x"), wire.receive

def close(*_):
    sub.close()
    tap.close()

def interrupted(sock, flags=0):
    wire.receive = receive
    signal.raise_signal(signal.SIGUSR1)
    return receive(sock, flags)

before = signal.signal(signal.SIGUSR1, close)
wire.receive = interrupted
try:
    result = len(obj.channels())
finally:
    signal.signal(signal.SIGUSR1, before)
"""


@pytest.mark.filterwarnings("error")
def test_the_home_hears_of_an_end_by_a_signal_handler_amid_a_question_to_it(bus, child):
    assert child.run(AMID_A_QUESTION, bus) == 1
    until(lambda: not bus._home._topics._subscriptions)
    until(lambda: bus.channels()[0].taps == ())


INTERRUPTED = """
from ipcbus.directory import wire

receive, result = wire.receive, 0

def interrupted(sock, flags=0):
    global left
    answer, left = receive(sock, flags), left - 1
    if left < 0:
        raise KeyboardInterrupt
    return answer

wire.receive = interrupted
try:
    for answers in range(3):
        left = answers
        try:
            obj.topic("a").subscribe()
        except KeyboardInterrupt:
            result += 1
finally:
    wire.receive = receive
"""


def test_an_interrupted_subscribe_leaves_no_subscription(bus, child):
    """Not either where the home has entered it before."""
    assert child.run(INTERRUPTED, bus) == 3
    until(lambda: not bus._home._topics._subscriptions)
    assert bus.topic("a").subscribers() == 0


def test_without_a_thread_for_letting_go_of_one_the_others_get_the_message(bus, monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    with bus.topic("a").subscribe() as gone, bus.topic("a").subscribe() as sub:
        bus.topic("a").publish(1)
        gone._channel.destroy()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            bus.topic("a").publish(2)
        assert sub.recv_many(3, timeout=PATIENCE) == [1, 2]
        assert bus.topic("a").subscribers() == 1
        assert route.partings() == []


def test_what_a_dead_subscriber_left_and_nobody_understands_does_not_keep_the_rest(bus, caplog):
    """Such as a channel of a transport that the home does not have."""
    process = multiprocessing.get_context("spawn").Process(target=signal.pause)
    process.start()
    try:
        for key in (b"k" * 16, b"l" * 16):
            bus._home._topics.enter(key, "a", b"no pickle", [os.dup(0)], process.pid)
    finally:
        process.kill()
        process.join()
    until(lambda: caplog.text.count("what a subscriber of a left cannot be removed") == 2)
    assert bus._home._topics._subscriptions == {}


def test_what_travels(bus):
    topic = pickle.loads(pickle.dumps(bus.topic("a")))
    assert topic == bus.topic("a")
    assert len({topic, bus.topic("a"), bus.topic("b")}) == 2
    with topic.subscribe() as sub, pytest.raises(ipcbus.Unsupported, match="pass the Topic on"):
        pickle.dumps(sub)


def test_drops_are_counted_over_threads(bus):
    with bus.topic("a").subscribe(capacity=10) as sub:

        def publish():
            for n in range(200):
                bus.topic("a").publish(n)

        threads = [threading.Thread(target=publish) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sub.dropped == 790
        assert len(sub.recv_many(20, timeout=PATIENCE)) == 10


async def test_asyncio(bus):
    with bus.topic("a").subscribe() as sub:
        waiting = asyncio.ensure_future(sub.aio.recv())
        await asyncio.sleep(0)
        bus.topic("a").publish(1)
        assert await asyncio.wait_for(waiting, PATIENCE) == 1


def test_wait_takes_it_among_others(bus):
    with bus.topic("a").subscribe() as one, bus.topic("b").subscribe() as other, ipcbus.open("queue:") as channel:
        assert ipcbus.wait([one, other, channel], timeout=0) == []
        bus.topic("b").publish(1)
        assert ipcbus.wait([one, other, channel], timeout=PATIENCE) == [other]


def test_a_process_that_lost_its_connection_is_still_subscribed(bus, child):
    topic = bus.topic("a")
    child.run("sub = obj.subscribe()\nimport builtins; builtins.kept = sub", topic)
    try:
        child.run("import ipcbus.directory.client as c; [place.close() for place in c._here.places.values()]")
        topic.publish(1)
        assert topic.subscribers() == 1
        assert child.run("result = kept.recv(timeout=10)") == 1
    finally:
        child.run("kept.close()")
    assert topic.subscribers() == 0


def test_a_new_home_after_one_that_closed(tmp_path):
    address = str(tmp_path / "bus")
    topic = None
    for turn in range(3):
        with ipcbus.Bus({"topics": {"*": "pipe:"}}, address=address) as bus:
            topic = topic or bus.topic("a")
            with bus.topic("a").subscribe() as sub:
                topic.publish(turn)
                assert sub.recv(timeout=PATIENCE) == turn
        topic.publish("to nobody")
    settle()


def test_a_home_that_begins_is_asked_again_once_it_counts(tmp_path):
    address = str(tmp_path / "bus")
    with ipcbus.Bus({"topics": {"*": "pipe:"}}, address=address) as bus:
        topic = bus.topic("a")
        topic.publish(0)
    topic.publish("to nobody")
    Path(address).mkdir(mode=0o700)
    begun = Bulletin(Path(address), home=True)
    topic.publish("to nobody")  # its home does not answer yet
    begun.close()
    with ipcbus.Bus({"topics": {"*": "pipe:"}}, address=address) as bus, bus.topic("a").subscribe() as sub:
        topic.publish(1)
        assert sub.recv(timeout=PATIENCE) == 1
    settle()


@contextmanager
def stopped(pid):
    """Have a child of this process stand still."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)  # it may still run when kill returns
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def stopping_home(child, monkeypatch):
    """A bus that the child keeps, which is not waited for as long as usual; and what stops the child."""
    monkeypatch.setattr(place, "PATIENCE", 2 * route._SLOW)
    child.run("import builtins, ipcbus; builtins.home = ipcbus.Bus({'topics': {'*': 'pipe:'}})")
    address, pid = child.run("import os; result = home.address, os.getpid()")
    with ipcbus.Bus.connect(address) as bus:
        yield bus, lambda: stopped(pid)
    child.run("home.close()")
    settle()


def test_a_home_that_was_stopped_is_asked_again_at_the_next_subscription(stopping_home):
    bus, stopped_home = stopping_home
    topic = bus.topic("a")
    topic.publish(0)
    with topic.subscribe():
        with stopped_home():
            topic.publish("meanwhile")
        with topic.subscribe() as sub:
            topic.publish(1)
            assert sub.recv(timeout=PATIENCE) == 1


def test_a_home_that_was_stopped_has_those_ask_again_who_did_not_wait(stopping_home):
    bus, stopped_home = stopping_home
    topic = bus.topic("a")
    topic.publish(0)
    with topic.subscribe() as sub:
        with stopped_home():
            topic.publish("meanwhile")
        until = time.monotonic() + 3
        while not ipcbus.wait([sub], timeout=0.01):
            assert time.monotonic() < until
            topic.publish(1)
        assert sub.recv(timeout=0) == 1


def test_the_home_does_not_remember_every_topic(bus, monkeypatch):
    monkeypatch.setattr(topics_home, "_MOST_MATCHING", 10)
    with bus.topic("a.*").subscribe() as sub:
        for n in range(25):
            bus.topic(f"a.{n}").publish(n)
        assert sub.recv_many(30, timeout=PATIENCE) == list(range(25))
        assert len(topics_home._kept[bus.address]._matching) <= 10


def test_subscribers_outlive_the_home(bus):
    topic = bus.topic("a")
    with topic.subscribe() as sub:
        topic.publish(1)
        bus.close()
        topic.publish(2)
        assert [sub.recv(timeout=PATIENCE) for _ in range(2)] == [1, 2]
    topic.publish(3)
    assert topic.subscribers() == 0
    raises(ipcbus.ChannelBroken, topic.subscribe)


@pytest.mark.parametrize("url", ["unix:", "pipe:"])
def test_a_publisher_short_of_descriptors_keeps_its_subscribers(url, no_descriptors):
    with ipcbus.Bus({"topics": {"*": url}}) as bus, bus.topic("a").subscribe() as sub:
        topic = bus.topic("a")
        topic.publish("before")
        with no_descriptors():
            topic.publish(bytes(3_000_000))  # which needs a memory file
        topic.publish("after")
        assert [sub.recv(timeout=PATIENCE) for _ in range(2)] == ["before", "after"]
        assert sub.dropped == 1
    settle()


def test_an_end_that_cannot_be_opened_is_tried_again(bus, monkeypatch):
    def refuse(_):
        raise ipcbus.ChannelBroken("no descriptors")

    with bus.topic("a").subscribe() as sub:
        with monkeypatch.context() as patch:
            patch.setattr(endpoint.Endpoint, "open_sender", refuse)
            bus.topic("a").publish("lost")
        assert sub.dropped == 1
        bus.topic("a").publish("after")
        assert sub.recv(timeout=PATIENCE) == "after"
        assert sub.dropped == 1


def test_a_subscriber_that_cannot_be_reached_is_asked_for_again(bus, monkeypatch):
    def refuse(_one, fds, _home):
        close_all(fds)
        raise ipcbus.ChannelBroken("no descriptors")

    monkeypatch.setattr(route, "_RETRY", 0.0)
    with bus.topic("a").subscribe() as sub:
        with monkeypatch.context() as patch:
            patch.setattr(route, "_Target", refuse)
            bus.topic("a").publish("lost")
            assert bus.topic("a").subscribers() == 0
        bus.topic("a").publish("after")
        assert sub.recv(timeout=PATIENCE) == "after"


def test_no_descriptors_for_news(bus, monkeypatch, no_descriptors):
    monkeypatch.setattr(route, "_RETRY", 0.0)
    topic = bus.topic("a")
    with topic.subscribe() as one:
        topic.publish(1)
        with bus.topic("*").subscribe() as other:
            with no_descriptors():
                topic.publish(2)
            topic.publish(3)
            assert one.recv_many(5, timeout=PATIENCE) == [1, 2, 3]
            assert other.recv(timeout=PATIENCE) == 3


def test_a_publisher_that_is_stopped_holds_up_nobody(child):
    with ipcbus.Bus({"topics": {"*": "queue:"}}) as bus, bus.topic("a").subscribe(capacity=4, overflow="drop_old") as sub:
        topic = bus.topic("a")
        topic.publish("first")
        assert sub.recv(timeout=PATIENCE) == "first"
        child.run("for n in range(4): obj.publish(bytes(2_000_000))", topic)  # all of the room, and more than a pipe holds
        pid = child.run("import os; result = os.getpid()")
        with stopped(pid):
            started = time.monotonic()
            for _ in range(20):
                topic.publish("new")
            assert time.monotonic() - started < 1
        assert [len(sub.recv(timeout=PATIENCE)) for _ in range(4)] == [2_000_000] * 4
        assert sub.dropped == 20
        topic.publish("last")
        assert sub.recv(timeout=PATIENCE) == "last"
    settle()


class HeldUp:
    """A sending link whose lock is another process's, which was stopped."""

    def __init__(self):
        self.until = time.monotonic() + PATIENCE

    def send(self, _frame, timeout):
        assert timeout == 0
        assert time.monotonic() < self.until
        raise ipcbus.ChannelFull("another sender has been at it all the time")

    def discard_oldest(self, _timeout):
        return False  # there is room


def test_a_publisher_that_is_stopped_in_the_middle_is_not_waited_for_with_every_message():
    with ipcbus.Bus({"topics": {"*": "unix:"}}) as bus, bus.topic("a").subscribe(overflow="drop_old") as sub:
        topic = bus.topic("a")
        topic.publish("first")
        ours = route.find(bus.address, "a")
        (target,) = ours._targets.values()
        link, target.end.tx = target.end.tx, HeldUp()
        ours._arrange()
        try:
            started = time.monotonic()
            for _ in range(20):
                topic.publish("lost")
            assert time.monotonic() - started < 1
        finally:
            target.end.tx = link
        ours._arrange()
        topic.publish("last")
        assert sub.recv_many(5, timeout=PATIENCE) == ["first", "last"]
        assert sub.dropped == 20
    settle()


def test_no_descriptor_is_kept_of_those_who_left(bus):
    topic = bus.topic("a")
    topic.publish(0)

    def turn():
        with topic.subscribe() as sub:
            topic.publish(1)
            assert sub.recv(timeout=PATIENCE) == 1
        topic.publish(2)
        settle()

    turn()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        turn()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_no_descriptor_is_kept_of_a_topic(bus):
    bus.topic("warm").publish(0)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for n in range(20):
        bus.topic(f"a.{n}").publish(n)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_keeps_a_topic_from_being_published_to(bus, no_descriptors):
    with no_descriptors(), pytest.raises(ipcbus.ChannelBroken, match="Too many open files; see 'ulimit -n'"):
        bus.topic("a").publish(1)
    file = Path(bus.address) / BULLETIN
    size = file.stat().st_size
    os.truncate(file, 0)  # nobody looks at what is mapped meanwhile
    with pytest.raises(ipcbus.ChannelBroken, match="not complete"):
        bus.topic("a").publish(1)
    os.truncate(file, size)
    file.rename(file.with_name("away"))
    with pytest.raises(ipcbus.ChannelBroken, match="has ended"):
        bus.topic("a").publish(1)
    file.with_name("away").rename(file)
    with bus.topic("a").subscribe() as sub:
        bus.topic("a").publish(2)
        assert sub.recv(timeout=PATIENCE) == 2


def test_ends_stay_open_without_an_object_for_the_topic(bus):
    with bus.topic("a").subscribe() as sub:
        bus.topic("a").publish(0)
        route_before = route.find(bus.address, "a")
        ends = [target.end.tx for target in route_before._targets.values()]
        bus.topic("a").publish(1)
        assert route.find(bus.address, "a") is route_before
        assert [target.end.tx for target in route_before._targets.values()] == ends
        assert sub.recv_many(5, timeout=PATIENCE) == [0, 1]
    for n in range(1100):
        bus.topic(f"many.{n}")
    assert len(bus._topics) == 1000
