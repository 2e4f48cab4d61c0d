"""What is said to the directory of another process without waiting for it, over a connection that serves for nothing else."""

from __future__ import annotations

import contextlib
import socket
import sys

from ipcbus.directory import wire
from ipcbus.directory.place import connect
from ipcbus.directory.wire import UNASKED, Datagram, Operation
from ipcbus.errors import ChannelBroken, IpcbusError
from ipcbus.plumbing.clock import Deadline

__all__ = ["knock", "leave", "leave_finally"]


def leave(address: str, name: str, content: bytes = b"") -> None:
    """Call a function of another process's directory and wait for nothing: one that is stopped calls it when it goes on.

    Raises:
        ChannelBroken: nobody is there, or too many wait to be let in.
        InsecureConfiguration: the address is not private.
    """
    _say(address, Datagram(Operation.CALL, UNASKED, name.encode(), content)).close()


def leave_finally(address: str, name: str, content: bytes) -> None:
    """Do as ``leave`` in a finalizer, which runs anywhere: take no lock and never fail.

    What cannot be said is noticed at the end of this process; while that ends, nothing is said.
    """
    if not sys.is_finalizing():
        with contextlib.suppress(IpcbusError):
            leave(address, name, content)


def knock(address: str) -> socket.socket:
    """Greet another process's directory and wait for nothing; raises what ``leave`` raises.

    Returns:
        The connection, which is the caller's. It polls readable once the directory has answered, or has ended.
    """
    return _say(address, Datagram(Operation.HELLO, 1))


def _say(address: str, what: Datagram) -> socket.socket:
    """Send over a connection of its own, which is returned."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connect(sock, address, Deadline(0))
            wire.send(sock, what)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise ChannelBroken(f"{address} cannot be told anything: {error.strerror}; see 'ulimit -n'") from error
    return sock
