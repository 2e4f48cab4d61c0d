"""The sending end: one datagram into the socket that all senders share, as long as this one has room."""

from __future__ import annotations

import errno
import select
import socket
import sys
import threading
from typing import TYPE_CHECKING

from ipcbus.errors import ChannelBroken, ChannelClosed, ChannelEmpty, ChannelFull
from ipcbus.plumbing.buffers import size
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.fds import close_all, refused
from ipcbus.plumbing.locks import acquire, acquire_to_send, release
from ipcbus.plumbing.memfiles import MemoryFiles
from ipcbus.plumbing.wakeup import Echo, Wakeup
from ipcbus.plumbing.watch import Watch
from ipcbus.transport import LINGER, SendLink
from ipcbus_unix._board import LARGE, LARGE_ANNOUNCED, LARGE_MAY_COME, LARGE_WAITS, NEVER, SLOT, STEP
from ipcbus_unix._intake import HEAD, MARK, Intake

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.transport import ChannelSpec, Frame
    from ipcbus_unix import UnixHandle

__all__ = ["UnixSender", "is_shut"]

_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_ORDER = sys.byteorder
_NO_EVENTS = select.EPOLLERR  # the end of the stream is reported whether asked for or not
_NOTHING, _UNKNOWN = -1, -2
_TOO_LARGE = {errno.EMSGSIZE, errno.ENOBUFS, errno.ENOMEM}
"""What the kernel says when it has no memory in one piece for a datagram: in a memory file it needs none."""


