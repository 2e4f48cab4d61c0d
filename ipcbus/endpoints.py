"""The endpoints of this process: one for each channel that it has, and what becomes of them after a fork and at an exit."""

from __future__ import annotations

import contextlib
import threading
import weakref
from typing import TYPE_CHECKING

from ipcbus.plumbing import forks
from ipcbus.transport import Handle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ipcbus.endpoint import Endpoint

__all__ = ["adopt", "destroy", "destroy_closed", "entrusted", "find", "going_on", "hook", "let_go", "receiver"]

_ends: weakref.WeakValueDictionary[str, Endpoint] = weakref.WeakValueDictionary()
"""By channel, the endpoint that an object for it gets when it comes into this process."""
_open: weakref.WeakSet[Endpoint] = weakref.WeakSet()
"""All that are not closed, those too that are no longer in the table because one of their two ends is."""
_homes: dict[str, Handle] = {}
"""Handles of the channels that this process made and that have a name somewhere, until they are destroyed."""
_lock = threading.RLock()
_hooked = False


def find(channel_id: str, role: str = "") -> Endpoint | None:
    """Return this process's endpoint of a channel, if it has one that is not closed.

    What comes for a role is open, even where what came before was closed: an endpoint whose end for it is closed is forgotten.
    What comes for both shares the end that is open, and the other one of that endpoint opens again.
    """
    end = _ends.get(channel_id)
    if end is not None and role == "both":
        end.reopen()
    elif end is not None and end.closed_for(role):
        with _lock:
            _forget(end)
        return None
    return end


def receiver(channel_id: str) -> int | None:
    """Return the process that is the one receiver of a channel that this process sends to, if it is known."""
    end = _ends.get(channel_id)
    try:
        return None if end is None or end.tx is None else end.tx.receiver() or None
    except OSError:
        return None  # it was closed just now


def adopt(end: Endpoint, *, home: bool) -> Endpoint:
    """Enter an endpoint into this process's table and return it, or the one that another thread entered first."""
    hook()
    with _lock:
        known = _ends.setdefault(end.spec.id, end)
        _open.add(known)
        if home and type(end.handle).destroy is not Handle.destroy:
            _homes[end.spec.id] = end.handle
    return known


def destroy(end: Endpoint) -> None:
    """Close an endpoint and, in the process that made the channel, remove what has a name."""
    end.close(sender=True, receiver=True)
    handle = _homes.pop(end.spec.id, None)
    if handle is not None:
        handle.destroy()


def destroy_closed() -> None:
    """Remove what has a name of the channels that this process made and has closed, as its exit would."""
    with _lock:  # both at once, or what another thread makes meanwhile would be taken for closed
        closed = _homes.keys() - {end.spec.id for end in _open}
    for channel_id in closed:
        handle = _homes.pop(channel_id, None)
        if handle is not None:
            with going_on(f"a channel that this process made was not removed: {handle!r}"):
                handle.destroy()


def entrusted(end: Endpoint) -> None:
    """Note that another process removes what a channel has of names."""
    _homes.pop(end.spec.id, None)


def _forget(end: Endpoint) -> None:
    """Take an endpoint out of the table, so that a new object for the channel opens it anew; ``_lock`` is held."""
    if _ends.get(end.spec.id) is end:
        del _ends[end.spec.id]


def let_go(end: Endpoint) -> None:
    """Forget an endpoint that is closed: there is nothing of it left to close at an exit, or to let go of after a fork."""
    with _lock:
        _forget(end)
        _open.discard(end)


def hook() -> None:
    """Arrange for forks and exits, at the first channel of a process and not at import; raises ``ChannelBroken``."""
    global _hooked  # noqa: PLW0603  hooks of the interpreter are per process, and so is this
    if _hooked:
        return
    # First what can fail, and is then done by the next channel. That two threads do it twice changes nothing.
    # Closing comes first, before children are joined; what has a name goes last, when no child can want it any more.
    forks.at_exit(_close_all, 10)
    forks.at_exit(destroy_closed, -100)
    forks.in_child(_after_fork)
    _hooked = True


def _close_all() -> None:
    with _lock:
        ends = list(_open)
    for end in ends:
        for side in ("sending", "receiving"):
            with going_on(f"{end.url}: the {side} end was not closed at the exit of this process"):
                end.close(sender=side == "sending", receiver=side == "receiving")


def _after_fork() -> None:
    global _lock  # noqa: PLW0603  the parent's lock may be held by a thread that the child does not have
    _lock = threading.RLock()
    _homes.clear()
    for end in list(_open):
        end.after_fork()


@contextlib.contextmanager
def going_on(what: str) -> Iterator[None]:
    """Log what is raised inside: what comes behind it is to be done all the same."""
    try:
        yield
    except Exception:
        import logging  # which a process that only sends and receives has no need of

        logging.getLogger("ipcbus.channel").exception(what)
