"""The receiving end: all lanes of all senders, read a block at a time."""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from ipcbus.errors import ChannelBroken, ChannelBusy, ChannelClosed, ChannelEmpty, EndOfChannel
from ipcbus.plumbing.clock import EVER
from ipcbus.plumbing.fds import close_all, refused
from ipcbus.plumbing.locks import acquire, acquire_to_recv, amid, release
from ipcbus.plumbing.memfiles import open_sealed
from ipcbus.plumbing.wakeup import Wakeup
from ipcbus.transport import RecvLink
from ipcbus_pipe import _door
from ipcbus_pipe._door import Lane, Large, Raw
from ipcbus_pipe._lane import ReceiverLane
from ipcbus_pipe._stream import unparse

if TYPE_CHECKING:
    from ipcbus.transport import ChannelSpec, Frame
    from ipcbus_pipe import PipeHandle
    from ipcbus_pipe._stream import Item

__all__ = ["PipeReceiver"]


class PipeReceiver(RecvLink):
    """The one receiving end, claimed for this process until it closes or dies."""

    def __init__(self, handle: PipeHandle, spec: ChannelSpec) -> None:
        self._state = handle.state
        self._flags = handle.state.flags
        self._door = handle.door
        self._door_fd = handle.door.fileno()
        self._spec = spec
        self._max_message = spec.max_message
        self._batch = max(1, spec.capacity // 4)
        self._closed = False
        self._over = False
        """Whether nothing is received here any more: after close, or once somebody was told of the end. What a send that
        overlapped the shutdown writes after that does not come any more; the send raises."""
        self._waiting = False
        """Whether who has the lock sleeps, which may take long: everything else that is done under it does not block."""
        self._lock = threading.RLock()
        self._lanes: dict[int, ReceiverLane] = {}
        self._names: dict[bytes, ReceiverLane] = {}
        self._senders: dict[bytes, deque[ReceiverLane]] = {}
        self._notes: deque[Raw] = deque()
        self._orphans: deque[Large] = deque()
        self._arrived: set[bytes] = set()
        self._heir = True
        """Whether there may be something that an earlier receiver handed on."""
        self._unsettled = True
        """Whether there may be something of that, or left in the three above by an interruption or an error: no descriptor
        shows it."""
        self._items: deque[Item] = deque()
        self._lane: ReceiverLane | None = None
        self._due: deque[ReceiverLane] = deque()
        self._wakeup: Wakeup | None = (wakeup := Wakeup())
        self._bell: Wakeup | None = None
        self._rung = False
        self._busy = False
        """Whether a large message is being taken, which is the next one until it is."""
        self._at_door = False
        """Whether a note from the door is being dealt with."""
        self._bell_lock = threading.RLock()
        self._epoll = select.epoll()
        for fd in (wakeup.fileno(), self._door_fd):
            self._epoll.register(fd, select.EPOLLIN)
        self._epoll.register(self._state.news.fileno(), select.EPOLLIN | select.EPOLLET)
        # Last of all: an attempt that fails or is interrupted must not have been the receiver.
        self._seat, owner = handle.state.attach()
        if owner is not None:
            raise ChannelBusy(
                f"process {owner} is the receiver of this pipe: channel already, and it has only one; several can share the "
                "messages of another transport, such as unix:, with receivers='many'",
                owner,
            )

    # ------------------------------------------------------------------ receiving

    def recv(self, timeout: float | None) -> Frame:
        """Take the next message of any sender."""
        try:
            if not self._lock.acquire(False):  # noqa: FBT003  by position: this is the hot path
                timeout = acquire_to_recv(self._lock, timeout, self._is_waiting)
            while not self._items:  # again: a signal handler may have received meanwhile
                if (frame := self._refill(timeout)) is not None:
                    return frame
            # Nothing is called from here to popleft, and so no signal handler can come in between.
            items, lane = self._items, self._lane
            assert lane is not None  # items always have a lane
            item = items[0]
            if item.__class__ is int:
                return self._take_large(lane, item, timeout)
            lane.delivered += 1
            items.popleft()
            if lane.delivered >= lane.repay_at or not items:
                lane.repay(self._batch)
            if self._bell is not None:
                self._ring()
            return item  # type: ignore[return-value]  # mypy narrows by isinstance only, which costs a call
        except (OSError, ValueError, IndexError) as error:
            if self._closed:  # by a signal handler, while a descriptor or the items were in use
                raise self._why_over() from error
            raise
        finally:
            try:  # as plumbing.locks.release, without the call: this runs for every message
                self._lock.release()
            except RuntimeError:
                pass

    def _is_waiting(self) -> bool:
        return self._waiting

    def _refill(self, timeout: float | None) -> Frame | None:
        """Have at least one item, or raise; return a message that came alone at once instead."""
        # Not a Deadline, and few calls: this is the way of every lone message.
        left, until = timeout, None
        if timeout is not None:
            if timeout > EVER:
                left = None
            elif timeout > 0:
                until = monotonic() + timeout
            else:
                left = 0
        while True:
            if self._over:
                raise self._why_over()
            if (self._due or self._lane is not None) and self._next_lane():
                return None
            # Looked at before the descriptors: what was sent before the shutdown is found by the poll that follows it.
            over = self._flags[0]
            if self._bell is not None:
                self._ring()  # nothing waits here any more: left as it was it would end every wait at once
            patience = 0 if over or self._unsettled else left
            waiting = self._waiting  # true where a signal handler receives while the call that it interrupted waits
            try:
                self._waiting = patience != 0
                news = self._epoll.poll(patience)
            except (OSError, ValueError):
                if self._closed:  # by a signal handler
                    continue
                raise
            finally:
                self._waiting = waiting
            if len(news) == 1 and not self._unsettled and (lane := self._lanes.get(news[0][0])) is not None:
                self._due.append(lane)
                lane.read()
                if (frame := lane.take_lone()) is not None:
                    if self._due and self._due[0] is lane:  # else a signal handler has received meanwhile
                        self._due.popleft()
                    lane.repay(self._batch)
                    return frame
            elif not self._gather(news):  # else: what was in the door may have to be read yet
                if over:
                    self._over = True
                    raise self._why_over()
                if left == 0:
                    raise ChannelEmpty("no message within the timeout")
            if until is not None:
                left = max(0, until - monotonic())

    def _why_over(self) -> ChannelClosed | EndOfChannel:
        if self._closed:
            return ChannelClosed("this end of the pipe: channel is closed")
        return EndOfChannel("the pipe: channel was shut down and is drained")

    def _next_lane(self) -> bool:
        """Make the items of the next lane that has some the current ones; say whether there are any."""
        while not self._items:
            if (last := self._lane) is not None:
                self._finish(last)
                if self._lane is last and not self._items:  # else a signal handler has received meanwhile
                    self._lane = None
                continue
            if not self._due:
                return False
            lane = self._due[0]
            try:
                lane.parse(self._max_message)
            except ChannelBroken:
                if self._due and self._due[0] is lane:
                    self._due.popleft()  # this sender is given up, and learns it from its pipe; the others go on
                self._remove(lane)
                raise
            if self._due and self._due[0] is lane:  # else a signal handler has received meanwhile
                self._lane, self._items = lane, lane.state.items
                self._due.popleft()
        return True

    def _finish(self, lane: ReceiverLane) -> None:
        """Give a lane's sender its room back; let go of the lane if that was all that will ever come of it."""
        lane.repay(self._batch)
        if lane.ended:
            self._remove(lane)

    def _gather(self, news: list[tuple[int, int]]) -> bool:
        """Read one block of every lane that has one; say whether there was any news of senders."""
        found = False
        problem: ChannelBroken | None = None
        door = self._door_fd
        for fd in dict.fromkeys([door, *(each for each, _ in news)] if self._unsettled else [each for each, _ in news]):
            if fd == door:
                try:
                    self._open_door()
                    found = True
                except ChannelBroken as error:
                    problem = error  # the lanes that are here may go on, and set descriptors free
            elif (lane := self._lanes.get(fd)) is not None:
                self._due.append(lane)
                lane.read()
                found = True
        if problem is not None and not found:
            raise problem
        return found

    def _take_large(self, lane: ReceiverLane, number: int, timeout: float | None) -> Frame:
        """Take a large message, which comes next: it is not copied again, and lives as long as what is decoded from it."""
        if self._busy:
            raise ChannelEmpty(amid("receiving"))
        try:
            self._busy = True
            if self._lane is lane and self._items and self._items[0] == number:
                return self._take_named(lane, number)
        finally:
            self._busy = False
        return self.recv(timeout)  # a signal handler has taken it

    def _take_named(self, lane: ReceiverLane, number: int) -> Frame:
        if number not in lane.large:
            self._open_door()  # may fail for want of descriptors; then the message is still there for the next call
        problem: ChannelBroken | None = None
        memory = memoryview(b"")
        try:
            memory = self._map(number, lane.large.get(number))
        except ChannelBroken as error:
            problem = error
        lane.delivered += 1
        self._items.popleft()
        lane.forget_large(number + 1)
        lane.repay(self._batch)
        if self._bell is not None:
            self._ring()
        if problem is not None:
            raise problem
        return (memory,)

    def _map(self, number: int, entry: tuple[int, int] | None) -> memoryview:
        if entry is None:
            raise ChannelBroken(f"large message {number} was announced and its memory file never came")
        fd, size = entry
        return open_sealed(fd, size, self._spec.max_message)

    # ------------------------------------------------------------------ lanes

    def _open_door(self) -> None:
        """Take all that an earlier receiver has handed on, and then all that senders have left."""
        if self._at_door:
            raise ChannelEmpty(amid("receiving"))
        try:
            self._at_door = True
            self._take_notes()
        finally:
            self._at_door = False

    def _take_notes(self) -> None:
        self._unsettled = True
        while self._notes or self._inherit() or self._door.take(self._notes):
            # Each step below may be taken twice: an interruption leaves the note here, and it is dealt with again.
            try:
                note = _door.read(self._notes[0])
            except ChannelBroken:
                self._notes.popleft()
                raise
            if isinstance(note, Large):
                known = self._names.get(note.lane)
                if known is not None:
                    known.keep_large(note.files)
                elif note not in self._orphans:
                    self._orphans.append(note)
            elif note.lane not in self._names:
                self._add(note)
            self._notes.popleft()
            close_all(self._left_over(note))
        self._settle()

    def _left_over(self, note: Lane | Large) -> list[int]:
        """Return the descriptors of a note that was dealt with which are not kept.

        Of what was handed on twice, by a close that was interrupted and by the next, that is all of the second.
        """
        lane = self._names.get(note.lane)
        if isinstance(note, Large):
            kept = {} if lane is None else lane.large  # where one is missing, a signal handler has received it meanwhile
            return [fd for number, (fd, _) in note.files.items() if kept.get(number, (fd,))[0] != fd]
        return [*note.fds[2 if lane is not None and lane.fd == note.fds[0] else 0 :]]

    def _settle(self) -> None:
        """Begin with the lanes that came. Only when the door is empty: which lanes there are is known only then."""
        while self._arrived:
            sender = next(iter(self._arrived))
            queue = self._senders.get(sender)
            if queue and queue[0].fd not in self._lanes:
                self._watch(queue[0])
            self._arrived.discard(sender)
        while self._orphans:
            note = self._orphans[0]
            lane = self._names.get(note.lane)
            if lane is not None:
                lane.keep_large(note.files)
            self._orphans.popleft()
            if lane is None:
                note.close()  # its lane died with an earlier receiver
            else:
                close_all(self._left_over(note))
        self._unsettled = False

    def _inherit(self) -> bool:
        """Take the next of what an earlier receiver handed on, before anything of what senders have left."""
        self._heir = self._heir and self._door.inherit(self._notes)
        return self._heir

    def _add(self, note: Lane) -> None:
        # A sender that begins a new lane has ended its last one; what is in that comes first.
        queue = self._senders.setdefault(note.sender, deque())
        lane = next((known for known in queue if known.name == note.lane), None)
        if lane is None:
            lane = ReceiverLane(note)
            queue.insert(sum(other.ordinal < lane.ordinal for other in queue), lane)
        self._arrived.add(note.sender)
        self._names[lane.name] = lane

    def _watch(self, lane: ReceiverLane) -> None:
        self._due.append(lane)  # it may have come with what an earlier receiver had read of it
        try:
            self._epoll.register(lane.fd, select.EPOLLIN)
        except FileExistsError:
            pass  # registered before an interruption
        self._lanes[lane.fd] = lane

    def _remove(self, lane: ReceiverLane) -> None:
        """Let go of a lane whose sender has closed it or died. A message it left half written is no message.

        May be interrupted anywhere and is then done again.
        """
        if self._names.get(lane.name) is not lane:
            return
        if self._lanes.pop(lane.fd, None) is not None:
            self._epoll.unregister(lane.fd)
        queue = self._senders.get(lane.sender)
        if queue and queue[0] is lane:
            queue.popleft()
        if queue:
            self._watch(queue[0])
        else:
            self._senders.pop(lane.sender, None)
        lane.close()
        del self._names[lane.name]

    def _hand_over(self) -> None:
        """Hand every lane on to whoever receives next, with what was read of it and not delivered."""
        for queue in self._senders.values():
            for lane in queue:
                if lane is self._lane:
                    lane.state = lane.state._replace(items=self._items)
                fds: tuple[int, ...] = (lane.fd, lane.credit_fd)
                try:
                    lane.repay(self._batch)
                    lane.parse(self._spec.max_message)
                    if left := unparse(lane.state):
                        fds = (*fds, fd := os.memfd_create("ipcbus-lane", os.MFD_CLOEXEC))
                        os.write(fd, left)
                    self._door.hand_on(Lane(lane.name, lane.sender, lane.ordinal, fds), lane.large)
                except (OSError, ChannelBroken):
                    continue  # no room or no descriptor: this sender learns from its pipe that nobody reads it
                finally:
                    if len(fds) > 2:
                        os.close(fds[2])

    # ------------------------------------------------------------------ the rest of the contract

    def fileno(self) -> int:
        """Return the descriptor that shows when there is something to receive."""
        if self._closed:
            raise ChannelClosed("this end of the pipe: channel is closed")
        if self._bell is None:
            # Not under the lock, which a receiving thread may hold for long. Set: somebody is to look what there is.
            with self._bell_lock:
                if self._bell is None:
                    try:
                        bell = Wakeup()
                    except OSError as error:
                        raise refused("there is nothing to wait with", error) from error
                    bell.set()
                    self._epoll.register(bell.fileno(), select.EPOLLIN)
                    self._rung = True
                    self._bell = bell
        return self._epoll.fileno()

    def _ring(self) -> None:
        """Keep the descriptor readable exactly while there is what no other shows any more: messages, or the end."""
        # Again after each change: a signal handler may have received, or looked, in the middle of it.
        while self._bell is not None and (waiting := bool(self._items or self._due or self._flags[0])) is not self._rung:
            self._rung = waiting
            if waiting:
                self._bell.set()
            else:
                self._bell.clear()

    def ready(self) -> bool:
        """Tell whether there is a message, or an end."""
        try:
            if not acquire(self._lock, 0, self._is_waiting):
                return False  # another thread is waiting for it
            if self._over or self._items:
                return True
            while not self._next_lane():
                if not self._gather(self._epoll.poll(0)):
                    break
            self._ring()
            return bool(self._items or self._flags[0])  # looked at behind the news of it, which shows once
        except ChannelEmpty:
            return False  # this interrupts a call that is in the middle of taking a message
        finally:
            release(self._lock)

    def shutdown(self) -> None:
        """Mark the channel as shut down for everybody."""
        self._state.shut()

    def close(self) -> None:
        """Let another process receive; what was sent and not delivered goes to it."""
        self._closed = self._over = True
        wakeup = self._wakeup  # kept alive: another thread may close too
        if wakeup is None:
            return
        wakeup.set()
        with self._lock:
            if not self._epoll.closed:
                self._hand_over()
                self._seat.close()
                self._state.news.set()
                self._free()

    def abandon(self) -> None:
        """Free what a forked child inherited."""
        self._closed = self._over = True
        self._seat.close()
        self._free()

    def _free(self) -> None:
        self._epoll.close()
        for lane in self._names.values():
            lane.close()
        self._names.clear()
        while self._orphans:
            self._orphans.popleft().close()
        self._items = deque()
        self._wakeup = None
        if self._bell is not None:
            self._bell.close()

    def depth(self) -> int | None:
        """Return how many messages were read and not delivered; what senders' pipes hold is not known here."""
        return None
