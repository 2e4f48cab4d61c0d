"""What goes over a directory's socket: one request, one answer, each a datagram with descriptors beside it.

A request: ``u8 operation, u8 version, u16 length of key, u32 token, key, content``; an answer has a status in place of the
operation and no key. The token ties an answer to its request. Content above ``SPILL`` bytes is in a memory file, the
last of the descriptors beside it; ``version`` then has its high bit set.
"""

from __future__ import annotations

import array
import enum
import os
import socket
import stat
import struct
from dataclasses import dataclass, field

from ipcbus.errors import ChannelBroken

__all__ = ["MAX_CONTENT", "MAX_FDS", "UNASKED", "Cut", "Datagram", "Operation", "Status", "receive", "send"]

VERSION = 1
_SPILLED = 0x80
_head = struct.Struct("<BBHI")
SPILL = 32 * 1024
"""Bytes of content that travel in the datagram itself: a socket's buffer holds several."""
MAX_CONTENT = 16 << 20
"""Bytes of content that are read at all."""
MAX_KEY = 1024
MAX_FDS = 64
"""Descriptors beside one datagram; the system allows 253."""
UNASKED = 0
"""The token of what a directory says before it hangs up, and of a call that wants no answer. No question has it."""
_ROOM = socket.CMSG_SPACE((MAX_FDS + 1) * array.array("i").itemsize)


class Cut(ValueError):
    """A datagram came without all of its descriptors, because this process may not have more. ``token`` is the datagram's."""

    def __init__(self, token: int) -> None:
        super().__init__("this process has no descriptors left for those that came; see 'ulimit -n'")
        self.token = token


class Operation(enum.IntEnum):
    """What is asked."""

    HELLO = 0
    """Nothing: somebody is there."""
    PUT = 1
    """Keep this under the key."""
    GET = 2
    """Return what is under the key; who asks counts as its user from here on."""
    TAKE = 3
    """Return what is under the key, and forget it."""
    DROP = 4
    """Who asks has no use for the key any more. Not answered."""
    CALL = 5
    """Ask the function that the key names."""


class Status(enum.IntEnum):
    """How it went."""

    OK = 0
    UNKNOWN = 1
    """Nothing is under this key."""
    REFUSED = 2
    """The content is a pickled pair: the words of an error, and that itself, pickled."""


@dataclass(slots=True)
class Datagram:
    """A request or an answer."""

    kind: int
    """An ``Operation`` or a ``Status``."""
    token: int
    key: bytes = b""
    content: bytes = b""
    fds: list[int] = field(default_factory=list)
    """Its own, but for one that is passed to ``send`` by who keeps them."""

    def close(self) -> None:
        """Free the descriptors. Idempotent."""
        while self.fds:
            os.close(self.fds.pop())


def send(sock: socket.socket, datagram: Datagram, flags: int = 0) -> None:
    """Send one; raises ``OSError``, and then nothing was sent."""
    content, fds, version = datagram.content, datagram.fds, VERSION
    if len(fds) > MAX_FDS or len(datagram.key) > MAX_KEY or len(content) > MAX_CONTENT:
        raise ChannelBroken(f"{len(fds)} descriptors and {len(content)} bytes are more than a directory hands over at once")
    spill = -1
    try:
        if len(content) > SPILL:
            spill = os.memfd_create("ipcbus-parcel", os.MFD_CLOEXEC)
            with open(spill, "wb", closefd=False) as file:
                file.write(content)
            content, fds, version = b"", [*fds, spill], VERSION | _SPILLED
        data = _head.pack(datagram.kind, version, len(datagram.key), datagram.token) + datagram.key + content
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sock.sendmsg([data], ancillary, flags | socket.MSG_NOSIGNAL)
    finally:
        if spill >= 0:
            os.close(spill)


def receive(sock: socket.socket, flags: int = 0) -> Datagram | None:
    """Receive one; None at the end of the connection.

    Raises:
        OSError: nothing came.
        Cut: its descriptors did not all come.
        ValueError: what came makes no sense. Its descriptors are closed, whatever is raised.
    """
    data, ancillary, state, _ = sock.recvmsg(_head.size + MAX_KEY + SPILL, _ROOM, flags | socket.MSG_CMSG_CLOEXEC)
    numbers = array.array("i")
    for level, kind, words in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(words[: len(words) - len(words) % numbers.itemsize])
    came = Datagram(0, 0, fds=numbers.tolist())
    if not data:
        came.close()
        return None
    try:
        _parse(came, data, state)
    except BaseException as error:
        came.close()
        if isinstance(error, (struct.error, ValueError, OSError)) and not isinstance(error, Cut):
            raise ValueError(f"no datagram of a directory: {error}") from error  # noqa: TRY004  what came is wrong, not its type
        raise
    return came


def _parse(came: Datagram, data: bytes, state: int) -> None:
    """Fill in a datagram that has its descriptors already; raises ``ValueError``, ``struct.error`` or ``OSError``."""
    came.kind, version, length, came.token = _head.unpack_from(data)
    if version & ~_SPILLED != VERSION:
        raise ValueError(f"version {version & ~_SPILLED}, and this ipcbus speaks {VERSION}")
    if state & socket.MSG_TRUNC:
        raise ValueError("longer than any is")
    if len(came.fds) > MAX_FDS + bool(version & _SPILLED):
        raise ValueError(f"more than {MAX_FDS} descriptors")
    if state & socket.MSG_CTRUNC:
        raise Cut(came.token)
    came.key, came.content = data[_head.size : _head.size + length], data[_head.size + length :]
    if len(came.key) != length:
        raise ValueError("the key ends behind the datagram")
    if version & _SPILLED:
        if came.content or not came.fds:
            raise ValueError("the memory file is missing")
        came.content = _read(came.fds[-1])
        os.close(came.fds.pop())


def _read(fd: int) -> bytes:
    state = os.fstat(fd)
    if not stat.S_ISREG(state.st_mode):
        raise ValueError("the content is in no file")  # and reading it might block
    if state.st_size > MAX_CONTENT:
        raise ValueError(f"{state.st_size} bytes of content; {MAX_CONTENT} is the most")
    return os.pread(fd, state.st_size, 0)
