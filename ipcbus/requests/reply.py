"""Reply handles: what answers one request."""

from __future__ import annotations

import _thread
import logging
import sys
from typing import TYPE_CHECKING, Any

from ipcbus.directory import aside
from ipcbus.errors import ChannelError, EncodeError, IpcbusError, MessageTooLarge, PeerDied, Unsupported
from ipcbus.frame import Routed
from ipcbus.plumbing.fds import is_packing
from ipcbus.plumbing.finalizers import finalizer
from ipcbus.plumbing.unsent import note
from ipcbus.requests import route as routes
from ipcbus.requests.route import ID, Route
from ipcbus.requests.told import describe

if TYPE_CHECKING:
    from ipcbus.requests.route import Here

__all__ = ["ERROR", "UNANSWERED", "VALUE", "ReplyTo"]

logger = logging.getLogger("ipcbus.requests")

VALUE = b""
"""What stands for an address in a reply that brings a value."""
ERROR = b"E"
"""What stands for it in one that brings an error."""
UNANSWERED = "unanswered"
"""The function of who asked that is told of a request, by the inbox's id and the number, that nobody will answer."""
_VALUE, _ERROR = Routed(VALUE), Routed(ERROR)
_BRIEF = 1000
"""Characters of an error's text that travel where all of it is too much."""


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
        self._here = here = routes.here
        self.given = 0
        """In how many messages it was sent, so that another process may answer. This one still may: the first answer counts."""
        self._way: Route | PeerDied
        try:
            self._way = here.routes.get(address) or routes.route(address)
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
        home = self._address[ID:].decode(errors="replace")
        try:
            aside.leave(home, UNANSWERED, self._address[:ID] + self._number.to_bytes(8, "little"))
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
            self._way = way = routes.route(self._address)
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
        if self.given or self._here is not routes.here or sys.is_finalizing():
            return
        if not (self._number and isinstance(self._way, Route) and self._way.has(self._number)):
            return
        # In another thread, and by what takes no lock: this one may be anywhere, and have any lock.
        here = self._here
        here.unanswered.append((self._number, self._address))
        try:
            here.idle.pop()
        except IndexError:
            return  # a thread is under way, and takes all that there is
        try:
            _thread.start_new_thread(_refuse, (here,))
        except RuntimeError:
            here.unanswered.clear()  # there is no thread to be had, and the timeouts tell
            here.idle.append(None)

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


def _refuse(here: Here) -> None:
    """Tell those who asked that nobody answers their requests any more."""
    while True:
        while here.unanswered:
            answer = ReplyTo(*here.unanswered.popleft())
            answer.given = 1  # whatever comes of the next line, it is not tried again
            try:
                answer.fail(_no_answer("the process that received it has let go of it without an answer"), 0)
            except (ChannelError, Unsupported):
                answer.give_up()  # nothing is logged, which would have threading know this thread for ever
        here.idle.append(None)
        try:
            # Looked at again: what was let go of before the line above has started no thread.
            if not here.unanswered:
                return
            here.idle.pop()
        except IndexError:
            return  # another thread was started


def _no_answer(why: str) -> Unsupported:
    return Unsupported(f"this request gets no answer: {why}")


def _arrive(request: bytes) -> ReplyTo:
    return ReplyTo(int.from_bytes(request[:8], "little"), request[8:])
