"""What a directory says to who is not let in or gets nothing."""

from __future__ import annotations

import contextlib
import logging
import pickle
import socket

from ipcbus.directory import wire
from ipcbus.directory.wire import UNASKED, Datagram, Status
from ipcbus.errors import ChannelBroken, IpcbusError

__all__ = ["FULL", "hang_up", "refusal"]

logger = logging.getLogger("ipcbus.directory")

FULL = "process {} has no descriptors left; raise its limit, see 'ulimit -n'"
"""What is said to who cannot be let in."""


def refusal(token: int, error: IpcbusError) -> Datagram:
    """Return the answer that brings an error, and beside it the words for who cannot rebuild it."""
    words = f"{type(error).__name__}: {error}"
    try:
        content = pickle.dumps(error)
    except Exception:  # whatever its attributes are: the words are what matters
        logger.exception("an error cannot travel")
        content = b""
    return Datagram(Status.REFUSED, token, content=pickle.dumps((words, content)))


def hang_up(sock: socket.socket, why: str) -> None:
    """Say why the connection is about to end, to somebody who may ask just now."""
    with contextlib.suppress(OSError):  # it does not listen, and then it need not know
        wire.send(sock, refusal(UNASKED, ChannelBroken(f"the directory hung up: {why}")), socket.MSG_DONTWAIT)
