"""Spinning: for a moment, as long as that pays, within the timeout, and never where it cannot pay."""

import os

import pytest

import ipcbus
from ipcbus.errors import ChannelEmpty, EndOfChannel
from ipcbus.plumbing import spin as spinning
from ipcbus.plumbing.spin import Spin, awake

LOOK = 1e-6
"""Seconds that a look takes here."""
LIMIT = 50e-6


class Line:
    """What receives, with a clock of its own: a message comes so many seconds after it is waited for, or never."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.comes = None
        self.looks = 0
        self.sleeps = []
        monkeypatch.setattr(spinning, "monotonic", lambda: self.now)

    def expect(self, seconds):
        self.comes = None if seconds is None else self.now + seconds
        self.looks, self.sleeps = 0, []

    def recv(self, timeout):
        if timeout == 0:
            self.looks += 1
            self.now += LOOK
        else:
            self.sleeps.append(timeout)
            until = float("inf") if timeout is None else self.now + timeout
            if self.comes is None or self.comes > until:
                self.now = min(until, self.now + 1000)
                raise ChannelEmpty
            self.now = max(self.now, self.comes)
        if self.comes is None or self.now < self.comes:
            raise ChannelEmpty
        return (b"message",)


@pytest.fixture
def line(monkeypatch):
    return Line(monkeypatch)


@pytest.fixture
def spin(line):
    return Spin(line.recv, LIMIT)


def test_what_is_there_is_taken_at_once(line, spin):
    line.expect(0)
    assert spin.recv(None) == (b"message",)
    assert (line.looks, line.sleeps) == (1, [])


def test_what_comes_soon_is_taken_without_a_sleep(line, spin):
    for _ in range(100):
        line.expect(30e-6)
        spin.recv(1)
        assert 25 < line.looks < 35
        assert not line.sleeps


def test_what_comes_later_is_slept_for(line, spin):
    line.expect(1)
    spin.recv(None)
    assert 45 < line.looks < 55
    assert line.sleeps == [None]


def test_it_is_given_up_where_it_does_not_pay_and_tried_again_now_and_then(line, spin):
    looks = []
    for _ in range(100):
        line.expect(1)
        spin.recv(None)
        looks.append(line.looks)
    assert [seen for seen in looks if seen > 1][:5] == sorted((seen for seen in looks[:5]), reverse=True)
    assert looks[6:30] == [0] * 24
    assert sum(seen > 40 for seen in looks) in (3, 4), "the first, and one of each 32 that follow"


def test_once_it_pays_again_it_is_done_again(line, spin):
    for _ in range(20):
        line.expect(1)
        spin.recv(None)
    tries = 0
    while True:
        line.expect(10e-6)
        spin.recv(None)
        tries += 1
        if not line.sleeps:
            break
    assert tries <= 33
    line.expect(40e-6)
    spin.recv(None)
    assert not line.sleeps


@pytest.mark.parametrize("timeout", [0, 10e-6, 1e-3, 1])
def test_the_timeout_is_that_of_the_whole(line, spin, timeout):
    began = line.now
    line.expect(None)
    with pytest.raises(ChannelEmpty):
        spin.recv(timeout)
    assert line.now - began == pytest.approx(timeout, abs=2 * LOOK)


def test_errors_are_what_they_were(monkeypatch, line):
    def ended(_timeout):
        raise EndOfChannel

    with pytest.raises(EndOfChannel):
        Spin(ended).recv(None)


def test_never_on_one_processor(monkeypatch, line):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    spin = Spin(line.recv)
    for _ in range(100):
        line.expect(10e-6)
        spin.recv(None)
        assert line.looks == 0


@pytest.mark.parametrize("url", ["pipe:", "unix:", "shm:", "inproc:"])
def test_who_answers_requests_is_awake_and_who_receives_messages_is_not(url):
    if url == "shm:":
        pytest.importorskip("ipcbus_shm")
    with ipcbus.open(url) as channel:
        channel.send(1)
        assert channel.recv_message().body == 1
        link = channel._end.rx
        assert channel._end.listen == link.recv
        for question in (2, 4):
            future = channel.submit(question)
            channel.recv_message().reply(question + 1)
            assert future.result(10) == question + 1
        assert link.spins is (url == "shm:")
        assert (channel._end.listen == link.recv) is link.spins


def test_a_link_that_spins_is_left_alone():
    class Link:
        spins = True

        def recv(self, timeout):
            return timeout

    link = Link()
    assert awake(link) == link.recv
