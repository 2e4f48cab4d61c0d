"""What the bus counts, whichever process did it, and what that costs: nothing where there is no bus."""

from __future__ import annotations

import os

import pytest

import ipcbus
from ipcbus.bus import page
from ipcbus.bus.meter import CountedReceiver, CountedSender
from ipcbus.testing import children, guests
from ipcbus.testing.children import PATIENCE
from ipcbus.testing.subject import Subject

from .rig import until

METHODS = ("fork", "spawn", "forkserver")
URLS = ("pipe:", "queue:", "zmq:")


@pytest.fixture(params=METHODS)
def subject(request):
    with Subject("pipe:", request.param) as subject:
        yield subject


@pytest.fixture
def bus():
    with ipcbus.Bus() as bus:
        yield bus


def facts(bus, name="orders"):
    (found,) = [facts for facts in bus.channels() if facts.name == name]
    return found


def test_a_channel_without_a_bus_has_the_bare_links_of_its_transport():
    with ipcbus.open("pipe:") as channel:
        assert not isinstance(channel._end.open_sender(), CountedSender)
        assert not isinstance(channel._end.open_receiver(), CountedReceiver)


@pytest.mark.parametrize("url", URLS)
def test_what_this_process_does(url):
    with ipcbus.Bus({"channels": {"orders": {"url": url, "capacity": 10}}}) as bus:
        assert bus.channels() == []
        orders = bus.channel("orders")
        assert facts(bus).users == ()
        for number in range(3):
            orders.send(number, timeout=PATIENCE)
        found = facts(bus)
        assert (found.name, found.transport, found.capacity, found.users) == ("orders", url[:-1], 10, (os.getpid(),))
        assert (found.sent, found.received, found.depth) == (3, 0, 3)
        orders.recv(timeout=PATIENCE)
        assert (facts(bus).sent, facts(bus).received, facts(bus).depth) == (3, 1, 2)


def test_what_children_do_that_were_handed_the_channel(subject, bus):
    """They count like everybody, and what they did is not forgotten when they end."""
    orders = bus.channel("orders")
    child = subject.start(children.recv_count, orders, 2)
    assert child.hear() == "ready"
    orders.send(1, timeout=PATIENCE)
    until(lambda: facts(bus).received == 1)
    assert facts(bus).users == tuple(sorted((os.getpid(), child.pid)))
    orders.send(2, timeout=PATIENCE)
    assert child.result() == [1, 2]
    subject.start(children.send_numbered, orders, 0, 5).result()
    until(lambda: facts(bus).users == (os.getpid(),))
    assert (facts(bus).sent, facts(bus).received, facts(bus).depth) == (7, 2, 5)


def test_what_a_guest_sees_is_what_the_home_sees(subject, bus):
    orders = bus.channel("orders")
    orders.send(1)
    seen = subject.start(guests.bus_facts, bus.address).result()
    (here,) = bus.channels()
    assert [(known.name, known.sent, known.users) for known in seen] == [("orders", 1, here.users)]
    assert here.since(seen[0]).sent_per_second == 0


def test_rates():
    def at(moment, sent, received):
        return ipcbus.ChannelFacts("a", "pipe:", "pipe", 10, (), (), 0, sent, received, moment)

    rated = at(12.0, 30, 20).since(at(10.0, 10, 16))
    assert (rated.sent_per_second, rated.received_per_second) == (10, 2)
    assert at(1, 1, 1).since(at(1, 0, 0)).sent_per_second is None


def test_a_forked_child_has_a_slot_of_its_own(bus):
    orders, answers = bus.channel("orders"), bus.channel("answers")
    orders.send(1)
    orders.ready()
    answers.send(0)
    children.inherited[:] = [orders, answers]
    with Subject("pipe:", "fork") as subject:
        orders.close()
        children.inherited[:] = [bus.channel("jobs"), answers]
        for number in range(2):
            bus.channel("jobs").send(number)
        subject.start(children.use_inherited).result()
    assert (facts(bus, "jobs").sent, facts(bus, "jobs").received) == (2, 2)
    assert facts(bus, "answers").sent == 2
    children.inherited.clear()


