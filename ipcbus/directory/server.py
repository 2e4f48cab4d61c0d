"""The directory itself: a thread that keeps what it was given, and hands out copies to processes of the same user."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import resource
import select
import socket
import struct
import threading
from collections import OrderedDict
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias

from ipcbus.directory import wire
from ipcbus.directory.wire import Datagram, Operation, Status
from ipcbus.errors import ChannelBroken, IpcbusError
from ipcbus.plumbing import rundir
from ipcbus.plumbing.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    Handler: TypeAlias = Callable[["Guest", bytes], tuple[bytes, Sequence[int]]]
    """Answers a call of a guest with content and descriptors, which are closed behind it; an ``IpcbusError`` is passed on."""

__all__ = ["Directory", "Guest"]

logger = logging.getLogger("ipcbus.directory")

SOCKET = "directory"
"""The name of the socket in the private directory."""
HANDSHAKE = 2.0
"""Seconds that who connects has for its first request."""
_BACKLOG = 256
_TURN = 64
"""Requests of one guest that are answered before the others get their turn."""
_CREDENTIALS = struct.Struct("iII")


class Guest:
    """A process that is connected.

    Attributes:
        number: never given to another guest of this directory.
        pid: which process.
        keys: what it uses.
    """

    __slots__ = ("came", "greeted", "keys", "number", "pid", "sock")

    def __init__(self, number: int, pid: int, sock: socket.socket) -> None:
        self.number = number
        self.pid = pid
        self.sock = sock
        self.keys: set[bytes] = set()
        self.came = monotonic()
        self.greeted = False


class _Entry:
    """What is kept under one key, with descriptors of its own."""

    __slots__ = ("content", "fds", "held", "users")

    def __init__(self, content: bytes, fds: list[int], *, held: bool) -> None:
        self.content = content
        self.fds = fds
        self.users: set[Guest] = set()
        self.held = held
        """Whether the directory's own process uses it."""

    @property
    def idle(self) -> bool:
        return not self.users and not self.held

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


