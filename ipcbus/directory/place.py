"""A directory of another process as seen from here, and the connection to it."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ipcbus.directory import wire
from ipcbus.directory.server import SOCKET
from ipcbus.directory.wire import UNASKED, Cut, Datagram, Operation, Status
from ipcbus.errors import ChannelBroken, InsecureConfiguration, IpcbusError
from ipcbus.plumbing import rundir
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.locks import amid, is_mine

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PATIENCE", "Place", "connect"]

PATIENCE = 5.0
"""Seconds that a directory has for an answer."""
_CREDENTIALS = struct.Struct("iII")
_TIMEVAL = struct.Struct("ll")


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
        self._lock = threading.RLock()
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
        with self._alone():
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
        while self._untold and not is_mine(self._lock) and self._lock.acquire(blocking=False):
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
        with self._alone():
            return -1 if self._sock is None else self._sock.fileno()

    def alive(self) -> bool:
        """Tell whether there is a connection and the home at its other end is the one that it was made to."""
        with self._alone():
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
        with self._alone():
            self._disconnect()

    def after_fork(self) -> None:
        """Let go of the parent's connection."""
        self._lock = threading.RLock()
        self._untold = set()
        self._disconnect()

    def _alone(self) -> threading.RLock:
        """Return the lock, to be entered; raises ``ChannelBroken`` in a signal handler that interrupts who has it."""
        if is_mine(self._lock):
            raise ChannelBroken(amid(f"asking {self.address}"))
        return self._lock

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
    words, content = pickle.loads(answer.content)
    try:
        error = pickle.loads(content)
    except Exception:  # noqa: BLE001  a plugin's, which this process need not have: the words are what matters
        return ChannelBroken(words)
    return error if isinstance(error, IpcbusError) else ChannelBroken(words)


class _Gone(Exception):
    """The home ended while there was a connection to it."""


_ADVICE = "channels that are open go on; start the process again that keeps the bus"
