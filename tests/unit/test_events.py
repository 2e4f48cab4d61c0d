from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ipcbus
from ipcbus import Occurrence
from ipcbus.errors import ChannelClosed, ChannelEmpty, EndOfChannel
from ipcbus.supervisor import Events

from .rig import Amid

PATIENCE = 20.0


def occurrence(number: int) -> Occurrence:
    return Occurrence(float(number), "a", "started", number)


@pytest.fixture
def events() -> Iterator[Events]:
    events = Events(3)
    yield events
    events.close()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("call", [Events.recv, Events.fileno, Events.ready])
def test_a_signal_handler_closes_them_amid_a_call(
    events: Events, call: Callable[[Events], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    events.add(occurrence(1))
    monkeypatch.setattr(events, "_lock", Amid(events, "_lock", events.close))
    with contextlib.suppress(ChannelClosed):
        call(events)
    with pytest.raises(ChannelClosed):
        events.recv()


def test_they_come_in_order_and_end(events: Events) -> None:
    assert not events.ready()
    for number in (1, 2):
        events.add(occurrence(number))
    assert events.ready()
    assert [events.recv(0).pid, events.recv().pid] == [1, 2]
    for timeout in (0, 0.01):
        with pytest.raises(ChannelEmpty, match="nothing happened"):
            events.recv(timeout)
    events.add(occurrence(3))
    events.end()
    assert [entry.pid for entry in events] == [3]
    assert events.ready()
    for _ in range(2):
        with pytest.raises(EndOfChannel):
            events.recv()


def test_the_oldest_are_dropped_and_counted(events: Events) -> None:
    for number in range(10):
        events.add(occurrence(number))
    events.end()
    assert events.dropped == 7
    assert [entry.pid for entry in events] == [7, 8, 9]


def test_they_can_be_waited_for_together_with_channels(events: Events) -> None:
    with ipcbus.open("inproc:") as channel:
        assert ipcbus.wait([channel, events], 0) == []
        events.add(occurrence(1))
        assert ipcbus.wait([channel, events], PATIENCE) == [events]
        events.recv()
        assert ipcbus.wait([channel, events], 0) == []
        channel.send(1)
        assert ipcbus.wait([channel, events], PATIENCE) == [channel]
        timer = threading.Timer(0.05, events.end)
        timer.start()
        channel.recv()
        assert ipcbus.wait([channel, events], PATIENCE) == [events]
        timer.join()


@pytest.mark.parametrize("way", ["recv", "wait"])
def test_closing_wakes_who_waits(events: Events, way: str) -> None:
    timer = threading.Timer(0.05, events.close)
    timer.start()
    if way == "wait":
        assert ipcbus.wait([events], PATIENCE) == [events]
    with pytest.raises(ChannelClosed):
        events.recv(PATIENCE)
    timer.join()
    events.add(occurrence(1))  # the supervisor goes on, and nobody is told
    with pytest.raises(ChannelClosed):
        events.recv()


def test_threads_that_receive_compete() -> None:
    events, got, lock = Events(1000), list[Any](), threading.Lock()

    def receive() -> None:
        for entry in events:
            with lock:
                got.append(entry.pid)

    threads = [threading.Thread(target=receive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(500):
        events.add(occurrence(number))
    events.end()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(got) == list(range(500))
