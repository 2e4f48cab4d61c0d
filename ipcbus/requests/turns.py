"""Turns: of the threads that wait for replies, one receives for all (the *leader*) and the others sleep (its *followers*).

Whoever leaves while nobody leads wakes a follower, which then leads. An interrupt may come at any instant, so nothing here
rests on a line that is certain to run, but those in ``finally``. A leader that waits again, in a function that it called
with what it received, leads there too.
"""

from __future__ import annotations

import contextlib
import threading
from threading import get_ident
from typing import TYPE_CHECKING, Any

from ipcbus.requests.worker import workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.plumbing.clock import Deadline
    from ipcbus.requests.future import Future

__all__ = ["Turns"]


class Turns:
    """The threads that wait for one inbox.

    Args:
        lead: receives and hands out, until a future is done or a deadline has come.
    """

    __slots__ = ("_followers", "_lead", "_leader")

    def __init__(self, lead: Callable[[Future[Any], Deadline], None]) -> None:
        self._lead = lead
        self._leader: dict[None, tuple[int]] = {}
        """Holds the leader's token. Not a lock: an interrupt just behind its acquisition would leave it locked for ever."""
        # No lock guards this: a signal handler may wait here amid any step of what it interrupts, each of which is one in C.
        self._followers: dict[_Follower, None] = {}
        """Those of a future are among its ``sleepers`` as well."""

    @property
    def led(self) -> bool:
        """Whether somebody leads."""
        return bool(self._leader)

    def wait_for(self, future: Future[Any], deadline: Deadline) -> None:
        """Return when a future is done or the deadline has come, leading if nobody else does."""
        mine = (get_ident(),)
        if workers and (worker := workers.get(mine[0])) is not None and worker.begin_aside():
            try:
                self.wait_for(future, deadline)
            finally:
                worker.end_aside()
            return
        leader = self._leader
        try:
            while future.outcome is None:
                if leader.setdefault(None, mine) == mine:  # equal and not the same: this thread leads further up its stack
                    self._lead(future, deadline)
                    return
                if not self._follow(future, deadline):
                    return
        finally:
            try:
                if leader.get(None) is mine:
                    leader.clear()
            finally:
                if self._followers and not leader:
                    self._promote()

    def _follow(self, future: Future[Any], deadline: Deadline) -> bool:
        """Sleep until the future is done or this thread is to lead; false when the deadline has come."""
        follower = _Follower()
        try:
            self._followers[follower] = None
            future.sleepers.append(follower)
            # Who finishes a future, and who stops leading, looks for followers after that; so here it is the other way round.
            if future.is_done or not self._leader:
                return True
            return follower.wait(deadline.remaining())
        finally:
            self._followers.pop(follower, None)
            with contextlib.suppress(ValueError):  # interrupted before it was entered
                future.sleepers.remove(follower)

    def _promote(self) -> None:
        """Wake one follower, which then leads."""
        for follower in self._followers.copy():
            if follower.set():
                return


class _Follower:
    """A thread that sleeps until it is woken."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, timeout: float | None) -> bool:
        """Sleep; false when the time is over, in seconds."""
        return self._lock.acquire(timeout=-1 if timeout is None else timeout)

    def set(self) -> bool:
        """Wake it; false if somebody has, and then it looks by itself whether it is to lead."""
        try:
            self._lock.release()
        except RuntimeError:
            return False
        return True
