"""The directory itself: a thread that keeps what it was given, and hands out copies to processes of the same user."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import struct
import threading
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias

from ipcbus.directory import wire
from ipcbus.directory.refusal import FULL, hang_up, refusal
from ipcbus.directory.shelf import Shelf, copies
from ipcbus.directory.wire import UNASKED, Cut, Datagram, Operation, Status
from ipcbus.errors import ChannelBroken, IpcbusError
from ipcbus.plumbing import rundir
from ipcbus.plumbing.deaf import be_deaf
from ipcbus.plumbing.locks import is_mine
from ipcbus.plumbing.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ipcbus.directory.shelf import Entry

    Handler: TypeAlias = Callable[["Guest", bytes], tuple[bytes, Sequence[int]]]
    """Answers a call of a guest with content and descriptors, which are closed behind it; an ``IpcbusError`` is passed on."""

__all__ = ["Directory", "Guest"]

logger = logging.getLogger("ipcbus.directory")

SOCKET = "directory"
"""The name of the socket in the private directory."""
HANDSHAKE = 2.0
"""Seconds that who connects has for its first request."""
_BACKLOG = 4096
"""Processes that may wait to be let in; the system may allow fewer."""
_PAUSE = 0.1
"""Seconds between two tries to let somebody in while there are no descriptors at all."""
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


class Directory:
    """Keeps things under keys, and answers calls, from its creation until ``close``. All methods may be called by any thread.

    Args:
        home: the private directory that its socket goes into.

    Attributes:
        gone: functions that are told, in the directory's thread, of every guest that has disconnected or died.
        came: functions that are told, in the directory's thread, of a guest that was just given something.
        left: functions that a forked child calls when it lets go of what it inherited.

    Raises:
        ChannelBroken: the system refused.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.gone: list[Callable[[Guest], None]] = []
        self.came: list[Callable[[Guest], None]] = []
        self.left: list[Callable[[], None]] = []
        self._handlers: dict[str, Handler] = {}
        self._shelf: Shelf[Guest] = Shelf()
        self._guests: dict[int, Guest] = {}
        self._watched: dict[int, Callable[[], None]] = {}
        self._due: dict[Callable[[], None], float] = {}
        """What ``later`` is to call, and when."""
        self._last = 0
        self._lock = threading.RLock()
        self._closing = False
        path = rundir.socket_path(home, SOCKET)
        self._spare = -1
        self._quiet_until = 0.0
        self._deaf = False
        """Whether newcomers are not listened to, because there are no descriptors even to turn them away."""
        self._resources = contextlib.ExitStack()
        with contextlib.ExitStack() as made:
            try:
                self._bell = Wakeup()
                made.callback(self._bell.close)
                self._epoll = made.enter_context(select.epoll())
                self._listener = made.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                self._listener.setblocking(False)  # noqa: FBT003  the standard library takes it by position
                self._listener.bind(str(path))
                path.chmod(0o600)  # the directory is private already; twice is better where it matters
                self._listener.listen(_BACKLOG)
                self._epoll.register(self._listener, select.EPOLLIN)
                self._epoll.register(self._bell, select.EPOLLIN)
                self._keep_spare()
                made.callback(self._close_spare)
                self._thread = threading.Thread(target=self._run, name="ipcbus-directory", daemon=True)
                self._resources = made.pop_all()
                self._thread.start()
            except (OSError, RuntimeError) as error:  # RuntimeError: no more threads
                self._resources.close()
                raise ChannelBroken(f"no directory can be kept in {home}: {error}; see 'ulimit -n' and 'ulimit -u'") from error

    @property
    def forgotten(self) -> Callable[[bytes], None]:
        """Is told the content of everything without descriptors that nobody can have from here any more."""
        return self._shelf.forgotten

    @forgotten.setter
    def forgotten(self, function: Callable[[bytes], None]) -> None:
        self._shelf.forgotten = function

    # ------------------------------------------------------------------ for this process

    def handle(self, name: str, handler: Handler) -> None:
        """Answer calls of a name with a function. It runs in the directory's thread and must not wait for other processes."""
        self._handlers[name] = handler

    def put(self, key: bytes, content: bytes, fds: Sequence[int] = (), *, held: bool = False, pinned: bool = False) -> None:
        """Keep something.

        Args:
            key: what was under it before is replaced.
            content: bytes.
            fds: duplicated; stay the caller's.
            held: whether this process uses it, and it must stay until ``drop``.
            pinned: whether it must stay until ``forget`` or ``close``.

        Raises:
            ChannelBroken: the directory is closed, or there are no descriptors left.
        """
        with self._lock:
            if self._closing:
                raise ChannelBroken(f"the directory {self.home} is closed")
            entry = self._shelf.enter(key, content, copies(fds))
            entry.held |= held
            entry.pinned |= pinned
            self._shelf.sort(entry)

    def look(self, key: bytes) -> tuple[bytes, list[int]] | None:
        """Return what is kept under a key, with descriptors that are the caller's; None if there is nothing."""
        with self._lock:
            entry = self._shelf.get(key)
            return None if entry is None else (entry.content, copies(entry.fds))

    def use(self, guest: Guest, key: bytes) -> None:
        """Note that a guest uses a key, which it was given in the answer to a call."""
        with self._lock:
            if (entry := self._shelf.get(key)) is not None:
                self._use(guest, entry)

    def hold(self, key: bytes) -> None:
        """Note that this process uses a key, until ``drop``."""
        with self._lock:
            if (entry := self._shelf.get(key)) is not None:
                entry.held = True
                self._shelf.sort(entry)

    def drop(self, key: bytes) -> None:
        """Note that this process does not use a key any more."""
        with self._lock:
            if (entry := self._shelf.get(key)) is not None:
                entry.held = False
                self._shelf.sort(entry)

    def forget(self, key: bytes) -> None:
        """Keep a key no longer, whoever uses it; they keep what they have."""
        with self._lock:
            self._shelf.forget(key)

    def watch(self, fd: int, seen: Callable[[], None]) -> None:
        """Call a function in the directory's thread, once, when a descriptor polls readable; then the descriptor is closed.

        Args:
            fd: owned from here on.
            seen: what to call.

        Raises:
            ChannelBroken: the directory is closed, or the system refused.
        """
        with self._lock:
            try:
                self._epoll.register(fd, select.EPOLLIN)
            except (OSError, ValueError) as error:  # ValueError: it is closed
                os.close(fd)
                raise ChannelBroken(f"the directory {self.home} cannot watch a descriptor: {error}") from error
            self._watched[fd] = seen

    def later(self, seconds: float, told: Callable[[], None]) -> None:
        """Call a function in the directory's thread after some seconds: once, however often this was said meanwhile.

        A directory that is closed calls nothing.
        """
        with self._lock:
            if self._closing or self._due.setdefault(told, due := monotonic() + seconds) != due:
                return
            self._bell.set()  # or its thread would sleep for longer

    def guests(self) -> list[Guest]:
        """Return the processes that are connected."""
        with self._lock:
            return [guest for guest in self._guests.values() if guest.greeted]

    def users(self, key: bytes) -> list[int]:
        """Return the pids of the connected processes that use a key."""
        with self._lock:
            entry = self._shelf.get(key)
            return [] if entry is None else sorted({guest.pid for guest in entry.users})

    @property
    def in_use(self) -> bool:
        """Whether it keeps anything or anybody is connected."""
        with self._lock:
            return bool(len(self._shelf) or self._guests)

    def close(self) -> None:
        """Stop answering, forget everything and free all. Idempotent. Guests find their connection ended."""
        with self._lock:
            if not self._closing:
                self._closing = True
                self._bell.set()  # not later: the thread may see the first line and free the bell
        # A signal handler may have interrupted what the thread still has to wait for.
        if threading.current_thread() is not self._thread and not is_mine(self._lock):
            self._thread.join()

    def abandon(self) -> None:
        """Free what a forked child inherited; the parent's goes on."""
        self._closing = True
        self._lock = threading.RLock()  # a thread of the parent may hold the other
        self._shelf.disown()
        self._free()
        for told in self.left:
            told()

    def _free(self) -> None:
        with self._lock:
            self._resources.close()
            for guest in self._guests.values():
                guest.sock.close()
            for fd in self._watched:
                os.close(fd)
            self._guests.clear()
            self._watched.clear()
            self._due.clear()
            self._shelf.clear()

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        be_deaf()
        try:
            while not self._closing:
                for fd, _ in self._epoll.poll(self._patience()):
                    if fd == self._listener.fileno():
                        self._accept()
                    elif (guest := self._guests.get(fd)) is not None:
                        self._serve(guest)
                    elif (seen := self._watched.pop(fd, None)) is not None:
                        self._epoll.unregister(fd)
                        os.close(fd)
                        self._tell(seen)
                    elif fd == self._bell.fileno():
                        self._bell.clear()  # why it rang is looked for in any case
                self._expel_silent()
                self._tell_due()
                if self._deaf:
                    self._listen_again()
        finally:
            # Whatever ended it: who asks is to find nobody, and not to wait for an answer.
            self._closing = True
            self._free()

    def _patience(self) -> float | None:
        until = [guest.came + HANDSHAKE for guest in self._guests.values() if not guest.greeted]
        until += self._due.copy().values()  # any thread may add to it
        waits = [max(0.0, min(until) - monotonic())] if until else []
        return min([*waits, _PAUSE] if self._deaf else waits, default=None)

    def _expel_silent(self) -> None:
        limit = monotonic() - HANDSHAKE
        for guest in [guest for guest in self._guests.values() if not guest.greeted and guest.came <= limit]:
            logger.warning("process %d connected and asked nothing for %g seconds; it is disconnected", guest.pid, HANDSHAKE)
            hang_up(guest.sock, f"this process asked nothing for {HANDSHAKE:g} s after it connected")
            self._part(guest)

    def _tell_due(self) -> None:
        now = monotonic()
        for told in [told for told, due in self._due.copy().items() if due <= now]:
            del self._due[told]
            self._tell(told)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away()
            return  # else it has gone again
        pid = 0
        try:
            pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            if uid != os.geteuid():
                logger.warning("process %d of user %d tried to connect to %s and was turned away", pid, uid, self.home)
                sock.close()
                return
            sock.setblocking(False)  # noqa: FBT003  the standard library takes it by position
            self._epoll.register(sock, select.EPOLLIN)
        except OSError as error:
            logger.warning("process %d cannot be let in at %s: %s", pid, self.home, error)
            sock.close()
            return
        with self._lock:
            self._last += 1
            self._guests[sock.fileno()] = Guest(self._last, pid, sock)

    def _turn_away(self) -> None:
        """Disconnect a newcomer for whom there is no descriptor: waiting, it would keep this thread busy."""
        self._complain()
        self._close_spare()
        try:
            sock, _ = self._listener.accept()
        except OSError:
            pass  # it has gone by itself, or another thread took the descriptor
        else:
            hang_up(sock, FULL.format(os.getpid()))
            sock.close()
        if not self._keep_spare():
            self._deaf = True
            self._epoll.modify(self._listener, 0)

    def _listen_again(self) -> None:
        if self._keep_spare():
            self._deaf = False
            self._epoll.modify(self._listener, select.EPOLLIN)

    def _complain(self) -> None:
        now = monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + 1
            logger.error("this process has no descriptors left, so nobody can connect to %s; see 'ulimit -n'", self.home)

    def _keep_spare(self) -> bool:
        """Keep a descriptor for ``_turn_away``, and tell whether there is one."""
        if self._spare < 0:
            try:
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return False
        return True

    def _close_spare(self) -> None:
        fd, self._spare = self._spare, -1
        if fd >= 0:
            os.close(fd)

    def _serve(self, guest: Guest) -> None:
        for _ in range(_TURN):
            try:
                request = wire.receive(guest.sock, socket.MSG_DONTWAIT)
                if request is None:
                    break
                guest.greeted = True
                try:
                    content = self._answer(guest, request)
                finally:
                    request.close()
            except BlockingIOError:
                return
            except Cut as error:
                content = self._reply(guest, refusal(error.token, ChannelBroken(FULL.format(os.getpid()))))
            except (OSError, ValueError) as error:
                logger.warning("process %d is disconnected from %s: %s", guest.pid, self.home, error)
                hang_up(guest.sock, f"what this process asked made no sense: {error}")
                break
            if not content:
                break
        else:
            return
        self._part(guest)

    def _reply(self, guest: Guest, answer: Datagram) -> bool:
        """Answer, if the guest takes it at once. Descriptors stay the caller's."""
        try:
            try:
                wire.send(guest.sock, answer, socket.MSG_DONTWAIT)
            except BlockingIOError:
                raise
            except OSError as error:  # of the answer, or there is no descriptor left for a large one
                said = refusal(answer.token, ChannelBroken(f"process {os.getpid()} cannot hand this over: {error}"))
                wire.send(guest.sock, said, socket.MSG_DONTWAIT)
        except OSError as error:
            logger.warning("process %d does not take its answer and is disconnected: %s", guest.pid, error)
            return False
        return True

    def _answer(self, guest: Guest, request: Datagram) -> bool:
        """Do what is asked, and tell whether the guest took the answer."""
        if request.kind == Operation.CALL:
            answer = self._call(guest, request)
            try:
                return request.token == UNASKED or self._reply(guest, answer)
            finally:
                answer.close()
        with self._lock:
            content = self._operate(guest, Operation(request.kind), request)
        if request.kind == Operation.GET:
            for told in list(self.came):
                self._tell(told, guest)
        return content

    def _operate(self, guest: Guest, operation: Operation, request: Datagram) -> bool:
        token, found = request.token, self._shelf.get(request.key)
        if operation is Operation.PUT:
            found = self._shelf.enter(request.key, request.content, request.fds)
            request.fds = []
            self._use(guest, found)
        elif operation is Operation.DROP:
            guest.keys.discard(request.key)
            if found is not None:
                found.users.discard(guest)
                self._shelf.sort(found)
            return True
        elif operation is not Operation.HELLO:
            if found is None:
                return self._reply(guest, Datagram(Status.UNKNOWN, token))
            content = guest.number.to_bytes(8, "little") + found.content
            taken = self._reply(guest, Datagram(Status.OK, token, content=content, fds=found.fds))
            if taken and operation is Operation.TAKE:
                self._shelf.forget(request.key)
            elif taken:
                self._use(guest, found)
            return taken
        return self._reply(guest, Datagram(Status.OK, token))

    def _use(self, guest: Guest, entry: Entry[Guest]) -> None:
        guest.keys.add(entry.key)
        entry.users.add(guest)
        self._shelf.sort(entry)

    def _call(self, guest: Guest, request: Datagram) -> Datagram:
        name, token = request.key.decode(errors="replace"), request.token
        handler = self._handlers.get(name)
        if handler is None:
            return refusal(token, ChannelBroken(f"the process at {self.home} answers no {name!r}: it is no bus's home"))
        try:
            content, fds = handler(guest, request.content)
        except IpcbusError as error:
            return refusal(token, error)
        except Exception as error:  # a handler's mistake is its caller's to know, and must not end the thread for all
            logger.exception("answering %r failed", name)
            return refusal(token, ChannelBroken(f"the home process failed: {type(error).__name__}: {error}"))
        return Datagram(Status.OK, token, content=content, fds=list(fds))

    def _part(self, guest: Guest) -> None:
        with self._lock:
            del self._guests[guest.sock.fileno()]
            self._epoll.unregister(guest.sock)
            guest.sock.close()
            for key in guest.keys:
                if (entry := self._shelf.get(key)) is not None:
                    entry.users.discard(guest)
                    self._shelf.sort(entry)
        for told in list(self.gone):
            self._tell(told, guest)

    def _tell(self, told: Callable[..., None], *of: Guest) -> None:
        try:
            told(*of)
        except Exception:  # as in _call
            logger.exception("at %s, telling of the end of a process failed", self.home)
