"""The sending end: puts into a queue of this process, once the channel has room."""

from __future__ import annotations

import os
from threading import get_ident
from typing import TYPE_CHECKING

from ipcbus.errors import ChannelBroken, ChannelFull
from ipcbus.plumbing.claim import holder
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.fds import refused
from ipcbus.plumbing.locks import alone, amid
from ipcbus.transport import LINGER, Frame, SendLink
from ipcbus_queue.feeder import Feeder
from ipcbus_queue.gate import Gate
from ipcbus_queue.libc import IGNORED, eventfd_read
from ipcbus_queue.reader import Reader
from ipcbus_queue.shared import OVER, SHUT

if TYPE_CHECKING:
    from ipcbus_queue.shared import Shared

__all__ = ["QueueSendLink"]

_IGNORED = (IGNORED,)


class QueueSendLink(SendLink):
    """Puts frames into a ``multiprocessing.Queue`` of this process, whose thread moves them to the channel's pipe.

    Args:
        shared: the channel.
    """

    __slots__ = ("_feeder", "_gate", "_reader", "_room", "_shared")

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._room = (shared.room.fileno(),)
        self._gate = Gate(shared.room.fileno(), shared.latch.fileno())
        self._feeder: Feeder | None = None
        self._reader: Reader | None = None

    def send(self, frame: Frame, timeout: float | None) -> None:
        """Put one message in."""
        # bytes cannot change any more; anything else is copied now, so that what arrives is a snapshot.
        payload = frame[0] if len(frame) == 1 and type(frame[0]) is bytes else b"".join(frame)
        if self._offer(payload):
            return
        deadline = Deadline(timeout)
        while not deadline.expired:
            if self._gate.wait(deadline.remaining()) and self._offer(payload):
                return
        raise ChannelFull(f"the queue: channel holds {self._shared.capacity} messages, its capacity")

    def _offer(self, payload: bytes) -> bool:
        """Put it in if there is room; say whether there was."""
        gate, me = self._gate, get_ident()
        if gate.owner == me:
            raise ChannelFull(amid("sending"))
        try:
            with gate.lock:
                gate.owner = me
                # extend(map(...)) takes and notes it in one step: an interrupt can come before or after, not in between.
                noted: list[int | None] = []
                try:
                    gate.check()
                    noted.extend(map(eventfd_read, self._room, _IGNORED))
                    # Looked at after the room was taken: who drains the channel waits until all room is back, so a message
                    # that gets past this line is received, and none does once the channel was found drained.
                    if self._shared.page[OVER]:
                        raise self._shared.refusal()  # noqa: TRY301  the room goes back as for any other error
                    if noted[0]:
                        return False
                    (self._feeder or self._start()).place(payload, noted)
                except BaseException:
                    self._undo(noted)
                    raise
                finally:
                    gate.owner = 0
                return True
        finally:
            if gate.later:
                gate.later.catch_up()

    def discard_oldest(self, timeout: float | None = LINGER) -> bool:
        """Take the oldest message out of the pipe, waiting for the threads that move messages there."""
        gate = self._gate
        if gate.owner == get_ident():
            raise ChannelFull(amid("sending"))
        reader, taken = alone(gate, self._take_oldest)
        if taken:
            return True
        # Full, and nothing in the pipe: what is oldest is still on its way, unless there is room by now.
        if gate.wait(timeout, reader.fileno()):
            return False
        raise ChannelBroken(
            "the queue: channel is full, but no message comes out of it: the room belongs to processes that were killed "
            "or are stopped; open a new channel"
        )

    def _take_oldest(self) -> tuple[Reader, bool]:
        self._gate.check()
        reader = self._reader or self._open_reader()
        return reader, reader.take(0) is not None

    def _open_reader(self) -> Reader:
        try:
            self._reader = reader = Reader(self._shared)
        except OSError as error:
            raise refused("old messages of a queue: channel cannot be dropped", error, "nothing was sent") from error
        return reader

    def ready(self) -> bool:
        """Tell whether there is room, or the channel is over."""
        if self._gate.owner == get_ident():
            return False
        with self._gate.lock:
            return self._gate.closed or bool(self._gate.epoll.poll(0))

    def fileno(self) -> int:
        """Return the descriptor that is readable while there is room, or the channel is over."""
        return self._gate.fileno()

    def shutdown(self) -> None:
        """End the stream."""
        with self._gate.lock:
            self._gate.check()
            self._shared.end(SHUT)

    def close(self) -> None:
        """Close, once what was accepted is in the pipe or ``LINGER`` has passed.

        What is not in the pipe by then goes on being moved there for as long as this process lives. Where no other process
        has the channel there is nobody to wait for.
        """
        if self._gate.later.postpone(self._gate.owner, self._close_late):
            self._shared.closing += 1
            return
        with self._gate.lock:
            self._gate.close()
            if self._reader is not None:
                self._reader.close()
        feeder = self._feeder
        if feeder is not None:
            feeder.finish()
            if not feeder.join(0 if self._shared.alone else LINGER):
                self._shared.unfinished = feeder
            self._feeder = None

    def _close_late(self) -> None:
        self.close()
        self._shared.closed_late()

    def abandon(self) -> None:
        """Let go of the parent's queue: its thread is not in this process, and its lock may be held for ever."""
        self._gate.abandon()
        if self._reader is not None:
            self._reader.close()
        if self._feeder is not None:
            self._feeder.abandon()
            self._feeder = None

    def receiver(self) -> int | None:
        """Return the pid of the receiver; None where there may be several."""
        return holder(self._shared.file.fileno())

    def depth(self) -> int | None:
        """Return how many messages are accepted and not received; None once this end is closed."""
        with self._gate.lock:
            return None if self._gate.closed else self._shared.depth()

    def _undo(self, noted: list[int | None]) -> None:
        """Bring in order what an error or an interrupt left half done. The lock is held."""
        if noted == [0]:
            os.eventfd_write(self._room[0], 1)  # room was taken, and no message put into it
        elif noted[1:] and self._feeder is not None:
            self._feeder.nudge()  # its thread may not have been told

    def _start(self) -> Feeder:
        try:
            self._feeder = Feeder(self._shared)
        except OSError as error:
            raise refused("a queue: channel cannot be sent to from here", error, "nothing was sent") from error
        return self._feeder
