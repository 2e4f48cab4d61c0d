"""The sending end: one pipe of this process alone, so that whatever happens to it harms nobody else's messages."""

from __future__ import annotations

import os
import select
import threading
from itertools import count
from typing import TYPE_CHECKING

from ipcbus.errors import ChannelBroken, ChannelClosed, ChannelFull, PeerDied
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.locks import release
from ipcbus.plumbing.wakeup import Wakeup
from ipcbus.transport import SendLink
from ipcbus_pipe import _stream
from ipcbus_pipe._door import Lane, Large

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

    from ipcbus.transport import Buffer, ChannelSpec, Frame
    from ipcbus_pipe import PipeHandle, PipeOptions

__all__ = ["PipeSender"]

_head = _stream.record

_NEVER = select.EPOLLERR  # reported whether asked for or not: a mask that wants nothing else


class _Pipe:
    """A lane as its sender sees it: the pipe, the credits, and what is still owed to the stream."""

    def __init__(self, capacity: int, pipe_bytes: int) -> None:
        from multiprocessing import Pipe

        reading, writing = Pipe(duplex=False)
        self.reading: Connection = reading
        self.writing: Connection = writing
        self.fd = writing.fileno()
        self.credit_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.name = os.urandom(8)
        self.capacity = capacity
        self.sent = 0
        self.limit = capacity
        self.debt = b""
        self._grants: list[int] = []
        self.numbers = count()
        os.set_blocking(self.fd, False)
        os.set_blocking(reading.fileno(), False)
        _grow(self.fd, pipe_bytes)

    def collect(self) -> bool:
        """Take the credits that the receiver has returned; say whether any are left now."""
        # Read and appended in one step in C: a signal handler that raises cannot come in between and lose credits.
        try:
            self._grants.extend(map(os.eventfd_read, (self.credit_fd,)))
        except BlockingIOError:
            pass  # none returned since the last time
        self._grants = [sum(self._grants)]
        # An interruption right after a write may have left it uncounted; what can be outstanding is bounded all the same.
        self.limit = min(self.capacity + self._grants[0], self.sent + self.capacity)
        return self.sent < self.limit

    def close(self) -> None:
        self.reading.close()
        self.writing.close()
        os.close(self.credit_fd)


