"""The door: where senders leave the descriptors that their receiver needs. Never on the path of an ordinary message.

A Unix socket pair of type SEQPACKET that everybody who has the channel holds both ends of. What is left in it stays in
the kernel, whole, until a receiver takes it, even when the process that left it is gone: a new lane (the reading end
of a pipe and the eventfd its credits are returned by), or the memory file of a large message.

The other direction is for receivers alone: a closing one hands its lanes on there, with what it had read and not
delivered, so that senders, who may have filled the door, leave it no less room for that.
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
from ipcbus.plumbing.fds import REMEDY, TravellingFd, close_all, refused

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Sequence

__all__ = ["Door", "Lane", "Large", "Note", "Raw", "read"]

_LANE, _LARGE = b"L", b"M"
_lane_note = struct.Struct("<c8s8sQ")  # kind, lane, sender, ordinal
_large_note = struct.Struct("<c8s")  # kind, lane; then for each file:
_large_file = struct.Struct("<QQ")  # number, size
_LEFT_FDS = 2
_TOGETHER = 16
"""Memory files that are handed on in one note: one by one a few hundred would fill the door, and there may be thousands."""
_NOTE = _large_note.size + _TOGETHER * _large_file.size
"""Bytes of the largest note."""
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
    """Messages in memory files, whose places are marked in the lane by their numbers."""

    lane: bytes
    files: dict[int, tuple[int, int]]
    """Of each number, the descriptor and the size in bytes."""

    def close(self) -> None:
        """Free the descriptors of what was taken and is not wanted."""
        close_all([fd for fd, _ in self.files.values()])


Note = Lane | Large


class Door:
    """Both ends of the socket pair. Sending never blocks: a full door raises ``BlockingIOError``."""

    __slots__ = ("_inside", "_outside")

    def __init__(self, inside: TravellingFd | None = None, outside: TravellingFd | None = None) -> None:
        if inside is None or outside is None:
            first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        else:
            first, second = socket.socket(fileno=inside.detach()), socket.socket(fileno=outside.detach())
        # Every system grants it, and a receiver may have hundreds of lanes to hand on.
        for each in (first, second):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
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
        _put(self._outside, note)

    def hand_on(self, lane: Lane, large: dict[int, tuple[int, int]]) -> None:
        """Leave a lane and the memory files of its large messages for the next receiver, as the one that there is now."""
        _put(self._inside, lane)
        numbers = list(large)
        for at in range(0, len(numbers), _TOGETHER):
            _put(self._inside, Large(lane.lane, {number: large[number] for number in numbers[at : at + _TOGETHER]}))

    def has_room(self) -> bool:
        """Tell whether a note can be left that found no room before."""
        return _polls(self._outside, select.POLLOUT)

    def take(self, into: deque[Raw]) -> bool:
        """Append what a sender left longest ago to ``into``; say whether there was anything.

        Raises:
            ChannelBroken: this process has no descriptors left; what was left stays in the door.
        """
        return self._take(self._inside, into, _LEFT_FDS)

    def inherit(self, into: deque[Raw]) -> bool:
        """Do as ``take`` with what earlier receivers handed on. Once that was all, a receiver need not ask again."""
        return _polls(self._outside, select.POLLIN) and self._take(self._outside, into, _TOGETHER)

    @staticmethod
    def _take(end: socket.socket, into: deque[Raw], most: int) -> bool:
        # The kernel throws away descriptors for which there is no room, so room is made sure of first.
        try:
            spare = [select.epoll() for _ in range(most)]
        except OSError as error:
            raise refused("what senders left cannot be taken", error, "nothing is lost") from error
        del spare
        # Received and appended in one step in C: a signal handler that raises cannot come in between and lose descriptors.
        try:
            room = socket.CMSG_SPACE(most * array.array("i").itemsize)
            into.extend(map(end.recvmsg, (_NOTE,), (room,), (socket.MSG_CMSG_CLOEXEC,)))
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Free this process's copies. Idempotent."""
        self._inside.close()
        self._outside.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Door, (TravellingFd(self._inside.fileno()), TravellingFd(self._outside.fileno()))


def _polls(end: socket.socket, event: int) -> bool:
    poller = select.poll()
    poller.register(end, event)
    return bool(poller.poll(0))


def _put(end: socket.socket, note: Note) -> None:
    if isinstance(note, Lane):
        data, fds = _lane_note.pack(_LANE, note.lane, note.sender, note.ordinal), note.fds
    else:
        files = note.files.items()
        data = _large_note.pack(_LARGE, note.lane) + b"".join(_large_file.pack(number, size) for number, (_, size) in files)
        fds = tuple(fd for _, (fd, _) in files)
    try:
        socket.send_fds(end, [data], fds)
    except BlockingIOError:
        raise
    except OSError as error:
        raise ChannelBroken(f"descriptors cannot be passed to the receiver: {error.strerror}; {REMEDY}") from error


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
        if len(data) == _large_note.size + len(fds) * _large_file.size and data[:1] == _LARGE and fds:
            _, lane = _large_note.unpack_from(data)
            files = _large_file.iter_unpack(data[_large_note.size :])
            return Large(lane, {number: (fd, size) for fd, (number, size) in zip(fds, files, strict=True)})
    for fd in fds:
        os.close(fd)
    if flags & socket.MSG_CTRUNC:
        raise ChannelBroken(f"this process had no descriptors left for what a sender left; {REMEDY}")
    raise ChannelBroken("something that is no ipcbus sender wrote to this channel")


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> tuple[int, ...]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return tuple(fds)
