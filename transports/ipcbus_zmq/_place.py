"""Where the receiver of a channel listens, and what both ends share there: a private directory, or a TCP address."""

from __future__ import annotations

import errno
import mmap
import os
import socket
from collections import deque
from itertools import chain, repeat
from typing import TYPE_CHECKING, Protocol, TypeAlias

import zmq

from ipcbus.errors import ChannelBroken, ChannelBusy, InsecureConfiguration
from ipcbus.plumbing import rundir
from ipcbus.plumbing.claim import Claim, holder
from ipcbus.plumbing.fds import refused
from ipcbus.plumbing.finalizers import finalizer
from ipcbus_zmq import _parking as parking
from ipcbus_zmq._post import close_inherited

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ipcbus.transport import Frame

__all__ = ["Place", "PrivatePlace", "TcpPlace", "make_private"]

_STATE = "state"
_SOCKET = "socket"
_STATE_SIZE = 4096
_RECEIVER = 1
"""The byte of the state file that the receiver claims; byte 0 is the flag that says the channel was shut down."""
_BACKLOG = 1024
_HEARTBEAT: Mapping[int, int] = {zmq.HEARTBEAT_IVL: 2000, zmq.HEARTBEAT_TIMEOUT: 6000}
"""Milliseconds: a machine that vanishes says no goodbye, so each side asks whether the other is there."""
_REMEDIES = {
    errno.EADDRNOTAVAIL: "the receiver must run where this address belongs",
    errno.EACCES: "this user may not use the port; take one from 1024 on",
}
"""What to do where an address cannot be listened at."""


Shut: TypeAlias = bytearray | mmap.mmap


class Place(Protocol):
    """One open end's share of a place."""

    endpoint: str
    """Its name in ZeroMQ's words."""
    shut: Shut
    """Item 0 is 1 once the channel was shut down, as far as is known here."""
    eager: bool
    """Whether only messages tell of a shutdown by another process, so that one has to look for them."""
    settling: float
    """Seconds after which all senders that look for a receiver here have found it, and what they have sent has arrived."""
    connect_options: Mapping[int, int]
    """Socket options of a sender."""
    bind_options: Mapping[int, int]
    """Socket options of a receiver."""

    def listen(self) -> int:
        """Become the receiver and return a listening socket, which belongs to this place until it is ``delivered``.

        Raises:
            ChannelBusy: another process is.
            ChannelBroken: the system refused.
        """

    def delivered(self) -> None:
        """Note that the listening socket is zmq's now."""

    def welcome(self, ready: deque[Frame]) -> None:
        """Add the messages that senders left here because there was no receiver to others; they are not kept any longer."""

    def deserted(self) -> bool:
        """Tell whether it is certain that there is no receiver."""

    def removed(self) -> bool:
        """Tell whether nobody can become the receiver any more."""

    def receiver(self) -> int | None:
        """Return the pid of the receiver, None if it is none of this machine's or cannot be told."""

    parks: bool
    """Whether messages can be left here."""

    def park(self, frames: list[Frame], end: Callable[[], bool]) -> bool:
        """Leave messages for a later receiver, unless there is one.

        Args:
            frames: the messages; emptied in the very step in which they are left here.
            end: makes sure that they do not reach a receiver otherwise; says false if they may.

        Returns:
            Whether they were left here.
        """

    def release(self) -> None:
        """Free what this end holds, and stop being the receiver. Idempotent."""

    def abandon(self) -> None:
        """Free a forked child's copies of what this end holds."""


def make_private() -> Path:
    """Make the directory of a new channel; raises ``ChannelBroken``."""
    directory = rundir.create()
    try:
        rundir.socket_path(directory, _SOCKET)
        fd = os.open(directory / _STATE, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _STATE_SIZE)  # a full disk shows here, and not as a SIGBUS later
        finally:
            os.close(fd)
    except OSError as error:
        rundir.remove(directory)
        if isinstance(error, ChannelBroken):
            raise
        raise ChannelBroken(f"{directory} cannot be filled: {error.strerror}; free space there") from error
    return directory


