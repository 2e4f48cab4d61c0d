"""The receiving end: what is left to do in Python is to be the one receiver, and the descriptor to wait on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipcbus.errors import ChannelBusy, ChannelClosed
from ipcbus.transport import RecvLink
from ipcbus_shm._native import Receiver

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.plumbing.claim import Claim
    from ipcbus.transport import Frame
    from ipcbus_shm import ShmHandle

__all__ = ["ShmReceiver"]


class ShmReceiver(RecvLink):
    """One process's receiving end; with ``receivers="one"``, claimed for it until it closes or dies."""

    __slots__ = ("_bell", "_claim", "_core", "_handle", "ready", "recv")

    recv: Callable[[float | None], Frame]  # type: ignore[assignment]  # the C object's own method
    ready: Callable[[], bool]

    def __init__(self, handle: ShmHandle) -> None:
        self._handle = handle
        segment = handle.segment
        self._core = Receiver(segment, handle.spec.max_message, handle.options.spin_us * 1000)
        self._bell = segment.fds[1]
        self.recv = self._core.recv
        self.ready = self._core.ready
        # Last of all: whoever claims to be the receiver and then fails to become it would seem to have died.
        self._claim: Claim | None = None
        if handle.spec.receivers == "one":
            self._claim, owner = handle.state.attach()
            if owner is not None:
                raise ChannelBusy(
                    f"process {owner} is the receiver of this shm: channel already; open it with receivers='many' to share "
                    "the messages out",
                    owner,
                )

    def fileno(self) -> int:
        """Return the receivers' doorbell."""
        if self._core.closed:
            raise ChannelClosed("this end of the shm: channel is closed")
        self._core.watch()
        self._core.ready()
        return self._bell

    def shutdown(self) -> None:
        """End the stream for everybody."""
        self._handle.shut()

    def close(self) -> None:
        """Close; what was not received stays for the next receiver."""
        if not self._core.closed:
            self._core.close()
            if self._claim is not None:
                self._handle.state.detach(self._claim)

    def abandon(self) -> None:
        """Free what a forked child inherited."""
        if self._claim is not None:
            self._claim.close()
        self._core.abandon()

    def depth(self) -> int | None:
        """Return how many messages wait in the channel."""
        return self._core.depth()
