"""A call beside another on the same end: in a thread that is busy there for a moment, or waits; or in a signal handler."""

import functools
import importlib.util
import multiprocessing
import select
import signal
import socket
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest

import ipcbus
from ipcbus.errors import ChannelBroken, ChannelClosed, ChannelEmpty, ChannelFull, EndOfChannel, PeerDied

from .rig import in_thread, until

PATIENCE = 10
PROBE = 0.001
SHM = pytest.param("shm:", marks=pytest.mark.skipif(not importlib.util.find_spec("ipcbus_shm"), reason="not installed"))


@pytest.fixture(params=["pipe:", "unix:", "unix:?receivers=many"])
def channel(request):
    with ipcbus.open(request.param, capacity=1) as channel:
        channel.send("first")
        assert channel.recv(PATIENCE) == "first"
        yield channel


@contextmanager
def thread(function, *args):
    """Run a function in a thread, which has to end."""
    running = threading.Thread(target=function, args=args)
    running.start()
    try:
        yield
    finally:
        running.join(PATIENCE)
        assert not running.is_alive(), "the call is stuck"


@contextmanager
def busy_for_a_moment(link):
    """Have another thread inside a call that does not wait for the other side."""
    inside = threading.Event()

    def call():
        with link._lock:
            inside.set()
            threading.Event().wait(0.02)

    with thread(call):
        assert inside.wait(PATIENCE)
        yield


def is_waiting(link):
    """Tell whether a thread sleeps in a call on a link."""
    waiting = link._waiting
    if isinstance(waiting, bool):
        return waiting
    if not waiting.acquire(blocking=False):
        return True
    waiting.release()
    return False


def readable(descriptor, seconds):
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


@contextmanager
def another_receiver(channel):
    """Have a child be the receiver; yield the process."""
    here, there = multiprocessing.get_context("fork").Pipe()
    with here, there:
        process = multiprocessing.get_context("fork").Process(target=lambda: (there.send(channel.ready()), there.recv()))
        process.start()
        try:
            assert here.poll(PATIENCE)
            here.recv()
            yield process
        finally:
            process.kill()
            process.join(PATIENCE)


def test_another_thread_is_busy(channel):
    tx, rx = channel._end.tx, channel._end.rx
    with busy_for_a_moment(tx):
        assert tx.ready()
    with busy_for_a_moment(tx):
        channel.send("second", timeout=0)
    with busy_for_a_moment(rx):
        assert rx.ready()
    with busy_for_a_moment(rx):
        assert channel.recv(timeout=0) == "second"


def test_another_thread_waits_for_a_message(channel):
    rx = channel._end.rx
    with thread(channel.recv, PATIENCE):
        until(lambda: rx._waiting)
        with pytest.raises(ChannelEmpty, match="another thread"):
            channel.recv(timeout=0)
        assert not rx.ready()
        channel.send("second")
    with pytest.raises(ChannelEmpty):
        channel.recv(timeout=0)


@pytest.mark.parametrize("timeout", [-0.001, -1])
def test_a_deadline_that_has_passed_while_another_thread_waits(channel, timeout):
    with thread(channel.recv, PATIENCE):
        until(lambda: channel._end.rx._waiting)
        assert isinstance(in_thread(channel.recv, timeout)(), ChannelEmpty)
        channel.send("second")
    channel.send("third")
    with thread(channel.send, "fourth", PATIENCE):
        until(lambda: channel._end.tx._waiting)
        assert isinstance(in_thread(channel.send, "fifth", timeout)(), ChannelFull)
        assert [channel.recv(PATIENCE), channel.recv(PATIENCE)] == ["third", "fourth"]


def test_another_thread_waits_for_room(channel):
    tx = channel._end.tx
    channel.send("second")
    with thread(channel.send, "third", PATIENCE):
        until(lambda: tx._waiting)
        with pytest.raises(ChannelFull, match="another thread"):
            channel.send("fourth", timeout=0)
        assert not tx.ready()
        assert not ipcbus.wait([channel.sender], timeout=0.01)
        assert [channel.recv(PATIENCE), channel.recv(PATIENCE)] == ["second", "third"]


