"""Replies: the way to the inbox of a process that asked, and what answers one request."""

from __future__ import annotations

import _thread
import contextlib
import copy
import logging
import os
import pickle
import socket
import sys
import threading
from collections import OrderedDict, deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from ipcbus import endpoint
from ipcbus.directory import aside
from ipcbus.directory import client as directory
from ipcbus.errors import (
    ChannelEmpty,
    ChannelError,
    ChannelFull,
    EncodeError,
    IpcbusError,
    MessageTooLarge,
    PeerDied,
    Unsupported,
)
from ipcbus.frame import Routed
from ipcbus.plumbing import forks
from ipcbus.plumbing.fds import TravellingFd, is_packing, packing, unpacking
from ipcbus.plumbing.finalizers import finalizer
from ipcbus.plumbing.locks import amid, is_mine
from ipcbus.plumbing.unsent import note
from ipcbus.requests.table import ANSWERED, GIVEN_UP, View
from ipcbus.requests.told import describe

if TYPE_CHECKING:
    from ipcbus.plumbing.clock import Deadline

__all__ = [
    "ERROR",
    "UNANSWERED",
    "VALUE",
    "ReplyTo",
    "Route",
    "is_near",
    "key",
    "publish",
    "reach",
    "route",
    "settle",
]

logger = logging.getLogger("ipcbus.requests")

VALUE = b""
"""What stands for an address in a reply that brings a value."""
ERROR = b"E"
"""What stands for it in one that brings an error."""
UNANSWERED = "unanswered"
"""The function of who asked that is told of a request, by the inbox's id and the number, that nobody will answer."""
_VALUE, _ERROR = Routed(VALUE), Routed(ERROR)
PATIENCE = 5.0
"""Seconds that a reply waits for room in the asker's inbox."""
_ID = 16
_BRIEF = 1000
"""Characters of an error's text that travel where all of it is too much."""
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


class ReplyTo:
    """Answers one request. Picklable: the process that it is sent to answers instead.

    Who asked is told when nobody is left who could: when it was let go of without an answer.

    Args:
        number: the request's id at who asked.
        address: the inbox of who asked.
    """

    __slots__ = ("__weakref__", "_address", "_here", "_number", "_way", "answered", "given")

    def __init__(self, number: int, address: bytes) -> None:
        self.answered = False
        """Whether it has answered."""
        self._number = number
        self._address = address
        self._here = here = _here
        """As it was when this came: each fork puts another one in its place, for then two processes have this."""
        self.given = 0
        """In how many messages it was sent, so that another process may answer. This one still may: the first answer counts."""
        self._way: Route | PeerDied
        try:
            self._way = here.routes.get(address) or route(address)
        except PeerDied as error:
            self._way = error
        else:
            if number:
                self._way.take(number)

    def send(self, value: Any, timeout: float | None = None) -> None:
        """Answer with a value; raises what ``Message.reply`` raises."""
        try:
            self._answer(_VALUE, value, timeout)
        except (EncodeError, MessageTooLarge) as error:
            self.fail(error, timeout)
            raise

    def fail(self, error: BaseException, timeout: float | None = None) -> None:
        """Answer with an error, which is raised as ``RemoteError`` where it arrives; raises what ``Message.reply`` raises."""
        said = describe(error)
        try:
            self._answer(_ERROR, said, timeout)
        except MessageTooLarge:
            self._answer(_ERROR, (said[0], said[1][:_BRIEF], "", None), timeout)

    def refuse(self, why: str) -> None:
        """Answer that nobody will, so that nobody waits; what prevents that is logged."""
        # At once or not at all: who receives did not say how long this may take.
        self.fail_quietly(_no_answer(why), 0)

    def fail_quietly(self, error: BaseException, timeout: float | None = None) -> None:
        """Answer with an error; what prevents that is logged."""
        try:
            self.fail(error, timeout)
        except (ChannelError, Unsupported) as failed:
            logger.warning("an error could not be told to who asked: %s (the error: %r)", failed, error)
            self.give_up()

    def give_up(self) -> None:
        """Have the request fail where it came from, since nobody will try again to answer it. Never fails, never waits."""
        if self.answered or not self._number:
            return
        if isinstance(self._way, Route):
            self._way.give_up(self._number)
        home = self._address[_ID:].decode(errors="replace")
        try:
            aside.leave(home, UNANSWERED, self._address[:_ID] + self._number.to_bytes(8, "little"))
        except (IpcbusError, ValueError) as error:  # ValueError: this is no address
            logger.info("who asked could not be told that request %x gets no reply: %s", self._number, error)

    def waits(self) -> bool:
        """Tell whether somebody still waits for the reply: not after its deadline, nor when it was given up."""
        return bool(self._number) and isinstance(self._way, Route) and self._way.waits(self._number)

    def _answer(self, kind: Routed, value: Any, timeout: float | None) -> None:
        if self.answered:
            raise Unsupported("this request was answered before")
        if not self._number:
            self.answered = True
            return  # nobody wants to know
        way = self._way
        if type(way) is not Route:
            way = self._look_again()
        self.answered = True
        try:
            way.send(self._number, kind, value, timeout)
        except BaseException:
            # Nothing was sent, and it may be tried again, or given up. If an interrupted one was sent, the next is late.
            self.answered = False
            raise

    def _look_again(self) -> Route:
        """Return the way that there was not when the request came: who asked may have been stopped, and gone on since."""
        try:
            self._way = way = route(self._address)
        except PeerDied:
            self.give_up()  # if it is stopped still, it is told when it goes on
            raise
        way.take(self._number)
        return way

    def __del__(self) -> None:
        try:
            if not self.answered:
                self._let_go()
        except AttributeError:
            pass  # it was not made: there was an interrupt, or what it was to be made of makes no sense

    @finalizer
    def _let_go(self) -> None:
        """Have who asked told that nobody will answer, if that is certain: a forked child may have this, too."""
        if self.given or self._here is not _here or sys.is_finalizing():
            return
        if not (self._number and isinstance(self._way, Route) and self._way.has(self._number)):
            return
        # In another thread, and by what takes no lock: this one may be anywhere, and have any lock.
        unanswered = self._here.unanswered
        unanswered.append((self._number, self._address))
        if len(unanswered) == 1:  # else a thread has yet to begin, and takes all that there is
            try:
                _thread.start_new_thread(_refuse, (unanswered,))
            except RuntimeError:
                unanswered.clear()  # there is no thread to be had, and the timeouts tell

    def __reduce__(self) -> tuple[Any, ...]:
        if self.answered:
            raise ValueError("this request was answered; its reply handle is of no use to anybody")
        request = self._number.to_bytes(8, "little") + self._address
        if not is_packing():  # else it is only looked at
            if isinstance(self._way, Route) and self._number:
                # Who sends it on may end before it arrives, and that is then nobody's death.
                self._way.give_away(self._number)
            self.given += 1
            note(request, self._keep)
        return _arrive, (request,)

    def _keep(self) -> None:
        """Have this process answer after all: the message that it was in was not sent."""
        self.given -= 1
        if not (self.given or self.answered) and isinstance(self._way, Route) and self._number:
            self._way.take(self._number)

    def __copy__(self) -> ReplyTo:
        # There is one reply to give: the copy module, which goes by __reduce__, would give it away and keep none.
        return self

    def __deepcopy__(self, memo: object) -> ReplyTo:
        return self

    def __repr__(self) -> str:
        return f"<ipcbus.ReplyTo request {self._number:x}{' answered' if self.answered else ''}>"


