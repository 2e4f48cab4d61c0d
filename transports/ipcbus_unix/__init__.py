"""unix: a channel over one ``AF_UNIX`` socket pair of type ``SOCK_SEQPACKET`` that all its processes hold both ends of.

Each message is one datagram, which the kernel queues and hands out whole. Any number of processes send and receive with
no lock between them, so killing one harms nobody; large messages travel as sealed memory files that are passed along.
See ``docs/transports/unix.md``.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from typing import Any

from ipcbus.errors import ChannelClosed, ChannelError, ConfigError
from ipcbus.plumbing.fds import TravellingFd, refused
from ipcbus.plumbing.memfiles import KEPT
from ipcbus.plumbing.state import SharedState
from ipcbus.transport import Capabilities, ChannelSpec, Guarantees, Handle, Transport
from ipcbus_unix._board import Board
from ipcbus_unix._receiver import UnixReceiver
from ipcbus_unix._sender import UnixSender, is_shut

__all__ = ["Unix", "UnixHandle", "UnixOptions"]


@dataclass(frozen=True, slots=True)
class UnixOptions:
    """What may follow ``unix:?``."""

    socket_bytes: int = 4 * 1024 * 1024
    """Bytes of kernel memory that waiting messages may take up, with some 700 bytes of bookkeeping for each; Linux
    grants up to twice what /proc/sys/net/core/wmem_max says."""
    large: int = 128 * 1024
    """Bytes above which a message travels in a memory file that the receiver maps, instead of through the socket."""
    kept_bytes: int = KEPT
    """Bytes of memory files that a sending process keeps for its next large messages; with 0 each message gets a new one,
    whose pages cost more than the copy into them."""


class Unix(Transport):
    """``unix:``."""

    scheme = "unix"
    capabilities = Capabilities(many_receivers=True, drops_old=True, capacity_scope="sender")
    guarantees = Guarantees(
        delivery="at-most-once",
        order="first in, first out, for each sending process",
        accepted="in the kernel: in the channel's socket, or in a memory file that waits there",
        sender_dies="nothing that was accepted; the message being sent is lost whole",
        receiver_dies="the one message it was taking",
        home_dies="nothing",
        machine_dies="everything",
    )
    options = UnixOptions
    preference = 20

    @classmethod
    def create(cls, spec: ChannelSpec, options: object) -> UnixHandle:
        """Make a channel that lives as long as one process has it."""
        assert isinstance(options, UnixOptions)
        if spec.address:
            raise ConfigError(f"unix: takes no address, but was given {spec.address!r}; options follow a '?'")
        if options.socket_bytes < 8192 or not 1024 <= options.large <= 1 << 20 or options.kept_bytes < 0:
            raise ConfigError("unix: socket_bytes must be at least 8192, large from 1024 to 1 MiB, and kept_bytes 0 or more")
        try:
            inlet, outlet = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                granted = _grow(inlet, options.socket_bytes)
                # What fills the socket alone would have to wait for it to be empty.
                options = replace(options, large=min(options.large, granted // 4))
                return UnixHandle(spec, options, SharedState(), Board(), inlet, outlet)
            except BaseException:
                inlet.close()
                outlet.close()
                raise
        except OSError as error:
            raise refused("a unix: channel cannot be made", error) from error


class UnixHandle(Handle):
    """What all processes of a channel share.

    Args:
        spec: the channel.
        options: with ``large`` as it holds for the socket that the system granted.
        state: who receives.
        board: who sends, and what was taken.
        inlet: the end of the socket pair that is sent into.
        outlet: the end that is received from.

    Attributes:
        inline: bytes of the largest message that comes through the socket itself.
        kept_bytes: as the options say.
    """

    __slots__ = ("_options", "_spec", "board", "inlet", "inline", "kept_bytes", "outlet", "state")

    def __init__(
        self,
        spec: ChannelSpec,
        options: UnixOptions,
        state: SharedState,
        board: Board,
        inlet: socket.socket | TravellingFd,
        outlet: socket.socket | TravellingFd,
    ) -> None:
        self._spec = spec
        self._options = options
        self.inline = min(options.large, spec.max_message)
        self.kept_bytes = options.kept_bytes
        self.state = state
        self.board = board
        self.inlet, self.outlet = _adopt(inlet), _adopt(outlet)

    def open_sender(self) -> UnixSender:
        """Open a sending end."""
        if is_shut(self.inlet):
            raise ChannelClosed("the unix: channel was shut down")
        try:
            return UnixSender(self, self._spec)
        except ChannelError:
            raise
        except OSError as error:
            raise refused("the sending end of a unix: channel cannot be opened", error) from error

    def open_receiver(self) -> UnixReceiver:
        """Open a receiving end; the only one of all processes unless the channel has many receivers."""
        try:
            return UnixReceiver(self, self._spec)
        except ChannelError:
            raise
        except OSError as error:
            raise refused("the receiving end of a unix: channel cannot be opened", error) from error

    def shut(self) -> bool:
        """End the stream. The kernel refuses every later send and shows the end behind the last message, to everybody."""
        self.inlet.shutdown(socket.SHUT_RDWR)
        return True

    def release(self) -> None:
        """Free this process's descriptors."""
        self.inlet.close()
        self.outlet.close()
        self.state.close()
        self.board.close()

    def __reduce__(self) -> tuple[Any, ...]:
        ends = TravellingFd(self.inlet.fileno()), TravellingFd(self.outlet.fileno())
        return UnixHandle, (self._spec, self._options, self.state, self.board, *ends)


def _adopt(end: socket.socket | TravellingFd) -> socket.socket:
    if isinstance(end, TravellingFd):
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=end.detach())
    # Said in each process: a program's socket.setdefaulttimeout() would have every send poll first.
    end.setblocking(False)  # noqa: FBT003  the standard library takes it by position
    return end


def _grow(inlet: socket.socket, size: int) -> int:
    """Ask for a larger socket buffer and return its size; Linux counts twice what is asked for."""
    for option in (_SO_SNDBUFFORCE, socket.SO_SNDBUF):
        try:
            inlet.setsockopt(socket.SOL_SOCKET, option, size // 2)
            break
        except PermissionError:
            continue  # beyond the system's limit only the administrator may go
    return inlet.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


_SO_SNDBUFFORCE = 32
"""See socket(7); the standard library has no name for it."""