@pytest.mark.parametrize("receives", [True, False])
@pytest.mark.parametrize("url", ["pipe:", "unix:", SHM])
def test_the_wait_for_another_thread_is_part_of_the_timeout(url, receives):
    if url == "shm:" and receives:
        pytest.skip("its receivers wait beside each other")
    with ipcbus.open(url, capacity=1) as channel:
        channel.send("first")
        if receives:
            assert channel.recv(PATIENCE) == "first"
        link = channel._end.rx if receives else channel._end.tx or channel._end.open_sender()
        call = channel.recv if receives else functools.partial(channel.send, "second")
        with thread(call, PATIENCE):
            until(lambda: is_waiting(link))
            # So late that who has waited for the first of them, and then waits as long again for itself, shows.
            other = functools.partial(channel.send, "late") if receives else functools.partial(channel.recv, PATIENCE)
            late = threading.Timer(0.8, other)
            late.start()
            start = time.monotonic()
            with pytest.raises((ChannelEmpty, ChannelFull)):
                call(timeout=1)
            assert time.monotonic() - start < 1.5
            late.join(PATIENCE)


@pytest.mark.parametrize("capacity", [4, 16])
@pytest.mark.parametrize("url", ["pipe:", "unix:", SHM])
def test_a_send_and_a_wait_for_the_same_room(url, capacity):
    with ipcbus.open(url, capacity=capacity) as channel:
        for number in range(capacity):
            channel.send(number)
        tx, woken = channel._end.tx, []
        with thread(channel.send, capacity, PATIENCE):
            until(lambda: is_waiting(tx))
            with thread(lambda: woken.extend(ipcbus.wait([channel.sender], timeout=PATIENCE))):
                threading.Event().wait(0.05)  # so that it is likely to wait; it must be woken either way
                for number in range(capacity):
                    assert channel.recv(timeout=PATIENCE) == number
        assert woken == [channel.sender]


@pytest.mark.parametrize("url", ["pipe:", "unix:", SHM])
def test_room_that_one_thread_has_seen_shows_to_the_others(url):
    with ipcbus.open(url, capacity=1) as channel:
        channel.send(1)
        descriptor = channel.sender.fileno()
        assert readable(descriptor, 0), "somebody is to look when it is first given out"
        assert not channel.sender.ready()
        assert not readable(descriptor, 0)
        assert channel.recv(PATIENCE) == 1
        for _ in range(2):
            assert readable(descriptor, PATIENCE)
            assert channel.sender.ready()
        channel.send(2)
        assert not channel.sender.ready()
        assert not readable(descriptor, 0)


@pytest.mark.parametrize("url", ["inproc:", "pipe:", "queue:", "queue:?receivers=many", "unix:", "zmq:", SHM])
def test_a_message_that_one_thread_has_seen_shows_to_the_others(url):
    with ipcbus.open(url, capacity=4) as channel:
        descriptor = channel.receiver.fileno()
        assert not channel.ready()
        assert not readable(descriptor, 0)
        for number in range(2):
            channel.send(number)
            for _ in range(2):
                assert readable(descriptor, PATIENCE)
                until(channel.ready)
            assert channel.recv(0) == number
            until(lambda: not channel.ready() and not readable(descriptor, 0))


@pytest.mark.parametrize("url", ["pipe:", "unix:", SHM])
def test_a_death_that_one_thread_has_seen_shows_to_the_others(url):
    with ipcbus.open(url, capacity=1) as channel:
        with another_receiver(channel) as process:
            channel.send(1)
            assert not channel.sender.ready()
            descriptor = channel.sender.fileno()
            channel.sender.ready()
            assert not readable(descriptor, 0)
            process.kill()
            for _ in range(2):
                assert readable(descriptor, PATIENCE)
                assert channel.sender.ready()
        with pytest.raises(PeerDied):
            channel.send(2, timeout=PATIENCE)
        assert readable(descriptor, 0)


