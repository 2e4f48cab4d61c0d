"""What both ends have in common: a lock for threads, the descriptor to wait on, and a close that wakes who waits."""

from __future__ import annotations

import select
import threading

from ipcbus.errors import ChannelClosed
from ipcbus.plumbing.finalizers import finalizer
from ipcbus.plumbing.locks import Later
from ipcbus.plumbing.wakeup import Wakeup

__all__ = ["Gate"]


class Gate:
    """Lets threads wait for descriptors until the end is closed.

    Attributes:
        lock: guards the end it belongs to; never held while waiting. A signal handler gets it amid a call of its own thread.
        owner: the thread that is in the middle of a call whose steps cannot be mixed with others.
        later: what a signal handler asked for amid such a call.
        closed: whether ``close`` was called.
        epoll: the set of descriptors that are waited for.
        bell: readable once the end has news that no other descriptor shows, its closing for one.
        rung: whether that is a message which was read ahead, and so no longer shows in the pipe.
    """

    __slots__ = ("_waiting", "bell", "closed", "epoll", "later", "lock", "owner", "rung")

    def __init__(self, *fds: int) -> None:
        self.lock = threading.RLock()
        self.owner = 0
        self.later = Later()
        self.closed = self.rung = False
        self._waiting = 0
        self.bell = Wakeup()
        try:
            self.epoll = select.epoll()
            for fd in (self.bell.fileno(), *fds):
                self.epoll.register(fd, select.EPOLLIN)
        except BaseException:
            self.bell.close()
            raise

    def check(self) -> None:
        """Raise ``ChannelClosed`` if the end is closed; the lock is held."""
        if self.closed:
            raise ChannelClosed("this end of the queue: channel is closed")

    def ring(self, *, on: bool) -> None:
        """Have the descriptor show a message that was read ahead, or not any more; the lock is held."""
        if self.rung is not on:
            self.rung = on
            if on:
                self.bell.set()
            else:
                self.bell.clear()

    def fileno(self) -> int:
        """Return the descriptor to wait on; raises ``ChannelClosed``."""
        with self.lock:
            self.check()
            return self.epoll.fileno()

    def wait(self, timeout: float | None, *extra: int) -> bool:
        """Wait until one of the descriptors, or of ``extra`` ones, is readable, and say whether one is; without the lock."""
        with self.lock:
            if self.closed:
                return True
            self._waiting += 1
        try:
            if not extra:
                return bool(self.epoll.poll(timeout))
            poller = select.poll()
            for fd in (self.epoll.fileno(), *extra):
                poller.register(fd, select.POLLIN)
            return bool(poller.poll(None if timeout is None else timeout * 1000))
        finally:
            self._leave()

    def close(self) -> None:
        """Close and wake who waits; again, where that was interrupted. The lock is held.

        What they wait on is freed by the last of them: freed earlier, it could no longer wake them.
        """
        self.closed = True
        if not self.epoll.closed:
            self.bell.set()
        if not self._waiting:
            self._free()

    def abandon(self) -> None:
        """Free what a forked child inherited."""
        self.closed = True
        self._free()

    def _leave(self) -> None:
        with self.lock:
            self._waiting -= 1
            if self.closed and not self._waiting:
                self._free()

    def _free(self) -> None:
        self.epoll.close()
        self.bell.close()

    @finalizer
    def __del__(self) -> None:
        # For an end that an interrupt kept from whoever was opening it. An epoll object does this by itself.
        if hasattr(self, "bell"):
            self.bell.close()
