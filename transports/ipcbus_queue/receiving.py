"""The receiving end: reads the pipe of the senders' queues, and tells the end of the channel from a pause."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

from ipcbus.errors import ChannelBroken, ChannelBusy, ChannelEmpty, ChannelError, EndOfChannel
from ipcbus.plumbing.alarm import Alarm
from ipcbus.plumbing.clock import Deadline
from ipcbus.transport import LINGER, Frame, RecvLink
from ipcbus_queue.gate import Gate
from ipcbus_queue.reader import Reader
from ipcbus_queue.shared import OVER, SHUT

if TYPE_CHECKING:
    from ipcbus.plumbing.claim import Claim
    from ipcbus_queue.shared import Shared

__all__ = ["QueueRecvLink"]


class QueueRecvLink(RecvLink):
    """Takes messages out.

    Args:
        shared: the channel.
        claim: on being its one receiver, None where there are many; owned from here on.
    """

    __slots__ = ("_alarm", "_claim", "_ended", "_gate", "_patience", "_reader", "_shared")

    def __init__(self, shared: Shared, claim: Claim | None) -> None:
        self._shared = shared
        self._claim = claim
        self._ended = False
        self._alarm: Alarm | None = None
        # While the rest of a message arrives, other receivers wait for the lock, so that must be short.
        self._patience = 0.1 if claim is not None else 0.005
        try:
            self._take_claim()
            self._reader = Reader(shared)
            self._gate = Gate(self._reader.fileno(), shared.latch.fileno())
        except BaseException:
            self._free()
            raise

    def _take_claim(self) -> None:
        owner = None if self._claim is None else self._claim.take()
        if owner is not None:
            raise ChannelBusy(
                f"process {owner} receives from this queue: channel; it was opened with receivers='one', open it with "
                "receivers='many' to share the messages out",
                owner,
            )

    def recv(self, timeout: float | None) -> Frame:
        """Take one message out."""
        gate = self._gate
        deadline: Deadline | None = None
        patience = self._patience if timeout is None else min(timeout, self._patience)
        while True:
            with gate.lock:
                if gate.closed:
                    gate.check()
                try:
                    frame = self._reader.take(patience)
                    if frame is not None:
                        if self._alarm is not None:
                            self._alarm.set(LINGER)
                        return (frame,)
                    if self._over():
                        raise EndOfChannel("the queue: channel was shut down and is drained")
                except ChannelError:
                    raise
                except OSError as error:
                    raise ChannelBroken(f"the queue: channel cannot be read: {error}") from error
            deadline = deadline or Deadline(timeout)
            if deadline.expired or not gate.wait(left := deadline.remaining()):
                raise ChannelEmpty("no message in the queue: channel")
            patience = self._patience if left is None else min(left, self._patience)

    def _over(self) -> bool:
        """Tell whether no message will come any more, when none is there. The lock is held."""
        shared, gate = self._shared, self._gate
        if self._ended or not shared.page[OVER]:
            return self._ended
        if self._alarm is None:
            self._alarm = Alarm()
            # From now on the latch would only keep the wait from sleeping; room that comes back is news instead. Each
            # return is an edge, however much room there was before.
            gate.epoll.unregister(shared.latch.fileno())
            gate.epoll.register(shared.room.fileno(), select.EPOLLIN | select.EPOLLET)
            gate.epoll.register(self._alarm.fileno(), select.EPOLLIN)
            self._alarm.set(LINGER)
        # The edges are taken off before the room is counted: one that comes later wakes the next wait.
        news = [fd for fd, _ in gate.epoll.poll(0)]
        if shared.outstanding() > 0 and self._alarm.fileno() not in news:
            # Other processes may still be writing what they accepted. If nothing moves for LINGER seconds, they cannot:
            # killed processes never give room back.
            if shared.room.fileno() in news:
                self._alarm.set(LINGER)
            return False
        self._ended = True
        gate.bell.set()
        return True

    def ready(self) -> bool:
        """Tell whether a whole message is there, or the channel is over. With many receivers, another may be faster."""
        gate = self._gate
        with gate.lock:
            if gate.closed:
                return True
            try:
                there = self._reader.peek() if self._claim is not None else self._reader.readable()
                return there or self._over()
            except OSError:
                return True  # the next recv says why

    def fileno(self) -> int:
        """Return the descriptor that is readable when a message may be there, or the channel may be over."""
        return self._gate.fileno()

    def shutdown(self) -> None:
        """End the stream."""
        with self._gate.lock:
            self._gate.check()
            self._shared.end(SHUT)

    def close(self) -> None:
        """Close; what was not received stays for the next receiver."""
        with self._gate.lock:
            if self._gate.close():
                self._free()

    def abandon(self) -> None:
        """Free what was inherited."""
        self._gate.abandon()
        self._free()

    def depth(self) -> int | None:
        """Return how many messages are accepted and not received."""
        with self._gate.lock:
            self._gate.check()
            return self._shared.depth()

    def _free(self) -> None:
        if hasattr(self, "_reader"):
            self._reader.close()
        if self._claim is not None:
            self._claim.close()
        if self._alarm is not None:
            self._alarm.close()

    def __del__(self) -> None:
        # For an end that an interrupt kept from whoever was opening it: another could not become the one receiver.
        self._free()
