"""This process's way to directories: connections to those of others, and one of its own where there is no bus."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ipcbus.directory import wire
from ipcbus.directory.server import SOCKET, Directory
from ipcbus.directory.wire import UNASKED, Cut, Datagram, Operation, Status
from ipcbus.errors import ChannelBroken, InsecureConfiguration, IpcbusError
from ipcbus.plumbing import forks, rundir
from ipcbus.plumbing.clock import Deadline

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ADDRESS",
    "Found",
    "Place",
    "attach",
    "attached",
    "call",
    "connect",
    "current",
    "drop",
    "get",
    "keep",
    "keeper",
    "keeps",
    "own",
    "part",
    "place",
    "put",
    "settle",
    "take",
    "unkeep",
    "where",
]

ADDRESS = "IPCBUS_ADDRESS"
"""The environment variable that says where the bus's home is: its private directory."""
PATIENCE = 5.0
"""Seconds that a directory has for an answer."""
_CREDENTIALS = struct.Struct("iII")
_TIMEVAL = struct.Struct("ll")


@dataclass(frozen=True, slots=True)
class Found:
    """What a directory handed over; the descriptors are the caller's."""

    content: bytes
    fds: list[int]
    guest: int = 0
    """This process's number at that directory; 0 at one of its own."""


class Place:
    """A directory of another process as seen from here: its address, and the connection to it, made when it is needed.

    Attributes:
        pid: the process that keeps it, once there was a connection.
        generation: grows with every connection: what was put before may be gone with the home that it was put at.
        session: the generation of the connection that there is; 0 without one.
    """

    def __init__(self, address: str, patience: float | None = None) -> None:
        self.address, self._patience = address, patience  # None: PATIENCE
        self.pid = self.generation = self.session = 0
        self._sock: socket.socket | None = None
        self._token = 0
        self._lock = threading.Lock()
        self._untold: set[bytes] = set()
        """Keys whose ``DROP`` could not be sent at once."""

    def ask(self, operation: Operation, key: bytes, content: bytes = b"", fds: Sequence[int] = ()) -> Datagram:
        """Send a request and return the answer, whose descriptors are the caller's.

        Raises:
            ChannelBroken: nobody answers there, or nothing is under the key.
            InsecureConfiguration: the address is not private.
            IpcbusError: what the other side says.
        """
        deadline = Deadline(self._patience or PATIENCE)
        with self._lock:
            tries = 1 if self._sock is None else 2  # a new home may have taken over since the connection was made
            while True:
                tries -= 1
                try:
                    answer = self._exchange(operation, key, content, fds, deadline)
                    break
                except _Gone as error:
                    if not tries:
                        raise ChannelBroken(str(error)) from error.__cause__
            # What was dropped meanwhile was what this process had of it before.
            self._untold.discard(key)
        self._tell()
        if answer.kind == Status.REFUSED:
            answer.close()
            raise _rebuilt(answer)
        if answer.kind == Status.UNKNOWN:
            raise ChannelBroken(
                f"process {self.pid}, the home at {self.address}, does not know this channel any more: nobody had it open "
                "for long, or its home is a new one"
            )
        return answer

    def drop(self, key: bytes) -> None:
        """Say that this process does not use a key any more, if there is a connection.

        Takes no lock that another may have: finalizers call it, at any moment, also inside ``ask``. Then ``ask`` says it.
        """
        self._untold.add(key)
        self._tell()

    def _tell(self) -> None:
        while self._untold and self._lock.acquire(blocking=False):
            try:
                sock = self._sock
                if sock is None:
                    self._untold.clear()
                    return
                sock.settimeout(0)
                while self._untold:
                    key = self._untold.pop()
                    try:
                        wire.send(sock, Datagram(Operation.DROP, UNASKED, key))
                    except BlockingIOError:
                        self._untold.add(key)  # the home does not listen just now; the next request comes after it
                        return
                    except OSError:
                        return  # it has ended, and will not be told
            finally:
                self._lock.release()

    def greet(self) -> None:
        """Make the connection if there is none; raises what ``ask`` raises."""
        self.ask(Operation.HELLO, b"")

    def fileno(self) -> int:
        """Return the connection's descriptor, which polls readable when the home is gone; -1 without one."""
        with self._lock:
            return -1 if self._sock is None else self._sock.fileno()

    def alive(self) -> bool:
        """Tell whether there is a connection and the home at its other end is the one that it was made to."""
        with self._lock:
            if self._sock is None:
                return False
            try:
                self._sock.settimeout(0)
                self._sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return True
            except OSError:
                pass  # as good as the end of it, which is all that can come unasked
            self._disconnect()
            return False

    def close(self) -> None:
        """End the connection. Idempotent; the next request makes another."""
        with self._lock:
            self._disconnect()

    def after_fork(self) -> None:
        """Let go of the parent's connection."""
        self._lock = threading.Lock()
        self._untold = set()
        self._disconnect()

    def _exchange(self, operation: Operation, key: bytes, content: bytes, fds: Sequence[int], deadline: Deadline) -> Datagram:
        try:
            return self._round_trip(operation, key, content, fds, deadline)
        except BaseException as error:
            # Also after an interruption: an answer that comes later must not be taken for that to another question.
            self._disconnect()
            if isinstance(error, IpcbusError):
                raise
            if isinstance(error, (EOFError, BrokenPipeError, ConnectionResetError)):
                raise _Gone(f"the process that keeps {self.address} (pid {self.pid}) has ended; {_ADVICE}") from error
            if isinstance(error, TimeoutError):
                raise ChannelBroken(f"process {self.pid} at {self.address} did not answer within {PATIENCE:g} s") from error
            if isinstance(error, Cut):
                raise ChannelBroken(str(error)) from error
            if isinstance(error, ValueError):
                raise ChannelBroken(f"what process {self.pid} at {self.address} answers makes no sense: {error}") from error
            if isinstance(error, OSError):
                raise ChannelBroken(f"{self.address} cannot be asked: {error.strerror}; see 'ulimit -n'") from error
            raise

    def _round_trip(self, operation: Operation, key: bytes, content: bytes, fds: Sequence[int], deadline: Deadline) -> Datagram:
        sock = self._connected(deadline)
        self._token = self._token % 0xFFFFFFFF + 1
        sock.settimeout(_positive(deadline))
        try:
            wire.send(sock, Datagram(operation, self._token, key, content, list(fds)))
            sock.settimeout(_positive(deadline))
            answer = wire.receive(sock)
        except (BrokenPipeError, ConnectionResetError):
            sock.settimeout(_positive(deadline))
            answer = wire.receive(sock)  # it hung up, and perhaps it said why
        if answer is None:
            raise EOFError
        if answer.token == UNASKED:
            answer.close()
            raise _rebuilt(answer)
        if answer.token != self._token:
            answer.close()
            raise ValueError(f"an answer to question {answer.token} came for question {self._token}")
        return answer

    def _connected(self, deadline: Deadline) -> socket.socket:
        if self._sock is None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                self.pid = connect(sock, self.address, deadline)
            except BaseException:
                sock.close()
                raise
            self._sock = sock
            self.generation = self.session = self.generation + 1
        return self._sock

    def _disconnect(self) -> None:
        sock, self._sock, self.session = self._sock, None, 0
        self._untold.clear()
        if sock is not None:
            sock.close()