class PrivatePlace:
    """A private directory with a socket and a state file.

    Args:
        directory: made by ``make_private``.

    Raises:
        ChannelBroken: it is gone.
        InsecureConfiguration: it is not private any more.
    """

    eager = False
    parks = True
    settling = 0.25
    connect_options: Mapping[int, int] = {zmq.RECONNECT_IVL: 20}
    bind_options: Mapping[int, int] = {}

    def __init__(self, directory: Path) -> None:
        self._path = rundir.socket_path(directory, _SOCKET)
        self.endpoint = f"ipc://{self._path}"
        self._directory = directory
        self._claim: Claim | None = None
        self._receives = False
        self._listener: socket.socket | None = None
        self._files: list[Path] = []
        self._parked: deque[Frame] = deque()
        self._memory: mmap.mmap | None = None
        self._hold = rundir.hold(directory)
        try:
            fd = self._open_state()
            try:
                self._memory = mmap.mmap(fd, _STATE_SIZE)
            finally:
                os.close(fd)
        except OSError as error:
            self._free()
            raise refused(f"{directory / _STATE} cannot be used", error) from error
        self.shut: Shut = self._memory

    def listen(self) -> int:
        """Claim the receiver's part, then bind: a second bind of the path would steal it without a word."""
        fd = self._open_state()
        try:
            self._claim = Claim(fd, _RECEIVER)
            owner = self._claim.take()
            if owner is None:
                self._receives = True
                with parking.Door(fd, exclusive=True):
                    found = parking.parked(self._directory)
                    self._files, self._parked = list(found), deque(chain.from_iterable(found.values()))
                    return self._bind()
        except OSError as error:
            raise self._unusable(error) from error
        finally:
            os.close(fd)
        self._claim.close()
        self._claim = None
        raise ChannelBusy(
            f"process {owner or 'unknown'} receives from {self.endpoint}; a zmq: channel has one receiver; several can share "
            "the messages of another transport, such as unix:, with receivers='many'",
            owner or None,
        )

    def _bind(self) -> int:
        rundir.check(self._directory)
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        self._path.chmod(0o600)
        self._listener.listen(_BACKLOG)
        return self._listener.fileno()

    def delivered(self) -> None:
        """Let go of the socket."""
        if self._listener is not None:
            self._listener.detach()
            self._listener = None

    def welcome(self, ready: deque[Frame]) -> None:
        """Take what was parked, in order. What is interrupted is to be called again."""
        if self._parked:
            parking.unpark(self._files)
            # In one step in C: a signal handler that raises cannot come in between and lose messages, or double them.
            ready.extend(map(deque.popleft, repeat(self._parked, len(self._parked))))

    def park(self, frames: list[Frame], end: Callable[[], bool]) -> bool:
        """Write the messages into the directory while no receiver can come in."""
        try:
            fd = self._open_state()
        except OSError:
            return False
        file: Path | None = None
        try:
            if holder(fd, _RECEIVER) is not None:
                return False
            # Written before the door is closed: a process that is stopped meanwhile keeps no receiver out.
            file = parking.write(self._directory, frames)
            with parking.Door(fd, exclusive=False):
                if holder(fd, _RECEIVER) is not None or not end():
                    return False
                parking.publish(file, frames)
                file = None
        except OSError:
            return False
        finally:
            if file is not None:
                file.unlink(missing_ok=True)
            os.close(fd)
        return True

    def deserted(self) -> bool:
        """Ask who has the claim: the kernel took it from a dead receiver, even if zmq has not noticed yet."""
        return self.receiver(unknown=0) is None

    def removed(self) -> bool:
        """Tell whether the channel was destroyed."""
        return not (self._directory / _STATE).exists()

    def receiver(self, unknown: int | None = None) -> int | None:
        """Return who has the claim."""
        try:
            fd = self._open_state()
        except OSError:
            return unknown
        try:
            return holder(fd, _RECEIVER)
        finally:
            os.close(fd)

    def _unusable(self, error: OSError) -> Exception:
        if isinstance(error, ChannelBroken):
            return error
        return refused(f"{self._directory} cannot be used", error)

    def _open_state(self) -> int:
        return os.open(self._directory / _STATE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def release(self) -> None:
        """Free the descriptors and the claim."""
        if self._receives:
            self._receives = False
            self._path.unlink(missing_ok=True)
        self._free()

    def abandon(self) -> None:
        """Free the inherited copies; the claim stays the parent's."""
        close_inherited(str(self._path))
        self._free()

    def _free(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._claim is not None:
            self._claim.close()
            self._claim = None
        hold, self._hold = self._hold, -1
        if hold >= 0:
            os.close(hold)
        if self._memory is not None:
            self._memory.close()

    @finalizer
    def __del__(self) -> None:
        # An end that was interrupted while it opened has nobody who would release it.
        if hasattr(self, "_hold"):
            self._free()


class TcpPlace:
    """A TCP address.

    Args:
        host: a name or an address of the receiver's machine.
        port: 1 to 65535.
        shut: what the ends of this process know of a shutdown.

    Raises:
        ChannelBroken: the name has no address.
        InsecureConfiguration: it is a wildcard.
    """

    eager = True
    parks = False
    settling = 0.6

    def __init__(self, host: str, port: int, shut: bytearray) -> None:
        self.shut: Shut = shut
        # As bytes, where that is the same: of a text, Python imports a codec in here, and a signal handler that raises in
        # the middle of an import may leave its lock taken, for all threads and for ever.
        known = host.encode() if host.isascii() else host
        try:
            family, _, _, _, address = socket.getaddrinfo(known, port, type=socket.SOCK_STREAM)[0]
        except OSError as error:
            raise ChannelBroken(f"{host!r} has no address: {error.strerror}") from error
        except UnicodeError as error:
            raise ChannelBroken(f"{host!r} has no address: no name of a machine is written like this") from error
        self._family, self._address = family, address
        self._listener: socket.socket | None = None
        number = str(address[0])
        if number in ("0.0.0.0", "::"):  # noqa: S104  refused, not used
            raise InsecureConfiguration(f"{host!r} means every network this machine is in; name the one address that is meant")
        v6 = family == socket.AF_INET6
        scope = f"%{int(address[-1])}" if v6 and address[-1] else ""  # of a link-local address: the network it is in
        self.endpoint = f"tcp://[{number}{scope}]:{port}" if v6 else f"tcp://{number}:{port}"
        self.bind_options: Mapping[int, int] = {**_HEARTBEAT, zmq.IPV6: int(v6)}
        self.connect_options: Mapping[int, int] = {**self.bind_options, zmq.RECONNECT_IVL: 50, zmq.RECONNECT_IVL_MAX: 250}

    def listen(self) -> int:
        """Bind; only one process can."""
        try:
            listener = self._listener = socket.socket(self._family, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a killed receiver linger
            listener.bind(self._address)
            listener.listen(_BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ChannelBusy(f"another process receives at {self.endpoint} or uses the port otherwise") from error
            raise refused(f"cannot listen at {self.endpoint}", error, _REMEDIES.get(error.errno or 0, "")) from error
        return listener.fileno()

    def delivered(self) -> None:
        """Let go of the socket."""
        if self._listener is not None:
            self._listener.detach()
            self._listener = None

    def welcome(self, ready: deque[Frame]) -> None:
        """Do nothing: there is no place for messages without a receiver."""

    def deserted(self) -> bool:
        """Say no: an address does not tell."""
        return False

    def removed(self) -> bool:
        """Say no: an address stays."""
        return False

    def receiver(self) -> None:
        """Return None: it may be on another machine."""
        return

    def park(self, frames: list[Frame], end: Callable[[], bool]) -> bool:  # noqa: ARG002  nowhere to put them
        """Say that nothing can be left here."""
        return False

    def release(self) -> None:
        """Close the socket if zmq did not get it."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def abandon(self) -> None:
        """Close the inherited copies of the sockets."""
        close_inherited(self._address)
        self.release()
