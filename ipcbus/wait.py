"""wait(): sleep until one of many different things is ready."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any

from ipcbus.errors import ChannelError
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.fds import refused
from ipcbus.plumbing.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["wait"]


def wait(objects: Iterable[Any], timeout: float | None = None) -> list[Any]:
    """Wait until at least one object is ready, and return those that are, in the order given.

    Args:
        objects: any mixture of channels (ready: ``recv(timeout=0)`` would not find it empty; for a ``.sender``,
            ``send`` would not find it full), sockets, pipes, ``multiprocessing`` connections, process sentinels, and
            anything else with ``fileno()`` or that is a descriptor (ready: readable, ended or broken).
        timeout: seconds; None waits without limit, 0 looks once.

    Returns:
        The ready objects; an empty list when the timeout has passed.

    Raises:
        ChannelClosed: a channel among them is closed in this process.
        ChannelBusy: a channel among them has its one receiver in another process.
        ChannelBroken: there is no descriptor left to wait with; none is needed without a channel.
        TypeError: one object was passed instead of several, or one of them has no descriptor.
        ValueError: one of them that is no channel is closed, or a number among them is that of no open descriptor; or there is
            nothing to wait for, and no timeout.
    """
    if hasattr(objects, "fileno"):  # to iterate over a channel is to receive from it
        raise TypeError(f"wait takes several objects, and was given {objects!r} alone; write wait([...])")
    waiting = list(objects)
    if not waiting and timeout is None:
        raise ValueError("wait was given nothing to wait for and no timeout, so that it would never return")
    deadline = Deadline(timeout)
    poller = select.poll()
    channels = [thing for thing in waiting if hasattr(thing, "ready")]
    watched: dict[int, list[Any]] = {}
    for thing in waiting:
        fd = thing if isinstance(thing, int) else _descriptor(thing)
        if fd < 0:
            raise _nothing_open(thing)
        watched.setdefault(fd, []).append(thing)
        poller.register(fd, select.POLLIN)
    sets = [thing._watchers() for thing in channels if hasattr(thing, "_watchers")]  # noqa: SLF001  of this package
    if not sets:  # nothing here is closed by another thread, so no descriptor is needed, of which there may be none
        return _wait(waiting, channels, watched, poller, deadline)
    try:
        bell = _Bell()
    except OSError as error:
        raise refused("there is nothing to wait with", error) from error
    poller.register(bell.fileno(), select.POLLIN)
    watched[bell.fileno()] = []
    for watchers in sets:
        watchers.add(bell)
    try:
        return _wait(waiting, channels, watched, poller, deadline)
    finally:
        for watchers in sets:
            watchers.discard(bell)


def _descriptor(thing: Any) -> int:
    if not hasattr(thing, "fileno"):
        raise TypeError(f"{thing!r} has no descriptor to wait for; of a process, pass its sentinel")
    fd: int = thing.fileno()
    return fd


def _nothing_open(thing: Any) -> ValueError:
    return ValueError(f"{thing!r} is no open descriptor, and cannot be waited for; of a process, pass its sentinel")


class _Bell(Wakeup):
    """Rung when a channel is closed by another thread: nothing else wakes a wait on its descriptor then.

    Frees itself with its last user, who may be that thread.
    """

    def closed(self) -> None:
        """Wake the wait."""
        self.set()


def _wait(
    waiting: list[Any], channels: list[Any], watched: dict[int, list[Any]], poller: select.poll, deadline: Deadline
) -> list[Any]:
    while True:
        # A channel may hold messages that no descriptor shows any more, so it is asked before each sleep.
        ready = {id(channel) for channel in channels if _is_ready(channel)}
        for fd, events in poller.poll(0 if ready else deadline.milliseconds()):
            if events & select.POLLNVAL:
                for thing in watched[fd]:
                    if not hasattr(thing, "ready"):  # a channel says by itself that it was closed
                        raise _nothing_open(thing)
            ready.update(id(thing) for thing in watched[fd] if not hasattr(thing, "ready") or _is_ready(thing))
        if ready or deadline.expired:
            return [thing for thing in waiting if id(thing) in ready]


def _is_ready(channel: Any) -> bool:
    try:
        return bool(channel.ready())
    except ChannelError:
        return True  # the next call on it will say why