class Directory:
    """Keeps things under keys, and answers calls, from its creation until ``close``. All methods may be called by any thread.

    Args:
        home: the private directory that its socket goes into.

    Attributes:
        gone: functions that are told, in the directory's thread, of every guest that has disconnected or died.
        forgotten: is told the content of everything without descriptors that nobody can have from here any more.

    Raises:
        ChannelBroken: the system refused.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.gone: list[Callable[[Guest], None]] = []
        self.forgotten: Callable[[bytes], None] = _forget
        self._handlers: dict[str, Handler] = {}
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._guests: dict[int, Guest] = {}
        self._watched: dict[int, Callable[[], None]] = {}
        self._last = 0
        self._lock = threading.RLock()
        self._closing = False
        self._bell = Wakeup()
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listener.setblocking(False)  # noqa: FBT003  the standard library takes it by position
            self._listener.bind(str(rundir.socket_path(home, SOCKET)))
            self._listener.listen(_BACKLOG)
            self._epoll.register(self._listener, select.EPOLLIN)
            self._epoll.register(self._bell, select.EPOLLIN)
        except BaseException as error:
            self.abandon()
            if isinstance(error, OSError):
                raise ChannelBroken(f"no socket can be made in {home}: {error.strerror}") from error
            raise
        self._thread = threading.Thread(target=self._run, name="ipcbus-directory", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ for this process

    def handle(self, name: str, handler: Handler) -> None:
        """Answer calls of a name with a function. It runs in the directory's thread and must not wait for other processes."""
        self._handlers[name] = handler

    def put(self, key: bytes, content: bytes, fds: Sequence[int] = (), *, held: bool = False) -> None:
        """Keep something.

        Args:
            key: what was under it before is replaced.
            content: bytes.
            fds: duplicated; stay the caller's.
            held: whether this process uses it, and it must stay until ``drop``.
        """
        with self._lock:
            self._enter(key, content, [os.dup(fd) for fd in fds], held=held)

    def look(self, key: bytes) -> tuple[bytes, list[int]] | None:
        """Return what is kept under a key, with descriptors that are the caller's; None if there is nothing."""
        with self._lock:
            entry = self._entries.get(key)
            return None if entry is None else (entry.content, [os.dup(fd) for fd in entry.fds])

    def use(self, guest: Guest, key: bytes) -> None:
        """Note that a guest uses a key, which it was given in the answer to a call."""
        with self._lock:
            if (entry := self._entries.get(key)) is not None:
                self._use(guest, key, entry)

    def drop(self, key: bytes) -> None:
        """Note that this process does not use a key any more."""
        with self._lock:
            if (entry := self._entries.get(key)) is not None:
                entry.held = False
                self._evict()

    def forget(self, key: bytes) -> None:
        """Keep a key no longer, whoever uses it; they keep what they have."""
        with self._lock:
            entry = self._entries.pop(key, None)
        if entry is not None:
            entry.close()

    def watch(self, fd: int, seen: Callable[[], None]) -> None:
        """Call a function in the directory's thread, once, when a descriptor polls readable; then the descriptor is closed.

        Args:
            fd: owned from here on.
            seen: what to call.
        """
        with self._lock:
            self._watched[fd] = seen
            self._epoll.register(fd, select.EPOLLIN)

    def guests(self) -> list[Guest]:
        """Return the processes that are connected."""
        with self._lock:
            return [guest for guest in self._guests.values() if guest.greeted]

    def users(self, key: bytes) -> list[int]:
        """Return the pids of the connected processes that use a key."""
        with self._lock:
            entry = self._entries.get(key)
            return [] if entry is None else sorted({guest.pid for guest in entry.users})

    @property
    def in_use(self) -> bool:
        """Whether it keeps anything or anybody is connected."""
        with self._lock:
            return bool(self._entries or self._guests)

    def close(self) -> None:
        """Stop answering, forget everything and free all. Idempotent. Guests find their connection ended."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        self._bell.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def abandon(self) -> None:
        """Free what a forked child inherited; the parent's goes on."""
        self._closing = True
        self.forgotten = _forget
        self._free()

    def _free(self) -> None:
        self._epoll.close()
        self._bell.close()
        os.close(self._spare)
        self._listener.close()
        for guest in self._guests.values():
            guest.sock.close()
        for entry in self._entries.values():
            self._discard(entry)
        for fd in self._watched:
            os.close(fd)
        self._guests.clear()
        self._watched.clear()
        self._entries.clear()

    # ------------------------------------------------------------------ what is kept

    def _enter(self, key: bytes, content: bytes, fds: list[int], *, held: bool = False) -> _Entry:
        """Keep something; the descriptors are the entry's from here on. The lock is held."""
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry(content, fds, held=held)
        else:
            entry.close()
            entry.content, entry.fds, entry.held = content, fds, entry.held or held
        self._evict()
        return entry

    def _evict(self) -> None:
        """Forget what nobody uses and what came longest ago, beyond a quarter of this process's descriptors.

        Nobody uses what is in a message that was not received yet: it must stay, and yet messages get lost.
        """
        budget = max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4, 16)
        idle = [(key, entry) for key, entry in self._entries.items() if entry.idle]
        cost = sum(len(entry.fds) + 1 for _, entry in idle)
        for key, entry in idle[:-1]:
            if cost <= budget:
                return
            cost -= len(entry.fds) + 1
            del self._entries[key]
            self._discard(entry)

    def _discard(self, entry: _Entry) -> None:
        if not entry.fds and not entry.held:
            self.forgotten(entry.content)
        entry.close()

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while not self._closing:
            for fd, _ in self._epoll.poll(self._patience()):
                if fd == self._listener.fileno():
                    self._accept()
                elif (guest := self._guests.get(fd)) is not None:
                    self._serve(guest)
                elif (seen := self._watched.pop(fd, None)) is not None:
                    self._epoll.unregister(fd)
                    os.close(fd)
                    seen()
            self._expel_silent()
        self._free()

    def _patience(self) -> float | None:
        waiting = [guest.came for guest in self._guests.values() if not guest.greeted]
        return max(0.0, min(waiting) + HANDSHAKE - monotonic()) if waiting else None

    def _expel_silent(self) -> None:
        limit = monotonic() - HANDSHAKE
        for guest in [guest for guest in self._guests.values() if not guest.greeted and guest.came <= limit]:
            logger.warning("process %d connected and asked nothing for %g seconds; it is disconnected", guest.pid, HANDSHAKE)
            self._part(guest)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away()
            return  # else it has gone again
        pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid != os.geteuid():
            logger.warning("process %d of user %d tried to connect to %s and was turned away", pid, uid, self.home)
            sock.close()
            return
        sock.setblocking(False)  # noqa: FBT003  the standard library takes it by position
        with self._lock:
            self._last += 1
            self._guests[sock.fileno()] = Guest(self._last, pid, sock)
        self._epoll.register(sock, select.EPOLLIN)

    def _turn_away(self) -> None:
        """Disconnect a newcomer for whom there is no descriptor: waiting, it would keep this thread busy."""
        logger.error("this process has no descriptors left, so nobody can connect to %s; see 'ulimit -n'", self.home)
        os.close(self._spare)
        try:
            self._listener.accept()[0].close()
        except OSError:
            pass  # it has gone by itself, or another thread took the descriptor
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _serve(self, guest: Guest) -> None:
        for _ in range(_TURN):
            try:
                request = wire.receive(guest.sock, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except (OSError, ValueError) as error:
                logger.warning("process %d is disconnected from %s: %s", guest.pid, self.home, error)
                request = None
            if request is None:
                self._part(guest)
                return
            guest.greeted = True
            answer = self._answer(guest, request)
            request.close()
            if answer is not None and not self._reply(guest, answer):
                self._part(guest)
                return

    def _reply(self, guest: Guest, answer: Datagram) -> bool:
        try:
            wire.send(guest.sock, answer, socket.MSG_DONTWAIT)
        except OSError as error:
            logger.warning("process %d does not take its answer and is disconnected: %s", guest.pid, error)
            return False
        finally:
            answer.close()
        return True

    def _answer(self, guest: Guest, request: Datagram) -> Datagram | None:
        """Return the answer, if there is to be one; its descriptors are its own."""
        key, token = request.key, request.token
        if request.kind == Operation.CALL:
            return self._call(guest, request)
        if request.kind == Operation.HELLO:
            return Datagram(Status.OK, token)
        with self._lock:
            if request.kind == Operation.PUT:
                entry = self._enter(key, request.content, request.fds)
                request.fds = []
                self._use(guest, key, entry)
                return Datagram(Status.OK, token)
            found = self._entries.get(key)
            if request.kind == Operation.DROP:
                guest.keys.discard(key)
                if found is not None:
                    found.users.discard(guest)
                    self._evict()
                return None
            if found is None:
                return Datagram(Status.UNKNOWN, token)
            content = guest.number.to_bytes(8, "little") + found.content
            if request.kind == Operation.TAKE:
                del self._entries[key]
                return Datagram(Status.OK, token, content=content, fds=found.fds)
            self._use(guest, key, found)
            return Datagram(Status.OK, token, content=content, fds=[os.dup(fd) for fd in found.fds])

    def _use(self, guest: Guest, key: bytes, entry: _Entry) -> None:
        guest.keys.add(key)
        entry.users.add(guest)

    def _call(self, guest: Guest, request: Datagram) -> Datagram:
        name, token = request.key.decode(errors="replace"), request.token
        handler = self._handlers.get(name)
        if handler is None:
            return _refusal(token, ChannelBroken(f"the process at {self.home} answers no {name!r}: it is no bus's home"))
        try:
            content, fds = handler(guest, request.content)
        except IpcbusError as error:
            return _refusal(token, error)
        except Exception as error:  # a handler's mistake is its caller's to know, and must not end the thread for all
            logger.exception("answering %r failed", name)
            return _refusal(token, ChannelBroken(f"the home process failed: {type(error).__name__}: {error}"))
        return Datagram(Status.OK, token, content=content, fds=list(fds))

    def _part(self, guest: Guest) -> None:
        with self._lock:
            del self._guests[guest.sock.fileno()]
            for key in guest.keys:
                if (entry := self._entries.get(key)) is not None:
                    entry.users.discard(guest)
            self._epoll.unregister(guest.sock)
            guest.sock.close()
            self._evict()
        for told in list(self.gone):
            told(guest)


def _forget(_content: bytes) -> None:
    """Do nothing: what was kept has nothing to remove."""


def _refusal(token: int, error: IpcbusError) -> Datagram:
    return Datagram(Status.REFUSED, token, content=pickle.dumps(error))
