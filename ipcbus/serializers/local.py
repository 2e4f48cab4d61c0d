"""Reducers for what belongs to this machine: descriptors of all kinds, locks; and for what should not travel at all."""

from __future__ import annotations

import fcntl
import io
import os
import stat
from functools import partial
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, NoReturn

from ipcbus.plumbing.fds import OwnedFd, TravellingFd, is_packing
from ipcbus.plumbing.unsent import note

if TYPE_CHECKING:
    import logging
    import socket
    import ssl
    from collections.abc import Mapping
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Condition, Event, SemLock
    from types import TracebackType
    from typing import Self

__all__ = ["Fd", "OpenFile"]


class Fd(OwnedFd):
    """A descriptor that can be sent. The receiver gets one of its own, for the same open file, socket or pipe.

    The process that sends it keeps its own. Without a :class:`ipcbus.Bus` it must live until the message was received.

    Args:
        fd: the descriptor; owned from here on, so closing this object closes it.
    """

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Fd({self._fd})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._fd < 0:
            raise ValueError("a closed Fd cannot travel")
        return _make_fd, (TravellingFd(self._fd),)


def _make_fd(arrived: TravellingFd) -> Fd:
    return Fd(arrived.detach())


def reduce_fd(fd: TravellingFd) -> tuple[Any, ...]:
    """Reduce a descriptor: it is left with a directory, and who receives the message takes it from there."""
    if is_packing():
        return fd.__reduce__()  # it is asked what would travel, and nobody will come for it
    from ipcbus.directory import client as directory

    address, ticket = directory.where(), os.urandom(16)
    directory.put(address, ticket, b"", [fd.fileno()], held=False)
    note(ticket, partial(directory.forget, address, ticket))
    return _take_fd, (address, ticket)


def _take_fd(address: str, ticket: bytes) -> TravellingFd:
    from ipcbus.directory import client as directory

    (fd,) = directory.take(address, ticket).fds
    return TravellingFd(fd)


def reduce_channel(channel: Any) -> Any:
    """Reduce a channel; raises ``ChannelClosed``."""
    return channel._reduce_shared()  # noqa: SLF001  this package's


def reduce_public_channel(channel: Any) -> Any:
    """Reduce a channel for a message that may leave this machine: only what other machines can open can go there."""
    if not channel.capabilities.addressable:
        raise TypeError(
            f"{channel!r} cannot leave this machine, and other machines or users can reach the channel that it is to be sent "
            "through; send it through a private one, such as pipe:, or open it with an address, such as zmq+tcp:"
        )
    return channel.__reduce__()


# ---------------------------------------------------------------------- connections and sockets


def reduce_connection(connection: Connection[Any, Any]) -> tuple[Any, ...]:
    """Reduce one end of a ``multiprocessing.Pipe``; raises ``OSError`` when it is closed."""
    fd = TravellingFd(connection.fileno())
    return _make_connection, (type(connection), fd, connection.readable, connection.writable)


def _make_connection(kind: Any, fd: TravellingFd, readable: bool, writable: bool) -> Any:  # noqa: FBT001  a reducer's positional arguments
    return kind(fd.detach(), readable, writable)


def reduce_socket(sock: socket.socket) -> tuple[Any, ...]:
    """Reduce a socket: the same open socket arrives, with its timeout."""
    if sock.fileno() < 0:
        raise ValueError("a closed socket cannot travel")
    return _make_socket, (type(sock), TravellingFd(sock.fileno()), sock.family, sock.type, sock.proto, sock.gettimeout())


def _make_socket(
    kind: type[socket.socket], fd: TravellingFd, family: int, type_: int, proto: int, timeout: float | None
) -> Any:
    sock, number = kind.__new__(kind), fd.detach()
    try:
        sock.__init__(family, type_, proto, fileno=number)  # type: ignore[misc]  # apart, so that it can be asked what it has
    except BaseException:
        if sock.fileno() == number:
            sock.detach()  # else the constructor of a subclass refused before it took the descriptor
        os.close(number)
        raise
    # Whether the descriptor blocks came with it; the new object must know, or its calls raise BlockingIOError.
    sock.settimeout(timeout)
    return sock


def refuse_tls(_sock: ssl.SSLSocket) -> NoReturn:
    """Refuse a TLS socket: its keys live in this process."""
    raise TypeError("a TLS socket cannot travel, its session lives in this process; hand over the socket before wrapping it")


# ---------------------------------------------------------------------- files

_KEPT_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK | os.O_SYNC | os.O_DSYNC


class OpenFile:
    """An open file that is sent on purpose; the receiver gets the file itself, open, on this machine.

    It arrives in the same mode and at the same position, after what was written is flushed. A regular file's position is
    the receiver's own from then on. A pipe, terminal or device is shared, as after a fork. A file that is merely *in* what
    is sent raises ``EncodeError``: more often than not it came along by mistake.

    Args:
        file: what ``open()`` returned. The sender keeps it, and without a bus must live until the message was received.
    """

    __slots__ = ("_file",)

    def __init__(self, file: IO[Any]) -> None:
        self._file = file

    def __repr__(self) -> str:
        return f"OpenFile({self._file!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reduce_file(self._file)