class PipeSender(SendLink):
    """One process's sending end. Opens its lane with the first message."""

    def __init__(self, handle: PipeHandle, spec: ChannelSpec, options: PipeOptions) -> None:
        self._handle = handle
        self._state = handle.state
        self._flags = handle.state.flags
        self._door = handle.door
        self._spec = spec
        self._pipe_bytes = options.pipe_bytes
        self._pipe: _Pipe | None = None
        self._closed = False
        self._lock = threading.RLock()
        self._wakeup = Wakeup()
        self._watch = 0
        self._watched_pid = -1
        self._epoll = select.epoll()
        self._epoll.register(self._wakeup.fileno(), select.EPOLLIN)
        self._epoll.register(self._state.news.fileno(), select.EPOLLIN | select.EPOLLET)

    # ------------------------------------------------------------------ sending

    def send(self, frame: Frame, timeout: float | None) -> None:
        """Write one message into this process's lane."""
        try:
            if not self._lock.acquire(False):  # noqa: FBT003  by position: this is the hot path
                self._acquire(timeout)
            pipe = self._pipe
            if self._flags[0] or self._closed:
                raise self._why_closed()
            if pipe is None or pipe.sent >= pipe.limit or pipe.debt:
                pipe = self._make_room(timeout)
            size = len(frame[0]) if len(frame) == 1 else _size(frame)
            if size > _stream.ATOMIC:
                self._send_larger(pipe, frame, size, timeout)
            else:
                data = _head(size) + (frame[0] if len(frame) == 1 else b"".join(frame))
                try:
                    os.write(pipe.fd, data)
                except OSError as error:
                    self._write_slowly(pipe, data, timeout, error)
            pipe.sent += 1
            # A shutdown that came while we wrote may have ended the receiver before it saw this message.
            if self._flags[0]:
                raise self._why_closed()
        except ValueError as error:
            if self._closed:  # the flags or a descriptor went while we used them
                raise self._why_closed() from error
            raise
        finally:
            try:  # as plumbing.locks.release, without the call: this runs for every message
                self._lock.release()
            except RuntimeError:
                pass

    def _write_slowly(self, pipe: _Pipe, data: bytes, timeout: float | None, error: OSError) -> None:
        """Write a record that did not fit at once; the kernel still takes it whole or not at all."""
        deadline = Deadline(timeout)
        while True:
            if not isinstance(error, BlockingIOError):
                raise self._lane_lost(pipe, error)
            self._wait(pipe, deadline, for_bytes=True)
            try:
                os.write(pipe.fd, data)
            except OSError as again:
                error = again
            else:
                return

    def _send_larger(self, pipe: _Pipe, frame: Frame, size: int, timeout: float | None) -> None:
        deadline = Deadline(timeout)
        if size > self._handle.large:
            self._send_large(pipe, frame, size, deadline)
            return
        buffers = _stream.streamed(frame, size)
        total = size + 2 * _stream.HEAD
        # One list for what each write took, appended to in C: a signal handler that raises cannot come in between.
        written: list[int] = []
        try:
            while (done := sum(written)) < total:
                left = buffers if not done else _behind(buffers, done)
                try:
                    written.extend(map(os.writev, (pipe.fd,), (left,)))
                except BlockingIOError:
                    self._wait(pipe, deadline, for_bytes=True)
        except OSError as error:
            if isinstance(error, (BrokenPipeError, ConnectionError)):
                raise self._lane_lost(pipe, error) from error
            self._owe(pipe, buffers, written, total)
            raise
        except BaseException:
            self._owe(pipe, buffers, written, total)
            raise

    @staticmethod
    def _owe(pipe: _Pipe, buffers: Sequence[Buffer], written: list[int], total: int) -> None:
        """Remember how to take back a message that was written in part."""
        if 0 < (done := sum(written)) < total:
            pipe.debt = _stream.debt(buffers, done)

    def _send_large(self, pipe: _Pipe, frame: Frame, size: int, deadline: Deadline) -> None:
        """Pass a memory file: written once here, mapped there."""
        try:
            fd = os.memfd_create("ipcbus-message", os.MFD_CLOEXEC)
        except OSError as error:
            raise ChannelBroken(f"no descriptor for a message of {size} bytes: {error.strerror}; see 'ulimit -n'") from error
        try:
            _write_all(fd, frame, size)
            # The mark that follows needs room in the pipe. Nobody else writes there, so room that is seen stays.
            while not self._can_write(pipe):
                self._wait(pipe, deadline, for_bytes=True)
            number = next(pipe.numbers)
            note = Large(pipe.name, number, size, (fd,))
            while True:
                try:
                    self._door.leave(note)
                    break
                except BlockingIOError:
                    self._wait_door(deadline)
            os.write(pipe.fd, _stream.large_record(number))
        except BrokenPipeError as error:
            raise self._lane_lost(pipe, error) from error
        finally:
            os.close(fd)

    # ------------------------------------------------------------------ waiting

    def _acquire(self, timeout: float | None) -> None:
        if not self._lock.acquire(timeout=-1 if timeout is None else timeout):
            raise ChannelFull(f"no room within {timeout} s: another thread is waiting for room already")

    def _make_room(self, timeout: float | None) -> _Pipe:
        """Have a lane with a credit and no debt, or raise."""
        deadline = Deadline(timeout)
        pipe = self._pipe or self._open_lane(deadline)
        while True:
            if pipe.debt:
                try:
                    pipe.debt = pipe.debt[os.write(pipe.fd, pipe.debt) :]
                except BlockingIOError:
                    self._wait(pipe, deadline, for_bytes=True)
                except OSError as error:
                    raise self._lane_lost(pipe, error) from error
            elif pipe.sent < pipe.limit or pipe.collect():
                return pipe
            else:
                self._wait(pipe, deadline, for_bytes=False)

    def _open_lane(self, deadline: Deadline) -> _Pipe:
        try:
            pipe = _Pipe(self._spec.capacity, self._pipe_bytes)
        except OSError as error:
            raise ChannelBroken(f"no pipe to send through: {error.strerror}; see 'ulimit -n'") from error
        note = Lane(pipe.name, self._handle.process_name(), (pipe.reading.fileno(), pipe.credit_fd))
        try:
            while True:
                try:
                    self._door.leave(note)
                    break
                except BlockingIOError:
                    self._wait_door(deadline)
        except BaseException:
            pipe.close()
            raise
        pipe.reading.close()  # from here on the receiver's copy, or the door's, is the only one: its death shows as EPIPE
        self._epoll.register(pipe.credit_fd, select.EPOLLIN)
        self._epoll.register(pipe.fd, _NEVER)
        self._pipe = pipe
        return pipe

    def _wait(self, pipe: _Pipe, deadline: Deadline, *, for_bytes: bool) -> None:
        """Wait until something changes that may make room; raise when there is none in time or never will be."""
        self._check_receiver()
        self._epoll.modify(pipe.fd, select.EPOLLOUT if for_bytes else _NEVER)
        try:
            if deadline.expired and not (pipe.collect() if not for_bytes else self._can_write(pipe)):
                raise ChannelFull(f"{self._spec.capacity} messages, or as many bytes as the pipe holds, wait to be received")
            events = self._epoll.poll(deadline.remaining())
        finally:
            self._epoll.modify(pipe.fd, _NEVER)
        if self._closed or self._flags[0]:
            raise self._why_closed()
        for fd, event in events:
            if fd == pipe.fd and event & select.EPOLLERR:
                raise self._lane_lost(pipe, None)

    def _wait_door(self, deadline: Deadline) -> None:
        """Wait for room in the door, which a receiver makes by taking what others have left there."""
        self._check_receiver()
        poller = select.poll()
        poller.register(self._door.outside(), select.POLLOUT)
        poller.register(self._epoll.fileno(), select.POLLIN)
        if not poller.poll(deadline.milliseconds()):
            raise ChannelFull("nobody has taken what other senders left for the receiver")
        self._epoll.poll(0)
        if self._closed or self._flags[0]:
            raise self._why_closed()

    def _check_receiver(self) -> None:
        """See to it that a wait ends when the receiver dies; raise if it is dead now."""
        pid = self._state.receiver()
        if pid is None:
            self._stop_watching()
            if (dead := self._state.died()) is not None:
                raise PeerDied(f"the receiver, process {dead}, died and nobody has taken over; there is no room", dead)
        elif pid not in (self._watched_pid, os.getpid()):
            self._stop_watching()
            try:
                self._watch = os.pidfd_open(pid)
            except ProcessLookupError:
                self._check_receiver()  # it died this moment
                return
            except OSError:
                return  # no descriptor to spare: its death still shows as an error on the pipe it reads
            self._watched_pid = pid
            self._epoll.register(self._watch, select.EPOLLIN)

    def _stop_watching(self) -> None:
        if self._watched_pid >= 0:
            self._epoll.unregister(self._watch)
            os.close(self._watch)
            self._watched_pid = -1

    def _lane_lost(self, pipe: _Pipe, error: OSError | None) -> ChannelBroken:
        """Let go of a lane whose reader is gone; the next message opens a new one, for a successor."""
        if error is not None and not isinstance(error, BrokenPipeError):
            return ChannelBroken(f"writing to the pipe failed: {error.strerror}")
        self._drop(pipe)
        dead = self._state.died()
        lost = "what it had not yet received of this process's messages is lost"
        if dead is None:
            return PeerDied(f"the receiver died or let this process's pipe go; {lost}")
        return PeerDied(f"the receiver, process {dead}, died; {lost}", dead)

    def _drop(self, pipe: _Pipe) -> None:
        self._epoll.unregister(pipe.credit_fd)
        self._epoll.unregister(pipe.fd)
        pipe.close()
        self._pipe = None

    @staticmethod
    def _can_write(pipe: _Pipe) -> bool:
        poller = select.poll()
        poller.register(pipe.fd, select.POLLOUT)
        events = poller.poll(0)
        return bool(events) and not events[0][1] & select.POLLERR

    def _why_closed(self) -> ChannelClosed:
        if self._closed:
            return ChannelClosed("this end of the pipe: channel is closed")
        return ChannelClosed("the pipe: channel was shut down")

    # ------------------------------------------------------------------ the rest of the contract

    def fileno(self) -> int:
        """Return the descriptor that shows when room may have come."""
        if self._closed:
            raise self._why_closed()
        return self._epoll.fileno()

    def ready(self) -> bool:
        """Tell whether there is a credit, and room in the pipe."""
        try:
            if not self._lock.acquire(blocking=False):
                return False  # another thread is waiting for room
            if self._closed or self._flags[0]:
                return True
            pipe = self._pipe
            if pipe is None:
                return True
            self._epoll.poll(0)  # edge-triggered news is seen by now, and must not show as readable for ever
            if self._state.died() is not None:
                return True
            self._check_receiver()
            if not self._can_write(pipe):
                self._epoll.modify(pipe.fd, select.EPOLLOUT)
                return False
            self._epoll.modify(pipe.fd, _NEVER)
            return pipe.sent < pipe.limit or pipe.collect()
        finally:
            release(self._lock)

    def shutdown(self) -> None:
        """Mark the channel as shut down for everybody."""
        self._state.shut()

    def close(self) -> None:
        """Close this process's lane; what is in it stays for the receiver."""
        self._closed = True
        if self._wakeup.fileno() < 0:
            return
        self._wakeup.set()
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
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._watched_pid >= 0:
            os.close(self._watch)
            self._watched_pid = -1
        self._wakeup.close()

    def depth(self) -> int | None:
        """Return how many of this process's messages wait."""
        pipe = self._pipe
        if pipe is None:
            return 0
        with self._lock:
            pipe.collect()
            return max(0, pipe.sent + pipe.capacity - pipe.limit)


def _grow(fd: int, size: int) -> None:
    """Ask for a larger pipe; the system's limit for all of a user's pipes may say no, and then it stays as it is."""
    import fcntl

    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
    except OSError:
        pass  # a smaller pipe is slower and works


def _size(frame: Frame) -> int:
    return sum(part.nbytes if isinstance(part, memoryview) else len(part) for part in frame)


def _behind(buffers: Sequence[Buffer], done: int) -> list[Buffer]:
    """Return what is left of the buffers behind the first ``done`` bytes."""
    left: list[Buffer] = []
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        if done >= view.nbytes:
            done -= view.nbytes
        else:
            left.append(view[done:])
            done = 0
    return left


def _write_all(fd: int, frame: Frame, size: int) -> None:
    done = 0
    while done < size:
        left = list(frame) if not done else _behind(frame, done)
        try:
            done += os.writev(fd, left[:1024])
        except OSError as error:
            raise ChannelBroken(f"no memory for a message of {size} bytes: {error.strerror}") from error
