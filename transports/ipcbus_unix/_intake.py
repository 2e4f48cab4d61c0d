"""Taking one message out of the socket: what a receiver does, and a sender that drops the oldest.

The quick way, ``recv``, throws descriptors away. So it is only taken by who is alone in taking messages, and until the
stream itself says that large messages may follow: nobody else can have taken that announcement.

The careful way is ``recvmsg`` of the C library, into memory that is used again for every message: Python's own allocates
the largest size for each. What it returned is kept in the same step, so that a signal handler that raises can come before
or after it, but not in between, and neither a message nor a descriptor is lost that way.

A signal handler that receives itself takes the careful way, which has memory of its own, so the quick way that it may have
interrupted finds what it read. Where it interrupts the careful way, it takes what that had in hand, which then looks again;
but for a large message, which is not there for it.
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any

from ipcbus.errors import ChannelBroken, ChannelEmpty, EndOfChannel
from ipcbus.plumbing.fds import REMEDY, close_last, refused
from ipcbus.plumbing.locks import amid
from ipcbus.plumbing.memfiles import open_sealed
from ipcbus_unix._board import LARGE, LARGE_MAY_COME, LARGE_WAITS, NEVER, SLOT

if TYPE_CHECKING:
    from ipcbus.plumbing.state import SharedState
    from ipcbus.transport import Frame
from ipcbus_unix._board import Board

__all__ = ["HEAD", "MARK", "Intake"]

HEAD = 8
"""Bytes of the tag that every message begins with."""
MARK = struct.Struct("=QQ")
"""What is sent beside a memory file: tag, size. Without one and with a size of 0 it announces that more may follow."""

_FLAGS = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
_FD = array.array("i").itemsize
_CONTROL = socket.CMSG_SPACE(_FD)
_CONTROL_HEAD = struct.Struct("@Nii")  # struct cmsghdr: length, level, type

# PyDLL keeps the GIL: the call never blocks, and letting the GIL go costs as much as the call itself.
_recvmsg = ctypes.PyDLL(None, use_errno=True).recvmsg


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    """``struct msghdr`` of Linux; see recvmsg(2)."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint),
        ("iov", ctypes.c_void_p),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


_CONTROLLEN = _Msghdr.controllen.offset // 8


