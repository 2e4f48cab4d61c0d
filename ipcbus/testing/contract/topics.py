"""Topics over a transport: everyone who has subscribed gets a copy, and nobody waits for anybody."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import ipcbus
from ipcbus.bus import route
from ipcbus.testing import listeners
from ipcbus.testing.children import PATIENCE, Unpicklable
from ipcbus.testing.contract.registry import check
from ipcbus.testing.subject import LATE, Subject, raises

if TYPE_CHECKING:
    from collections.abc import Iterator

KNOWN = 1.0
"""Seconds within which publishers know that a process has died."""


@contextlib.contextmanager
def _bus(subject: Subject, *wanted: str) -> Iterator[ipcbus.Bus]:
    """Make the home of a bus whose topics travel by the subject's transport, with an address for each name or pattern."""
    with ipcbus.Bus(_config(subject, *wanted)) as bus:
        yield bus
    _settle()


def _settle() -> None:
    """Wait until nothing is left of subscribers that have gone: their publishers part from them beside their work."""
    for thread in route.partings():
        thread.join(PATIENCE)


def _config(subject: Subject, *wanted: str) -> dict[str, Any]:
    settings = subject.settings()
    return {"topics": {key: {"url": subject.fresh_url(), **settings} for key in (*wanted, "*")}}


def _until(topic: ipcbus.Topic, count: int, seconds: float = PATIENCE) -> None:
    """Wait until a topic has so many subscribers."""
    until = time.monotonic() + seconds
    while (found := topic.subscribers()) != count:
        assert time.monotonic() < until, f"{topic} has {found} subscribers after {seconds} s, and should have {count}"
        time.sleep(0.002)


@check(1, 3, 16, scope="start method")
def check_topics(subject: Subject) -> None:
    """Every subscriber gets its copy of what matches, in order, with its name; a topic goes to a process as an argument."""
    names = ("news.eu", "news.us", "news.eu.dax", "olds.eu")
    wanted = {"news.*": names[:2], "news.>": names[:3], "*.eu": ("news.eu", "olds.eu"), "news.eu": ("news.eu",)}
    with _bus(subject, *wanted) as bus, contextlib.ExitStack() as stack:
        child = subject.start(listeners.publish_in_turn, [bus.topic(name) for name in names], 40)
        assert child.hear() == "ready"
        subs = {pattern: stack.enter_context(bus.topic(pattern).subscribe()) for pattern in wanted}
        child.say("go")
        child.result()
        for pattern, sub in subs.items():
            for n in [n for n in range(40) if names[n % 4] in wanted[pattern]]:
                message = sub.recv_message(timeout=PATIENCE)
                assert message.body == n, f"{pattern} got {message.body}, and {n} comes next"
                assert dict(message.headers) == {"topic": names[n % 4], "n": str(n)}
            raises(ipcbus.ChannelEmpty, sub.recv, timeout=0)
            assert sub.dropped == 0
        raises(ipcbus.ConfigError, bus.topic("news.*").publish, 1)


@check(4, 6, scope="process")
def check_publish_encodes_at_once(subject: Subject) -> None:
    """What is published is a snapshot, and what cannot travel raises in ``publish`` whether or not anybody listens."""
    with _bus(subject, "a") as bus:
        topic = bus.topic("a")
        raises(ipcbus.EncodeError, topic.publish, Unpicklable())
        with topic.subscribe() as sub:
            raises(ipcbus.EncodeError, topic.publish, Unpicklable())
            value = [1, 2]
            topic.publish(value)
            value.append(3)
            assert ipcbus.wait([sub], timeout=PATIENCE) == [sub]
            assert sub.recv(timeout=PATIENCE) == [1, 2]
            raises(ipcbus.ChannelEmpty, sub.recv, timeout=0)


@check(16, scope="process")
def check_subscriber_misses_nothing(subject: Subject) -> None:
    """Who has returned from ``subscribe`` gets what another process publishes after that, whatever it published before."""
    turns = range(8)
    wanted = [f"{word}.{'>' if n % 2 else '*'}" for n in range(2) for word in ("ticks", "told")]
    for _ in turns[::2]:  # a bus for every two, since an address may be good for one channel only
        with _bus(subject, *wanted) as bus:
            marks = get_context("forkserver").RawArray("q", 2)
            busy = subject.start(listeners.publish_on, bus.topic("ticks.eu"), marks, 0)
            told = subject.start(listeners.publish_on_demand, bus.topic("told.eu"))
            assert busy.hear() == told.hear() == "ready"
            for n in range(2):
                with bus.topic(wanted[2 * n]).subscribe(capacity=64) as ticks, bus.topic(wanted[2 * n + 1]).subscribe() as sub:
                    last = marks[0]
                    told.say(n)
                    assert told.hear() == "published"
                    assert sub.recv(timeout=PATIENCE) == n
                    _, first = ticks.recv(timeout=PATIENCE)
                    assert first <= last + 1, f"{last + 1} was published after subscribing, and {first} came first"
            marks[1] = 1
            busy.result()
            told.say(None)
            told.result()


