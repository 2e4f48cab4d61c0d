"""A subscriber or a publisher is killed at a random instant, again and again, and nobody else notices."""

import importlib.util
import random
import time
from multiprocessing import get_context

import pytest

import ipcbus
from ipcbus.bus import route
from ipcbus.testing import listeners
from ipcbus.testing.children import PATIENCE
from ipcbus.testing.faults import kills
from ipcbus.testing.subject import LATE, Subject

KILLS = kills()
SHM = pytest.param("shm", marks=pytest.mark.skipif(not importlib.util.find_spec("ipcbus_shm"), reason="not installed"))
SCHEMES = ["pipe", "unix", SHM, "queue", "zmq"]


@pytest.fixture(params=SCHEMES)
def subject(request):
    with Subject(f"{request.param}:", "forkserver") as subject:
        yield subject


def settle():
    for thread in route.partings():
        thread.join(PATIENCE)


@pytest.mark.slow
def test_subscribers_killed(subject):
    moments = random.Random(0)
    with ipcbus.Bus({"topics": {"*": subject.url}}) as bus, bus.topic("a").subscribe(capacity=64) as stays:
        topic = bus.topic("a")
        n = slowest = 0
        for _ in range(KILLS):
            victim = subject.start(listeners.listen, topic, 16)
            assert victim.hear() == "subscribed"
            victim.say("listen")
            until = time.monotonic() + moments.uniform(0, 0.01)
            killed = False
            while not killed or topic.subscribers() > 1:
                if not killed and time.monotonic() >= until:
                    victim.process.kill()
                    until, killed = time.monotonic() + LATE, True
                assert not killed or time.monotonic() < until, "a publisher does not learn that its subscriber died"
                started = time.monotonic()
                topic.publish(n)
                slowest = max(slowest, time.monotonic() - started)
                assert stays.recv(timeout=PATIENCE) == n
                n += 1
            victim.kill()
        assert slowest < LATE
        assert stays.dropped == 0
    settle()


@pytest.mark.slow
def test_publishers_killed(subject):
    moments = random.Random(1)
    loses = not subject.capabilities.survives_kill
    with ipcbus.Bus({"topics": {"*": subject.url}}) as bus:
        topic = bus.topic("a")
        for trial in range(KILLS):
            marks = get_context("forkserver").RawArray("q", 2)
            with topic.subscribe(capacity=64) as sub:
                victim = subject.start(listeners.publish_on, topic, marks, trial)
                assert victim.hear() == "ready"
                until, last = time.monotonic() + moments.uniform(0, 0.01), -1
                while time.monotonic() < until:
                    last = follow(sub.recv(timeout=PATIENCE), trial, last)
                victim.kill()
                if subject.capabilities.capacity_scope == "channel":
                    last = drain(sub, trial, last)  # the room of all, which the victim may have used up
                topic.publish((trial, "after"))
                while True:
                    try:
                        got = sub.recv(timeout=0.05 if loses else PATIENCE)
                    except ipcbus.ChannelEmpty:
                        assert loses, "what a survivor published is lost"
                        break  # queue: the room that was the victim's is gone, and with it the survivor's message
                    if got == (trial, "after"):
                        break
                    last = follow(got, trial, last)
                assert last <= marks[0]
    settle()


def drain(sub, trial, last):
    while True:
        try:
            last = follow(sub.recv(timeout=0.05), trial, last)
        except ipcbus.ChannelEmpty:
            return last


def follow(got, trial, last):
    """Return the number of a message that may come behind the last one."""
    who, n = got
    assert who == trial
    assert last < n
    return n
