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
import struct
from dataclasses import dataclass, field

from ipcbus.errors import ChannelBroken

__all__ = ["MAX_CONTENT", "MAX_FDS", "Datagram", "Operation", "Status", "receive", "send"]

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
_ROOM = socket.CMSG_SPACE((MAX_FDS + 1) * array.array("i").itemsize)


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
    """The content is a pickled error."""


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
        ValueError: what came makes no sense. Its descriptors are closed.
    """
    data, ancillary, state, _ = sock.recvmsg(_head.size + MAX_KEY + SPILL, _ROOM, flags | socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, words in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(words[: len(words) - len(words) % fds.itemsize])
    if not data:
        _close(fds)
        return None
    try:
        return _parse(data, list(fds), cut=bool(state & (socket.MSG_CTRUNC | socket.MSG_TRUNC)))
    except (struct.error, ValueError) as error:
        _close(fds)
        raise ValueError(f"no datagram of a directory: {error}") from error


def _parse(data: bytes, fds: list[int], *, cut: bool) -> Datagram:
    if cut:
        raise ValueError("cut off: too large, or no descriptors were free")
    kind, version, length, token = _head.unpack_from(data)
    if version & ~_SPILLED != VERSION:
        raise ValueError(f"version {version & ~_SPILLED}, and this ipcbus speaks {VERSION}")
    key, content = data[_head.size : _head.size + length], data[_head.size + length :]
    if len(key) != length:
        raise ValueError("the key ends behind the datagram")
    if version & _SPILLED:
        if content or not fds:
            raise ValueError("the memory file is missing")
        content = _read(fds[-1])
        os.close(fds.pop())
    return Datagram(kind, token, key, content, fds)


def _read(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    if size > MAX_CONTENT:
        raise ValueError(f"{size} bytes of content; {MAX_CONTENT} is the most")
    return os.pread(fd, size, 0)


def _close(fds: array.array[int]) -> None:
    for fd in fds:
        os.close(fd)