@check(9, 19, scope="process")
def check_subscriber_capacity(subject: Subject) -> None:
    """A subscriber gets as many as it asked for room, and a count of the rest, which another process has dropped."""
    with _bus(subject, "a", "*") as bus:
        topic = bus.topic("a")
        with topic.subscribe(capacity=5) as sub, bus.topic(">").subscribe() as roomy:
            child = subject.start(listeners.publish_in_turn, [topic], 12)
            assert child.hear() == "ready"
            child.say("go")
            child.result()
            assert sub.dropped == 7, f"{sub.dropped} were counted as dropped of 12 for which there was room for 5"
            assert [sub.recv(timeout=PATIENCE) for _ in range(5)] == list(range(5))
            assert [roomy.recv(timeout=PATIENCE) for _ in range(12)] == list(range(12))
            assert roomy.dropped == 0
            topic.publish("more")
            assert sub.recv(timeout=PATIENCE) == "more"
        for wrong in ("block", "fail"):
            raises(ipcbus.ConfigError, topic.subscribe, overflow=wrong)
        raises(ipcbus.ConfigError, topic.subscribe, capacity=0)


@check(9, 20, scope="process")
def check_subscriber_drops_old(subject: Subject) -> None:
    """``drop_old`` keeps the newest messages and counts the others; a transport that cannot says so in ``subscribe``."""
    with _bus(subject, "a") as bus:
        topic = bus.topic("a")
        if not subject.capabilities.drops_old:
            raises(ipcbus.Unsupported, topic.subscribe, overflow="drop_old")
            return
        with topic.subscribe(capacity=5, overflow="drop_old") as sub:
            for n in range(12):
                topic.publish(n)
            assert [sub.recv(timeout=PATIENCE) for _ in range(5)] == list(range(7, 12))
            assert sub.dropped == 7


@check(13, scope="process")
def check_subscribers_come_and_go(subject: Subject) -> None:
    """Who leaves gets nothing more and is waited for by nobody; others, and those who come later, get all that is theirs."""
    with _bus(subject, "a.b", "a.*") as bus, bus.topic("a.*").subscribe() as stays:
        topic = bus.topic("a.b")
        assert topic.subscribers() == 1
        for turn in range(3):
            with topic.subscribe() as sub:
                child = subject.start(listeners.listen, bus.topic("*.b" if subject.private else "a.>"), None, 2)
                assert child.hear() == "subscribed"
                assert topic.subscribers() == 3
                topic.publish(turn)
                topic.publish(listeners.END)
                assert sub.recv(timeout=PATIENCE) == turn
                child.say("listen")
                assert child.result() == ([turn], 0)
            raises(ipcbus.ChannelClosed, sub.recv)
            assert topic.subscribers() == 1
            assert [stays.recv(timeout=PATIENCE) for _ in range(2)] == [turn, listeners.END]


