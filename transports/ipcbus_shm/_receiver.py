"""The receiving end: what is left to do in Python is to be the one receiver, and the descriptor to wait on."""

from __future__ import annotations

import select
import sys
import threading
from typing import TYPE_CHECKING

from ipcbus.errors import ChannelBusy, ChannelClosed
from ipcbus.plumbing.fds import refused
from ipcbus.transport import RecvLink
from ipcbus_shm._native import Receiver

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.plumbing.state import Seat
    from ipcbus.transport import Frame
    from ipcbus_shm import ShmHandle

__all__ = ["ShmReceiver"]


class ShmReceiver(RecvLink):
    """One process's receiving end; with ``receivers="one"``, claimed for it until it closes or dies."""

    __slots__ = ("_core", "_handle", "_lock", "_seat", "_set", "bytes_receiver", "ready", "recv")

    recv: Callable[[float | None], Frame]  # type: ignore[assignment]  # the C object's own method
    ready: Callable[[], bool]
    bytes_receiver: Callable[[bytes], Callable[[float | None], Frame | bytes]]  # type: ignore[assignment]  # as above

    def __init__(self, handle: ShmHandle) -> None:
        self._handle = handle
        segment = handle.segment
        limit = min(handle.spec.max_message, sys.maxsize)  # the ring counts with 64 bits, and the user with any number
        self._core = Receiver(segment, limit, handle.options.spin_us * 1000)
        self._lock = threading.RLock()
        self._set: select.epoll | None = None
        self.recv = self._core.recv
        self.ready = self._core.ready
        self.bytes_receiver = self._core.bytes_receiver
        # Last of all: an attempt that fails or is interrupted must not have been the receiver.
        self._seat: Seat | None = None
        if handle.spec.receivers == "one":
            self._seat, owner = handle.state.attach()
            if owner is not None:
                raise ChannelBusy(
                    f"process {owner} is the receiver of this shm: channel already; open it with receivers='many' to share "
                    "the messages out",
                    owner,
                )

    @property
    def spins(self) -> bool:
        """True: as long as it pays, for up to ``spin_us``."""
        return True

    @property
    def received_short(self) -> int:  # type: ignore[override]  # counted in C, and only read here
        """Messages that what ``bytes_receiver`` returned has received."""
        return self._core.received_short

    def fileno(self) -> int:
        """Return the set that listens to the receivers' doorbell."""
        with self._lock:
            if self._core.closed:
                raise ChannelClosed("this end of the shm: channel is closed")
            if self._set is None:
                self._listen()
            self._core.ready()
            assert self._set is not None
            return self._set.fileno()

    def _listen(self) -> None:
        try:
            listening = select.epoll()
            # Edges: the doorbell is everybody's, and nobody may silence it for another.
            listening.register(self._handle.segment.fds[1], select.EPOLLIN | select.EPOLLET)
        except OSError as error:
            raise refused("there is nothing to wait with", error) from error
        if self._set is None:  # else a signal handler was faster
            self._core.watch(listening.fileno())
            self._set = listening

    def shutdown(self) -> None:
        """End the stream for everybody."""
        self._handle.shut()

    def close(self) -> None:
        """Close; what was not received stays for the next receiver."""
        with self._lock:
            self._core.close()
            if self._set is not None:
                self._set.close()
        seat, self._seat = self._seat, None  # one that an interruption drops here is left, too
        if seat is not None:
            seat.close()
            self._handle.state.news.set()

    def abandon(self) -> None:
        """Free what a forked child inherited."""
        self._core.abandon()
        if self._set is not None:
            self._set.close()
        if self._seat is not None:
            self._seat.close()

    def depth(self) -> int | None:
        """Return how many messages wait in the channel."""
        return self._core.depth()
