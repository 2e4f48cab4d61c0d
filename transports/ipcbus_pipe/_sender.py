"""The sending end: one pipe of this process alone, so that whatever happens to it harms nobody else's messages."""

from __future__ import annotations

import os
import select
import threading
from typing import TYPE_CHECKING

from ipcbus.errors import ChannelBroken, ChannelClosed, ChannelError, ChannelFull, PeerDied
from ipcbus.plumbing import buffers as _buffers
from ipcbus.plumbing import forks
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.fds import close_all, refused
from ipcbus.plumbing.locks import acquire, acquire_to_send, release
from ipcbus.plumbing.memfiles import MemoryFiles
from ipcbus.plumbing.wakeup import Echo, Wakeup
from ipcbus.plumbing.watch import Watch
from ipcbus.transport import SendLink
from ipcbus_pipe import _stream
from ipcbus_pipe._door import Lane, Large
from ipcbus_pipe._lane import Begun, SenderLane, ordinals, process_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ipcbus.transport import ChannelSpec, Frame
    from ipcbus_pipe import PipeHandle, PipeOptions
    from ipcbus_pipe._door import Note

__all__ = ["PipeSender"]

_starts, _ATOMIC, _write = _stream.Starts(), _stream.ATOMIC, os.write

_NEVER = select.EPOLLERR  # reported whether asked for or not: a mask that wants nothing else
_NOTHING, _UNKNOWN = -1, -2


