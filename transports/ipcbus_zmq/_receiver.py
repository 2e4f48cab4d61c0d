"""The receiving end: a ROUTER that binds, and a ledger of what each sender may still send."""

from __future__ import annotations

from collections import deque
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING

import zmq

from ipcbus.errors import ChannelClosed, ChannelEmpty, EndOfChannel
from ipcbus.plumbing.alarm import Alarm
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.locks import alone, amid
from ipcbus.transport import RecvLink
from ipcbus_zmq._post import NOBLOCK, Post, broken
from ipcbus_zmq._protocol import MARK, Account, Ending, Kind, Ledger, parse
from ipcbus_zmq._telling import Telling

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.transport import Frame
    from ipcbus_zmq._place import Place
    from ipcbus_zmq._protocol import Control

__all__ = ["Receiver"]

_ACCEPTED = int(zmq.EVENT_ACCEPTED)
_FAILED = (
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL),
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL),
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH),
)
_SLACK = 64
"""Messages above the capacity that zmq may hold for one connection: control messages."""
_PATIENCE = 0.002
"""Seconds a receiver sleeps before it returns the credit of messages that just came: more may follow, and one grant does."""
_FAREWELL = 0.2
"""Seconds for telling the senders that this receiver goes."""
_INTRODUCTION = 0.05
"""Seconds that a sender which has connected gets to say its first word to a receiver that goes."""
_AT_MOST = 10_000
"""Messages that a receiver takes off the socket before it goes on, to see who is there when it closes, or what came before."""
_AT_ONCE = 16
"""Messages taken off the socket in one go when they stand in a queue."""
_STREAK = 8
"""Calls in a row that found a message, after which messages are taken to stand in a queue."""
_PRUNE_FROM = 256
"""Accounts above which those of vanished senders are looked for."""


