"""Routes: the ways to the inboxes of processes that asked."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import pickle
import socket
import threading
from collections import OrderedDict, deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from ipcbus import endpoint, endpoints
from ipcbus.directory import aside
from ipcbus.directory import client as directory
from ipcbus.errors import ChannelEmpty, ChannelError, ChannelFull, IpcbusError, PeerDied
from ipcbus.plumbing import forks
from ipcbus.plumbing.fds import TravellingFd, packing, unpacking
from ipcbus.plumbing.locks import amid, is_mine
from ipcbus.requests.table import ANSWERED, GIVEN_UP, View

if TYPE_CHECKING:
    from ipcbus.frame import Routed
    from ipcbus.plumbing.clock import Deadline

__all__ = ["ID", "PATIENCE", "Here", "Route", "is_near", "key", "publish", "reach", "route", "settle"]

logger = logging.getLogger("ipcbus.requests")

PATIENCE = 5.0
"""Seconds that a reply waits for room in the asker's inbox."""
ID = 16
"""Bytes of an address that are the inbox's id; its directory follows."""
_MOST = 4096
"""Routes that are kept open."""


class Route:
    """The way to the inbox of one process.

    Args:
        address: what requests of that process carry: the id of its inbox, and its directory.

    Raises:
        Exception: it has ended, or this is no address; nothing else can be expected of what a message says.
    """

    def __init__(self, address: bytes) -> None:
        self.address = address
        self.home = address[ID:].decode()
        from ipcbus.channel import rebuild  # which imports this: a channel asks, and a reply goes through a channel

        known = endpoints.find(address[:ID].hex())
        self._view: View | None = None
        self._guest = 0
        self.pid: int | None = None
        """The process; None if it is this one."""
        self._stuck = False
        if known is not None and directory.keeps(self.home):
            self.end = known
            return
        found = directory.get(self.home, key(address))
        self._place = directory.place(self.home)
        self._session = self._place.session
        self.pid = self._place.pid
        with unpacking(found.fds):
            state, table = pickle.loads(found.content)
            self.end = rebuild(*state)
            self._view = View(table.detach())
        self._guest = found.guest

    def take(self, number: int) -> None:
        """Say that this process has a request."""
        if self._view is not None:
            if self._place.session != self._session:
                self._meet_again()
            self._view.take(number, self._guest)

    def give_away(self, number: int) -> None:
        """Say that this process has a request no more, and another one will."""
        if self._view is not None:
            self._view.take(number, 0)

    def _meet_again(self) -> None:
        """Become a guest of who asks again: the connection by which it would know of this process's death was lost."""
        try:
            found = directory.get(self.home, key(self.address))
        except ChannelError as error:
            logger.warning("process %s, which asked, cannot be reached: %s", self.pid, error)
            return
        for fd in found.fds:
            os.close(fd)
        self._guest, self._session = found.guest, self._place.session

    def waits(self, number: int) -> bool:
        """Tell whether somebody still waits for a request's reply."""
        return self._view is None or self._view.waits(number)

    def send(self, number: int, kind: Routed, value: Any, timeout: float | None) -> None:
        """Send a reply; raises what ``ReplyTo.send`` raises."""
        end = self.end
        frame = end.codec.encode_routed(value, kind, number)
        if timeout is None:
            timeout = 0.0 if self._stuck else PATIENCE
        try:
            (end.tx or end.open_sender()).send(frame, timeout)
        except ChannelFull as error:
            end.codec.unsent(frame)
            self._stuck = True  # who does not read its replies delays its answerers once, and not each time
            raise ChannelFull(f"the process that asked ({self.pid}) does not read its replies: {error}") from error
        self._stuck = False
        end.sent += 1
        if self._view is not None:
            self._view.take(number, ANSWERED)  # or the news of this process's end, which is quicker, would replace the reply

    def has(self, number: int) -> bool:
        """Tell whether somebody waits for the reply to a request that this process took last."""
        return self._view is None or self._view.holds(number, self._guest)

    def give_up(self, number: int) -> None:
        """Note that no reply will come."""
        if self._view is not None:
            self._view.take(number, GIVEN_UP)

    @property
    def alive(self) -> bool:
        """Whether the process is there, as far as its directory's socket tells."""
        return self.pid is None or directory.current(self.home) >= 0

    @property
    def ended(self) -> bool:
        """Whether the process has ended, and not but the connection to its directory, as an interrupted call ends it."""
        if self.pid is None or self.alive:
            return False
        try:
            os.kill(self.pid, 0)
        except OSError:
            return True
        return False

    def check(self) -> None:
        """Make sure that the process is there; raises ``PeerDied``."""
        if not self.alive:
            try:
                directory.place(self.home).greet()
            except ChannelError as error:
                raise PeerDied(f"process {self.pid} has ended", self.pid) from error

    def close(self) -> None:
        """Let go of another process's inbox."""
        if self.pid is not None:
            self.end.close(sender=True, receiver=True)
            directory.part(self.home)
        if self._view is not None:
            self._view.close()