def test_a_killed_receiver_makes_the_depth_unknown(subject, bus):
    orders = bus.channel("orders")
    child = subject.start(children.recv_one_and_hold, orders)
    for number in range(3):
        orders.send(number, timeout=PATIENCE)
    assert child.hear() == 0
    assert facts(bus).depth == 2
    child.kill()
    found = facts(bus)
    assert (found.sent, found.received, found.depth) == (3, 1, None)


def test_a_killed_receiver_that_had_taken_everything_does_not(subject, bus):
    orders = bus.channel("orders")
    child = subject.start(children.recv_one_and_hold, orders)
    orders.send(0, timeout=PATIENCE)
    assert child.hear() == 0
    child.kill()
    assert facts(bus).depth == 0


def test_more_processes_than_slots(subject, bus, monkeypatch):
    """Who finds no slot uses the channel all the same; slots of those that ended are used again."""
    monkeypatch.setattr(page, "SLOTS", page.HERE + 2)
    orders = bus.channel("orders")
    first = subject.start(children.send_on_demand, orders)
    first.say(1)
    assert first.hear() == "None"
    second = subject.start(children.send_on_demand, orders)
    second.say(2)
    assert second.hear() == "None"
    assert {orders.recv(timeout=PATIENCE), orders.recv(timeout=PATIENCE)} == {1, 2}
    assert (facts(bus).sent, facts(bus).received, facts(bus).depth) == (1, 2, None)
    for child in (first, second):
        child.say(None)
        child.result()
    third = subject.start(children.send_on_demand, orders)
    third.say(3)
    assert third.hear() == "None"
    assert facts(bus).sent == 2
    third.say(None)
    third.result()


def test_a_channel_whose_home_is_gone_goes_on_uncounted(subject):
    with ipcbus.Bus() as bus:
        orders = bus.channel("orders")
        child = subject.start(guests.send_when_told, orders.sender)
        assert child.hear() == "ready"
        taken = ipcbus.open("pipe:")  # keeps nothing of the bus
        taken.close()
        receiver = orders.receiver
        receiver.ready()
        bus._home.board.close()
        bus._home.directory.close()
        child.say()
        assert receiver.recv(timeout=PATIENCE) == "sent"
        child.result()


_SEND_WITH_NOTHING_AND_AGAIN = """
import contextlib, os, resource
limit, held = resource.getrlimit(resource.RLIMIT_NOFILE), []
resource.setrlimit(resource.RLIMIT_NOFILE, (256, limit[1]))
with contextlib.suppress(OSError):
    while True:
        held.append(os.dup(0))
result = ""
try:
    obj.send(1)
except OSError as error:
    result = type(error).__name__
for fd in held:
    os.close(fd)
resource.setrlimit(resource.RLIMIT_NOFILE, limit)
obj.send(2)
obj.close()
"""


def test_a_process_that_had_no_descriptors_when_it_began_is_counted_once_it_has(child):
    with ipcbus.Bus({"channels": {"orders": "pipe:"}}) as bus:
        assert child.run(_SEND_WITH_NOTHING_AND_AGAIN, bus.channel("orders")) == "ChannelBroken"
        assert facts(bus).sent == 1


def test_a_home_without_descriptors_says_what_was_counted(bus, child, no_descriptors):
    orders = bus.channel("orders")
    orders.send(0)
    child.run("with obj.channel('orders') as orders: orders.send(1)", bus)
    assert facts(bus).sent == 2
    with no_descriptors():
        assert facts(bus).sent == 2


def test_a_page_cannot_be_made_shorter():
    descriptor, words = page.create()
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    os.close(descriptor)
    assert page.total(words, page.SENT) == 0


def test_a_name_that_this_process_opens_again_is_counted_on(bus):
    with bus.channel("orders") as orders:
        orders.send(1)
    assert facts(bus).users == ()
    bus.channel("orders").send(2)
    assert (facts(bus).sent, facts(bus).users) == (2, (os.getpid(),))


def test_what_was_dropped_to_make_room_does_not_wait():
    with ipcbus.Bus({"channels": {"orders": {"url": "queue:", "capacity": 2, "overflow": "drop_old"}}}) as bus:
        orders = bus.channel("orders")
        for number in range(5):
            orders.send(number)
        assert (facts(bus).sent, facts(bus).depth) == (5, 2)
        assert [orders.recv(timeout=PATIENCE) for _ in range(2)] == [3, 4]
        assert facts(bus).depth == 0