def connect(sock: socket.socket, address: str, deadline: Deadline) -> int:
    """Connect and return the pid of the process at the other end, which is one of this user's."""
    path = rundir.socket_path(Path(address), SOCKET)
    try:
        rundir.check(Path(address))
    except ChannelBroken as error:
        raise ChannelBroken(
            f"nobody answers at {address} ({getattr(error.__cause__, 'strerror', error)}); {_ADVICE}"
        ) from error
    try:
        sock.settimeout(None)
        while True:
            # The kernel's own timeout: a socket that Python times does not wait for its turn where many connect at once.
            left = _positive(deadline)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(left), int(left % 1 * 1e6)))
            sock.connect(str(path))
            with contextlib.suppress(OSError):
                sock.getpeername()
                break  # else a signal ended the call, which Python takes for success
        pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    except BlockingIOError as error:
        raise ChannelBroken(f"the home at {address} let nobody in for {PATIENCE:g} s: it hangs, or is stopped") from error
    except OSError as error:
        raise ChannelBroken(f"nobody answers at {address} ({error.strerror or error}); {_ADVICE}") from error
    if uid != os.geteuid():
        raise InsecureConfiguration(f"{address} is kept by process {pid} of user {uid}, not by one of yours")
    return int(pid)


def _positive(deadline: Deadline) -> float:
    """Return what is left, but never 0, which sockets take for *do not wait*."""
    return max(deadline.remaining() or 0.0, 0.001)


def _rebuilt(answer: Datagram) -> IpcbusError:
    """Return the error that the other side sent."""
    error = pickle.loads(answer.content)
    return error if isinstance(error, IpcbusError) else ChannelBroken(f"the other side failed: {error!r}")


class _Gone(Exception):
    """The home ended while there was a connection to it."""


_ADVICE = "channels that are open go on; start the process again that keeps the bus"


class _Here:
    """What this process has: one for each process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.places: dict[str, Place] = {}
        self.kept: dict[str, Directory] = {}
        """Directories that this process keeps, by address."""
        self.own: Directory | None = None
        self.attached: str | None = None


_here = _Here()
_hooked = False


def keep(directory: Directory) -> None:
    """Note that this process keeps a directory: it needs no connection to it."""
    _hook()
    with _here.lock:
        _here.kept[str(directory.home)] = directory


def unkeep(directory: Directory) -> None:
    """Forget a directory that this process closes."""
    with _here.lock:
        _here.kept.pop(str(directory.home), None)


def attach(address: str | None) -> None:
    """Say where what this process shares is left from now on; None is with itself."""
    _hook()
    _here.attached = address


def keeps(address: str) -> bool:
    """Tell whether this process itself keeps the directory at an address."""
    return address in _here.kept


def attached() -> str | None:
    """Return where the home of this process's bus is, None without a bus."""
    return _here.attached or os.environ.get(ADDRESS) or None


