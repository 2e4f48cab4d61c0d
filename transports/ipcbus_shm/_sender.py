"""The sending end: what is left to do in Python is to wait for room, and to see the receiver die."""

from __future__ import annotations

import select
import threading
from typing import TYPE_CHECKING

from ipcbus.errors import ChannelBroken, ChannelClosed
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.fds import refused
from ipcbus.plumbing.locks import release
from ipcbus.plumbing.wakeup import Echo, Wakeup
from ipcbus.plumbing.watch import Watch
from ipcbus.transport import LINGER, SendLink
from ipcbus_shm._native import Sender

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ipcbus.transport import Frame
    from ipcbus_shm import ShmHandle

__all__ = ["ShmSender"]

_MOST_INLINE = 256 * 1024


def _closed() -> ChannelClosed:
    return ChannelClosed("this end of the shm: channel is closed")


class ShmSender(SendLink):
    """One process's sending end."""

    __slots__ = (
        "_core",
        "_echo",
        "_handle",
        "_lock",
        "_sleeps",
        "_waiting",
        "_waits",
        "_watch",
        "bytes_sender",
        "send",
        "send_many",
    )

    send: Callable[[Frame, float | None], None]  # type: ignore[assignment]  # the C object's own method
    send_many: Callable[[Sequence[Frame], float | None], int]  # type: ignore[assignment]  # as above
    bytes_sender: Callable[[bytes, int], Callable[[bytes], bool]]  # type: ignore[assignment]  # as above

    def __init__(self, handle: ShmHandle) -> None:
        self._handle = handle
        most = min(_MOST_INLINE, handle.options.ring_bytes // 4)
        self._core = Sender(handle.segment, self._wait, most, handle.options.spin_us * 1000)
        self.send = self._core.send
        self.send_many = self._core.send_many
        self.bytes_sender = self._core.bytes_sender
        self._lock = threading.RLock()
        self._waiting = threading.RLock()
        self._waits: tuple[select.epoll, Wakeup] | None = None
        self._watch: Watch | None = None
        self._echo = Echo()
        self._sleeps = False

    def _wait(self, seconds: float | None, wanted: int) -> bool:
        """Sleep until there may be room for some bytes; say whether there was some before that."""
        # One thread at a time: what wakes one is not seen by another, who may be the one that has room now.
        try:
            deadline = Deadline(seconds)
            if not self._waiting.acquire(timeout=-1 if (left := deadline.remaining()) is None else left):
                return False
            epoll, wakeup = self._open_epoll()
            if self._finds_room(epoll, wakeup, wanted):
                return True
            self._check()
            sleeps = self._sleeps  # true where a signal handler sends while the call that it interrupted sleeps
            try:
                self._sleeps = True
                # A close is looked for when there is something that it can wake.
                if not self._core.closed and (epoll.poll(deadline.remaining()) or sleeps):
                    self._echo.ring()
            finally:
                self._sleeps = sleeps
                del wakeup  # kept until here: closed while this polls, it would wake nobody
            return False
        except (OSError, ValueError, TypeError) as error:
            if self._core.closed:  # by a signal handler, while a descriptor was in use
                raise _closed() from error
            raise
        finally:
            release(self._waiting)

    def _finds_room(self, epoll: select.epoll, wakeup: Wakeup, *wanted: int) -> bool:
        """Tell whether there is room; if not, have the descriptor show when there may be."""
        if self._sleeps:
            self._echo.begin(wakeup)  # this is a signal handler, and what it interrupted has to see it as well
        self._echo.hush()
        epoll.poll(0)  # what came before is seen by now, and must not show as readable for ever
        if self._core.arm(*wanted):
            self._echo.ring()
            return True
        return False

    def _check(self) -> None:
        """Raise ``PeerDied`` if the one receiver has; if not, see to it that its death shows."""
        with self._lock:
            if self._watch is not None:
                self._watch.check()

    def _open_epoll(self) -> tuple[select.epoll, Wakeup]:
        with self._lock:
            if self._core.closed:
                raise _closed()
            if self._waits is None:
                try:
                    self._waits = epoll, wakeup = select.epoll(), Wakeup()
                    epoll.register(wakeup.fileno(), select.EPOLLIN)
                    # Edges: the doorbell is everybody's, and nobody may silence it for another.
                    epoll.register(self._handle.segment.fds[2], select.EPOLLIN | select.EPOLLET)
                    epoll.register(self._handle.state.news.fileno(), select.EPOLLIN | select.EPOLLET)
                except OSError as error:
                    self._waits = None
                    raise refused("room cannot be waited for", error, "nothing was sent") from error
                if self._handle.spec.receivers == "one":
                    self._watch = Watch(self._handle.state, epoll, self._echo)
            return self._waits

    @property
    def sent_short(self) -> int:  # type: ignore[override]  # counted in C, and only read here
        """Messages that what ``bytes_sender`` returned has sent."""
        return self._core.sent_short

    def fileno(self) -> int:
        """Return the descriptor that shows when there may be room."""
        epoll, wakeup = self._open_epoll()
        self._echo.begin(wakeup)
        self._core.watch()
        self._core.arm()
        return epoll.fileno()

    def discard_oldest(self, timeout: float | None = LINGER) -> bool:
        """Drop the oldest message; say whether there was one."""
        del timeout  # what was accepted is there
        return self._core.discard_oldest()

    def ready(self) -> bool:
        """Tell whether there is room, or a reason why there will not be."""
        try:
            if not self._waiting.acquire(blocking=False):
                return False  # another thread is waiting for room
            if self._finds_room(*self._open_epoll()):
                return True
            self._check()
        except (ChannelBroken, ChannelClosed):
            return True
        finally:
            release(self._waiting)
        return False

    def shutdown(self) -> None:
        """End the stream for everybody."""
        self._handle.shut()

    def close(self) -> None:
        """Close; what was sent stays in the memory for the receivers."""
        self._core.close()
        with self._lock:
            if self._waits is not None:
                self._waits[1].set()
            self._free()

    def abandon(self) -> None:
        """Free what a forked child inherited."""
        self._core.abandon()
        self._free()

    def _free(self) -> None:
        # Whoever waits still has them, and the last to let go of them closes them: closed here, their numbers could be
        # other files' before they look. The set goes before what is in it: taken out of it, in a forked child, that would
        # be gone for the parent too.
        self._waits = None
        self._echo.end()
        if self._watch is not None:
            self._watch.forget()
            self._watch = None

    def receiver(self) -> int | None:
        """Return the pid of the one receiver; None where there may be several."""
        return self._handle.state.receiver()

    def depth(self) -> int | None:
        """Return how many messages wait in the channel."""
        return self._core.depth()
