"""What the tests of several files have in common."""

import dataclasses
import select
import signal
import threading
import time
from pathlib import Path

from ipcbus.errors import ChannelEmpty
from ipcbus.transport import ChannelSpec

PATIENCE = 10
"""Seconds after which what has not happened never will."""
_OF_SPEC = {field.name for field in dataclasses.fields(ChannelSpec)}


def spec(address="", **changes):
    """Say what a transport is to make: a small channel, but for the changes."""
    usual = {"id": "0" * 32, "address": address, "capacity": 8, "receivers": "one", "max_message": 1 << 20}
    return ChannelSpec(**{**usual, **changes})


class Ends:
    """What a transport makes of a spec and its own options, and the ends opened of it; all closed by the test's end."""

    def __init__(self, stack, transport, capacity=8, **wanted):
        wished = {key: wanted.pop(key) for key in _OF_SPEC & wanted.keys()}
        self.stack = stack
        self.handle = transport.create(spec(capacity=capacity, **wished), transport.options(**wanted))
        stack.callback(self.handle.destroy)
        stack.callback(self.handle.release)

    def sender(self):
        link = self.handle.open_sender()
        self.stack.callback(link.close)
        return link

    def receiver(self):
        link = self.handle.open_receiver()
        self.stack.callback(link.close)
        return link

    def both(self):
        return self.sender(), self.receiver()


def until(condition):
    """Return when something is so that another thread or process does, and that nothing tells of."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.001)


class Amid:
    """Takes the place of a lock, and has a signal handler run when it was taken for the first time.

    Args:
        owner: whose lock it is.
        name: the attribute that has it.
        handler: called with nothing.
    """

    def __init__(self, owner, name, handler):
        self._owner, self._name, self._handler = owner, name, handler
        self._lock = getattr(owner, name)

    def __enter__(self):
        self._lock.acquire()
        setattr(self._owner, self._name, self._lock)
        before = signal.signal(signal.SIGUSR1, lambda *_: self._handler())
        try:
            signal.raise_signal(signal.SIGUSR1)
        except BaseException:
            self._lock.release()
            raise
        finally:
            signal.signal(signal.SIGUSR1, before)

    def __exit__(self, *_):
        self._lock.release()


def in_thread(call, *args):
    """Run a call in a thread; return a function that waits for it and returns what it returned or raised."""
    said = []

    def run():
        try:
            said.append(call(*args))
        except Exception as error:
            said.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def result():
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the call is stuck"
        return said[0]

    return result


def drain(link):
    """Receive what is there."""
    got = []
    try:
        while True:
            got.append(bytes(link.recv(0)[0]))
    except ChannelEmpty:
        return got


def readable(thing, seconds):
    """Tell whether a descriptor polls readable within so many seconds."""
    poller = select.poll()  # select() knows no descriptor above 1023
    poller.register(thing, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def descriptors():
    """Return this process's descriptors."""
    return {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}