class PipeSender(SendLink):
    """One process's sending end. Opens its lane with the first message."""

    def __init__(self, handle: PipeHandle, spec: ChannelSpec, options: PipeOptions) -> None:
        self._handle = handle
        self._state = handle.state
        self._flags = handle.state.flags
        self._door = handle.door
        self._spec = spec
        self._pipe_bytes = options.pipe_bytes
        self._files = MemoryFiles(options.kept_bytes)
        self._pipe: SenderLane | None = None
        self._closed = False
        self._waiting = False
        """Whether who has the lock sleeps, which may take long: everything else that is done under it does not block."""
        self._lock = threading.RLock()
        self._wakeup: Wakeup | None = (wakeup := Wakeup())
        self._echo = Echo()
        self._door_full = False
        self._room_fd = _UNKNOWN
        self._epoll = select.epoll()
        self._epoll.register(wakeup.fileno(), select.EPOLLIN)
        self._epoll.register(self._door.outside(), _NEVER)
        self._epoll.register(self._state.news.fileno(), select.EPOLLIN | select.EPOLLET)
        # Where it cannot be watched, its death shows as an error on the pipe that it reads.
        self._watch = Watch(self._state, self._epoll, self._echo, needed=False)

    # ------------------------------------------------------------------ sending

    def send(self, frame: Frame, timeout: float | None) -> None:
        """Write one message into this process's lane."""
        try:
            if not self._lock.acquire(False):  # noqa: FBT003  by position: this is the hot path
                timeout = acquire_to_send(self._lock, timeout, self._is_waiting)
            body = frame[0] if len(frame) == 1 else b"".join(frame) if _buffers.size(frame) <= _ATOMIC else None
            data = None if body is None or (size := len(body)) > _ATOMIC else _starts[size] + body
            if self._flags[0] or self._closed:
                raise self._why_closed()
            # From these looks to the write nothing is called, so that no signal handler can begin something in between.
            pipe = self._pipe
            while pipe is None or pipe.sent >= pipe.limit or pipe.begun:
                pipe, timeout = self._make_room(timeout)
            if data is None:
                self._send_larger(pipe, frame, _buffers.size(frame), timeout)
            else:
                pipe.sent += 1  # first, or a handler behind the write would find room for one more
                try:
                    _write(pipe.fd, data)
                except OSError as error:
                    try:
                        self._write_slowly(pipe, data, timeout, error)
                    except BaseException:
                        pipe.sent -= 1
                        raise
            # A shutdown that came while we wrote may have ended the receiver before it saw this message.
            if self._flags[0]:
                raise self._why_closed()
        except (OSError, ValueError) as error:
            if self._closed:  # the flags or a descriptor went while we used them
                raise self._why_closed() from error
            raise
        finally:
            try:  # as plumbing.locks.release, without the call: this runs for every message
                self._lock.release()
            except RuntimeError:
                pass

    def bytes_sender(self, head: bytes, limit: int) -> Callable[[bytes], bool]:
        """Return what writes a head and bytes as one record, if the kernel takes that at once."""
        starts, most = _stream.Starts(head), min(limit, _ATOMIC - len(head))
        lock, flags = self._lock, self._flags

        def send_bytes(obj: bytes) -> bool:
            # As send, without what cannot be: this runs for every message of bytes.
            try:
                if not lock.acquire(False):  # noqa: FBT003  as above
                    return False
                size = len(obj)
                if size > most:
                    return False
                data, pipe = starts[size] + obj, self._pipe
                if flags[0] or self._closed or pipe is None or pipe.sent >= pipe.limit or pipe.begun:
                    return False
                pipe.sent += 1  # as in send
                try:
                    _write(pipe.fd, data)
                except OSError:
                    pipe.sent -= 1
                    return False
                sent = not flags[0]  # else send says what that means
                self.sent_short += sent
                return sent
            except (OSError, ValueError):
                return False  # the same
            finally:
                try:
                    lock.release()
                except RuntimeError:
                    pass

        return send_bytes

    def send_many(self, frames: Sequence[Frame], timeout: float | None) -> int:
        """Write as many messages at once as the kernel takes whole and there are credits for."""
        records = _stream.together(frames)
        sent = self._write_together(records) if len(records) > 1 else 0
        if not sent:
            self.send(frames[0], timeout)
        return sent or 1

    def _write_together(self, records: list[bytes]) -> int:
        """Write records, if that can be done at once; return how many. If not, ``send`` is to find out why."""
        try:
            if not self._lock.acquire(False) or self._closed or self._flags[0]:  # noqa: FBT003  as above
                return 0
            pipe = self._pipe  # now that no other thread can let go of it
            if pipe is None:
                return 0
            records = records[: pipe.limit - pipe.sent]
            count, data = len(records), b"".join(records)
            if pipe.begun or pipe.sent + count > pipe.limit:  # as in send
                return 0
            pipe.sent += count
            try:
                _write(pipe.fd, data)
            except OSError:
                pipe.sent -= count
                return 0
            if self._flags[0]:
                raise self._why_closed()
            return count
        except ValueError as error:
            if self._closed:
                raise self._why_closed() from error
            raise
        finally:
            release(self._lock)

    def _write_slowly(self, pipe: SenderLane, data: bytes, timeout: float | None, error: OSError) -> None:
        """Write a record that did not fit at once; the kernel still takes it whole or not at all."""
        deadline = Deadline(timeout)
        while True:
            if not isinstance(error, BlockingIOError):
                raise self._lane_lost(pipe, error)
            self._wait(pipe, deadline, for_bytes=True)
            try:
                if pipe.settle():  # a signal handler may have begun something meanwhile
                    os.write(pipe.fd, data)
                    return
            except OSError as again:
                error = again

    def _send_larger(self, pipe: SenderLane, frame: Frame, size: int, timeout: float | None) -> None:
        """Send what one write does not hand over whole."""
        begun = None if size > pipe.large else Begun(_stream.streamed(frame, size), size + 2 * _stream.HEAD)
        while pipe.sent >= pipe.limit or pipe.begun:  # as in send
            pipe, timeout = self._make_room(timeout)
        pipe.sent += 1
        try:
            if begun is None:
                self._send_large(pipe, frame, size, Deadline(timeout))
            else:
                self._write_begun(pipe, begun, timeout)
        except BaseException:
            pipe.sent -= 1
            raise

    def _write_begun(self, pipe: SenderLane, begun: Begun, timeout: float | None) -> None:
        deadline: Deadline | None = None
        try:
            pipe.begun = begun
            while not begun.go_on(pipe.fd):
                deadline = deadline or Deadline(timeout)
                self._wait(pipe, deadline, for_bytes=True)
        except BaseException as error:
            if isinstance(error, ChannelFull) and begun.is_whole:
                return  # a signal handler that sent had to write it first
            begun.take_back()
            if isinstance(error, OSError) and not isinstance(error, ChannelError):
                raise self._lane_lost(pipe, error) from error
            raise
        if pipe.begun is begun:
            pipe.begun = None

    def _send_large(self, pipe: SenderLane, frame: Frame, size: int, deadline: Deadline) -> None:
        """Pass a memory file: written once here, mapped there."""
        held: list[int] = []
        try:
            self._files.write(frame, size, held)
            # The mark that follows needs room in the pipe. Only a signal handler may write there too, and take it away.
            while pipe.look() != select.POLLOUT:
                self._wait(pipe, deadline, for_bytes=True)
            number, mark = -1, b""
            while True:
                # Left anew where a signal handler has sent a large one meanwhile: a mark is the end of all lower numbers.
                while number != pipe.number:
                    pipe.number = number = pipe.number + 1
                    self._leave(Large(pipe.name, {number: (held[0], size)}), deadline)
                    mark = _stream.large_record(number)
                try:
                    # Nothing is called between these looks and the write, and so no handler can come in between.
                    if pipe.settle() and number == pipe.number:
                        os.write(pipe.fd, mark)
                        return
                except BlockingIOError:
                    pass
                if number == pipe.number:
                    self._wait(pipe, deadline, for_bytes=True)
        except BrokenPipeError as error:
            raise self._lane_lost(pipe, error) from error
        finally:
            close_all(held)

    # ------------------------------------------------------------------ waiting

    def _is_waiting(self) -> bool:
        return self._waiting

    def _make_room(self, timeout: float | None) -> tuple[SenderLane, float | None]:
        """Return a lane with a credit and nothing begun, and what is left of the timeout, or raise."""
        deadline = Deadline(timeout)
        pipe = self._pipe or self._open_lane(deadline)
        while True:
            if pipe.begun:
                try:
                    settled = pipe.settle()
                except OSError as error:
                    raise self._lane_lost(pipe, error) from error
                if not settled:
                    self._wait(pipe, deadline, for_bytes=True)
            elif pipe.sent < pipe.limit or self._collect(pipe):
                self._echo.ring()
                return pipe, deadline.remaining()
            else:
                self._wait(pipe, deadline, for_bytes=False)

    def _collect(self, pipe: SenderLane) -> bool:
        """Take the credits that were returned; say whether any are left now."""
        if pipe.fd < 0:
            raise self._lane_lost(pipe, None)
        if self._waiting and (wakeup := self._wakeup) is not None:
            self._echo.begin(wakeup)  # this is a signal handler, and what it interrupted has to see them as well
        return pipe.collect()

    def _open_lane(self, deadline: Deadline) -> SenderLane:
        try:
            pipe = SenderLane(self._spec.capacity, self._pipe_bytes, self._handle.large)
        except OSError as error:
            raise refused("no pipe to send through", error, "nothing was sent") from error
        note = Lane(pipe.name, process_name(), next(ordinals), (pipe.reading.fileno(), pipe.credit_fd))
        try:
            self._leave(note, deadline)
            with forks.opening:  # from here on the receiver's copy, or the door's, is the only one: its death shows as EPIPE
                pipe.reading.close()
            self._epoll.register(pipe.credit_fd, select.EPOLLIN)
            self._epoll.register(pipe.fd, _NEVER)
            self._room_fd = _UNKNOWN
            if (opened := self._pipe) is None:
                self._pipe = pipe
                return pipe
        except BaseException:
            if self._pipe is pipe:
                self._pipe = None
            pipe.close()
            raise
        # A signal handler sent meanwhile. Two lanes of one sender are read one after the other, so one has to end.
        self._unlist(pipe)
        return opened

    def _wait(self, pipe: SenderLane, deadline: Deadline, *, for_bytes: bool) -> None:
        """Wait until something changes that may make room; raise when there is none in time or never will be."""
        self._echo.hush()
        # Also when it is bytes that lack: credits left where they are would end every wait at once.
        if self._collect(pipe) and not for_bytes:
            return
        if not self._sleep(deadline, pipe.fd if for_bytes else _NOTHING):
            raise ChannelFull(f"{self._spec.capacity} messages, or as many bytes as the pipe holds, wait to be received")

    def _sleep(self, deadline: Deadline, fd: int) -> bool:
        """Wait for news, of room as in ``_show_room``, and see it also when there is no time left; say whether there was any.

        Unseen it would show as readable for ever.
        """
        waiting = self._waiting  # true where a signal handler sends while the call that it interrupted waits
        try:
            self._waiting = True  # from here on a signal handler that takes note of something rings
            pipe = self._pipe
            if fd == _NOTHING and pipe is not None and pipe.sent < pipe.limit:
                return True  # one has done so before
            self._watch.check()
            self._show_room(fd)
            events = self._epoll.poll(0 if self._closed else deadline.remaining())  # a close may just have been hushed
        except (OSError, ValueError):
            if not self._closed:
                raise
            events = []  # closed by a signal handler
        finally:
            self._waiting = waiting
        if events or self._closed or waiting:
            self._echo.ring()
        if self._closed or self._flags[0]:
            raise self._why_closed()
        pipe = self._pipe
        if pipe is not None and any(fd == pipe.fd and event & select.EPOLLERR for fd, event in events):
            raise self._lane_lost(pipe, None)
        return bool(events)

    def _leave(self, note: Note, deadline: Deadline) -> None:
        """Leave a note in the door; wait for room there, which a receiver makes by taking what was left before."""
        while True:
            try:
                self._door.leave(note)
            except BlockingIOError:
                self._door_full = True
            else:
                self._door_full = False
                return
            self._echo.hush()
            if self._pipe is not None:
                self._collect(self._pipe)  # as above
            over = deadline.expired  # others may be quicker each time that there is room
            if not self._sleep(deadline, self._door.outside()) or over:
                raise ChannelFull("nobody has taken what senders left for the receiver")

    def _show_room(self, fd: int) -> None:
        """Have the descriptor show room in the pipe, in the door, or in neither, besides what it always shows."""
        if fd == self._room_fd:
            return
        self._room_fd = _UNKNOWN
        for each in (self._door.outside(), _NOTHING if self._pipe is None else self._pipe.fd):
            if each != _NOTHING:
                self._epoll.modify(each, select.EPOLLOUT if each == fd else _NEVER)
        self._room_fd = fd

    def _lane_lost(self, pipe: SenderLane, error: OSError | None) -> ChannelBroken | ChannelClosed:
        """Let go of a lane whose reader is gone; the next message opens a new one, for a successor."""
        if self._closed:  # by a signal handler
            return self._why_closed()
        if pipe is self._pipe:  # else a signal handler has let go of it
            if error is not None and not isinstance(error, BrokenPipeError):
                return ChannelBroken(f"writing to the pipe failed: {error.strerror}")
            self._drop(pipe)
        dead = self._state.died()
        lost = "what it had not yet received of this process's messages is lost"
        if dead is None:
            return PeerDied(f"the receiver died or let this process's pipe go; {lost}")
        return PeerDied(f"the receiver, process {dead}, died; {lost}", dead)

    def _drop(self, pipe: SenderLane) -> None:
        self._unlist(pipe)
        self._pipe = None
        if self._waiting and (wakeup := self._wakeup) is not None:
            self._echo.begin(wakeup)  # this is a signal handler, and what it interrupted waits for room in there
            self._echo.ring()

    def _unlist(self, pipe: SenderLane) -> None:
        self._epoll.unregister(pipe.credit_fd)
        self._epoll.unregister(pipe.fd)
        self._room_fd = _UNKNOWN
        pipe.close()

    def _why_closed(self) -> ChannelClosed:
        if self._closed:
            return ChannelClosed("this end of the pipe: channel is closed")
        return ChannelClosed("the pipe: channel was shut down")

    # ------------------------------------------------------------------ the rest of the contract

    def fileno(self) -> int:
        """Return the descriptor that shows when room may have come."""
        wakeup = self._wakeup
        if self._closed or wakeup is None:
            raise self._why_closed()
        self._echo.begin(wakeup)
        return self._epoll.fileno()

    def ready(self) -> bool:
        """Tell whether there is a credit, and room in the pipe."""
        try:
            if not acquire(self._lock, 0, self._is_waiting):
                return False  # another thread is waiting for room
            self._echo.hush()
            if has_room := self._has_room():
                self._echo.ring()
            return has_room
        finally:
            release(self._lock)

    def _has_room(self) -> bool:
        """Do as ``ready``; where there is none, have the descriptor show when there is."""
        if self._closed:
            return True
        self._epoll.poll(0)  # edge-triggered news is seen by now, and must not show as readable for ever
        pipe = self._pipe
        self._door_full = self._door_full and not self._door.has_room()
        if self._flags[0] or (pipe is None and not self._door_full):
            return True
        try:
            self._watch.check()
        except PeerDied:
            return True
        credit = pipe is None or self._collect(pipe)
        shown = select.POLLOUT if pipe is None else pipe.look()
        if shown & select.POLLERR:
            return True  # a send would say that the lane is lost
        if self._door_full:
            self._show_room(self._door.outside())
            return False
        assert pipe is not None  # else there is no lane because the door was full
        if not shown:
            self._show_room(pipe.fd)
            return False
        self._show_room(_NOTHING)
        return credit

    def shutdown(self) -> None:
        """Mark the channel as shut down for everybody."""
        self._state.shut()

    def close(self) -> None:
        """Close this process's lane; what is in it stays for the receiver."""
        self._closed = True
        wakeup = self._wakeup  # kept alive: another thread may close too
        if wakeup is None:
            return
        wakeup.set()
        with self._lock:
            self._free()

    def abandon(self) -> None:
        """Free what a forked child inherited."""
        self._closed = True
        self._free()

    def _free(self) -> None:
        if self._epoll.closed:
            return
        self._epoll.close()
        self._files.close()
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        self._watch.close()
        self._wakeup = None
        self._echo.end()

    def receiver(self) -> int | None:
        """Return its pid."""
        return self._state.receiver()

    def depth(self) -> int | None:
        """Return how many of this process's messages wait."""
        pipe = self._pipe
        if pipe is None:
            return 0
        try:
            # Without it another thread is waiting for room, and what it knows is as good.
            if self._lock.acquire(blocking=False) and pipe is self._pipe and self._collect(pipe):
                self._echo.ring()
            return max(0, pipe.sent + pipe.capacity - pipe.limit)
        finally:
            release(self._lock)
