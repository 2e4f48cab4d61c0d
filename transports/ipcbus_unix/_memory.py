"""Memory files: a large message is written into one, once, sealed, and mapped by whoever receives it."""

from __future__ import annotations

import fcntl
import os
import stat
from typing import TYPE_CHECKING

from ipcbus.errors import ChannelBroken
from ipcbus.plumbing.mapping import map_private

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ipcbus.transport import Buffer, Frame

__all__ = ["SEALS", "fill", "open_sealed"]

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
"""What a receiver insists on. A file that shrinks kills who reads its mapping (SIGBUS); one that is written to later is
no snapshot. See memfd_create(2)."""
_IOV_MAX = 1024


def fill(frame: Frame, size: int) -> int:
    """Return a sealed memory file that holds a frame.

    Raises:
        ChannelBroken: no descriptor or no memory is left; says what to do.
    """
    try:
        fd = os.memfd_create("ipcbus-message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise ChannelBroken(
            f"no descriptor for a message of {size} bytes: {error.strerror}; nothing was sent: close some or raise "
            "'ulimit -n', and send again"
        ) from error
    try:
        done = 0
        while done < size:
            left = list(frame) if not done else _behind(frame, done)
            done += os.writev(fd, left[:_IOV_MAX])
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS | fcntl.F_SEAL_SEAL)
    except OSError as error:
        os.close(fd)
        raise ChannelBroken(f"no memory for a message of {size} bytes: {error.strerror}; nothing was sent") from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_sealed(fd: int, size: int, limit: int) -> memoryview:
    """Map a memory file that came from elsewhere; writable, and what is written is seen by nobody else.

    Raises:
        ChannelBroken: it is not what a sender of ours would send, or the system refused.
    """
    try:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode):
            raise ChannelBroken("a large message came as something that is no memory file; it was dropped")
        if not 0 < size == state.st_size <= limit:
            raise ChannelBroken(
                f"a large message claims {size} bytes, its file has {state.st_size}, max_message is {limit}; it was dropped"
            )
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        if seals & SEALS != SEALS:
            raise ChannelBroken("a large message came in a file that can still be changed (not sealed); it was dropped")
        # Private and writable: arrays over this memory can be changed, which changes nothing for anybody else.
        return map_private(fd, size)
    except (OSError, ValueError) as error:
        if isinstance(error, ChannelBroken):
            raise
        raise ChannelBroken(f"a large message of {size} bytes cannot be mapped: {error}; it was dropped") from error


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