@check(10, 18, scope="process")
def check_stopped_subscriber_delays_nobody(subject: Subject) -> None:
    """A subscriber that is stopped loses messages, which are counted for it; nobody else notices."""
    with _bus(subject, "a", "*") as bus, bus.topic("a").subscribe() as other:
        topic = bus.topic("a")
        child = subject.start(listeners.listen, bus.topic(">"), 10, 10)
        assert child.hear() == "subscribed"
        os.kill(child.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            for n in range(300):
                topic.publish(n)
            took = time.monotonic() - started
            assert took < LATE, f"300 messages took {took:.2f} s with a subscriber that is stopped"
            assert [other.recv(timeout=PATIENCE) for _ in range(300)] == list(range(300))
        finally:
            os.kill(child.pid, signal.SIGCONT)
        child.say("listen")
        got, dropped = child.result()
        assert got == list(range(10)), f"it had room for 10, and got {got}"
        assert dropped == 290


@check(18, scope="process")
def check_killed_subscriber(subject: Subject) -> None:
    """Publishers go on when a subscriber is killed, and soon send it nothing; new ones come as before."""
    with _bus(subject, "a", "*") as bus, bus.topic("a").subscribe() as other:
        topic = bus.topic("a")
        child = subject.start(listeners.listen, bus.topic(">"), 10, 10)
        assert child.hear() == "subscribed"
        for n in range(30):
            topic.publish(n)
            if n == 15:
                child.kill()
        _until(topic, 1, KNOWN)
        topic.publish(30)
        assert [other.recv(timeout=PATIENCE) for _ in range(31)] == list(range(31))
        with bus.topic(">").subscribe() as sub:
            topic.publish("new")
            assert sub.recv(timeout=PATIENCE) == "new"


@check(18, scope="process", applies=lambda capabilities: capabilities.survives_kill)
def check_killed_publisher(subject: Subject) -> None:
    """A subscriber goes on to get what others publish when a publisher is killed in the middle of it."""
    marks = [get_context("forkserver").RawArray("q", 2) for _ in range(2)]
    with _bus(subject, "a") as bus, bus.topic("a").subscribe() as sub:
        publishers = [subject.start(listeners.publish_on, bus.topic("a"), marks[n], n) for n in range(2)]
        for child in publishers:
            assert child.hear() == "ready"
        publishers[0].kill()
        got = [sub.recv(timeout=PATIENCE) for _ in range(3000)]
        marks[1][1] = 1
        publishers[1].result()
        for number in range(2):
            mine = [n for who, n in got if who == number]
            assert mine == sorted(set(mine)), "out of order, or twice"
        until = time.monotonic() + PATIENCE
        who = 1
        while who != 2:
            assert time.monotonic() < until, "a publisher was killed, and nothing comes of what another one publishes later"
            bus.topic("a").publish((2, 0))  # again and again: what was published before comes first, and may take all room
            with contextlib.suppress(ipcbus.ChannelEmpty):
                who, _ = sub.recv(timeout=0.1)


@check(18, scope="process")
def check_killed_home(subject: Subject) -> None:
    """Publishers and subscribers go on without a home, subscribing says at once that it is gone, and a new home serves them."""
    config = _config(subject, "a", "a.b")
    with tempfile.TemporaryDirectory(prefix="ipcbus-home-") as address, contextlib.ExitStack() as stack:
        home = subject.start(listeners.keep_home, config, address)
        assert home.hear() == "home"
        bus = stack.enter_context(ipcbus.Bus.connect(address))
        topic, sub = bus.topic("a"), stack.enter_context(bus.topic("a").subscribe())
        topic.publish(1)
        home.kill()
        topic.publish(2)
        assert [sub.recv(timeout=PATIENCE) for _ in range(2)] == [1, 2]
        raises(ipcbus.ChannelBroken, bus.topic("a.b").subscribe)
        raises(ipcbus.ChannelBroken, bus.topic("a.b").publish, 1)
        topic.publish(3)
        assert sub.recv(timeout=PATIENCE) == 3
        heir = subject.start(listeners.keep_home, {"topics": config["topics"] | {"*": config["topics"]["a.b"]}}, address)
        assert heir.hear() == "home"
        second = stack.enter_context(bus.topic("*").subscribe())
        topic.publish(4)
        assert sub.recv(timeout=PATIENCE) == second.recv(timeout=PATIENCE) == 4
        heir.say("end")
        heir.result()
        topic.publish(5)
        assert sub.recv(timeout=PATIENCE) == second.recv(timeout=PATIENCE) == 5
    _settle()


@check(16, scope="process")
def check_topic_after_fork(subject: Subject) -> None:
    """A forked child publishes by what it inherited, beside its parent, and leaves its parent's subscriptions alone."""
    with _bus(subject, "a") as bus, bus.topic("a").subscribe() as sub:
        topic = bus.topic("a")
        topic.publish("before")
        child = subject.start(listeners.publish_in_turn, [topic], 20, start_method="fork")
        assert child.hear() == "ready"
        child.say("go")
        child.result()
        topic.publish("after")
        got = [sub.recv(timeout=PATIENCE) for _ in range(22)]
        assert [value for value in got if isinstance(value, int)] == list(range(20))
        assert [value for value in got if isinstance(value, str)] == ["before", "after"]
        assert topic.subscribers() == 1
        raises(ipcbus.ChannelEmpty, sub.recv, timeout=0)
