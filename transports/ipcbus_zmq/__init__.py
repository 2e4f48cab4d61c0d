"""zmq: channels over ZeroMQ: ``zmq:`` through a private directory of this machine, ``zmq+tcp://host:port`` over TCP."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ipcbus.errors import ConfigError, InsecureConfiguration
from ipcbus.plumbing import forks, rundir
from ipcbus.transport import Capabilities, ChannelSpec, Guarantees, Handle, NoOptions, Transport
from ipcbus_zmq._place import PrivatePlace, TcpPlace, make_private
from ipcbus_zmq._receiver import Receiver
from ipcbus_zmq._sender import Sender

__all__ = ["Zmq", "ZmqHandle", "ZmqTcp", "ZmqTcpHandle"]

_ADDRESS = re.compile(r"//(?:\[(?P<v6>[0-9A-Fa-f:.%\w-]+)\]|(?P<host>[^/:\[\]]+)):(?P<port>[^/:]+)/?")
_EXAMPLE = "write zmq+tcp://127.0.0.1:5555"
_WILDCARDS = ("*", "0.0.0.0", "::", "0", "")  # noqa: S104  refused, not used


class Zmq(Transport):
    """``zmq:``."""

    scheme = "zmq"
    capabilities = Capabilities(capacity_scope="sender")
    guarantees = Guarantees(
        delivery="at-most-once",
        order="first in, first out, per open sending end",
        accepted="in the sender's memory, on their way to the receiver's",
        sender_dies="messages still in its memory; none that the receiver's process has",
        receiver_dies="messages in its memory or on their way to it, up to capacity from each sender",
        home_dies=(
            "nothing while anybody has an end open, unless it was a sender or the receiver; else the channel, with what "
            "senders left in its directory"
        ),
        machine_dies="everything",
    )
    options = NoOptions

    @classmethod
    def create(cls, spec: ChannelSpec, options: object) -> ZmqHandle:  # noqa: ARG003  there are none
        """Make a private directory for the channel."""
        if spec.address:
            raise ConfigError(f"zmq: takes no address, not {spec.address!r}; over TCP, {_EXAMPLE}")
        return ZmqHandle.make(spec)


class ZmqHandle(Handle):
    """Names a private directory.

    Args:
        directory: its path.
        capacity: messages each sending process may have on their way.
        max_message: bytes.
    """

    __slots__ = ("_capacity", "_directory", "_forks", "_max_message")

    def __init__(self, directory: str, capacity: int, max_message: int) -> None:
        self._directory = directory
        self._capacity = capacity
        self._max_message = max_message
        self._forks: int | None = None
        """How often this process had forked when it made the channel, while no other process can know of it; else None."""

    @classmethod
    def make(cls, spec: ChannelSpec) -> ZmqHandle:
        """Make the channel; raises ``ChannelBroken``."""
        handle = cls(str(make_private()), spec.capacity, spec.max_message)
        handle._forks = forks.count()
        return handle

    def open_sender(self) -> Sender:
        """Open a sending end; it connects as soon as there is a receiver."""
        return Sender(PrivatePlace(Path(self._directory)), self._capacity)

    def open_receiver(self) -> Receiver:
        """Become the receiver."""
        return Receiver(PrivatePlace(Path(self._directory)), self._capacity, self._max_message)

    def release(self) -> None:
        """Remove the directory if it can be of no use to anybody: the channel never left the process that made it."""
        if self._forks is not None and self._forks == forks.count():
            self.destroy()

    def entrust(self, pid: int) -> None:
        """Keep the directory until another process has ended."""
        rundir.entrust(Path(self._directory), pid)

    def destroy(self) -> None:
        """Remove the directory; ends that are connected go on."""
        rundir.remove(Path(self._directory))

    def __reduce__(self) -> tuple[Any, ...]:
        self._forks = None
        return ZmqHandle, (self._directory, self._capacity, self._max_message)


class ZmqTcp(Transport):
    """``zmq+tcp://host:port``."""

    scheme = "zmq+tcp"
    capabilities = Capabilities(crosses_hosts=True, addressable=True, capacity_scope="sender")
    guarantees = Guarantees(
        delivery="at-most-once",
        order="first in, first out, per open sending end",
        accepted="in the sender's memory, on their way to the receiver's",
        sender_dies="messages still in its memory; none that the receiver's process has",
        receiver_dies="messages in its memory or on their way to it, up to capacity from each sender",
        home_dies="nothing, unless it was a sender or the receiver",
        machine_dies="everything on it; a broken connection loses what was on its way",
    )
    options = NoOptions

    @classmethod
    def create(cls, spec: ChannelSpec, options: object) -> ZmqTcpHandle:  # noqa: ARG003  there are none
        """Check the address; nothing is bound before a process receives."""
        host, port = _parse(spec.address)
        return ZmqTcpHandle(host, port, spec.capacity, spec.max_message)


class ZmqTcpHandle(Handle):
    """Names a TCP address.

    Args:
        host: a name or an address of the receiver's machine.
        port: 1 to 65535.
        capacity: messages each sending process may have on their way.
        max_message: bytes.
    """

    __slots__ = ("_capacity", "_host", "_max_message", "_port", "_shut")

    def __init__(self, host: str, port: int, capacity: int, max_message: int) -> None:
        self._host = host
        self._port = port
        self._capacity = capacity
        self._max_message = max_message
        self._shut = bytearray(1)
        """What both ends of this process know of a shutdown."""

    def open_sender(self) -> Sender:
        """Open a sending end; it connects as soon as there is a receiver."""
        return Sender(TcpPlace(self._host, self._port, self._shut), self._capacity)

    def open_receiver(self) -> Receiver:
        """Bind the address."""
        return Receiver(TcpPlace(self._host, self._port, self._shut), self._capacity, self._max_message)

    def release(self) -> None:
        """Do nothing: a handle is only a name."""

    def destroy(self) -> None:
        """Do nothing: the address goes with the receiver."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ZmqTcpHandle, (self._host, self._port, self._capacity, self._max_message)


def _parse(address: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ConfigError(f"'zmq+tcp:{address}' names no host and port; {_EXAMPLE}")
    host, port = match["v6"] or match["host"], match["port"]
    if host in _WILDCARDS:
        raise InsecureConfiguration(
            f"'zmq+tcp:{address}' would listen in every network this machine is in; name the one address that is meant"
        )
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ConfigError(
            f"'zmq+tcp:{address}': the port must be 1 to 65535, not {port!r}: senders find the receiver by it, "
            "so the system cannot pick one"
        )
    return host, int(port)
