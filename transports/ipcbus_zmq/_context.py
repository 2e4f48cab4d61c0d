"""The zmq context of this process: made with its first socket, ended with its last, never carried into a forked child."""

from __future__ import annotations

import os
import resource
import threading
from typing import TYPE_CHECKING

import zmq
from zmq.backend import Context

from ipcbus.errors import ChannelBroken
from ipcbus.plumbing.fds import REMEDY

if TYPE_CHECKING:
    from zmq.backend import Socket

__all__ = ["acquire", "release"]

_GRACE = 2.0
"""Seconds that zmq gets to end a context of which all sockets are closed."""
_SPARE_FDS = 32
"""Descriptors that must be free: libzmq aborts the process when it finds none at a bad moment."""


class _Shared:
    """The context and how many use it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        # Taken again by the thread that has it when garbage is collected inside, and that closes an end.
        self.lock = threading.RLock()
        self.context: Context | None = None
        self.users = 0
        self.unended: list[Socket] = []
        """What listens for the ends of sockets that did not come in time."""


_shared = _Shared()


def acquire() -> Context:
    """Return this process's context; to be given back with ``release``.

    Raises:
        ChannelBroken: too few descriptors are left.
    """
    global _shared  # noqa: PLW0603  what the parent had is the parent's; pyzmq leaves it alone in the child
    if _shared.pid != os.getpid():
        _shared = _Shared()
    _leave_room()
    with _shared.lock:
        if _shared.context is None:
            _shared.context = Context()
            # Each end of a channel takes three, of which two watch over the first; so descriptors run out first, which is told.
            _shared.context.set(zmq.MAX_SOCKETS, _shared.context.get(zmq.SOCKET_LIMIT))
            if _may_yield():
                _shared.context.set(zmq.THREAD_SCHED_POLICY, os.SCHED_BATCH)
        _shared.users += 1
        return _shared.context


def release(unended: Socket | None = None) -> None:
    """Give the context back.

    Args:
        unended: what listens for the end of a socket that did not come in time. It is kept, since zmq's threads wait for
            a listener, and so is the context, which would wait for the socket: it is used again until the process ends.
    """
    with _shared.lock:
        _shared.users -= 1
        if unended is not None:
            _shared.unended.append(unended)
        if _shared.users == 0 and _shared.context is not None and not _shared.unended:
            context, _shared.context = _shared.context, None
            _end(context)


def _end(context: Context) -> None:
    """End a context, but wait no longer than it should take: the thread that waits for it goes with the process."""
    ending = threading.Thread(target=context.term, name="ipcbus-zmq-term", daemon=True)
    try:
        ending.start()
    except RuntimeError:
        return  # an interpreter that ends starts no thread any more (from Python 3.12 on), and zmq's own go with the process
    ending.join(_GRACE)


def _may_yield() -> bool:
    """Tell whether zmq's own threads can be scheduled so that waking one does not interrupt the thread that woke it.

    By default each message of a busy sender wakes zmq's thread, which takes the processor, sends that one message and
    sleeps: two switches a message. A ``SCHED_BATCH`` thread waits for a free processor and then sends all there is
    (sched(7)); where one is free it runs at once, as ever.
    """
    # A process under another policy may not be allowed to change it, and libzmq aborts when it cannot.
    return hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_OTHER


def _leave_room() -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    used = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  counted, not used as paths
    if limit != resource.RLIM_INFINITY and used + _SPARE_FDS > limit:
        raise ChannelBroken(
            f"{used} of this process's {limit} descriptors are in use; ZeroMQ needs {_SPARE_FDS} free ones to be safe; "
            f"{REMEDY}, and try again"
        )
