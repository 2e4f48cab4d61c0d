"""Replies: the way to the inbox of a process that asked, and what answers one request."""

from __future__ import annotations

import logging
import pickle
import threading
import traceback
from collections import OrderedDict
from typing import Any

from ipcbus import endpoint
from ipcbus.directory import client as directory
from ipcbus.errors import ChannelBroken, ChannelError, ChannelFull, EncodeError, PeerDied, RemoteError, Unsupported
from ipcbus.plumbing import forks
from ipcbus.plumbing.fds import TravellingFd, packing, unpacking
from ipcbus.requests.table import View

__all__ = ["ERROR", "VALUE", "ReplyTo", "Route", "key", "publish", "remote_error", "route", "settle"]

logger = logging.getLogger("ipcbus.requests")

VALUE = b""
"""What stands for an address in a reply that brings a value."""
ERROR = b"E"
"""What stands for it in one that brings an error."""
PATIENCE = 5.0
"""Seconds that a reply waits for room in the asker's inbox."""
_ID = 16
_MOST = 4096
"""Routes that are kept open."""


class Route:
    """The way to the inbox of one process.

    Args:
        address: what requests of that process carry: the id of its inbox, and its directory.

    Raises:
        PeerDied: it has ended.
    """

    def __init__(self, address: bytes) -> None:
        self.address = address
        self.home = address[_ID:].decode()
        from ipcbus.channel import rebuild  # which imports this: a channel asks, and a reply goes through a channel

        known = endpoint.find(address[:_ID].hex())
        self._view: View | None = None
        self._guest = 0
        self.pid: int | None = None
        """The process; None if it is this one."""
        self._stuck = False
        if known is not None and directory.keeps(self.home):
            self.end = known
            return
        try:
            found = directory.get(self.home, key(address))
            self.pid = directory.place(self.home).pid
            with unpacking(found.fds):
                state, table = pickle.loads(found.content)
                self.end = rebuild(*state)
                self._view = View(table.detach())
        except (ChannelBroken, ValueError) as error:
            raise PeerDied(f"the process that asked cannot be reached any more, it has probably ended: {error}") from error
        self._guest = found.guest

    def take(self, number: int, *, by_nobody: bool = False) -> bool:
        """Say that this process has a request (or gave it away); false if nobody waits for its reply any more."""
        return self._view is None or self._view.take(number, 0 if by_nobody else self._guest)

    def waits(self, number: int) -> bool:
        """Tell whether somebody still waits for a request's reply."""
        return self._view is None or self._view.waits(number)

    def send(self, number: int, kind: bytes, value: Any, timeout: float | None) -> None:
        """Send a reply; raises what ``ReplyTo.send`` raises."""
        frame = self.end.codec.encode_routed(value, (number, kind))
        link = self.end.tx or self.end.open_sender()
        patience = (0.0 if self._stuck else PATIENCE) if timeout is None else timeout
        try:
            link.send(frame, patience)
        except ChannelFull as error:
            self._stuck = True  # who does not read its replies delays its answerers once, and not each time
            raise ChannelFull(f"the process that asked ({self.pid}) does not read its replies: {error}") from error
        self._stuck = False
        self.end.sent += 1

    @property
    def alive(self) -> bool:
        """Whether the process is there, as far as its directory's socket tells."""
        return self.pid is None or directory.current(self.home) >= 0

    def close(self) -> None:
        """Let go of another process's inbox."""
        if self.pid is not None:
            self.end.close(sender=True, receiver=True)
            directory.part(self.home)
        if self._view is not None:
            self._view.close()


