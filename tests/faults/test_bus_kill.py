"""The home of a bus is killed while others attach, and a process while it sends channels away: nobody hangs."""

import random
import time

import pytest

import ipcbus
from ipcbus.plumbing import rundir
from ipcbus.testing import guests
from ipcbus.testing.faults import kills
from ipcbus.testing.subject import Subject

TRIALS = kills()
ATTACHERS = 2
SOON = 1.0
"""Seconds within which a death must show."""
PATIENCE = 10


class Moment:
    """When to kill: at random, and later where so little was under way that the kills would prove nothing."""

    def __init__(self, seed):
        self._dice = random.Random(seed)
        self._span = 0.03

    def wait(self):
        time.sleep(self._dice.uniform(0, self._span))

    def saw(self, count):
        if count < 3:
            self._span = min(1.3 * self._span, 0.5)


def _schemes():
    for scheme in ipcbus.transports:
        try:
            capabilities = ipcbus.transports.get(scheme).capabilities
        except ipcbus.TransportUnavailable as error:
            yield pytest.param(scheme, marks=pytest.mark.skip(reason=str(error)))
        else:
            if capabilities.crosses_processes and not capabilities.addressable:
                yield scheme


@pytest.fixture
def subject():
    with Subject("pipe:", "forkserver") as made:
        yield made
    rundir.reap(rundir.base())


@pytest.fixture
def address():
    base = rundir.create()
    yield str(base / "b")
    rundir.remove(base)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", list(_schemes()))
def test_the_home_is_killed_while_others_attach(scheme, subject, address):
    seed = random.randrange(1 << 30)
    moment = Moment(seed)
    attachers = [subject.start(guests.attach_until_it_fails, address) for _ in range(ATTACHERS)]
    attached = 0
    for trial in range(TRIALS):
        home = subject.start(guests.obey)
        home.say(("home", {"transport": f"{scheme}:"}, address))
        assert home.hear() == address
        home.say(("open", "first"))  # imports what it needs
        home.hear()
        for attacher in attachers:
            attacher.say("go")
        moment.wait()
        home.kill()
        killed = time.monotonic()
        where = f"seed {seed}, trial {trial}"
        for attacher in attachers:
            kind, text, longest, count = attacher.hear(PATIENCE)
            assert time.monotonic() - killed < SOON, where
            assert kind == "ChannelBroken", f"{where}: {text}"
            assert "start the process again" in text, f"{where}: {text}"
            assert longest < SOON, where
            attached += count
            moment.saw(count)
    assert attached > TRIALS, "nobody attached to anything"
    for attacher in attachers:
        attacher.say("enough")
        attacher.result()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", list(_schemes()))
def test_a_process_is_killed_that_sends_channels_away(scheme, subject):
    """What was received of it works, whenever it died."""
    seed = random.randrange(1 << 30)
    moment = Moment(seed)
    received = 0
    with ipcbus.Bus() as bus:
        for trial in range(TRIALS):
            jobs = subject.open()
            with pytest.raises(ipcbus.ChannelEmpty):
                jobs.recv(timeout=0)
            victim = subject.start(guests.share_over_and_over, bus.address, jobs, f"{scheme}:")
            assert victim.hear() == "connected"
            moment.wait()
            victim.kill()
            before = received
            while True:
                started = time.monotonic()
                try:
                    (channel,) = jobs.recv(timeout=0.05)
                except (ipcbus.ChannelEmpty, ipcbus.PeerDied):
                    break
                with channel:
                    if scheme not in ("zmq", "queue"):  # which keep in the sender what is not under way yet
                        assert channel.recv(timeout=SOON) == "in it", f"seed {seed}, trial {trial}"
                    channel.send("more", timeout=SOON)
                assert time.monotonic() - started < SOON, f"seed {seed}, trial {trial}"
                received += 1
            moment.saw(received - before)
            jobs.close()
    assert received > TRIALS
