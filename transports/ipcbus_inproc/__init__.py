"""inproc: a channel between the threads of one process. The reference transport, written to be read first."""

from __future__ import annotations

import os
import select
import threading
import weakref
from collections import deque
from typing import Any

from ipcbus.errors import ChannelClosed, ChannelEmpty, ChannelFull, EndOfChannel, Unsupported
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.fds import refused
from ipcbus.plumbing.wakeup import Wakeup
from ipcbus.transport import (
    LINGER,
    Capabilities,
    ChannelSpec,
    Frame,
    Guarantees,
    Handle,
    NoOptions,
    RecvLink,
    SendLink,
    Transport,
)

__all__ = ["Inproc", "InprocHandle"]

_ELSEWHERE = "an inproc: channel works only in the process that made it; use pipe: or another transport"


class Inproc(Transport):
    """``inproc:``."""

    scheme = "inproc"
    capabilities = Capabilities(many_receivers=True, crosses_processes=False, detects_dead_receiver=False, drops_old=True)
    guarantees = Guarantees(
        delivery="at-most-once",
        order="first in, first out, over all senders",
        accepted="in this process's memory",
        sender_dies="everything: all users are threads of one process",
        receiver_dies="everything: all users are threads of one process",
        home_dies="everything: all users are threads of one process",
        machine_dies="everything",
    )
    options = NoOptions
    preference = 1

    @classmethod
    def create(cls, spec: ChannelSpec, options: object) -> InprocHandle:  # noqa: ARG003  inproc has no options of its own
        """Make a channel in this process."""
        store = _Store(spec.capacity)
        _stores[spec.id] = store
        return InprocHandle(spec, store)