class Receiver(RecvLink):
    """The receiving end of the one process that has it.

    Args:
        place: where to listen.
        capacity: messages each sender may have on its way.
        max_message: bytes.
    """

    def __init__(self, place: Place, capacity: int, max_message: int) -> None:
        self._place = place
        self._ledger = Ledger(capacity)
        self._accounts = self._ledger.accounts
        self._max_message = max_message
        self._ending = Ending(place.settling)
        self._ready: deque[Frame] = deque()
        """Messages that wait to be received: taken off the socket, or parked before this end opened."""
        self._taken: list[Account] = []
        """The senders of those that were taken off the socket, and of those received since ``ready`` was empty."""
        self._aside: dict[bytes, deque[tuple[Account, Frame]]] = {}
        """By connection, the messages of those that may follow one that broke, whose messages come first."""
        self._aside_left = 0
        """How many messages may still be taken off the socket to find that."""
        self._at_once = min(_AT_ONCE, self._ledger.batch)
        self._streak = 0
        """How often in a row there was a message."""
        self._drained = False
        """Whether the socket was found empty."""
        self._carried: bytes | None = None
        self._torn = False
        self._unheard = 0
        """Connections of which nothing has been heard yet."""
        self._special = True
        """Whether there is more to do than to take a message: just opened, interrupted, shut down, or closed."""
        self._prune_at = _PRUNE_FROM
        self.strays = 0
        """Messages that made no sense and were dropped."""
        # Twice what a sender that keeps the rules can have here: zmq finds its mark reached at half of it, because it
        # hears of what was read only now and then. And where it has stopped reading, it drops what a sender leaves in the
        # kernel when that closes.
        bound = min(2 * (capacity + _SLACK), 2**31 - 1)
        options = {
            # Before binding: zmq ends the connection of a dead sender with the linger of that moment, whatever close says
            # later, and with the default, which is for ever, a close at the same moment would never end.
            zmq.LINGER: 0,
            zmq.ROUTER_MANDATORY: 1,  # a send to a sender that is gone says so
            zmq.RCVHWM: bound,  # a sender that minds no credit is held back by its own connection
            zmq.SNDHWM: bound,
            zmq.MAXMSGSIZE: max_message,
            **place.bind_options,
        }
        try:
            self._alarm = Alarm()
            """Tells everybody who sleeps that the end of the channel may have come."""
        except OSError as error:
            place.release()
            raise broken("a receiver cannot be opened", error) from error
        try:
            self._post = Post(zmq.ROUTER, options, _ACCEPTED | sum(_FAILED))
        except BaseException:
            self._alarm.close()
            place.release()
            raise
        socket = self._post.socket
        assert socket is not None
        self._socket = socket
        self._telling = Telling(socket, self._ledger)
        self._recv: Callable[[int], bytes] = socket.recv
        self._lock = self._post.lock
        try:
            self._post.also_watch(self._alarm.fileno())
            socket.set(zmq.USE_FD, place.listen())
            socket.bind(place.endpoint)
            place.delivered()
            if place.shut[0]:
                self._end()
        except BaseException as error:
            if socket.get(zmq.LAST_ENDPOINT):
                place.delivered()  # interrupted in between
            self.close()
            if isinstance(error, zmq.ZMQError):
                raise broken(f"cannot listen at {place.endpoint}", error) from error
            raise

    # ------------------------------------------------------------------ receiving

    def recv(self, timeout: float | None) -> Frame:
        """Take the next message."""
        ready = self._ready
        if len(ready) > 1:  # the last one is not taken here: it settles accounts
            try:
                return ready.popleft()
            except IndexError:
                pass  # other threads were faster
        me = get_ident()
        if self._post.owner == me:
            raise ChannelEmpty(amid("receiving"))
        try:
            with self._lock:
                self._post.owner = me
                try:
                    if not ready and (self._special or not self._fill()):
                        self._wait_for_some(timeout)
                    frame = ready.popleft()
                    if not ready:
                        self._settle()
                        if self._ledger.owes and not self._special and not self._fill():
                            # All that came was received, and so the senders have all their room, whoever calls next.
                            self._telling.grant_all()
                            self._fill()  # granting may have taken in zmq's news of a message, no descriptor shows it then
                    if self._post.watched:
                        self._post.ring(on=True)
                    return frame
                finally:
                    self._post.owner = 0
        finally:
            if self._post.later:
                self._post.later.catch_up()

    def _fill(self) -> bool:
        """Take messages off the socket that has none ready, and tell whether there are any now; the lock is held.

        When messages stand in a queue, several are taken at a time: the next calls then need no lock.
        """
        recv, accounts, ready, taken = self._recv, self._accounts, self._ready, self._taken
        at_once = self._at_once if self._streak >= _STREAK else 1
        self._streak += 1
        self._drained = False
        identity = b""
        if taken:
            self._settle()
        try:
            if self._special:
                self._step()
                at_once = 1
            while at_once:
                identity = b""
                identity = recv(NOBLOCK) if self._carried is None else self._carried
                self._carried = None
                first = recv(NOBLOCK)
                account = accounts.get(identity)
                if account is not None and first and first[0] != MARK and not self._special:
                    ready.append((first,))
                    taken.append(account)
                else:
                    self._sort(identity, first)
                    if self._aside and self._aside_left:
                        self._aside_left -= 1
                        continue
                    if self._special:
                        self._make_aside_ready()
                        break
                at_once -= 1
        except zmq.Again:
            if self._aside:
                self._make_aside_ready()
            if identity and not _is_name(identity):
                ready.append((identity,))  # out of step, as below
            self._drained = True
            self._streak = 0
            if not ready:
                self._post.ring(on=False)
        except zmq.ZMQError as error:
            raise broken("receiving failed", error) from error
        except BaseException:
            # Interrupted, perhaps in the middle of a message.
            self._torn = self._special = True
            raise
        return bool(ready)

    def _settle(self) -> None:
        """Note that all messages taken have been received, and grant their senders as many; the lock is held."""
        for account in self._taken:
            account.consumed += 1
            if account.consumed >= account.mark and self._ledger.due(account):
                self._telling.grant(account)
        self._taken.clear()

    def _wait_for_some(self, timeout: float | None) -> None:
        """Return when a message is ready; the lock is held."""
        deadline = Deadline(timeout)
        patient = timeout != 0
        asked = self._drained and patient and not self._special
        while not (self._ready or (not asked and self._try(patient=patient))):
            asked = False
            if self._post.closing:
                raise ChannelClosed("this end is closed")
            if self._place.shut[0] and not self._ending.begun:
                self._end()  # its message may have been in hand when a call was interrupted
                continue
            if self._ending.over:
                raise EndOfChannel(f"the channel at {self._place.endpoint} was shut down and is drained")
            if deadline.expired:
                raise ChannelEmpty(f"no message at {self._place.endpoint}")
            if not self._drained:
                continue
            left = deadline.remaining()
            patience = _PATIENCE if patient and self._ledger.owing() else None
            if patience is not None:
                left = patience if left is None else min(left, patience)
            self._post.wait(left)
            patient = patience is None and patient

    def _try(self, *, patient: bool) -> bool:
        """Tell whether a message is ready, after looking for one; the lock is held.

        Args:
            patient: whether what is owed to the senders may wait a little.
        """
        if self._post.closing or self._ending.over:
            return False
        if self._fill():
            return True
        if not self._drained:
            self._post.ring(on=True)  # there is more, but it was control messages so far
            return False
        self._count_connections()
        if not patient and self._ledger.owing():
            self._telling.grant_all()
            if self._fill():  # granting may have taken in zmq's news of a message, no descriptor shows it then
                return True
        if self._ending.begun and self._drained:
            if self._ending.empty(monotonic(), silent_senders=bool(self._accounts)):
                self._post.ring(on=True)  # for ever, and for all who wait
            else:
                self._alarm.set(self._ending.remaining(monotonic()))
        return False

    def _step(self) -> None:
        """Do what is special: take what was parked, and drop the rest of a message that an interrupted call left half read."""
        if self._torn:
            while self._socket.get(zmq.RCVMORE):
                self._recv(NOBLOCK)
            self._carried = None
            self._torn = False
        if not self._post.closing:
            self._place.welcome(self._ready)  # here and not at the opening, which may be interrupted and come to nothing
        self._special = self._ending.begun or self._post.closing or bool(self._aside)

    def _sort(self, identity: bytes, first: bytes) -> None:
        """Put a message that is not plainly data where it belongs."""
        if not _is_name(identity):
            # Out of step: a stranger sent more parts than it may. What looks like the first part is zmq's name for the
            # next sender.
            self._carried = first
            self._ready.append((identity,))
            return
        account = self._accounts.get(identity) or self._meet(identity, first)
        if not first or first[0] != MARK:
            self._put(account, (first,))
            return
        control = parse(first)
        if control is None:
            self.strays += 1
        elif control.kind is Kind.PARTS:
            self._put(account, self._collect(control.number))
        else:
            self._obey(account, control)

    def _put(self, account: Account, frame: Frame | None) -> None:
        """Make a message ready; None is one that was counted by its sender and is void."""
        if self._ledger.excessive(account):
            self.strays += 1
            return
        if frame is not None:
            if self._ending.begun:
                self._ending.heard()
            if (aside := self._aside.get(account.identity)) is not None:
                aside.append((account, frame))
                return
            self._ready.append(frame)
        self._taken.append(account)

    def _make_aside_ready(self) -> None:
        """Let what may follow a broken connection come behind all that was there, and what came by older connections first."""
        while self._aside:
            some = next(iter(self._aside))
            identity = min(self._aside, key=lambda name: _later(some, name))
            aside = self._aside[identity]
            while aside:
                account, frame = aside.popleft()
                self._ready.append(frame)
                self._taken.append(account)
            del self._aside[identity]

    def _collect(self, number: int) -> Frame | None:
        """Take the parts of a message; None when it is not whole."""
        parts: list[memoryview] = []
        size, last = 0, False
        while not last:
            if not parts and not self._socket.get(zmq.RCVMORE):
                break
            part = self._socket.recv(NOBLOCK, copy=False)
            last = not part.more
            size += len(part)
            if size <= self._max_message and len(parts) <= number:
                parts.append(part.buffer)
        if len(parts) == number and size <= self._max_message:
            return parts
        self.strays += 1
        return None

    def _meet(self, identity: bytes, first: bytes) -> Account:
        self._count_connections()  # here, too: where there always is a message, they would pile up
        self._unheard -= 1
        if len(self._accounts) >= self._prune_at:
            self._telling.tell_all(Kind.GRANT)
            self._prune_at = max(_PRUNE_FROM, 2 * len(self._accounts))
        control = parse(first)
        if control is None or control.kind is not Kind.HELLO or control.count:
            # It has sent before, perhaps here: zmq takes what connections brought by turns, and not the older one's first.
            if not self._aside:
                self._aside_left = _AT_MOST
            self._aside[identity] = deque()
            self._special = True
        return self._ledger.open(identity)

    def _obey(self, account: Account, control: Control) -> None:
        kind = control.kind
        if kind is Kind.HELLO:
            here = self._taken.count(account) + len(self._aside.get(account.identity, ()))
            self._ledger.hello(account, control.count - here)
            self._telling.tell(account, Kind.GRANT, account.granted)
            if self._ending.begun:
                self._ending.heard()
                self._telling.tell(account, Kind.CLOSED)
        elif kind in (Kind.FIN, Kind.SHUTDOWN):
            self._ledger.close(account.identity)
            if kind is Kind.SHUTDOWN:
                self._end()
        elif kind is Kind.ABORT:
            self._torn = True
            self._step()
        else:
            self.strays += 1

    # ------------------------------------------------------------------ who is there

    def _count_connections(self) -> None:
        seen = [event for event, _ in self._post.events()]
        self._unheard += seen.count(_ACCEPTED) - sum(map(seen.count, _FAILED))

    def _greet(self) -> None:
        """Take in the greetings of senders that have connected since the last look, as far as no message lies before them."""
        while not self._ready:
            self._fill()
            if self._drained:
                return

    def _end(self) -> None:
        """Note that the channel was shut down, and tell every sender."""
        if self._ending.begun:
            return
        self._place.shut[0] = 1
        self._ending.begin(monotonic())
        self._alarm.set(self._ending.remaining(monotonic()))
        self._special = True
        self._telling.grant_all()
        self._ledger.stop()
        self._telling.tell_all(Kind.CLOSED)

    # ------------------------------------------------------------------ the rest

    def ready(self) -> bool:
        """Tell whether a message is there, or the end is."""
        return self._post.owner != get_ident() and alone(self._post, self._is_ready)

    def _is_ready(self) -> bool:
        if self._post.closing:
            raise ChannelClosed("this end is closed")
        found = bool(self._ready) or self._try(patient=False) or self._ending.over
        if found and self._post.watched:
            self._post.ring(on=True)  # zmq's own descriptor shows it no more
        return found

    def fileno(self) -> int:
        """Return the descriptor that tells of messages."""
        return self._post.fileno()

    def depth(self) -> None:
        """Return None: zmq does not say how many messages it holds."""

    def shutdown(self) -> None:
        """End the stream."""
        if not self._post.later.postpone(self._post.owner, self.shutdown):
            alone(self._post, self._shut_down)

    def _shut_down(self) -> None:
        if self._post.closing:
            raise ChannelClosed("this end is closed")
        self._greet()
        self._end()
        self._post.ring(on=True)

    def close(self) -> None:
        """Tell the senders and stop listening. Messages that came and were not received are lost."""
        if not self._post.later.postpone(self._post.owner, self.close):
            self._post.close_by(self._finish)

    def _finish(self) -> None:
        with self._lock:
            self._post.owner = get_ident()
            self._special = True
            try:
                if not self._socket.closed:  # else what was interrupted is done again
                    self._meet_the_last()
                    self._telling.grant_all()
                    self._telling.tell_all(Kind.GONE)
            finally:
                try:
                    self._post.close(_FAREWELL)
                finally:  # whatever interrupts that: who cannot receive any more must not keep others from it
                    self._post.owner = 0
                    self._place.release()
                    self._alarm.close()

    def _meet_the_last(self) -> None:
        """Drop what came, and learn who is there: a sender that has connected and is told nothing takes this for a death."""
        deadline = Deadline(_INTRODUCTION)
        while True:
            self._drained = False
            for _ in range(_AT_MOST):
                self._greet()
                self._ready.clear()
                self._taken.clear()
                if self._drained:
                    break
            self._count_connections()
            if deadline.expired or self._unheard <= 0:
                return
            self._post.wait(deadline.remaining(), bell=False)

    def abandon(self) -> None:
        """Let go of what a forked child inherited."""
        self._post.abandon()
        self._alarm.close()
        self._place.abandon()


def _is_name(part: bytes) -> bool:
    """Tell whether a part can be zmq's name for a connection."""
    return len(part) == 5 and part[0] == 0


def _later(one: bytes, other: bytes) -> int:
    """Return a number that is the larger the later the other connection was made: zmq's names count on, and begin anywhere."""
    return (int.from_bytes(other, "big") - int.from_bytes(one, "big") + 2**31) % 2**32
