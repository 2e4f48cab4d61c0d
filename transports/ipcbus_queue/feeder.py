"""The standard library's queue, with parts of ours: what it writes to, the lock for writing, and the room."""

from __future__ import annotations

import fcntl
import functools
import os
import struct
import threading
import weakref
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from typing import TYPE_CHECKING

from ipcbus.errors import ChannelBroken
from ipcbus.plumbing.finalizers import finalizer
from ipcbus_queue.libc import flock
from ipcbus_queue.shared import OVER, TORN, WRITING

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Sized

    from ipcbus_queue.shared import Shared

__all__ = ["Feeder"]

_PIPE_BUF = 4096
"""What Linux writes to a pipe in one piece or not at all; see pipe(7)."""
_TRY = fcntl.LOCK_EX | fcntl.LOCK_NB
_head = struct.Struct("!i").pack


class Feeder(Queue):  # type: ignore[type-arg]  # generic for type checkers only
    """A ``multiprocessing.Queue`` that is only put into: its thread moves what was put to the channel's pipe."""

    _buffer: deque[bytes]
    _lock: threading.Lock
    _notempty: threading.Condition
    _thread: threading.Thread | None

    def __init__(self, shared: Shared) -> None:
        # Not through Queue.__init__, which would make a pipe and semaphores with names, but the way a spawned child gets
        # its copy: from parts. In this order: ignore_epipe, maxsize, reader, writer, lock for reading, lock for writing,
        # room, pid. Nobody reads through it; _Pipe locks by itself; and receivers that are all gone are no error, since
        # others may come.
        lock = _WriteLock(shared)
        try:
            pipe = _Pipe(os.dup(shared.writer.fileno()), lock)
        except OSError:
            lock.close()
            raise
        state = (True, shared.capacity, pipe, pipe, None, threading.Lock(), _Room(shared), os.getpid())
        self.__setstate__(state)  # type: ignore[arg-type]  # ours for the semaphores and the locks
        self._channel = os.fstat(shared.file.fileno()).st_ino
        if before := _finishing.get(self._channel):
            self._send_bytes = functools.partial(_send_after, before, pipe.send_bytes)
        self._ready = False
        self._failure: RuntimeError | None = None
        self._starting = threading.Lock()
        self._lock = threading.Lock()
        self._notempty = threading.Condition(self._lock)
        pipe.waiting = self._buffer

    def place(self, message: bytes, noted: list[int | None]) -> None:
        """Do what ``put`` does, and add None to ``noted`` in the very step that makes the message the thread's.

        Raises:
            ChannelBroken: there is no thread yet, and none can be started. The message was not taken.
        """
        # The lock itself, not its condition: entering that is Python code, which an interrupt may leave with the lock held.
        with self._lock:
            if not self._ready:
                self._start()
            noted.extend(map(self._buffer.append, (message,)))
            if len(self._buffer) == 1:
                self._notempty.notify()  # with more there, the thread was told before and has not slept since

    def _start(self) -> None:
        # By another thread, which nothing interrupts: half a start would leave a thread that never runs, or never ends.
        try:
            helper = threading.Thread(target=self._start_once, name="QueueFeederStarter")
            helper.start()
            helper.join()
        except RuntimeError as error:
            self._failure = error
        if not self._ready:
            raise ChannelBroken(
                f"a queue: channel sends through a thread, and none can be started: {self._failure}"
            ) from self._failure

    def _start_once(self) -> None:
        with self._starting:
            if self._ready:
                return  # an interrupted start came to its end after all
            try:
                self._start_thread()  # type: ignore[attr-defined]  # typeshed leaves it out
                self._ready = True
            except RuntimeError as error:
                self._failure = error
                self._thread = None

    def nudge(self) -> None:
        """Tell the thread that there is something, in case it was not told."""
        with self._lock:
            self._notempty.notify()

    def finish(self) -> None:
        """Let the thread end once it has moved everything, and see to it that the interpreter's exit does not wait for it."""
        _finishing[self._channel] = self
        self.close()
        self.cancel_join_thread()

    def join(self, timeout: float) -> bool:
        """Wait for the thread for at most ``timeout`` seconds; once it has ended, free everything and return True."""
        if self._thread is not None:
            self._thread.join(timeout)  # because join_thread() takes no timeout
            if self._thread.is_alive():
                return False
        self.abandon()
        return True

    def abandon(self) -> None:
        """Free the descriptors without writing what is left: in a forked child, or when there is no thread."""
        self._writer.discard()  # type: ignore[attr-defined]  # the _Pipe that __init__ gave it

    def _on_queue_feeder_error(self, error: BaseException, obj: object) -> None:  # noqa: ARG002  multiprocessing's hook
        """Say that the channel is broken: a message that was accepted is lost."""
        self._sem.shared.tear()  # type: ignore[attr-defined]  # the _Room that __init__ gave it