class InprocHandle(Handle):
    """Names a channel of this process."""

    __slots__ = ("_spec", "_store")

    def __init__(self, spec: ChannelSpec, store: _Store) -> None:
        self._spec = spec
        self._store = store

    def open_sender(self) -> InprocLink:
        """Open a sending end."""
        return InprocLink(self._check(), sends=True)

    def open_receiver(self) -> InprocLink:
        """Open a receiving end."""
        return InprocLink(self._check(), sends=False)

    def _check(self) -> _Store:
        if self._store.pid != os.getpid():
            raise Unsupported(_ELSEWHERE)  # a forked child has only a copy of the memory
        return self._store

    def release(self) -> None:
        """Do nothing: the channel goes when its last handle does."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (self._spec,)


_stores: weakref.WeakValueDictionary[str, _Store] = weakref.WeakValueDictionary()


def _arrive(spec: ChannelSpec) -> InprocHandle:
    store = _stores.get(spec.id)
    if store is None:
        raise Unsupported(_ELSEWHERE)
    return InprocHandle(spec, store)


class _Store:
    """The messages, and the ends to tell of a change."""

    def __init__(self, capacity: int) -> None:
        self.capacity = self.free = capacity
        self.frames: deque[Frame] = deque()
        self.shut = False
        # One lock for everything: held for a handful of bytecodes, by threads of one process only. A lock and no
        # Condition, whose methods are Python: a signal handler that raises inside one leaves the lock taken for ever.
        self.lock = threading.RLock()
        self.senders: list[InprocLink] = []
        self.receivers: list[InprocLink] = []
        self.pid = os.getpid()


class InprocLink(SendLink, RecvLink):
    """One end, sending or receiving.

    Args:
        store: the channel.
        sends: whether this is the sending end.
    """

    def __init__(self, store: _Store, *, sends: bool) -> None:
        self._store = store
        self._sends = sends
        self._closed = False
        self._bell: Wakeup | None = None
        self._rung = False
        self._side = store.senders if sends else store.receivers
        with store.lock:
            self._side.append(self)

    def send(self, frame: Frame, timeout: float | None) -> None:
        """Put one message in."""
        # bytes cannot change any more; anything else is copied now, so that what arrives is a snapshot.
        snapshot = [part if type(part) is bytes else bytes(part) for part in frame]
        store = self._store
        deadline: Deadline | None = None
        while True:
            with store.lock:
                if self._closed or store.shut:
                    raise ChannelClosed("this end is closed" if self._closed else "the inproc: channel was shut down")
                if store.free:
                    # Told first and changed last: a signal handler may raise in between, and a wake-up for nothing is
                    # harmless where a lost one is not. Nobody can look before the lock is released.
                    _ring(store.receivers)
                    # From this look to the change nothing is called, so no handler can have sent in between.
                    if free := store.free:
                        store.free = free - 1
                        store.frames.append(snapshot)
                        return
                bell = self._quiet()
                if self._is_ready():
                    continue  # by a signal handler, whose ring may have been silenced
            deadline = deadline or Deadline(timeout)
            if deadline.expired:
                raise ChannelFull(f"the inproc: channel holds {store.capacity} messages")
            _sleep(bell, deadline)

    def recv(self, timeout: float | None) -> Frame:
        """Take one message out."""
        store = self._store
        frames = store.frames
        deadline: Deadline | None = None
        while True:
            with store.lock:
                if self._closed:
                    raise ChannelClosed("this end is closed")
                if frames:
                    _ring(store.senders)
                    if frames:  # as above
                        store.free += 1
                        return frames.popleft()
                if store.shut:
                    raise EndOfChannel("the inproc: channel was shut down and is drained")
                bell = self._quiet()
                if self._is_ready():
                    continue  # by a signal handler, whose ring may have been silenced
            deadline = deadline or Deadline(timeout)
            if deadline.expired:
                raise ChannelEmpty("no message in the inproc: channel")
            _sleep(bell, deadline)

    def discard_oldest(self, timeout: float | None = LINGER) -> bool:
        """Drop the oldest message."""
        del timeout  # what was accepted is there
        store = self._store
        with store.lock:
            if store.frames:
                _ring(store.senders)
                if store.frames:  # as above
                    store.free += 1
                    store.frames.popleft()
                    return True
            return False

    def ready(self) -> bool:
        """Tell whether a call would not have to wait."""
        with self._store.lock:
            if self._is_ready():
                return True
            self._quiet()
            return self._is_ready()  # again, as above

    def _is_ready(self) -> bool:
        store = self._store
        return self._closed or store.shut or bool(store.free if self._sends else store.frames)

    def fileno(self) -> int:
        """Return the descriptor, made at the first call."""
        with self._store.lock:
            if self._closed:
                raise ChannelClosed("this end is closed")
            if self._bell is None:
                self._quiet()
                self.ring()  # what came before is for whoever waits to find out
            assert self._bell is not None  # made by _quiet
            return self._bell.fileno()

    def ring(self) -> None:
        """Have whoever waits on this end try again; the lock is held."""
        if self._bell is not None and not self._rung:
            self._bell.set()
            self._rung = True

    def _quiet(self) -> Wakeup:
        """There is nothing to do: return the bell, silent until there is; the lock is held."""
        if self._bell is None:
            try:
                self._bell = Wakeup()
            except OSError as error:
                raise refused("there is nothing to wait with", error, "nothing was sent or received") from error
        else:
            # Also where it is not known to have rung: who rang it may have been interrupted before it was noted.
            self._rung = False
            self._bell.clear()
        return self._bell

    def shutdown(self) -> None:
        """End the stream."""
        store = self._store
        with store.lock:
            _ring(store.senders)
            _ring(store.receivers)
            store.shut = True

    def close(self) -> None:
        """Close this end."""
        with self._store.lock:
            if self._closed:
                return
            self._closed = True
            self._side.remove(self)
            self.ring()
            # Whoever is blocked on the bell still has it, and the last to let go of it closes its descriptor: closed
            # here, its number could be another file's before they look.
            self._bell = None

    def abandon(self) -> None:
        """Free the inherited descriptor."""
        if self._bell is not None:
            self._bell.close()
            self._bell = None

    def depth(self) -> int:
        """Return how many messages wait."""
        return len(self._store.frames)


def _ring(links: list[InprocLink]) -> None:
    for link in links:
        link.ring()


def _sleep(bell: Wakeup, deadline: Deadline) -> None:
    poller = select.poll()
    poller.register(bell.fileno(), select.POLLIN)
    poller.poll(deadline.milliseconds())