def _refuse(unanswered: deque[tuple[int, bytes]]) -> None:
    """Tell those who asked that nobody answers their requests any more."""
    while True:
        try:
            answer = ReplyTo(*unanswered.popleft())
        except IndexError:
            return
        answer.given = 1  # whatever comes of the next line, it is not tried again
        try:
            answer.fail(_no_answer("the process that received it has let go of it without an answer"), 0)
        except (ChannelError, Unsupported):
            answer.give_up()  # nothing is logged, which would have threading know this thread for ever


def _no_answer(why: str) -> Unsupported:
    return Unsupported(f"this request gets no answer: {why}")


def _arrive(request: bytes) -> ReplyTo:
    return ReplyTo(int.from_bytes(request[:8], "little"), request[8:])


# ---------------------------------------------------------------------- routes


class _Here:
    """The routes of this process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.routes: OrderedDict[bytes, Route] = OrderedDict()
        self.missed: dict[str, tuple[socket.socket, str]] = {}
        """By directory: a process that did not answer, as a connection that polls readable when it goes on, and what to say."""
        self.unanswered: deque[tuple[int, bytes]] = deque()
        """Requests that were let go of, by number and address, and who asked is to be told."""


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
    if is_mine(_here.lock):
        raise PeerDied(amid("looking for the way to a process that asked"))  # with the reply it is looked for again
    with _here.lock:
        found = _here.routes.get(address)
        if found is not None:
            return found
        for other, old in list(_here.routes.items()):
            if old.ended or len(_here.routes) >= _MOST:
                del _here.routes[other]
                old.close()
        home = address[_ID:].decode(errors="replace")
        for place, (knocked, _) in list(_here.missed.items()):
            if _is_answered(knocked):
                del _here.missed[place]
                knocked.close()
        if home in _here.missed:  # one that is stopped delays who answers once, not each time
            raise PeerDied(_here.missed[home][1])
        began = monotonic()
        try:
            found = _here.routes[address] = Route(address)
        except Exception as error:  # a message said where to connect to, and who received it must not fail by that
            why = f"the process that asked cannot be reached, it has probably ended: {error}"
            if monotonic() - began > 1:
                with contextlib.suppress(IpcbusError):  # it has ended meanwhile, or cannot be reached at all
                    _here.missed[home] = aside.knock(home), why
            raise PeerDied(why) from error
        return found


def is_near(address: bytes) -> bool:
    """Tell whether the way to an inbox is known, or will be without asking another process, which may be stopped."""
    return address in _here.routes or directory.keeps(address[_ID:].decode(errors="replace"))


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
    with _here.lock:
        routes = list(_here.routes.values())
        _here.routes.clear()
        missed = list(_here.missed.values())
        _here.missed.clear()
    for way in routes:
        way.close()
    for knocked, _ in missed:
        knocked.close()


def key(address: bytes) -> bytes:
    """Return what an inbox is kept under in its process's directory."""
    return b"inbox" + address[:_ID]


def _hook() -> None:
    global _hooked  # noqa: PLW0603  hooks of the interpreter are per process, and so is this
    if not _hooked:
        _hooked = True
        forks.in_child(_after_fork)
        os.register_at_fork(before=_before_fork)


def _before_fork() -> None:
    global _here  # noqa: PLW0603  what was received until now is the child's as well, and either of them may answer
    _here = copy.copy(_here)


def _after_fork() -> None:
    global _here  # noqa: PLW0603  the parent's routes are the parent's
    _here = _Here()
