"""A call beside that of another thread on the same end: one that is busy there for a moment, and one that waits."""

import threading
from contextlib import contextmanager

import pytest

import ipcbus
from ipcbus.errors import ChannelEmpty, ChannelFull

PATIENCE = 10
PROBE = 0.001


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


def wait_until(condition):
    for _ in range(int(PATIENCE / PROBE)):
        if condition():
            return
        threading.Event().wait(PROBE)
    raise AssertionError("it did not come about")


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
        wait_until(lambda: rx._waiting)
        with pytest.raises(ChannelEmpty, match="another thread"):
            channel.recv(timeout=0)
        assert not rx.ready()
        channel.send("second")
    with pytest.raises(ChannelEmpty):
        channel.recv(timeout=0)


def test_another_thread_waits_for_room(channel):
    tx = channel._end.tx
    channel.send("second")
    with thread(channel.send, "third", PATIENCE):
        wait_until(lambda: tx._waiting)
        with pytest.raises(ChannelFull, match="another thread"):
            channel.send("fourth", timeout=0)
        assert not tx.ready()
        assert not ipcbus.wait([channel.sender], timeout=0.01)
        assert [channel.recv(PATIENCE), channel.recv(PATIENCE)] == ["second", "third"]


@pytest.mark.parametrize("capacity", [4, 16])
@pytest.mark.parametrize("url", ["pipe:", "unix:"])
def test_a_send_and_a_wait_for_the_same_room(url, capacity):
    with ipcbus.open(url, capacity=capacity) as channel:
        for number in range(capacity):
            channel.send(number)
        tx, woken = channel._end.tx, []
        with thread(channel.send, capacity, PATIENCE):
            wait_until(lambda: tx._waiting)
            with thread(lambda: woken.extend(ipcbus.wait([channel.sender], timeout=PATIENCE))):
                threading.Event().wait(0.05)  # so that it is likely to wait; it must be woken either way
                for number in range(capacity):
                    assert channel.recv(timeout=PATIENCE) == number
        assert woken == [channel.sender]
