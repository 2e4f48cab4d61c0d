"""Memory files: a large message is written into one, once, sealed, and mapped by whoever receives it.

Pages that are new cost three times what the copy into them costs, so a sender keeps the last few files and writes into
them again once nobody has them any more. That is seen without a word from the receivers: what a file is passed on as is
an open file description of its own with a shared ``flock``, which the kernel lets go of with the last descriptor and the
last mapping of it, wherever they are and however their processes end. See ``docs/adr/0024-memory-files-are-used-again.md``.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
from typing import TYPE_CHECKING

from ipcbus.errors import ChannelBroken
from ipcbus.plumbing.buffers import behind
from ipcbus.plumbing.fds import close_all, refused
from ipcbus.plumbing.finalizers import finalizer
from ipcbus.plumbing.mapping import map_private, map_shared

if TYPE_CHECKING:
    from ipcbus.transport import Buffer, Frame

__all__ = ["KEPT", "MemoryFiles", "open_sealed"]

KEPT = 256 << 20
"""Bytes of files that a sending end keeps, unless it is told otherwise."""

_MAX_FILES = 16
"""Files that a sending end keeps: each takes a descriptor."""
_PAGE = os.sysconf("SC_PAGESIZE")
_IOV_MAX = 1024
_AGAIN = "/proc/self/fd/{}"
"""Opened, this is the same file through an open file description of its own."""
_FIXED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
"""A file that shrinks kills who reads its mapping (SIGBUS). See memfd_create(2)."""
_FUTURE_WRITE = 0x10
"""``F_SEAL_FUTURE_WRITE``, from Linux 5.1 on: only who had the file mapped before can write to it."""
_UNWRITABLE = fcntl.F_SEAL_WRITE | _FUTURE_WRITE


class MemoryFiles:
    """The memory files of one sending end, for one thread at a time.

    Args:
        limit: bytes of files that are kept to be used again; 0 keeps none.
    """

    __slots__ = ("_files", "_limit")

    def __init__(self, limit: int = KEPT) -> None:
        self._limit = _whole_pages(limit)
        self._files: list[_File] = []

    def write(self, frame: Frame, size: int, held: list[int]) -> None:
        """Write a frame to the beginning of a memory file, seal it, and add its descriptor to what the caller holds.

        What is in the file stays as it is until that descriptor and all that comes of it, copies and mappings, are gone.

        Args:
            frame: what to write.
            size: its bytes.
            held: gets the descriptor, in the same step in which it comes to be: close what is in there, whatever is raised.

        Raises:
            ChannelBroken: no descriptor or no memory is left; says what to do.
        """
        for file in self._files:
            if not file.fits(size):
                continue
            # A signal handler may send, too, or close this: it leaves alone what is in hand here.
            file.in_hand = True
            try:
                if file.is_free():
                    file.fill(frame)
                    self._pass_on(file, held)
                    return
            finally:
                file.in_hand = False
        file = _File()
        try:
            self._create(file, size)
            try:
                _write_all(file.fd, frame)
                if size <= self._limit and file.become_lasting(size):
                    self._add(file)
                    self._pass_on(file, held)
                else:
                    fcntl.fcntl(file.fd, fcntl.F_ADD_SEALS, _FIXED | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
                    file.give_away(held)
            except OSError as error:
                raise ChannelBroken(f"no memory for a message of {size} bytes: {error.strerror}; nothing was sent") from error
        finally:
            if file not in self._files:
                file.close()

    def _create(self, file: _File, size: int) -> None:
        try:
            try:
                file.create()
            except OSError:
                if not self._files:
                    raise
                self.close()  # each has a descriptor, and they are for speed only
                file.create()
        except OSError as error:
            raise refused(f"no memory file for a message of {size} bytes", error, "nothing was sent") from error

    def _add(self, file: _File) -> None:
        self._files.append(file)
        # The oldest first: what is still not back by now is kept by a receiver, or was for messages of another size.
        for old in self._files[:-1]:
            if len(self._files) <= _MAX_FILES and sum(each.size for each in self._files) <= self._limit:
                break
            if not old.in_hand:
                self._files.remove(old)
                old.close()

    def _pass_on(self, file: _File, held: list[int]) -> None:
        try:
            file.lend(held)
        except OSError:  # no descriptor left, or no /proc: it goes as it is, and is not used again
            file.give_away(held)
            if not held:
                raise ChannelBroken("this end was closed while it wrote a large message; nothing was sent") from None
            self._files.remove(file)

    def close(self) -> None:
        """Let go of the files; who has one of them keeps it. Idempotent."""
        while self._files:
            self._files.pop().close()


class _File:
    """One memory file, to which nobody but its maker can write."""

    __slots__ = ("_memory", "_own", "in_hand", "size")

    def __init__(self) -> None:
        self._own: list[int] = []
        """Its descriptor. In a list, so that it comes and goes in one step in C, which nothing can interrupt."""
        self._memory: memoryview | None = None
        self.size = 0
        """Bytes of messages that it has room for."""
        self.in_hand = False
        """Whether a message is being written to it and passed on."""

    @property
    def fd(self) -> int:
        return self._own[0] if self._own else -1

    def create(self) -> None:
        self._own.extend(map(os.memfd_create, ("ipcbus-message",), (os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING,)))

    def become_lasting(self, size: int) -> bool:
        """Get ready to be used again; tell whether this system can do that."""
        size = _whole_pages(size)  # the rest of the last page is there already
        try:
            os.ftruncate(self.fd, size)
            memory = map_shared(self.fd, size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _FIXED | _FUTURE_WRITE | fcntl.F_SEAL_SEAL)
        except OSError:
            return False
        self.size, self._memory = size, memory
        return True

    def fits(self, size: int) -> bool:
        """Tell whether a message belongs in here; who keeps a small one must not keep a large file for it."""
        return size <= self.size <= 2 * size and bool(self._own) and not self.in_hand

    def is_free(self) -> bool:
        """Tell whether nobody has it any more, in any process or on the way to one."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(self.fd, fcntl.LOCK_UN)
        except (BlockingIOError, ValueError):
            return False  # lent, or closed by a signal handler just now
        return True

    def fill(self, frame: Frame) -> None:
        """Write a frame into it; other threads go on meanwhile."""
        memory = self._memory  # which stays as long as this runs, whoever closes the file meanwhile
        assert memory is not None
        place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for part in frame:
            source = _Source(part)
            ctypes.memmove(place, source.address, source.size)
            place += source.size

    def lend(self, held: list[int]) -> None:
        """Add a descriptor by which it can be read; it is free again when that and all that came of it is gone.

        Raises:
            OSError: there is none.
        """
        held.extend(map(os.open, (_AGAIN.format(self.fd),), (os.O_RDONLY | os.O_CLOEXEC,)))
        try:
            fcntl.flock(held[-1], fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            os.close(held.pop())
            raise

    def give_away(self, held: list[int]) -> None:
        """Add its own descriptor, if it is not closed, and forget it."""
        held.extend(map(list.pop, filter(None, (self._own,))))
        self._memory = None

    def close(self) -> None:
        """Let go of it. Idempotent."""
        self._memory = None
        close_all(self._own)


def open_sealed(fd: int, size: int, limit: int) -> memoryview:
    """Map a message in a memory file that came from elsewhere; writable, and what is written is seen by nobody else.

    The descriptor stays the caller's. The file is the receiver's as long as the memory lives.

    Raises:
        ChannelBroken: it is not what a sender of ours would send, or the system refused.
    """
    try:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode):
            raise ChannelBroken("a large message came as something that is no memory file; it was dropped")
        if not 0 < size <= min(state.st_size, limit):
            raise ChannelBroken(
                f"a large message claims {size} bytes, its file has {state.st_size}, max_message is {limit}; it was dropped"
            )
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        if seals & _FIXED != _FIXED or not seals & _UNWRITABLE:
            raise ChannelBroken("a large message came in a file that can still be changed (not sealed); it was dropped")
        # Private and writable: arrays over this memory can be changed, which changes nothing for anybody else.
        return map_private(fd, size)
    except (OSError, ValueError) as error:
        if isinstance(error, ChannelBroken):
            raise
        raise ChannelBroken(f"a large message of {size} bytes cannot be mapped: {error}; it was dropped") from error


def _whole_pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _write_all(fd: int, frame: Frame) -> None:
    left = behind(frame, 0)
    while left:
        left = behind(left, os.writev(fd, left[:_IOV_MAX]))


class _Source(ctypes.Structure):
    """``Py_buffer`` of the stable C interface: where the bytes of a buffer are, also of one that may not be changed."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("owner", ctypes.c_void_p),
        ("size", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )

    def __init__(self, buffer: Buffer) -> None:
        super().__init__()
        _get_buffer(ctypes.py_object(buffer), ctypes.byref(self), 0)  # raises what is wrong by itself

    @finalizer
    def __del__(self) -> None:
        _release_buffer(ctypes.byref(self))  # nothing, where there is none


_python = ctypes.PyDLL(None)
_get_buffer = _python.PyObject_GetBuffer
_release_buffer = _python.PyBuffer_Release