_finishing: weakref.WeakValueDictionary[int, Feeder] = weakref.WeakValueDictionary()
"""By the file of a channel, the queue that was closed last; its thread, as long as there is one, keeps it alive."""


def _send_after(before: Feeder, send: Callable[[memoryview], None], buf: memoryview) -> None:
    """Write a message once the thread of a closed queue has moved what was put before."""
    if before._thread is not None:  # noqa: SLF001  of this module
        before._thread.join()  # noqa: SLF001  the same
    send(buf)


class _Pipe(Connection):
    """The writing end, which joins small messages into one write while more of them wait.

    Used by the queue's thread alone. What it writes is what ``Connection.send_bytes`` would, only in fewer pieces.
    """

    waiting: Sized = ()
    """What the queue's thread has not got to yet."""

    def __init__(self, fd: int, lock: _WriteLock) -> None:
        super().__init__(fd, readable=False)
        self._lock = lock
        self._joined: list[bytes | memoryview] = []
        self._size = 0

    def send_bytes(self, buf: memoryview) -> None:  # type: ignore[override]  # multiprocessing's queue gives nothing else
        """Write one message, now or together with the next."""
        size = len(buf) + 4
        if self._size + size > _PIPE_BUF:
            self._flush()
        if size <= _PIPE_BUF:
            self._joined += (_head(len(buf)), buf)
            self._size += size
            if not self.waiting:
                self._flush()
            return
        self._lock.acquire(tears=True)
        try:
            super().send_bytes(buf)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Write what is left and free the descriptors: the last thing the queue's thread does. Idempotent."""
        self._flush()
        self.discard()

    def discard(self) -> None:
        """Free the descriptors and write nothing. Idempotent."""
        self._joined.clear()
        super().close()
        self._lock.close()

    def _flush(self) -> None:
        if self._joined:
            joined = b"".join(self._joined)
            self._joined.clear()
            self._size = 0
            self._lock.acquire(tears=False)
            try:
                os.write(self.fileno(), joined)  # in one piece, by its size
            finally:
                self._lock.release()


class _WriteLock:
    """The lock for writing to the pipe, which the kernel lets go when its owner dies."""

    __slots__ = ("_fd", "_page", "_shared")

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._page = shared.page
        self._fd = shared.reopen(shared.file, os.O_RDWR)

    def acquire(self, *, tears: bool) -> None:
        """Take it.

        Args:
            tears: whether what is to be written comes in several pieces.

        Raises:
            ChannelBroken: the owner before was killed between two pieces.
        """
        if flock(self._fd, _TRY):
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        page = self._page
        if page[WRITING] or page[OVER] == TORN:
            flock(self._fd, fcntl.LOCK_UN)
            raise self._shared.tear()
        page[WRITING] = tears

    def release(self) -> None:
        """Let it go."""
        self._page[WRITING] = 0
        flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Free the descriptor. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            del self._page  # it has a descriptor of its own

    @finalizer
    def __del__(self) -> None:
        # The queue's thread may need it longer than anybody waits for the thread.
        if hasattr(self, "_fd"):  # not if an interruption came before it was opened
            self.close()


class _Room:
    """What the queue takes for its semaphore: always free, because the link took the room before."""

    __slots__ = ("shared",)

    def __init__(self, shared: Shared) -> None:
        self.shared = shared

    def acquire(self, block: bool, timeout: float | None) -> bool:  # noqa: ARG002, FBT001  multiprocessing's signature
        """Say yes."""
        return True

    def release(self) -> None:
        """Do nothing: called when a message is lost, and then the channel is over."""
