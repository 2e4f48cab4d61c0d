"""Tap: copies of what is sent through a channel of a bus, for somebody who looks and takes nothing."""

from __future__ import annotations

import os
import pickle
import warnings
from typing import TYPE_CHECKING, final

from ipcbus.bus import page
from ipcbus.bus.looking import LookingCloudPickle, LookingPickle
from ipcbus.channel import open_channel
from ipcbus.directory import aside, client
from ipcbus.errors import IpcbusError
from ipcbus.plumbing.fds import packing, unpacking
from ipcbus.plumbing.finalizers import finalizer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from ipcbus.bus.board import Board
    from ipcbus.channel import Channel
    from ipcbus.message import Message

__all__ = ["Tap"]

_URL = "pipe:"
"""How copies travel, whatever the channel's transport: a pipe survives that either side is stopped or killed."""
_SHARED = ("serializer", "accept", "checksum", "key_file")
"""What a tap's channel has in common with the channel: its frames are the same."""


@final
class Tap:
    """Gets a copy of every message that is sent from now on; see :meth:`ipcbus.Bus.tap`. A context manager.

    A sender offers each message once it was accepted, and never waits: what finds no room is missed, and counted.
    """

    __slots__ = ("_address", "_baseline", "_board", "_channel", "_closed", "_key", "_number", "_pid", "_words")

    def __init__(self, address: str, channel: Channel, capacity: int, board: Board | None) -> None:
        self._closed = True
        self._address = address
        self._pid = os.getpid()
        self._board = board
        end = channel._end  # noqa: SLF001  this package's
        shared = {name: getattr(end.options, name) for name in _SHARED}
        self._channel = open_channel(
            _URL, **{**shared, "capacity": capacity, "overflow": "drop_new", "max_message": end.spec.max_message}
        )
        own = self._channel._end  # noqa: SLF001  as above
        self._key = own.key
        self._closed = False
        for serializer in (LookingPickle(), LookingCloudPickle()):
            own.codec.use(serializer)
        own.codec.answer_by(None)  # a request is its receiver's to answer
        try:
            own.open_receiver()  # before anybody sends: a sender need not wait for one then
            with packing() as fds:
                content = pickle.dumps(own.state())
            own.shared[address] = client.put(address, self._key, content, fds)
            if board is not None:
                self._number, fd = board.tap(os.getpid(), end.key, self._key)
            else:
                found = client.call(address, "tap", end.key + self._key)
                self._number, fd = found.content[0], found.fds[0]
            with unpacking([fd]):
                self._words = page.open_page(fd)
        except BaseException:
            self.close()
            raise
        self._baseline = self._count()

    @property
    def missed(self) -> int:
        """How many messages found no room here, because this process did not keep up or was stopped."""
        return self._count() - self._baseline

    def recv_message(self, timeout: float | None = None) -> Message:
        """Return the next copy with its envelope; raises what ``Channel.recv_message`` raises.

        Descriptors, channels, futures and the like are only for the receiver: in a copy, stand-ins are in their places.
        """
        end = self._channel._end  # noqa: SLF001  this package's
        return end.codec.decode_message(end.open_receiver().recv(timeout))

    def __iter__(self) -> Iterator[Message]:
        """Yield copies until the channel is shut down."""
        while True:
            try:
                message = self.recv_message()
            except EOFError:
                return
            yield message

    def fileno(self) -> int:
        """Return a descriptor that polls readable when ``recv_message(timeout=0)`` should be tried."""
        return self._channel.fileno()

    def ready(self) -> bool:
        """Tell whether ``recv_message(timeout=0)`` would find something."""
        return self._channel.ready()

    def close(self) -> None:
        """Have no more copies sent. Idempotent."""
        if self._closed or self._pid != os.getpid():
            return  # a forked child's copy: the tap is its parent's
        self._closed = True
        if self._board is not None:
            self._board.untap(self._key)
        else:
            try:
                client.call(self._address, "untap", self._key)
            except IpcbusError:
                # The home has ended, and senders see the end of the channel itself; or a signal handler interrupts a question.
                aside.leave_finally(self._address, "untap", self._key)
        self._channel.close()

    def _count(self) -> int:
        return page.total(self._words, page.MISSED + self._number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @finalizer
    def __del__(self) -> None:
        if self._closed or self._pid != os.getpid():
            return
        warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)
        aside.leave_finally(self._address, "untap", self._key)