@pytest.mark.parametrize("url", ["pipe:", "unix:", SHM])
def test_an_end_that_one_thread_has_seen_shows_to_the_others(url):
    with ipcbus.open(url) as channel:
        descriptor = channel.receiver.fileno()
        assert not channel.ready()
        assert not readable(descriptor, 0)
        channel.shutdown()
        for _ in range(2):
            assert readable(descriptor, PATIENCE)
            with pytest.raises(EndOfChannel):
                channel.recv(PATIENCE)


@pytest.mark.parametrize("side", ["send", "recv"])
@pytest.mark.parametrize("url", ["inproc:", "pipe:", "queue:", "unix:", "zmq:", SHM])
def test_a_signal_handler_closes_what_waits(url, side):
    with ipcbus.open(url, capacity=1) as channel, ExitStack() as stack:
        channel.send(1)
        if side == "recv":
            assert channel.recv(PATIENCE) == 1

        def close(*_):
            channel.close()
            for _ in range(8):  # what gets the numbers of the descriptors that were closed, and is never ready
                for end in socket.socketpair():
                    stack.enter_context(end)

        before = signal.signal(signal.SIGALRM, close)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(ChannelClosed):
                channel.recv(PATIENCE) if side == "recv" else channel.send(2, timeout=PATIENCE)
        finally:
            signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("url", ["inproc:", "pipe:", "queue:", "unix:", "unix:?receivers=many", "zmq:", SHM])
def test_a_signal_handler_receives_amid_a_wait_for_messages(url):
    with ipcbus.open(url) as channel:
        met = []

        def handle(*_):
            for timeout in (0, 0.01):
                with pytest.raises(ChannelEmpty) as refused:
                    channel.recv(timeout)
                if "in the middle of" in str(refused.value):  # it does not wait yet: a busy machine held it up before
                    signal.setitimer(signal.ITIMER_REAL, 0.05)
                    return
            met.append(channel.ready())
            channel.send("handler's")
            met.append(channel.recv(PATIENCE))
            channel.send("main's")

        before = signal.signal(signal.SIGALRM, handle)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            assert channel.recv(PATIENCE) == "main's"
        finally:
            signal.signal(signal.SIGALRM, before)
        assert met == [False, "handler's"]


@pytest.mark.parametrize("look", ["send", "ready", "stats"])
@pytest.mark.parametrize("capacity", [4, 16])
@pytest.mark.parametrize("url", ["pipe:", "unix:", SHM])
def test_a_signal_handler_leaves_room_to_the_send_that_it_interrupted(url, capacity, look):
    with ipcbus.open(url, capacity=capacity) as channel:
        for number in range(capacity):
            channel.send(number)

        def handle(*_):
            with pytest.raises(ChannelFull):
                channel.send("handler", timeout=0.01)
            for number in range(capacity):
                assert channel.recv(PATIENCE) == number
            if look == "send":
                channel.send("handler", timeout=PATIENCE)
            elif look == "ready":
                assert channel.sender.ready()
            else:
                channel.sender.stats()

        before = signal.signal(signal.SIGALRM, handle)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            started = time.monotonic()
            channel.send("main", timeout=PATIENCE)
            assert time.monotonic() - started < PATIENCE / 2
        finally:
            signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("role", ["sender", "receiver"])
@pytest.mark.parametrize("url", ["inproc:", "pipe:", "unix:", SHM])
def test_who_cannot_have_a_descriptor_to_wait_on_is_told_what_to_do(url, role, no_descriptors):
    with ipcbus.open(url, capacity=2) as channel:
        channel.send(1)
        assert channel.recv(PATIENCE) == 1
        limited = getattr(channel, role)
        with no_descriptors():
            try:
                limited.fileno()
            except ChannelBroken as error:
                assert "close some descriptors or raise 'ulimit -n', and try again" in str(error)  # noqa: PT017  some have one
        assert limited.fileno() >= 0