def where() -> str:
    """Return the address at which this process leaves what it shares: its bus's home if that answers, else its own.

    Raises:
        ChannelBroken: the system refused.
    """
    address = attached()
    if address is not None:
        if current(address) >= 0:
            return address
        try:
            place(address).greet()
        except ChannelBroken:
            pass  # the home has ended; what this process serves itself can be had while it lives
        else:
            return address
    return str(own().home)


def own() -> Directory:
    """Return this process's own directory, made at the first call; raises ``ChannelBroken``."""
    _hook()
    with _here.lock:
        if _here.own is None:
            home = rundir.create()
            try:
                _here.own = Directory(home)
            except BaseException:
                rundir.remove(home)
                raise
            keep(_here.own)
        return _here.own


def place(address: str) -> Place:
    """Return this process's view of a directory that another process keeps."""
    _hook()
    with _here.lock:
        found = _here.places.get(address)
        if found is None:
            found = _here.places[address] = Place(address)
        return found


def part(address: str) -> None:
    """End the connection to a directory that nothing is wanted of any more."""
    with _here.lock:
        there = _here.places.pop(address, None)
    if there is not None:
        there.close()


def put(address: str, key: bytes, content: bytes, fds: Sequence[int], *, held: bool = True) -> int:
    """Leave something at an address.

    Args:
        address: where.
        key: under which it can be had.
        content: bytes.
        fds: descriptors; duplicated, and still the caller's.
        held: whether this process goes on to use it, until ``drop``.

    Returns:
        What ``current`` must say for it to be there still.

    Raises:
        ChannelBroken: nobody is there.
    """
    kept = _here.kept.get(address)
    if kept is not None:
        kept.put(key, content, fds, held=held)
        return 0
    there = place(address)
    there.ask(Operation.PUT, key, content, fds).close()
    if not held:
        there.drop(key)
    return there.generation


def keeper(address: str) -> int | None:
    """Return the pid of the process that keeps the directory at an address; None if it is this one."""
    return None if address in _here.kept else place(address).pid


def current(address: str) -> int:
    """Return a number that is another when the home at an address is another, -1 when none is known to be there."""
    if address in _here.kept:
        return 0
    there = _here.places.get(address)
    return there.generation if there is not None and there.alive() else -1


def get(address: str, key: bytes) -> Found:
    """Return what is under a key; this process counts as its user until ``drop``. Raises ``ChannelBroken`` as ``take`` does."""
    return _fetch(address, Operation.GET, key)


def take(address: str, key: bytes) -> Found:
    """Return what is under a key and have it forgotten there; raises ``ChannelBroken``."""
    return _fetch(address, Operation.TAKE, key)


def drop(address: str, key: bytes) -> None:
    """Say that this process does not use a key any more. Never fails, never waits."""
    kept = _here.kept.get(address)
    if kept is not None:
        kept.drop(key)
    elif (there := _here.places.get(address)) is not None:
        there.drop(key)


def call(address: str, name: str, content: bytes = b"") -> Found:
    """Call a function of another process's directory by its name.

    Raises:
        ChannelBroken: nobody is there, or nobody who knows the name.
        IpcbusError: what the function raised.
    """
    answer = place(address).ask(Operation.CALL, name.encode(), content)
    return Found(answer.content, answer.fds)


def settle() -> None:
    """End connections, and this process's own directory: what it shared without a bus cannot be had any more."""
    with _here.lock:
        places, _here.places = _here.places, {}
        mine, _here.own = _here.own, None
        if mine is not None:
            unkeep(mine)
    for there in places.values():
        there.close()
    if mine is not None:
        mine.close()
        rundir.remove(mine.home)


def _fetch(address: str, operation: Operation, key: bytes) -> Found:
    kept = _here.kept.get(address)
    if kept is None:
        answer = place(address).ask(operation, key)
        return Found(answer.content[8:], answer.fds, int.from_bytes(answer.content[:8], "little"))
    found = kept.look(key)
    if found is None:
        raise ChannelBroken("this process was asked to share this channel too long ago and does not keep it any more")
    if operation is Operation.TAKE:
        kept.forget(key)
    return Found(*found)


def _hook() -> None:
    global _hooked  # noqa: PLW0603  hooks of the interpreter are per process, and so is this
    if not _hooked:
        _hooked = True
        forks.in_child(_after_fork)
        forks.at_exit(settle, -90)  # late: children that are joined before may still ask


def _after_fork() -> None:
    global _here
    before, _here = _here, _Here()
    # A child of a bus's home leaves things at its parent's.
    _here.attached = before.attached
    for kept in before.kept.values():
        kept.abandon()
    for there in before.places.values():
        there.after_fork()
