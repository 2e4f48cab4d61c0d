"""Forks and exits: how often this process has forked, what a forked child does first, and what every process does last."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Protocol

from ipcbus.plumbing.fds import loading
from ipcbus.plumbing.locks import release

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["at_exit", "close_in_child", "count", "in_child", "opening"]

_forks = 0
_hooked = _guarded = False

opening = threading.RLock()
"""Held while descriptors that no child may keep are opened and noted, or closed: what other threads fork comes before or
after, and not while a descriptor is open that nobody knows of. Never held while waiting for anything else."""
_PATIENCE = 1.0
"""Seconds that a fork waits for it at most: a child that keeps something is better than a process that hangs."""


class _Closing(Protocol):
    def close(self) -> None:
        """Free the descriptors. Idempotent."""


_closing: weakref.WeakSet[_Closing] = weakref.WeakSet()


class _Last(list["tuple[Callable[[], None], int]"]):
    """What is called at exits: a list that can be referred to weakly, as ``multiprocessing`` wants it."""


_last = _Last()


def count() -> int:
    """Return a number that every fork of this process changes, in the parent and in the child, from the first call on.

    Takes no lock, so that finalizers may call it: garbage is collected at any moment, also inside a call of this.
    """
    global _hooked  # noqa: PLW0603  hooks of the interpreter are per process, and so is this
    if not _hooked:
        _hooked = True
        # Before as well as after: what is made while another thread forks must not have the number that follows.
        os.register_at_fork(before=_forked, after_in_parent=_forked, after_in_child=_forked)
    return _forks


def _forked() -> None:
    global _forks  # noqa: PLW0603  as above
    _forks += 1


def in_child(function: Callable[[], None]) -> None:
    """Have a function called first in every child that this process forks: it must not lock, wait or flush."""
    _guard()
    os.register_at_fork(after_in_child=function)


def close_in_child(owner: _Closing) -> None:
    """Have an object closed in every child that is forked while the object is there; ``opening`` is held.

    For what the kernel tells others by whether it is open. Whatever closes it holds ``opening`` as well.
    """
    _guard()
    _closing.add(owner)


def _guard() -> None:
    """Arrange for forks to wait for ``opening``: with the first channel, which is before its ends open."""
    global _guarded  # noqa: PLW0603  hooks of the interpreter are per process, and so is this
    if not _guarded:
        _guarded = True
        os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)


def _before() -> None:
    opening.acquire(timeout=_PATIENCE)


def _in_parent() -> None:
    release(opening)


def _in_child() -> None:
    global opening  # noqa: PLW0603  a thread that the child does not have may hold the parent's, where that took too long
    opening = threading.RLock()
    for owner in list(_closing):
        owner.close()
    _closing.clear()


def at_exit(function: Callable[[], None], priority: int) -> None:
    """Have a function called at the exit of this process and of every child that it forks.

    Args:
        function: called with nothing.
        priority: the highest comes first; those from 0 on before ``multiprocessing`` joins this process's children.

    Raises:
        ChannelBroken: ``multiprocessing`` cannot be loaded, for want of a descriptor, say. It may be tried again.
    """
    # multiprocessing's children skip atexit, but run these; so does the main process. They forget what they inherited
    # right after the fork, and then call what is registered with the second.
    with loading("what this process does at its exit"):
        from multiprocessing.util import register_after_fork

    if not _last:
        register_after_fork(_last, lambda _: _arm())
        in_child(_arm)
    _last.append((function, priority))
    _finalize(function, priority)


def _arm() -> None:
    for function, priority in _last:
        _finalize(function, priority)


def _finalize(function: Callable[[], None], priority: int) -> None:
    from multiprocessing.util import Finalize

    Finalize(None, function, exitpriority=priority)