class Here:
    """The routes of this process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.routes: OrderedDict[bytes, Route] = OrderedDict()
        self.missed: dict[str, tuple[socket.socket, str]] = {}
        """By directory: a process that did not answer, as a connection that polls readable when it goes on, and what to say."""
        self.unanswered: deque[tuple[int, bytes]] = deque()
        """Requests that were let go of, by number and address, and who asked is to be told."""
        self.idle = [None]
        """Has an entry while no thread tells them. Who takes it out starts one."""


here = Here()
"""Each fork puts another one in its place: what was received before may be answered by two processes then."""
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
    known = here.routes.get(address)
    if known is not None:
        return known
    _hook()
    if is_mine(here.lock):
        raise PeerDied(amid("looking for the way to a process that asked"))  # with the reply it is looked for again
    with here.lock:
        found = here.routes.get(address)
        if found is not None:
            return found
        for other, old in list(here.routes.items()):
            if old.ended or len(here.routes) >= _MOST:
                del here.routes[other]
                old.close()
        home = address[ID:].decode(errors="replace")
        for place, (knocked, _) in list(here.missed.items()):
            if _is_answered(knocked):
                del here.missed[place]
                knocked.close()
        if home in here.missed:  # one that is stopped delays who answers once, not each time
            raise PeerDied(here.missed[home][1])
        began = monotonic()
        try:
            found = here.routes[address] = Route(address)
        except Exception as error:  # a message said where to connect to, and who received it must not fail by that
            why = f"the process that asked cannot be reached, it has probably ended: {error}"
            if monotonic() - began > 1:
                with contextlib.suppress(IpcbusError):  # it has ended meanwhile, or cannot be reached at all
                    here.missed[home] = aside.knock(home), why
            raise PeerDied(why) from error
        return found


def is_near(address: bytes) -> bool:
    """Tell whether the way to an inbox is known, or will be without asking another process, which may be stopped."""
    return address in here.routes or directory.keeps(address[ID:].decode(errors="replace"))


def reach(address: bytes, deadline: Deadline) -> None:
    """Wait until the way to an inbox is known, or nobody is there; raises ``ChannelEmpty`` when the deadline has come."""
    left = deadline.remaining()
    if left is None or is_near(address):
        return
    looking = threading.Thread(target=_look_for, args=(address,), name="ipcbus-reach", daemon=True)
    looking.start()
    looking.join(left)
    if looking.is_alive():
        raise ChannelEmpty("the process that is to be called did not answer in time; is it stopped?")


def _look_for(address: bytes) -> None:
    with contextlib.suppress(PeerDied):  # who wants the way is told the same
        route(address)


def _is_answered(knocked: socket.socket) -> bool:
    """Tell whether a process at whose directory this one knocked has answered, or has ended."""
    try:
        knocked.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        pass  # as good as the end of it
    return True


def settle() -> None:
    """Close all routes."""
    with here.lock:
        routes = list(here.routes.values())
        here.routes.clear()
        missed = list(here.missed.values())
        here.missed.clear()
    for way in routes:
        way.close()
    for knocked, _ in missed:
        knocked.close()


def key(address: bytes) -> bytes:
    """Return what an inbox is kept under in its process's directory."""
    return b"inbox" + address[:ID]


def _hook() -> None:
    global _hooked  # noqa: PLW0603  hooks of the interpreter are per process, and so is this
    if not _hooked:
        _hooked = True
        forks.in_child(_after_fork)
        os.register_at_fork(before=_before_fork)


def _before_fork() -> None:
    global here  # noqa: PLW0603  what was received until now is the child's as well, and either of them may answer
    here = copy.copy(here)


def _after_fork() -> None:
    global here  # noqa: PLW0603  the parent's routes are the parent's
    here = Here()
