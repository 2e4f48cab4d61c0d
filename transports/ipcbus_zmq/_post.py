"""One zmq socket with all that is needed to share it between threads, to wait for it, and to see the end of it."""

from __future__ import annotations

import os
import select
import socket as sockets
import struct
import threading
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING

import zmq
from zmq.backend import Socket

from ipcbus.errors import ChannelBroken, ChannelClosed
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.fds import refused
from ipcbus.plumbing.finalizers import finalizer
from ipcbus.plumbing.locks import Later
from ipcbus.plumbing.wakeup import Wakeup
from ipcbus_zmq import _context

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from zmq.backend import Context

__all__ = ["NOBLOCK", "Post", "broken", "close_inherited"]

NOBLOCK = int(zmq.NOBLOCK)
"""A plain int: pyzmq takes it without a detour through the enumeration."""
_STOPPED = int(zmq.EVENT_MONITOR_STOPPED)
_event = struct.Struct("=Hi")
_GRACE = 2.0
"""Seconds that zmq gets to end a socket after its linger."""


class _Socket(Socket):
    """A socket that is closed even if an interruption loses it: the context could not end without."""

    def __del__(self) -> None:
        self.close(0)  # does nothing in a forked child


class Post:
    """A zmq socket, its monitor, a lock, and one descriptor that tells of news.

    The lock is held for the length of a zmq call and never while waiting. A thread that waits does so on descriptors,
    without the socket; whoever leaves something behind for others rings the bell.

    Args:
        kind: ``zmq.DEALER`` or ``zmq.ROUTER``.
        options: zmq socket options.
        events: monitor events to report.

    Raises:
        ChannelBroken: the system refused.
    """

    def __init__(self, kind: int, options: Mapping[int, int], events: int = 0) -> None:
        self.lock = threading.Lock()
        self.owner = 0
        """The thread that is in the middle of a call, so that a signal handler in it does not wait for itself."""
        self.later = Later()
        """What a signal handler asked for amid such a call."""
        self.watched = False
        """Whether somebody may sleep on the descriptors: then the bell must tell what zmq tells only once."""
        self.closing = False
        self._closed = False
        self._closer = 0
        """The thread that is closing."""
        self._shown = False
        self._rung = False
        self._waiters: list[int] = []
        """The threads that sleep."""
        self._stuck = 0
        """How many of these a signal handler that closes has interrupted: they go on only when it has returned."""
        self._left = threading.Event()
        self._pid = os.getpid()
        self.socket: Socket | None = None
        self._monitor: Socket | None = None
        self._told_by: list[int] = []
        """The descriptors of zmq's own news."""
        context = _context.acquire()
        try:
            self._bell = Wakeup()
            self._epoll = select.epoll()
            self._open(context, kind, options, events)
        except BaseException as error:
            self._drop()
            if isinstance(error, (zmq.ZMQError, OSError)):
                raise broken("a socket cannot be made", error) from error
            raise

    def _drop(self) -> None:
        """Undo an attempt to open, however far it came."""
        socket, monitor = self.socket, self._monitor
        self.socket = self._monitor = None
        if socket is not None:
            socket.monitor(None, 0)  # says its last here and now, while it is heard
            socket.close(0)
        if monitor is not None:
            monitor.close(0)
        _context.release()
        self._free()

    def _open(self, context: Context, kind: int, options: Mapping[int, int], events: int) -> None:
        self.socket = _Socket(context, kind)
        for option, value in options.items():
            self.socket.set(option, value)
        self._monitor = _Socket(context, zmq.PAIR)
        # Without a bound here: zmq's own thread would stop when nobody reads the news.
        self._monitor.set(zmq.RCVHWM, 0)
        # Before there is anything to connect to: zmq's thread that ends sockets waits for somebody to hear the last event of
        # one, and while it waits no socket of this process ends. So who listens is there first, and is closed last.
        name = f"inproc://ipcbus-{os.urandom(8).hex()}"
        self._monitor.connect(name)
        self.socket.monitor(name, events | _STOPPED)
        self._told_by = [int(self.socket.get(zmq.FD)), *([int(self._monitor.get(zmq.FD))] if events else [])]
        for fd in self._told_by:
            self._epoll.register(fd, select.EPOLLIN)
        self._epoll.register(self._bell.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        """Return the descriptor to wait on from outside.

        Raises:
            ChannelClosed: closed.
        """
        # Without the lock: a signal handler may ask for it amid a call that has it.
        self._shown = self.watched = True
        if self.closing:
            raise ChannelClosed("this end is closed")
        return self._epoll.fileno()

    def also_watch(self, fd: int) -> None:
        """Add a descriptor to those that tell of news; the lock is held."""
        self._epoll.register(fd, select.EPOLLIN)

    def ring(self, *, on: bool) -> None:
        """Make the descriptor tell that there is, or is not, something that zmq has told already; the lock is held."""
        if self._rung is not on:
            self._rung = on
            if on:
                self._bell.set()
            else:
                self._bell.clear()

    def wait(self, seconds: float | None, *, bell: bool = True) -> None:
        """Sleep until there is news or the time has passed; the lock is held before and after, and free in between.

        The caller is noted as the owner.

        The last thing done with the socket must have been a ``recv`` that found nothing.

        Args:
            seconds: None is without limit.
            bell: whether the bell ends the sleep; without it, nothing but the time does if this end is closed.
        """
        sleep = self._epoll.poll if bell else self._silent().poll
        me = get_ident()
        interruption: BaseException | None = None
        try:
            self._waiters.append(me)
            self.watched = True
            self.owner = 0
            self.lock.release()
            sleep(seconds if bell or seconds is None else seconds * 1000)
        except (OSError, ValueError):
            if not self.closing:  # else a signal handler closed it
                raise
        finally:
            # Who called gives the lock back in any case, so it is taken in any case: taken and noted in one step in C, where
            # a signal handler cannot come in between, and again when one that raises came before.
            while self.owner != me:
                try:
                    any(map(setattr, (self,), ("owner",), map(max, (me,), map(self.lock.acquire, (True,)))))
                except BaseException as error:  # noqa: BLE001  raised below
                    interruption = error
            self._waiters.remove(me)
            self.watched = self._shown or bool(self._waiters)
            if self.closing and len(self._waiters) <= self._stuck:
                self._left.set()
            if interruption is not None:
                raise interruption

    def _silent(self) -> select.poll:
        """Return what shows zmq's own news and no bell: a new one, for two threads may not sleep in the same."""
        poller = select.poll()
        for fd in self._told_by:
            poller.register(fd, select.POLLIN)
        return poller

    def events(self) -> list[tuple[int, int]]:
        """Return what the monitor has seen since the last call, oldest first, each with zmq's value; the lock is held."""
        seen: list[tuple[int, int]] = []
        monitor = self._monitor
        assert monitor is not None
        while True:
            try:
                part = monitor.recv(NOBLOCK)
            except zmq.Again:
                return seen
            # Each is an event and the address that it happened at. A call that was interrupted may have read the first alone.
            if monitor.get(zmq.RCVMORE):
                seen.append(_event.unpack(part))

    def close_by(self, finish: Callable[[], None]) -> None:
        """Turn everybody away, wait until no other thread sleeps in ``wait``, and call ``finish``. Idempotent.

        What interrupts it leaves the end half closed, and the next call goes on with it.
        """
        me = get_ident()
        if self._closer == me:
            return  # a signal handler amid it
        try:
            if self._begin_close(me):
                finish()
                self._closed = True
        finally:
            if self._closer == me:
                self._closer = 0

    def _begin_close(self, me: int) -> bool:
        with self.lock:
            self.owner = me
            try:
                if self._closer or self._closed:
                    return False
                self._closer = me
                self.closing = True
                self.watched = False
                if self.socket is not None:
                    self._rung = False
                    self.ring(on=True)
                self._stuck = self._waiters.count(me)
                if len(self._waiters) == self._stuck:
                    return True
            finally:
                self.owner = 0
        self._left.wait(_GRACE)
        return True

    def close(self, linger: float) -> None:
        """End the socket, which nobody uses any more: hand over what is queued for up to ``linger`` seconds, then free all.

        Idempotent, also where it was interrupted; the first ``linger`` holds.
        """
        socket, monitor = self.socket, self._monitor
        if socket is None or monitor is None:
            return
        socket.close(int(linger * 1000))
        gone = monitor.closed or self._await_end(monitor, Deadline(linger + _GRACE))
        if gone:
            monitor.close(0)
        self.socket = self._monitor = None
        _context.release(None if gone else monitor)
        self._free()

    def _await_end(self, monitor: Socket, deadline: Deadline) -> bool:
        """Wait until zmq's threads are done with the socket: the last that its monitor says."""
        poller = select.poll()
        poller.register(int(monitor.get(zmq.FD)), select.POLLIN)
        while all(event != _STOPPED for event, _ in self.events()):
            state = int(monitor.get(zmq.EVENTS))
            if not state & zmq.POLLOUT:
                return True  # who says it is gone: an interruption has lost the word
            if deadline.expired:
                return False
            if not state & zmq.POLLIN:
                poller.poll(deadline.milliseconds())
        return True

    def abandon(self) -> None:
        """Free this forked child's copies of the descriptors that are ours, and leave zmq's, which are its parent's."""
        self.socket = self._monitor = None  # pyzmq closes nothing that another process made
        self._free()

    def _free(self) -> None:
        for made in (getattr(self, "_epoll", None), getattr(self, "_bell", None)):
            if made is not None:
                made.close()

    @finalizer
    def __del__(self) -> None:
        # An end that was interrupted while it opened has nobody who would close it.
        if getattr(self, "socket", None) is not None and self._pid == os.getpid():
            self.close(0.0)


def broken(what: str, error: zmq.ZMQError | OSError) -> ChannelBroken:
    """Translate an error of zmq's or the system's."""
    return refused(f"ZeroMQ: {what}", OSError(error.errno, error.strerror))  # a ZMQError is none


def close_inherited(address: object) -> None:
    """Close a forked child's copies of a parent's connections, found by the address they have at one of their ends.

    While the child has them, the peers would not notice the death of the parent.
    """
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  descriptors, whose directory entries are not paths
        try:
            if not str(Path(f"/proc/self/fd/{name}").readlink()).startswith("socket:"):
                continue
            found = sockets.socket(fileno=int(name))
        except OSError:
            continue  # closed meanwhile: the descriptor of this very listing
        try:
            ours = found.getsockname() == address or found.getpeername() == address
        except OSError:
            ours = False
        if ours:
            found.close()
        else:
            found.detach()
