"""Locks that an interruption cannot leak.

A signal handler that raises (Ctrl-C) may strike right after ``lock.acquire(...)`` returned and before a ``try`` that
stands behind it. So the acquire goes *inside* the ``try``, and the ``finally`` releases what this thread has::

    try:
        if not lock.acquire(blocking=False): ...
        ...
    finally:
        release(lock)

An RLock knows its owner, which makes that safe when the acquire failed. (``with lock:`` needs none of this, but knows
no timeout.)

A link's lock is held by who makes a call, also while that call waits for the other side. Only the second is a reason to
say that a channel is full or empty: that another thread is busy with it for the moment says nothing about the channel.
"""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ipcbus.errors import ChannelEmpty, ChannelFull
from ipcbus.plumbing.clock import EVER, Deadline

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from threading import RLock

__all__ = ["Later", "acquire", "acquire_to_recv", "acquire_to_send", "alone", "amid", "is_mine", "release"]

T = TypeVar("T")

_MOMENT = 0.001
"""Seconds after which is looked again whether the thread that has a lock has begun to wait."""


def acquire(lock: RLock, timeout: float | None, waits: Callable[[], bool]) -> bool:
    """Acquire a link's lock; say whether that was possible before the timeout or before who has it began to wait.

    Args:
        lock: what only a call has that does not block, or waits.
        timeout: seconds, counted only while ``waits``; None is without limit, and a negative one has passed.
        waits: tells whether the thread that has the lock waits for the other side.
    """
    patience = -1 if timeout is None or timeout > EVER else max(0.0, timeout)  # to the lock, -1 is without limit
    while not lock.acquire(timeout=patience):
        if waits():
            return False
        patience = _MOMENT
    return True


def acquire_to_send(lock: RLock, timeout: float | None, waits: Callable[[], bool]) -> float | None:
    """Acquire a link's lock for a ``send`` and return what is left of its timeout; arguments as of ``acquire``.

    Raises:
        ChannelFull: another thread waits for room already.
    """
    deadline = Deadline(timeout)
    if not acquire(lock, timeout, waits):
        raise ChannelFull(f"no room within {timeout} s: another thread is waiting for room already")
    return deadline.remaining()


def acquire_to_recv(lock: RLock, timeout: float | None, waits: Callable[[], bool]) -> float | None:
    """Acquire a link's lock for a ``recv`` and return what is left of its timeout; arguments as of ``acquire``.

    Raises:
        ChannelEmpty: another thread waits for a message already.
    """
    deadline = Deadline(timeout)
    if not acquire(lock, timeout, waits):
        raise ChannelEmpty("no message within the timeout: another thread is waiting for one already")
    return deadline.remaining()


def amid(call: str) -> str:
    """Return what is said to a signal handler that does what the call that it interrupted is in the middle of."""
    return (
        f"the call that this one interrupts is in the middle of {call}; have the signal handler leave a note, and do it later"
    )


def is_mine(lock: RLock) -> bool:
    """Tell whether this thread has a lock: a signal handler that finds it so interrupts what is done under it."""
    return bool(lock._is_owned())  # type: ignore[attr-defined]  # noqa: SLF001  threading.Condition goes by it as well


class Later(list["Callable[[], None]"]):
    """What a signal handler asked for amid a call whose steps cannot be mixed with it: that call does it when it is over."""

    __slots__ = ()

    def postpone(self, owner: int, action: Callable[[], None]) -> bool:
        """Leave something to the call that this one interrupts; say whether there is one.

        Args:
            owner: the thread that is in the middle of a call.
            action: what to do when it is over.
        """
        if owner != get_ident():
            return False
        self.append(action)
        return True

    def catch_up(self) -> None:
        """Do what was left; without any lock held."""
        while self:
            self.pop(0)()


class _Shared(Protocol):
    """What the calls of one end have in common where their steps cannot be mixed."""

    owner: int
    later: Later

    @property
    def lock(self) -> AbstractContextManager[Any]: ...


def alone(end: _Shared, call: Callable[[], T]) -> T:
    """Return what a call returns that nothing is mixed with, and do afterwards what a signal handler asked for amid it.

    For the calls that run seldom; ``send`` and ``recv`` do the same without the call. A function and no context manager: an
    interruption between that and the block would leave the lock taken.
    """
    me = get_ident()
    try:
        with end.lock:
            end.owner = me
            try:
                return call()
            finally:
                end.owner = 0
    finally:
        end.later.catch_up()


def release(lock: RLock) -> None:
    """Release a lock if this thread has it."""
    try:
        lock.release()
    except RuntimeError:
        pass  # the acquire before it failed or was interrupted
