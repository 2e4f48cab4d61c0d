"""The receiving end: reads the pipe of the senders' queues, and tells the end of the channel from a pause."""

from __future__ import annotations

import contextlib
import select
from threading import get_ident
from typing import TYPE_CHECKING

from ipcbus.errors import ChannelBusy, ChannelEmpty, ChannelError, EndOfChannel
from ipcbus.plumbing.alarm import Alarm
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.fds import refused
from ipcbus.plumbing.finalizers import finalizer
from ipcbus.plumbing.locks import alone, amid
from ipcbus.transport import LINGER, Frame, RecvLink
from ipcbus_queue.gate import Gate
from ipcbus_queue.reader import Reader
from ipcbus_queue.shared import OVER, SHUT

if TYPE_CHECKING:
    from ipcbus.plumbing.claim import Claim
    from ipcbus_queue.shared import Shared

__all__ = ["QueueRecvLink"]

_PARTS = 5
"""Parts that ``LINGER`` is waited for in, after a shutdown. However long nobody looked, and however long all processes were
stopped, that is no more than one of them."""


class QueueRecvLink(RecvLink):
    """Takes messages out.

    Args:
        shared: the channel.
        claim: on being its one receiver, None where there are many; owned from here on.
    """

    __slots__ = ("_alarm", "_claim", "_ended", "_gate", "_patience", "_reader", "_seen", "_shared", "_still")

    def __init__(self, shared: Shared, claim: Claim | None) -> None:
        self._shared = shared
        self._claim = claim
        self._ended = False
        self._alarm: Alarm | None = None
        self._seen = (0, 0)  # after a shutdown: messages that are to come, and bytes that came of the next one
        self._still = 0  # parts of LINGER in which neither changed
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
        me = get_ident()
        while True:
            if gate.owner == me:
                raise ChannelEmpty(amid("receiving"))
            try:
                with gate.lock:
                    gate.owner = me
                    try:
                        if gate.closed:
                            gate.check()
                        frame = self._reader.take(patience)
                        if frame is not None:
                            return (frame,)
                        if self._over():
                            raise EndOfChannel("the queue: channel was shut down and is drained")
                        if gate.rung:
                            gate.ring(on=False)
                            continue
                        if deadline is None:
                            # What has begun to arrive was waited for already. No clock is asked before something is missing.
                            spent = patience if self._reader.held() else 0.0
                            deadline = Deadline(None if timeout is None else timeout - spent)
                    except ChannelError:
                        raise
                    except OSError as error:
                        raise refused("the queue: channel cannot be read", error) from error
                    finally:
                        gate.owner = 0
            finally:
                if gate.later:
                    gate.later.catch_up()
            if deadline.expired or not gate.wait(left := deadline.remaining()):
                raise ChannelEmpty("no message in the queue: channel")
            patience = self._patience if left is None else min(left, self._patience)

    def _over(self) -> bool:
        """Tell whether no message will come any more, when none is there. The lock is held."""
        shared, gate = self._shared, self._gate
        if self._ended or not shared.page[OVER]:
            return self._ended
        if self._alarm is None:
            alarm = Alarm()
            # From now on the latch would only keep the wait from sleeping; room that comes back is news instead. Each
            # return is an edge, however much room there was before.
            gate.epoll.modify(shared.latch.fileno(), select.EPOLLIN | select.EPOLLET)
            with contextlib.suppress(FileExistsError):  # there since an interruption
                gate.epoll.register(shared.room.fileno(), select.EPOLLIN | select.EPOLLET)
            gate.epoll.register(alarm.fileno(), select.EPOLLIN)
            alarm.set(LINGER / _PARTS)
            self._alarm = alarm  # last: until then all of it is done again
        # The edges are taken off before the room is counted: one that comes later wakes the next wait.
        news = [fd for fd, _ in gate.epoll.poll(0)]
        seen = (shared.outstanding(), self._reader.held())
        if seen[0] > 0 and not self._still_for_linger(seen, news):
            return False
        self._ended = True
        gate.bell.set()
        return True

    def _still_for_linger(self, seen: tuple[int, int], news: list[int]) -> bool:
        """Tell whether what is to come does not: killed processes never write it, and never give room back.

        Other processes may still be writing what they accepted, so it comes only if nothing has moved in any of the
        ``_PARTS`` that this end has looked at, one after the other.
        """
        assert self._alarm is not None
        if seen != self._seen or self._reader.fileno() in news:
            self._alarm.set(LINGER / _PARTS)
            self._seen, self._still = seen, 0
        elif self._alarm.fileno() in news:
            self._alarm.set(LINGER / _PARTS)
            self._still += 1
        return self._still >= _PARTS

    def ready(self) -> bool:
        """Tell whether a whole message is there, or the channel is over. With many receivers, another may be faster."""
        return self._gate.owner != get_ident() and alone(self._gate, self._is_ready)

    def _is_ready(self) -> bool:
        gate = self._gate
        try:
            if gate.closed:
                return True
            if self._claim is None:
                return self._reader.readable() or self._over()
            if there := self._reader.peek():
                gate.ring(on=True)  # for who waits already
            elif not self._over():
                gate.ring(on=False)
            return there or self._ended
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
        if self._gate.later.postpone(self._gate.owner, self._close_late):
            self._shared.closing += 1
            return
        with self._gate.lock:
            self._gate.close()
            self._free()

    def _close_late(self) -> None:
        self.close()
        self._shared.closed_late()

    def abandon(self) -> None:
        """Free what was inherited."""
        self._gate.abandon()
        self._free()

    def depth(self) -> int | None:
        """Return how many messages are accepted and not received; None once this end is closed."""
        with self._gate.lock:
            return None if self._gate.closed else self._shared.depth()

    def _free(self) -> None:
        if hasattr(self, "_reader"):
            self._reader.close()
        if self._claim is not None:
            self._claim.close()
        if self._alarm is not None:
            self._alarm.close()

    @finalizer
    def __del__(self) -> None:
        # For an end that an interrupt kept from whoever was opening it: another could not become the one receiver.
        self._free()
