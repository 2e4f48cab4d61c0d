"""The door: where senders leave the descriptors that their receiver needs. Never on the path of an ordinary message.

A Unix socket pair of type SEQPACKET that everybody who has the channel holds both ends of. What is left in it stays in
the kernel, whole, until a receiver takes it, even when the process that left it is gone: a new lane (the reading end
of a pipe and the eventfd its credits are returned by), the memory file of a large message, or a lane that a closing
receiver hands on with what it had read and not delivered.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ipcbus.errors import ChannelBroken
from ipcbus.plumbing.fds import TravellingFd

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Sequence

__all__ = ["Door", "Lane", "Large", "Note", "Raw", "read"]

_LANE, _LARGE = b"L", b"M"
_lane_note = struct.Struct("<c8s8sQ")  # kind, lane, sender, ordinal
_large_note = struct.Struct("<c8sQQ")  # kind, lane, number, size
_MAX_FDS = 3
_ROOM = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
_SEND_BUFFER = 1 << 18
"""Bytes, for some 500 notes: more descriptors than that a process may not have by default."""

Raw: TypeAlias = tuple[bytes, list[tuple[int, int, bytes]], int, Any]
"""What ``recvmsg`` returns."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A sender's pipe: its random name, its sender's, and two descriptors; a third holds what was read of it already.

    Of two lanes of one sender, the one with the smaller ordinal was written first.
    """

    lane: bytes
    sender: bytes
    ordinal: int
    fds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Large:
    """A message in a memory file, whose place is marked in the lane by its number."""

    lane: bytes
    number: int
    size: int
    fds: tuple[int, ...]


Note = Lane | Large


class Door:
    """Both ends of the socket pair. Sending never blocks: a full door raises ``BlockingIOError``."""

    __slots__ = ("_inside", "_outside")

    def __init__(self, inside: TravellingFd | None = None, outside: TravellingFd | None = None) -> None:
        if inside is None or outside is None:
            first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        else:
            first, second = socket.socket(fileno=inside.fileno()), socket.socket(fileno=outside.fileno())
        # Every system grants it, and a receiver may have hundreds of lanes to hand on.
        second.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        first.setblocking(False)  # noqa: FBT003  the standard library takes it by position
        second.setblocking(False)  # noqa: FBT003  the same
        self._inside, self._outside = first, second

    def fileno(self) -> int:
        """Return the descriptor that polls readable when something was left."""
        return self._inside.fileno()

    def outside(self) -> int:
        """Return the descriptor that polls writable when there is room to leave something."""
        return self._outside.fileno()

    def leave(self, note: Note) -> None:
        """Leave something; the descriptors are duplicated into the kernel and stay the caller's."""
        if isinstance(note, Lane):
            data = _lane_note.pack(_LANE, note.lane, note.sender, note.ordinal)
        else:
            data = _large_note.pack(_LARGE, note.lane, note.number, note.size)
        try:
            socket.send_fds(self._outside, [data], note.fds)
        except BlockingIOError:
            raise
        except OSError as error:
            raise ChannelBroken(f"descriptors cannot be passed to the receiver: {error.strerror}; see 'ulimit -n'") from error

    def has_room(self) -> bool:
        """Tell whether a note can be left that found no room before."""
        poller = select.poll()
        poller.register(self._outside, select.POLLOUT)
        return bool(poller.poll(0))

    def take(self, into: deque[Raw]) -> bool:
        """Append what was left longest ago to ``into``; say whether there was anything.

        Raises:
            ChannelBroken: this process has no descriptors left; what was left stays in the door.
        """
        # The kernel throws away descriptors for which there is no room, so room is made sure of first.
        try:
            spare = [select.epoll() for _ in range(_MAX_FDS)]
        except OSError as error:
            raise ChannelBroken(
                "this process has no descriptors left to receive with; close some or raise 'ulimit -n', and receive again: "
                "nothing is lost"
            ) from error
        del spare
        # Received and appended in one step in C: a signal handler that raises cannot come in between and lose descriptors.
        try:
            into.extend(map(self._inside.recvmsg, (64,), (_ROOM,), (socket.MSG_CMSG_CLOEXEC,)))
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Free this process's copies. Idempotent."""
        self._inside.close()
        self._outside.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Door, (TravellingFd(self._inside.fileno()), TravellingFd(self._outside.fileno()))


def read(raw: Raw) -> Note:
    """Understand what was taken; the descriptors in it are the caller's.

    Raises:
        ChannelBroken: descriptors were lost for want of room, or no ipcbus sender wrote this.
    """
    data, ancillary, flags, _ = raw
    fds = _descriptors(ancillary)
    if not flags & socket.MSG_CTRUNC:
        if len(data) == _lane_note.size and data[:1] == _LANE and len(fds) >= 2:
            _, lane, sender, ordinal = _lane_note.unpack(data)
            return Lane(lane, sender, ordinal, fds)
        if len(data) == _large_note.size and data[:1] == _LARGE and len(fds) == 1:
            _, lane, number, size = _large_note.unpack(data)
            return Large(lane, number, size, fds)
    for fd in fds:
        os.close(fd)
    if flags & socket.MSG_CTRUNC:
        raise ChannelBroken("this process has no descriptors left to receive with; close some or raise 'ulimit -n'")
    raise ChannelBroken("something that is no ipcbus sender wrote to this channel")


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> tuple[int, ...]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return tuple(fds)