class ReplyTo:
    """Answers one request. Picklable: the process that it is sent to answers instead.

    Args:
        number: the request's id at who asked.
        address: the inbox of who asked.
    """

    __slots__ = ("__weakref__", "_address", "_answered", "_number", "_way")

    def __init__(self, number: int, address: bytes) -> None:
        self._number = number
        self._address = address
        self._answered = False
        self._way: Route | PeerDied
        try:
            self._way = route(address)
        except PeerDied as error:
            self._way = error
        else:
            if number:
                self._way.take(number)

    def send(self, value: Any, timeout: float | None = None) -> None:
        """Answer with a value; raises what ``Message.reply`` raises."""
        way = self._begin()
        if way is None:
            return
        try:
            way.send(self._number, VALUE, value, timeout)
        except EncodeError as error:
            way.send(self._number, ERROR, _describe(error), timeout)
            raise

    def fail(self, error: BaseException, timeout: float | None = None) -> None:
        """Answer with an error, which is raised as ``RemoteError`` where it arrives; raises what ``Message.reply`` raises."""
        way = self._begin()
        if way is not None:
            way.send(self._number, ERROR, _describe(error), timeout)

    def refuse(self, why: str) -> None:
        """Answer that nobody will, so that nobody waits; what prevents that is logged."""
        try:
            self.fail(Unsupported(f"this request gets no answer: {why}"))
        except ChannelError as error:
            logger.warning("a request could not even be refused: %s", error)

    @property
    def answered(self) -> bool:
        """Whether it has answered, or was sent to another process that may."""
        return self._answered

    def waits(self) -> bool:
        """Tell whether somebody still waits for the reply: not after its deadline, nor when it was given up."""
        return bool(self._number) and isinstance(self._way, Route) and self._way.waits(self._number)

    def _begin(self) -> Route | None:
        if self._answered:
            raise Unsupported("this request was answered before, or its reply handle was sent to another process")
        self._answered = True
        if isinstance(self._way, PeerDied):
            raise self._way
        return self._way if self._number else None  # 0: nobody wants to know

    def __reduce__(self) -> tuple[Any, ...]:
        if self._answered:
            raise ValueError("this request was answered; its reply handle is of no use to anybody")
        if isinstance(self._way, Route) and self._number:
            # Who sends it on may end before it arrives, and that is then nobody's death.
            self._way.take(self._number, by_nobody=True)
        self._answered = True
        return ReplyTo, (self._number, self._address)

    def __repr__(self) -> str:
        return f"<ipcbus.ReplyTo request {self._number:x}{' answered' if self._answered else ''}>"


# ---------------------------------------------------------------------- routes


class _Here:
    """The routes of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.routes: OrderedDict[bytes, Route] = OrderedDict()


_here = _Here()
_hooked = False


def publish(channel_end: endpoint.Endpoint, table: int) -> bytes:
    """Make an inbox known to who has its address, and return that.

    Args:
        channel_end: the inbox.
        table: the descriptor of the table of requests.
    """
    own = directory.own()
    address = channel_end.key + str(own.home).encode()
    with packing() as fds:
        content = pickle.dumps((channel_end.state(), TravellingFd(table)))
    own.put(key(address), content, fds, held=True)
    return address


def route(address: bytes) -> Route:
    """Return the way to an inbox; raises ``PeerDied``."""
    known = _here.routes.get(address)
    if known is not None:
        return known
    _hook()
    with _here.lock:
        found = _here.routes.get(address)
        if found is not None:
            return found
        for other, old in list(_here.routes.items()):
            if not old.alive or len(_here.routes) >= _MOST:
                del _here.routes[other]
                old.close()
        found = _here.routes[address] = Route(address)
        return found


def settle() -> None:
    """Close all routes."""
    with _here.lock:
        routes = list(_here.routes.values())
        _here.routes.clear()
    for way in routes:
        way.close()


def key(address: bytes) -> bytes:
    """Return what an inbox is kept under in its process's directory."""
    return b"inbox" + address[:_ID]


def _hook() -> None:
    global _hooked  # noqa: PLW0603  hooks of the interpreter are per process, and so is this
    if not _hooked:
        _hooked = True
        forks.in_child(_after_fork)


def _after_fork() -> None:
    global _here  # noqa: PLW0603  the parent's routes are the parent's
    _here = _Here()


# ---------------------------------------------------------------------- errors as replies


def _describe(error: BaseException) -> tuple[str, str, str, bytes | None]:
    """Return what an error is when it travels: type, text, traceback, and itself if it pickles."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        itself = pickle.dumps(error)
    except Exception:  # noqa: BLE001  an error may hold anything; its text travels in any case
        itself = None
    return name, str(error), "".join(traceback.format_exception(error)), itself


def remote_error(said: Any) -> Exception:
    """Make the error that a reply brings; ipcbus's own arrive as themselves where they say something about the request."""
    name, text, trace, itself = said
    error = RemoteError(f"{name}: {text}" if text else name, name, trace)
    if itself is not None:
        try:
            error.__cause__ = pickle.loads(itself)
        except Exception:  # noqa: BLE001  its class may not exist here; what it says is in the text
            error.__cause__ = None
    return error
