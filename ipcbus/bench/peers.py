"""Peers: what people use instead, measured bare; here the base, and those of the standard library."""

from __future__ import annotations

import importlib.util
import multiprocessing
from importlib import metadata
from multiprocessing.managers import BaseManager
from typing import TYPE_CHECKING, Any

from ipcbus.bench.carriers import Carrier, Ends, Room, Talk
from ipcbus.bench.messages import Message

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Copy", "ManagerQueue", "Peer", "Pipe", "PipeBytes", "Proxy", "Queue", "SimpleQueue"]

_FORK = multiprocessing.get_context("fork")
_ONE_WAY = frozenset({"one-way", "round-trip", "fan-in", "fan-out", "arrays"})


class Peer(Carrier):
    """One of them: a class each, whose attributes say what it needs and can."""

    distribution: str | None = None
    """What must be installed, None for what Python brings."""
    module: str = ""
    extra: str = "bench"
    scenarios = _ONE_WAY
    usual: bool = True
    """Whether it is measured when nobody names it."""
    bytes_only: bool = False

    def missing(self) -> str | None:
        """Say that it is not installed and what to do, None if it is."""
        if self.distribution is None or importlib.util.find_spec(self.module) is not None:
            return None
        return f"{self.distribution} is not installed; try: pip install 'ipcbus[{self.extra}]'"

    def version(self) -> str | None:
        """Return the version of what is installed, None for what Python brings."""
        return None if self.distribution is None else metadata.version(self.distribution)

    def refuses(self, scenario: str, message: Message, senders: int, receivers: int) -> str | None:
        """Say why this cannot be measured, None if it can."""
        if self.bytes_only and message.kind != "bytes":
            return "is for bytes alone"
        return super().refuses(scenario, message, senders, receivers)


class Queue(Peer):
    """``multiprocessing.Queue``."""

    name = "multiprocessing.Queue"
    many_receivers = True

    def connect(self, room: Room) -> Ends:
        """Make a queue."""
        queue: Any = _FORK.Queue(room.capacity)
        return Ends(lambda: queue.put, lambda: queue.get)


class SimpleQueue(Peer):
    """``multiprocessing.SimpleQueue``."""

    name = "multiprocessing.SimpleQueue"
    many_receivers = True

    def connect(self, room: Room) -> Ends:
        """Make a queue; it is bounded by the pipe in it."""
        del room
        queue: Any = _FORK.SimpleQueue()
        return Ends(lambda: queue.put, lambda: queue.get)


class Pipe(Peer):
    """``multiprocessing.Pipe``."""

    name = "multiprocessing.Pipe"
    many_senders = False

    def connect(self, room: Room) -> Ends:
        """Make a pipe for one direction."""
        del room
        reading, writing = _FORK.Pipe(duplex=False)
        return Ends(lambda: writing.send, lambda: reading.recv)


class PipeBytes(Peer):
    """``multiprocessing.Pipe`` with ``send_bytes`` and ``recv_bytes``, which pickle nothing."""

    name = "Pipe send_bytes"
    many_senders = False
    bytes_only = True

    def connect(self, room: Room) -> Ends:
        """Make a pipe for one direction."""
        del room
        reading, writing = _FORK.Pipe(duplex=False)
        return Ends(lambda: writing.send_bytes, lambda: reading.recv_bytes)


class ManagerQueue(Peer):
    """``multiprocessing.Manager().Queue()``."""

    name = "Manager().Queue()"
    scenarios = _ONE_WAY | {"request"}
    usual = False
    many_receivers = True

    def connect(self, room: Room) -> Ends:
        """Start a manager, and make a queue in it."""
        manager = _FORK.Manager()
        _KEPT.append(manager)
        queue: Any = manager.Queue(room.capacity)
        return Ends(lambda: queue.put, lambda: queue.get)


class _Echo:
    def echo(self, obj: Any) -> Any:
        return obj


class _Manager(BaseManager):
    pass


_Manager.register("Echo", _Echo)


class Proxy(Peer):
    """A method of an object in a process of ``multiprocessing.managers``, called through its proxy."""

    name = "Manager proxy"
    scenarios = frozenset({"request"})
    usual = False

    def connect(self, room: Room) -> Ends:
        """Refuse: it answers, and carries nothing one way."""
        raise NotImplementedError(room)

    def talk(self, room: Room) -> Talk:
        """Start a manager, whose object answers by itself."""
        del room
        manager: Any = _Manager(ctx=_FORK)
        manager.start()
        _KEPT.append(manager)
        proxy = manager.Echo()
        return Talk(lambda: proxy.echo, lambda: _leave_it)


def _leave_it(_count: int) -> None:
    """Answer nothing: somebody else does."""


_KEPT: list[Any] = []
"""Managers, whose processes end when nobody has them; who made them ends after the measurement."""


class Copy(Peer):
    """No peer but a measure: one copy of the array from memory that is there to memory that is there, in one process."""

    name = "memcpy"
    distribution = "numpy"
    module = "numpy"
    scenarios = frozenset({"arrays"})
    many_senders = False

    def connect(self, room: Room) -> Ends:
        """Make two arrays."""

        def receiver() -> Callable[[], Any]:
            import numpy as np

            source = Message("array", room.size).make()
            target = np.empty_like(source)

            def copy() -> Any:
                np.copyto(target, source)
                return target

            return copy

        return Ends(lambda: _drop, receiver)


def _drop(_obj: Any) -> None:
    """Send nothing: the receiver has its own."""