class Intake:
    """Takes messages, for one thread at a time.

    Args:
        outlet: the socket's receiving end, which stays the caller's.
        board: where it is written down what was taken.
        state: how waiting senders are told.
        inline: bytes of the largest message that comes through the socket itself.
        limit: bytes of the largest message.

    Attributes:
        plain: whether the quick way may be taken: ``recv_into`` with ``memory``, then ``settle``. Not while it is not known
            yet what came: an interruption in between may lose the announcement, and leaves the careful way.
        memory: where a message is put.
        view: the same, to cut out of.
        words: the same as unsigned 64-bit numbers, of which the first is the tag.
        size: bytes that no message fills.
    """

    __slots__ = (
        "_board",
        "_busy",
        "_call",
        "_control",
        "_ended",
        "_fd",
        "_got",
        "_header",
        "_into",
        "_iovec",
        "_limit",
        "_own",
        "_own_words",
        "_state",
        "memory",
        "plain",
        "size",
        "view",
        "words",
    )

    def __init__(self, outlet: socket.socket, board: Board, state: SharedState, inline: int, limit: int) -> None:
        self._fd = outlet.fileno()
        self._into = outlet.recv_into
        self._board = board
        self._state = state
        self._limit = limit
        self._ended = False
        self._busy = False
        """Whether a large message is being taken, which is in hand until it is."""
        self.plain = False
        self.size = max(HEAD + inline, MARK.size) + 1  # one more: what fills all of it was too large
        self.memory = bytearray(-(-self.size // 8) * 8)
        self.view = memoryview(self.memory)
        self.words = self.view.cast("Q")
        own = bytearray(len(self.memory))
        self._own = memoryview(own)
        self._own_words = self._own.cast("Q")
        self._control = ctypes.create_string_buffer(_CONTROL)
        self._iovec = _Iovec(ctypes.addressof(ctypes.c_char.from_buffer(own)), self.size)
        header = _Msghdr(None, 0, ctypes.addressof(self._iovec), 1, ctypes.addressof(self._control), _CONTROL, 0)
        self._header = memoryview(header).cast("B").cast("Q")  # quicker than by its attributes
        self._call = ((self._fd,), (ctypes.byref(header),), (_FLAGS,))
        self._got: list[Any] = []
        """What the careful call returned for the message that is in the memory; behind that, once its descriptors are about to
        be closed, None and those that are not."""

    def begin_alone(self) -> None:
        """Take the quick way, until large messages may come: to be called once nobody else takes messages.

        Not before: the one who did so far may have taken the announcement out since it was looked for.
        """
        self.plain = not self._board.flags[LARGE_MAY_COME]

    def take(self) -> Frame | None:
        """Take the oldest message; None if there is none now.

        Raises:
            EndOfChannel: there is none, and none will come.
            ChannelBroken: what came makes no sense, or there is no descriptor to take it with.
        """
        if self.plain:
            self.plain = False
            try:
                size = self._into(self.memory, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self.plain = True
                return None
            except OSError as error:
                raise self._unreadable(error.errno) from error
            return self.settle(size)
        got, header, board = self._got, self._header, self._board
        while True:
            if not got or got[0] < 0:
                got.clear()
                if board.flags[LARGE_WAITS]:
                    self._make_sure()
                call = map(_recvmsg, *self._call)
                header[_CONTROLLEN] = _CONTROL
                got.extend(call)
            if not got:
                continue  # a signal handler has taken it
            size = got[0]
            if size < 0:
                return self._odd(size)
            tag = self._own_words[0]
            if header[_CONTROLLEN] or (tag >= LARGE and size >= HEAD):
                return self._take_large(tag)
            if not HEAD <= size < self.size:
                return self._odd(size)
            # As _note, without the call.
            slot = tag & SLOT
            if board.taken[slot] < tag:
                board.taken[slot] = tag
            if board.wake[slot] <= tag:
                self.announce(slot)
            frame = self._own[HEAD:size].tobytes()
            if got:  # as above
                got.clear()
                return (frame,)

    def settle(self, size: int) -> Frame | None:
        """Deal with what came the quick way; returns and raises what ``take`` does."""
        if size >= HEAD and self.words[0] >= LARGE and size < self.size:
            if size != MARK.size or self.words[1]:
                raise _stranger()  # not announced
            return self.take()
        if not HEAD <= size < self.size:
            self.plain = True
            return self._odd(size)
        tag, frame = self.words[0], self.view[HEAD:size].tobytes()
        self.plain = True  # from here on a signal handler may use the memory
        self._note(tag)
        return (frame,)

    @property
    def pending(self) -> bool:
        """Whether an interruption left a message here, which is the next."""
        return bool(self._got) and self._got[0] >= 0

    def _note(self, tag: int) -> None:
        """Write down that a message was taken, unless another receiver has written down a later one."""
        slot = tag & SLOT
        if self._board.taken[slot] < tag:
            self._board.taken[slot] = tag
        if self._board.wake[slot] <= tag:
            self.announce(slot)

    def announce(self, slot: int) -> None:
        """Tell the sender of a slot, which waits, that there is room."""
        # Cleared first: what it asks for from here on is answered by the edge that follows, or by the next message.
        self._board.wake[slot] = NEVER
        self._state.news.set()

    def _odd(self, size: int) -> Frame | None:
        """Deal with what has no size that a message has: nothing there, the end, an error, or what a stranger wrote."""
        self._got.clear()
        if size < 0:
            code = ctypes.get_errno()
            if code not in (0, errno.EAGAIN, errno.EINTR):  # 0: a finalizer that ran in between made a call of its own
                raise self._unreadable(code)
            self._board.flags[LARGE_WAITS] = 0
            return None
        if size > 0:
            raise _stranger()
        if self._ended:
            raise EndOfChannel("the unix: channel was shut down and is drained")
        # The kernel looks for messages first and for the end second, and something may have come in between. From here on
        # nothing can come any more, so the second look is certain.
        self._ended = True
        return self.take()

    @staticmethod
    def _unreadable(code: int | None) -> ChannelBroken:
        return ChannelBroken(f"the socket of a unix: channel cannot be read: {os.strerror(code or 0)}")

    def _make_sure(self) -> None:
        """Make sure that a descriptor can be received: the kernel throws away one for which there is no room."""
        try:
            # Made and closed in one step in C: a signal handler that raises cannot come in between and leak it.
            deque(map(os.close, map(os.dup, (self._fd,))), 0)
        except OSError as error:
            raise refused("a large message cannot be received", error, "nothing is lost") from error

    def _take_large(self, tag: int) -> Frame | None:
        """Take a message whose content is in a memory file, or an announcement and what comes behind it."""
        if self._busy:
            raise ChannelEmpty(amid("receiving"))
        try:
            self._busy = True
            memory = self._open_large(tag)
        finally:
            self._busy = False
        return self.take() if memory is None else (memory,)

    def _open_large(self, tag: int) -> memoryview | None:
        """Return the content of a large message; None if there is none. Whatever interrupts this, it may be done again."""
        got, fds = self._got, self._descriptors()
        if len(got) != 1:
            self._close_descriptors()
            got.clear()  # interrupted when all was done but to hand it out; or a signal handler has taken it
            return None
        if got[0] != MARK.size or tag < LARGE or len(fds) > 1:
            self._close_descriptors()
            got.clear()
            raise _stranger()
        size = self._own_words[1]
        if not size and not fds:
            got.clear()  # an announcement
            return None
        try:
            if not fds:
                raise ChannelBroken(
                    f"a large message of {size} bytes came, and this process had no descriptor left to take it with; it is "
                    f"lost: {REMEDY}"
                )
            return open_sealed(fds[0], size, self._limit)
        finally:
            self._note(tag & ~LARGE)
            self._close_descriptors()
            got.clear()

    def _descriptors(self) -> tuple[int, ...]:
        length, level, kind = _CONTROL_HEAD.unpack_from(self._control)
        if self._header[_CONTROLLEN] < _CONTROL_HEAD.size or (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            return ()
        fds = array.array("i")
        fds.frombytes(self._control.raw[_CONTROL_HEAD.size : length - length % _FD])
        return tuple(fds)

    def _close_descriptors(self) -> None:
        # Taken out and closed in one step in C, as above, so that none is closed twice. In this order: another thread may fork
        # when one is closed, and in the child its number may be that of another file by then.
        got = self._got
        if len(got) == 1:
            got.extend((None, *self._descriptors()))
        while len(got) > 2:
            close_last(got)

    def close(self) -> None:
        """Let go of a message that an interruption left here. Idempotent."""
        self.plain = False
        if self.pending and self._header[_CONTROLLEN]:
            self._close_descriptors()
        self._got.clear()


def _stranger() -> ChannelBroken:
    return ChannelBroken("something that is no ipcbus sender wrote to this unix: channel; it was dropped")
