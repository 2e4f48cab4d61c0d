"""The receiving end: one datagram is one message, so there is nothing to put together and nothing to lose."""

from __future__ import annotations

import select
import socket
import threading
from typing import TYPE_CHECKING

from ipcbus.errors import ChannelBusy, ChannelClosed, ChannelEmpty
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.fds import refused
from ipcbus.plumbing.locks import acquire, acquire_to_recv, release
from ipcbus.plumbing.wakeup import Wakeup
from ipcbus.transport import RecvLink
from ipcbus_unix._board import LARGE, SLOT
from ipcbus_unix._intake import HEAD, Intake

if TYPE_CHECKING:
    from ipcbus.plumbing.state import Seat
    from ipcbus.transport import ChannelSpec, Frame
    from ipcbus_unix import UnixHandle

__all__ = ["UnixReceiver"]

_NOW = socket.MSG_DONTWAIT


class UnixReceiver(RecvLink):
    """One process's receiving end; with ``receivers="one"``, claimed for it until it closes or dies."""

    def __init__(self, handle: UnixHandle, spec: ChannelSpec) -> None:
        self._handle = handle
        self._state = handle.state
        self._board = handle.board
        self._waiting = False
        """Whether who has the lock sleeps, which may take long: everything else that is done under it does not block."""
        self._closed = False
        self._lock = threading.RLock()
        self._opening = threading.RLock()
        self._intake = intake = Intake(handle.outlet, handle.board, handle.state, handle.inline, spec.max_message)
        self._into = handle.outlet.recv_into
        self._memory, self._view, self._words, self._size = intake.memory, intake.view, intake.words, intake.size
        self._taken, self._wake = handle.board.taken, handle.board.wake
        self._wakeup: Wakeup | None = (wakeup := Wakeup())
        self._epoll: select.epoll | None = None
        self._fds = (wakeup.fileno(), handle.outlet.fileno())
        self._poll = self._poller()
        # Last of all: an attempt that fails or is interrupted must not have been the receiver.
        self._seat: Seat | None = None
        if spec.receivers == "one":
            self._seat, owner = handle.state.attach()
            if owner is not None:
                raise ChannelBusy(
                    f"process {owner} is the receiver of this unix: channel already; open it with receivers='many' to share "
                    "the messages out",
                    owner,
                )
            if not spec.drops_old:
                intake.begin_alone()

    def recv(self, timeout: float | None) -> Frame:
        """Take the oldest message."""
        try:
            if not self._lock.acquire(False):  # noqa: FBT003  by position: this is the hot path
                timeout = acquire_to_recv(self._lock, timeout, self._is_waiting)
            # From here on as Intake.take, without the calls: this runs for every message.
            intake = self._intake
            if not intake.plain:
                return self._recv_slowly(timeout)
            intake.plain = False
            try:
                size = self._into(self._memory, 0, _NOW)
            except BlockingIOError:
                intake.plain = True
                return self._wait(timeout)
            except OSError:
                intake.plain = True
                return self._recv_slowly(timeout)
            tag = self._words[0]
            if tag >= LARGE or not HEAD <= size < self._size:
                return self._recv_slowly(timeout, size)
            frame = self._view[HEAD:size].tobytes()
            intake.plain = True  # from here on a signal handler that receives may use the memory
            slot = tag & SLOT
            self._taken[slot] = tag
            if self._wake[slot] <= tag:
                intake.announce(slot)
            return (frame,)
        except (OSError, ValueError, TypeError, IndexError) as error:
            if self._closed:  # by a signal handler, while the board or the socket was in use
                raise self._why_closed() from error
            raise
        finally:
            try:  # as plumbing.locks.release, without the call
                self._lock.release()
            except RuntimeError:
                pass

    def _recv_slowly(self, timeout: float | None, size: int = -1) -> Frame:
        """Take a message that is not there yet, or with care; ``size`` is what a quick look has found."""
        if self._closed:
            raise self._why_closed()
        frame = self._intake.take() if size < 0 else self._intake.settle(size)
        return self._wait(timeout) if frame is None else frame

    def _is_waiting(self) -> bool:
        return self._waiting

    def _wait(self, timeout: float | None) -> Frame:
        """Take the next message that comes, which another receiver may be faster at."""
        deadline = Deadline(timeout)
        while True:
            if self._board.somebody_waits():
                # Everything was taken out, so everybody has room: also those whom a receiver that was killed since would
                # have told.
                self._state.news.set()
            if timeout == 0 or not self._sleep(deadline):
                raise ChannelEmpty("no message within the timeout")
            if self._closed:
                raise self._why_closed()
            frame = self._intake.take()
            if frame is not None:
                return frame

    def _sleep(self, deadline: Deadline) -> bool:
        """Wait until there may be a message; say whether that was so in time."""
        waiting = self._waiting  # true where a signal handler receives while the call that it interrupted waits
        wakeup = self._wakeup
        try:
            self._waiting = True
            return self._closed or self._shows(deadline.milliseconds(), nested=waiting)
        finally:
            self._waiting = waiting
            del wakeup  # kept until here: closed by a signal handler while this polls, it would wake nobody

    @staticmethod
    def _why_closed() -> ChannelClosed:
        return ChannelClosed("this end of the unix: channel is closed")

    def fileno(self) -> int:
        """Return the descriptor that shows when there is something to receive."""
        wakeup = self._wakeup  # kept until it is watched
        if self._closed or wakeup is None:
            raise self._why_closed()
        with self._opening:  # not the other lock, which a receiving thread may hold for long
            if self._epoll is None:
                self._open_epoll()
            assert self._epoll is not None
            return self._epoll.fileno()

    def _open_epoll(self) -> None:
        try:
            epoll = select.epoll()
        except OSError as error:
            raise refused("there is nothing to wait with", error) from error
        for fd in self._fds:
            epoll.register(fd, select.EPOLLIN)
        if self._epoll is None:  # else a signal handler has given one out meanwhile
            self._epoll = epoll

    def ready(self) -> bool:
        """Tell whether there is a message, or an end. With many receivers, another may be faster."""
        try:
            if not acquire(self._lock, 0, self._is_waiting):
                return False  # another thread is waiting for it
            return self._closed or self._intake.pending or self._shows(0, nested=self._waiting)
        finally:
            release(self._lock)

    def _shows(self, milliseconds: int, *, nested: bool) -> bool:
        """Tell whether there may be a message; ``nested`` in a signal handler amid a wait, whose own poll object is in use."""
        return bool((self._poller() if nested else self._poll).poll(milliseconds))

    def _poller(self) -> select.poll:
        poll = select.poll()
        for fd in self._fds:
            poll.register(fd, select.POLLIN)
        return poll

    def shutdown(self) -> None:
        """End the stream for everybody."""
        self._handle.shut()

    def close(self) -> None:
        """Close; what was not received stays for the next receiver."""
        self._closed = True
        self._intake.plain = False
        wakeup = self._wakeup  # kept alive: another thread may close too
        if wakeup is None:
            return
        wakeup.set()
        with self._lock:
            if self._wakeup is not None and self._seat is not None:
                self._seat.close()
                self._state.news.set()
            self._free()

    def abandon(self) -> None:
        """Free what a forked child inherited."""
        self._closed = True
        if self._seat is not None:
            self._seat.close()
        self._free()

    def _free(self) -> None:
        self._intake.close()
        self._taken = self._wake = memoryview(b"")  # the mapping has a descriptor of its own
        self._wakeup = None
        if self._epoll is not None:
            self._epoll.close()

    def depth(self) -> int | None:
        """Return None: the kernel tells how many bytes wait, and not how many messages."""
        return None