def _reduce_file(file: Any) -> tuple[Any, ...]:
    name = f"the open file {getattr(file, 'name', '?')!r}"
    if type(file) not in _OPENED:
        raise TypeError(f"{name} is a {type(file).__qualname__}, a class of its own, and cannot travel; send what open() made")
    if file.closed:
        raise ValueError(f"{name} is closed and cannot travel")
    text = isinstance(file, io.TextIOWrapper)
    buffered = file.buffer if text else file
    raw = getattr(buffered, "raw", buffered)
    if type(raw) is not io.FileIO or type(buffered) not in _OPENED:
        raise TypeError(f"{name} reads or writes through {type(raw).__qualname__}, which cannot travel; send the data instead")
    if file.writable():
        file.flush()
    try:
        position = file.tell() if file.seekable() else None
    except OSError as error:
        # Text files cannot tell inside a for loop.
        raise TypeError(f"{name} cannot travel while it is being iterated over; send it before the loop") from error
    return _make_file, (
        TravellingFd(raw.fileno()),
        type(buffered),
        raw.name,
        raw.mode.replace("x", "w"),
        position,
        (file.encoding, file.errors, file.line_buffering, file.write_through) if text else None,
        getattr(file, "mode", None) if text else None,
    )


_OPENED: tuple[type, ...] = (io.FileIO, io.BufferedReader, io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper)


def _make_file(
    arrived: TravellingFd,
    kind: Any,
    name: Any,
    mode: str,
    position: int | None,
    text: tuple[Any, ...] | None,
    text_mode: str | None,
) -> Any:
    fd = _separate(arrived.detach())
    # An opener keeps the name and truncates nothing, whatever the mode says.
    raw = io.FileIO(fd, mode) if isinstance(name, int) else io.FileIO(name, mode, opener=lambda _name, _flags: fd)
    file: Any = raw if kind is io.FileIO else kind(raw)
    if text is not None:
        encoding, errors, line_buffering, write_through = text
        file = io.TextIOWrapper(file, encoding, errors, line_buffering=line_buffering, write_through=write_through)
        file.mode = text_mode
    if position is not None:
        file.seek(position)
    return file


def _separate(fd: int) -> int:
    """Open a regular file anew, so that both processes have a position of their own; what cannot be opened stays shared."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    try:
        own = os.open(f"/proc/self/fd/{fd}", fcntl.fcntl(fd, fcntl.F_GETFL) & _KEPT_FLAGS | os.O_CLOEXEC)
    except OSError:
        return fd  # this user may use it but not open it
    os.close(fd)
    return own


def refuse_temporary(file: Any) -> NoReturn:
    """Refuse a NamedTemporaryFile: the copy would delete the file when it goes."""
    raise TypeError(f"a temporary file deletes {file.name!r} when it is closed, and so would its copy; send .file or the name")


# ---------------------------------------------------------------------- locks


def reduce_lock(lock: SemLock) -> Any:
    """Reduce a Lock, RLock or Semaphore of ``multiprocessing``: the same lock arrives, opened by its name."""
    from multiprocessing.context import get_spawning_popen

    if get_spawning_popen() is not None:
        return lock.__reduce_ex__(5)
    semaphore = _named(lock, lock)
    return _make_synchronized, (type(lock), (semaphore.handle, semaphore.kind, semaphore.maxvalue, semaphore.name))


def _named(lock: SemLock, owner: object) -> Any:
    semaphore: Any = lock._semlock  # type: ignore[attr-defined]  # noqa: SLF001  the only way to what it pickles itself with
    if semaphore.name is None:
        raise TypeError(
            f"a {type(owner).__qualname__} of the fork context has no name and cannot travel in a message; "
            "make it with multiprocessing.get_context('spawn'), or pass it to the process when that starts"
        )
    return semaphore


def reduce_condition(condition: Condition) -> Any:
    """Reduce a Condition of ``multiprocessing``."""
    from multiprocessing.context import get_spawning_popen

    if get_spawning_popen() is not None:
        return condition.__reduce_ex__(5)
    inner = vars(condition)
    _named(inner["_wait_semaphore"], condition)
    state = (inner["_lock"], inner["_sleeping_count"], inner["_woken_count"], inner["_wait_semaphore"])
    return _make_synchronized, (type(condition), state)


def reduce_event(event: Event) -> Any:
    """Reduce an Event of ``multiprocessing``."""
    from multiprocessing.context import get_spawning_popen

    if get_spawning_popen() is None:
        _named(vars(event)["_flag"], event)
    return event.__reduce_ex__(5)


def _make_synchronized(kind: Any, state: tuple[Any, ...]) -> Any:
    made = kind.__new__(kind)
    made.__setstate__(state)
    return made


# ---------------------------------------------------------------------- the rest


def refuse_handler(handler: logging.Handler) -> NoReturn:
    """Refuse a logging handler: its lock and its stream are this process's."""
    raise TypeError(
        f"a logging handler ({type(handler).__qualname__}) cannot travel; a Logger can, by name, and its handlers are those "
        "of the process it arrives in"
    )


def reduce_proxy(proxy: Mapping[Any, Any]) -> tuple[Any, ...]:
    """Reduce a read-only view of a dict: a read-only view of a copy arrives."""
    return _make_proxy, (dict(proxy),)


def _make_proxy(content: dict[Any, Any]) -> Mapping[Any, Any]:
    return MappingProxyType(content)
