"""The receiving end: one datagram is one message, so there is nothing to put together and nothing to lose."""

from __future__ import annotations

import select
import threading
from typing import TYPE_CHECKING

from ipcbus.errors import ChannelBusy, ChannelClosed, ChannelEmpty
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.locks import release
from ipcbus.plumbing.wakeup import Wakeup
from ipcbus.transport import RecvLink
from ipcbus_unix._intake import Intake

if TYPE_CHECKING:
    from ipcbus.plumbing.claim import Claim
    from ipcbus.transport import ChannelSpec, Frame
    from ipcbus_unix import UnixHandle

__all__ = ["UnixReceiver"]


class UnixReceiver(RecvLink):
    """One process's receiving end; with ``receivers="one"``, claimed for it until it closes or dies."""

    def __init__(self, handle: UnixHandle, spec: ChannelSpec) -> None:
        self._handle = handle
        self._state = handle.state
        self._board = handle.board
        self._claim: Claim | None = None
        if spec.receivers == "one":
            self._claim, owner = handle.state.attach()
            if owner is not None:
                raise ChannelBusy(
                    f"process {owner} is the receiver of this unix: channel already; open it with receivers='many' to share "
                    "the messages out",
                    owner,
                )
        self._closed = False
        self._lock = threading.RLock()
        self._intake = Intake(handle.outlet.fileno(), handle.board, handle.state, handle.inline, spec.max_message)
        self._take = self._intake.take
        self._wakeup: Wakeup | None = (wakeup := Wakeup())
        self._epoll: select.epoll | None = None
        self._poll = select.poll()
        for fd in (wakeup.fileno(), handle.outlet.fileno()):
            self._poll.register(fd, select.POLLIN)

    def recv(self, timeout: float | None) -> Frame:
        """Take the oldest message."""
        try:
            if not self._lock.acquire(False):  # noqa: FBT003  by position: this is the hot path
                self._acquire(timeout)
            if self._closed:
                raise self._why_closed()
            return self._take() or self._wait(timeout)
        finally:
            try:  # as plumbing.locks.release, without the call: this runs for every message
                self._lock.release()
            except RuntimeError:
                pass

    def _acquire(self, timeout: float | None) -> None:
        if not self._lock.acquire(timeout=-1 if timeout is None else timeout):
            raise ChannelEmpty("no message within the timeout: another thread is waiting for one already")

    def _wait(self, timeout: float | None) -> Frame:
        """Take the next message that comes, which another receiver may be faster at."""
        deadline = Deadline(timeout)
        while True:
            if self._board.somebody_waits():
                # Everything was taken out, so everybody has room: also those whom a receiver that was killed since would
                # have told.
                self._state.news.set()
            if timeout == 0 or not self._poll.poll(deadline.milliseconds()):
                raise ChannelEmpty("no message within the timeout")
            if self._closed:
                raise self._why_closed()
            frame = self._take()
            if frame is not None:
                return frame

    @staticmethod
    def _why_closed() -> ChannelClosed:
        return ChannelClosed("this end of the unix: channel is closed")

    def fileno(self) -> int:
        """Return the descriptor that shows when there is something to receive."""
        wakeup = self._wakeup
        if self._closed or wakeup is None:
            raise self._why_closed()
        if self._epoll is None:
            epoll = select.epoll()
            for fd in (wakeup.fileno(), self._handle.outlet.fileno()):
                epoll.register(fd, select.EPOLLIN)
            self._epoll = self._epoll or epoll
        return self._epoll.fileno()

    def ready(self) -> bool:
        """Tell whether there is a message, or an end. With many receivers, another may be faster."""
        try:
            if not self._lock.acquire(blocking=False):
                return False  # another thread is waiting for it
            return self._closed or self._intake.pending or bool(self._poll.poll(0))
        finally:
            release(self._lock)

    def shutdown(self) -> None:
        """End the stream for everybody."""
        self._handle.shut()

    def close(self) -> None:
        """Close; what was not received stays for the next receiver."""
        self._closed = True
        wakeup = self._wakeup  # kept alive: another thread may close too
        if wakeup is None:
            return
        wakeup.set()
        with self._lock:
            if self._wakeup is not None and self._claim is not None:
                self._state.detach(self._claim)
            self._free()

    def abandon(self) -> None:
        """Free what a forked child inherited."""
        self._closed = True
        if self._claim is not None:
            self._claim.close()
        self._free()

    def _free(self) -> None:
        self._intake.close()
        self._wakeup = None
        if self._epoll is not None:
            self._epoll.close()

    def depth(self) -> int | None:
        """Return None: the kernel tells how many bytes wait, and not how many messages."""
        return None