class UnixSender(SendLink):
    """One process's sending end, which has a slot on the board until it closes or dies."""

    def __init__(self, handle: UnixHandle, spec: ChannelSpec) -> None:
        self._handle = handle
        self._spec = spec
        self._board = handle.board
        self._state = handle.state
        self._inline = handle.inline
        self._fd = handle.inlet.fileno()
        self._put = handle.inlet.send
        self._lock = threading.RLock()
        self._files = MemoryFiles(handle.kept_bytes)
        self._waiting = False
        """Whether who has the lock sleeps, which may take long: everything else that is done under it does not block."""
        self._closed = False
        self._claim, self._tag = handle.board.enter()
        self._slot = self._tag & SLOT
        self._span = spec.capacity * STEP
        # A receiver announces room once there is some worth waking up for, or nothing is left to receive.
        self._batch = max(1, spec.capacity // 4)
        self._taken = self._tag
        """The tag of the latest of this sender's messages that is known to have been taken out."""
        self._reserved = self._tag
        self._limit = self._tag
        """The last tag that may be sent without looking at the board."""
        self._crowded = 0
        """The tag that found no room for its bytes; out of date as soon as one was sent."""
        self._intake: Intake | None = None
        self._epoll: select.epoll | None = None
        self._wakeup: Wakeup | None = None
        self._watch: Watch | None = None
        self._echo = Echo()
        """Where it has begun, the descriptor has to show what a wait here would."""
        self._mask = _NOTHING

    # ------------------------------------------------------------------ sending

    def send(self, frame: Frame, timeout: float | None) -> None:
        """Hand one message to the kernel."""
        try:
            if not self._lock.acquire(False):  # noqa: FBT003  by position: this is the hot path
                timeout = acquire_to_send(self._lock, timeout, self._is_waiting)
            tag = self._tag + STEP
            if tag > self._limit:
                deadline = Deadline(timeout)
                while (tag := self._tag + STEP) > self._limit:  # looked at last: a signal handler may have sent
                    self._make_room(deadline)
                    timeout = deadline.remaining()
            # Counted before it is sent, and nothing is called since the look: an interruption leaves a number unused, and none
            # is used twice.
            self._tag = tag
            body = frame[0] if len(frame) == 1 else b"".join(frame) if size(frame) <= self._inline else None
            if body is None or len(body) > self._inline:
                self._send_large(tag, frame, size(frame), timeout)
                return
            data = tag.to_bytes(HEAD, _ORDER) + body
            try:
                self._put(data, _FLAGS)
            except OSError as error:
                self._send_slowly(tag, data, frame, timeout, error)
        except (OSError, ValueError, TypeError, IndexError) as error:
            if self._closed:  # by a signal handler, while the board or the socket was in use
                raise self._why_closed() from error
            raise
        finally:
            try:  # as plumbing.locks.release, without the call: this runs for every message
                self._lock.release()
            except RuntimeError:
                pass

    def bytes_sender(self, head: bytes, limit: int) -> Callable[[bytes], bool]:
        """Return what hands a head and bytes to the kernel, if that takes them at once."""
        lock, put, most = self._lock, self._put, min(limit, self._inline - len(head))

        def send_bytes(obj: bytes) -> bool:
            # As send, without what cannot be: this runs for every message of bytes.
            try:
                if not lock.acquire(False):  # noqa: FBT003  as above
                    return False
                if len(obj) > most:
                    return False
                tag = self._tag + STEP
                if tag > self._limit:
                    return False
                self._tag = tag
                try:
                    put(tag.to_bytes(HEAD, _ORDER) + head + obj, _FLAGS)
                except OSError:
                    self._take_back(tag)
                    return False  # send says what that means
                self.sent_short += 1
                return True
            finally:
                try:
                    lock.release()
                except RuntimeError:
                    pass

        return send_bytes

    def _send_slowly(self, tag: int, data: bytes, frame: Frame, timeout: float | None, error: OSError) -> None:
        """Send what the kernel did not take at once."""
        deadline = Deadline(timeout)
        try:
            while isinstance(error, BlockingIOError):
                self._wait_for_bytes(tag, deadline)
                try:
                    self._put(data, _FLAGS)
                except OSError as again:
                    error = again
                else:
                    return
            if error.errno not in _TOO_LARGE:
                raise self._refused(error)
            self._send_large(tag, frame, len(data) - HEAD, deadline.remaining())
        except (ChannelFull, ChannelBroken, ChannelClosed):
            self._take_back(tag)
            raise

    def _send_large(self, tag: int, frame: Frame, size: int, timeout: float | None) -> None:
        """Pass a memory file: written once here, mapped there."""
        deadline = Deadline(timeout)
        held: list[int] = []
        try:
            self._files.write(frame, size, held)
            flags = self._board.flags
            if not flags[LARGE_ANNOUNCED]:
                # In this order: who becomes the receiver from here on need not have seen the announcement, and no sender
                # relies on one that is not in the stream yet.
                flags[LARGE_MAY_COME] = 1
                self._pass(tag, MARK.pack(LARGE, 0), [], deadline)
                flags[LARGE_ANNOUNCED] = 1
            flags[LARGE_WAITS] = 1
            self._pass(tag, MARK.pack(tag | LARGE, size), held, deadline)
            flags[LARGE_WAITS] = 1  # again: a receiver may have found nothing while this waited
        except (ChannelFull, ChannelBroken, ChannelClosed):
            self._take_back(tag)
            raise
        except OSError as error:
            self._take_back(tag)
            raise self._refused(error) from error
        finally:
            close_all(held)

    def _pass(self, tag: int, data: bytes, fds: list[int], deadline: Deadline) -> None:
        """Send a datagram with descriptors, which are duplicated into the kernel and stay the caller's."""
        while True:
            try:
                socket.send_fds(self._handle.inlet, [data], fds, _FLAGS)
            except BlockingIOError:
                self._wait_for_bytes(tag, deadline)
            else:
                return

    def _take_back(self, tag: int) -> None:
        """Use a number for the next message; where a signal handler has sent meanwhile it is left unused."""
        if self._tag == tag:
            self._tag = tag - STEP

    def _refused(self, error: OSError) -> ChannelBroken | ChannelClosed:
        """Say what an error of the socket means."""
        if self._closed or error.errno in (errno.EPIPE, errno.ENOTCONN, errno.ECONNRESET):
            return self._why_closed()
        if error.errno == errno.ETOOMANYREFS:
            return ChannelBroken(
                "too many descriptors of this user are on their way, and a large message needs one more; nothing was sent: "
                "receive what waits, or raise 'ulimit -n', and send again"
            )
        return ChannelBroken(f"the socket of a unix: channel takes nothing: {error.strerror}; nothing was sent")

    # ------------------------------------------------------------------ room

    def _is_waiting(self) -> bool:
        return self._waiting

    def _look(self) -> bool:
        """Look at the board, and say whether this sender has room."""
        tag = self._tag
        taken = min(tag, max(self._taken, self._board.taken[self._slot]))
        # What was taken out by a process that was killed before it wrote that down is missed when nothing is left at all.
        if tag - taken >= self._span and not _polls(self._handle.outlet.fileno(), select.POLLIN):
            taken = tag
        self._taken = taken
        if tag >= self._reserved:
            self._reserved = self._board.reserve(tag)
        self._limit = min(taken + self._span, self._reserved)
        return tag < self._limit

    def _make_room(self, deadline: Deadline) -> None:
        """Return when one message may be sent, or raise."""
        while not self._closed:
            if self._look():
                return
            if is_shut(self._handle.inlet):
                break
            if deadline.expired:
                # Where others wait on the descriptor, it has to show room from here on; some may just have come.
                if self._echo and self._expect(for_bytes=False):
                    return
                raise ChannelFull(f"{self._spec.capacity} messages of this process wait to be received, the channel's capacity")
            self._sleep(deadline, for_bytes=False)
        raise self._why_closed()

    def _wait_for_bytes(self, tag: int, deadline: Deadline) -> None:
        """Return when the socket may have room, or raise."""
        self._crowded = tag
        if deadline.expired:
            if self._echo:
                self._expect(for_bytes=True)
            raise ChannelFull("as many bytes wait to be received as the channel's socket holds; see the option socket_bytes")
        self._sleep(deadline, for_bytes=True)
        if self._closed or is_shut(self._handle.inlet):
            raise self._why_closed()

    def _expect(self, *, for_bytes: bool) -> bool:
        """Have the descriptor show when room may have come; say whether there is some by now."""
        epoll, wakeup = self._open_epoll(), self._wakeup
        if self._waiting and wakeup is not None:
            self._echo.begin(wakeup)  # this is a signal handler, and what it interrupted has to see it as well
        # Room for messages is announced on the board, once a batch of them is free; in a small channel each one counts, and
        # there the kernel itself tells of every message taken out, whatever becomes of the process that took it.
        if for_bytes:
            self._show(select.EPOLLOUT)
        else:
            self._show(_NO_EVENTS if self._batch > 1 else select.EPOLLOUT | select.EPOLLET)
            self._board.expect_taking(self._slot, self._taken + self._batch * STEP)
        self._echo.hush()
        epoll.poll(0)  # edges that came before are seen by now, and must not show as readable for ever
        has_room = _polls(self._fd, select.POLLOUT) if for_bytes else self._look() or is_shut(self._handle.inlet)
        if has_room:
            self._echo.ring()
        return has_room

    def _sleep(self, deadline: Deadline, *, for_bytes: bool) -> None:
        """Wait until something changes that may make room; raise when the receiver that should make some has died."""
        waiting = self._waiting  # true where a signal handler sends while the call that it interrupted waits
        try:
            if self._expect(for_bytes=for_bytes):
                return
            if self._watch is not None:
                self._watch.check()
            if not self._closed:  # looked at when there is something that a close can wake
                self._waiting = True
                if self._open_epoll().poll(deadline.remaining()) or waiting:
                    self._echo.ring()
        except (OSError, ValueError):
            if not self._closed:  # else a signal handler closed it
                raise
        finally:
            self._waiting = waiting
            if not (self._closed or self._echo):
                self._board.wake[self._slot] = NEVER
                self._show(_NOTHING)

    def _open_epoll(self) -> select.epoll:
        if self._epoll is None:
            try:
                epoll, self._wakeup = select.epoll(), (wakeup := Wakeup())
            except OSError as error:
                raise refused("room cannot be waited for", error, "nothing was sent") from error
            epoll.register(wakeup.fileno(), select.EPOLLIN)
            epoll.register(self._state.news.fileno(), select.EPOLLIN | select.EPOLLET)
            if self._spec.receivers == "one":
                self._watch = Watch(self._state, epoll, self._echo)
            self._epoll = epoll
        return self._epoll

    def _show(self, mask: int) -> None:
        """Have the descriptor show what the socket does, as far as ``mask`` says, or nothing at no cost for anybody."""
        epoll = self._epoll
        if epoll is None or mask == self._mask:
            return
        self._mask = _UNKNOWN  # until it is done: it may be interrupted, and is then done again
        try:
            if mask == _NOTHING:
                epoll.unregister(self._fd)
            else:
                epoll.modify(self._fd, mask)
        except FileNotFoundError:
            if mask != _NOTHING:
                epoll.register(self._fd, mask)
        self._mask = mask

    def _why_closed(self) -> ChannelClosed:
        if self._closed:
            return ChannelClosed("this end of the unix: channel is closed")
        return ChannelClosed("the unix: channel was shut down")

    # ------------------------------------------------------------------ the rest of the contract

    def discard_oldest(self, timeout: float | None = LINGER) -> bool:
        """Take the oldest message out of the channel, whoever sent it."""
        del timeout  # what was accepted is in the socket
        with self._lock:
            if self._closed:
                raise self._why_closed()
            if self._intake is None:
                handle = self._handle
                self._intake = Intake(handle.outlet, handle.board, handle.state, handle.inline, self._spec.max_message)
            try:
                return self._intake.take() is not None
            except (EOFError, ChannelEmpty):  # the second: this interrupts a call that is in the middle of taking one
                return False

    def fileno(self) -> int:
        """Return the descriptor that shows when room may have come."""
        try:
            # Who sleeps has opened it, and has it show the same.
            alone = acquire(self._lock, 0, self._is_waiting)
            if self._closed:
                raise self._why_closed()
            epoll, wakeup = self._open_epoll(), self._wakeup
            if wakeup is None:  # closed meanwhile by the thread that slept
                raise self._why_closed()
            self._echo.begin(wakeup)
            if alone and self._mask == _NOTHING:
                self._show(_NO_EVENTS)
            return epoll.fileno()
        finally:
            release(self._lock)

    def ready(self) -> bool:
        """Tell whether there is room, for a message and for its bytes."""
        try:
            if not acquire(self._lock, 0, self._is_waiting):
                return False  # another thread is waiting for room
            if self._closed or is_shut(self._handle.inlet):
                return True
            if not (self._look() or self._expect(for_bytes=False)):
                return self._is_deserted()
            if self._crowded > self._tag and not self._expect(for_bytes=True):
                return self._is_deserted()
            self._crowded = 0
            self._show(_NO_EVENTS)
            self._echo.ring()
            return True
        finally:
            release(self._lock)

    def _is_deserted(self) -> bool:
        """Tell whether a send would say that the receiver has died; if not, see to it that its death shows."""
        try:
            if self._watch is not None:
                self._watch.check()
        except ChannelBroken:
            return True
        return False

    def shutdown(self) -> None:
        """End the stream for everybody."""
        self._handle.shut()

    def close(self) -> None:
        """Close; what was sent stays in the kernel for the receivers."""
        self._closed = True
        self._limit = -1
        wakeup = self._wakeup  # kept alive: another thread may close too
        if wakeup is not None:
            wakeup.set()
        with self._lock:
            self._free()

    def abandon(self) -> None:
        """Free what a forked child inherited."""
        self._closed = True
        self._limit = -1
        self._free()

    def _free(self) -> None:
        self._limit = -1
        self._claim.close()
        # The set before what is in it: taken out of it, in a forked child, that would be gone for the parent too.
        if self._epoll is not None:
            self._epoll.close()
        if self._watch is not None:
            self._watch.close()
        if self._intake is not None:
            self._intake.close()
        self._files.close()
        self._wakeup = None
        self._echo.end()

    def receiver(self) -> int | None:
        """Return the pid of the one receiver; None where there may be several."""
        return self._state.receiver()

    def depth(self) -> int | None:
        """Return how many of this process's messages wait."""
        try:
            if self._lock.acquire(blocking=False) and not self._closed:
                self._look()
            return (self._tag - self._taken) // STEP
        finally:
            release(self._lock)


def is_shut(inlet: socket.socket) -> bool:
    """Tell whether the stream was ended."""
    return _polls(inlet.fileno(), select.POLLHUP)


def _polls(fd: int, event: int) -> bool:
    poller = select.poll()
    poller.register(fd, event)
    return any(found & event for _, found in poller.poll(0))
