"""The sending end: a DEALER that connects, and a window that says how far ahead of the receiver it may be."""

from __future__ import annotations

import os
import select
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING

import zmq

from ipcbus.errors import ChannelClosed, ChannelFull, PeerDied
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.locks import alone, amid
from ipcbus.transport import LINGER, SendLink
from ipcbus_zmq._post import NOBLOCK, Post, broken
from ipcbus_zmq._protocol import MARK, Kind, Window, encode, parse

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.transport import Frame
    from ipcbus_zmq._place import Place

__all__ = ["Sender"]

_CONNECTED = int(zmq.EVENT_CONNECTED)
_MORE = NOBLOCK | int(zmq.SNDMORE)
_JOIN_LIMIT = 32 * 1024
"""Bytes up to which the buffers of a frame are joined: one copy is cheaper than one more zmq part."""
_ASK_AFTER = 0.1
"""Seconds of waiting for room after which a sender asks where the receiver is; doubled each time."""
_LOOK_EVERY = 0.001
"""Seconds after which a sender that is connected and has room looks for news before it sends."""
_SUCCESSION = 0.25
"""Seconds of waiting after which a dead receiver is reported: one that follows it needs a moment to be connected to."""
_PARTING = 0.1
"""Seconds that a send without waiting gives zmq to notice the end of a connection: what is written to it is lost."""
_FAREWELL = 1.0
"""Seconds for the last control message, when no data is queued."""
_CONTROL_LIMIT = 256
"""Bytes of the largest message that a receiver may send back."""


class Sender(SendLink):
    """The sending end of one process.

    Args:
        place: where the receiver is.
        capacity: messages that may be on their way.
    """

    def __init__(self, place: Place, capacity: int) -> None:
        self._place = place
        options = {
            zmq.LINGER: 0,  # close sets another
            zmq.SNDHWM: 0,  # the window bounds what is queued
            zmq.RCVHWM: 0,
            zmq.MAXMSGSIZE: _CONTROL_LIMIT,
            **place.connect_options,
        }
        try:
            self._post = Post(zmq.DEALER, options, _CONNECTED | int(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED))
        except BaseException:
            place.release()
            raise
        socket = self._post.socket
        assert socket is not None
        self._socket = socket
        self._send: Callable[..., object] = socket.send
        self._lock = self._post.lock
        self._window = Window(capacity)
        self._shut = place.shut
        self._copies: list[Frame] | None = [] if place.parks else None
        """What was sent while there was no receiver: if none comes, it is left where a later one finds it."""
        self._look_at = 0.0
        self._met = self._connected = self._lost = self._left = False
        self._connection: select.poll | None = None
        """Shows that the receiver has closed its end, which zmq's own thread may not have had the time to notice."""
        self._parting = False
        """Whether the connection takes nothing any more and is about to end: what is sent then waits for the next."""
        self._unsure = False
        """Whether an interruption may have lost news: pyzmq lets signal handlers run behind a receive, and then drops it."""
        self._receiver_pid: int | None = None
        self._parted = False
        self._said = (0, False)
        """What had been said when the receiver was lost: how many messages, and whether the last word."""
        self._ask_at: float | None = None
        self._ask_again = 0.0
        try:
            socket.connect(place.endpoint)
            self._control(Kind.HELLO)
        except zmq.ZMQError as error:
            self.close()
            raise broken(f"cannot connect to {place.endpoint}", error) from error

    # ------------------------------------------------------------------ sending

    def send(self, frame: Frame, timeout: float | None) -> None:
        """Queue one message."""
        me = get_ident()
        if self._post.owner == me:
            raise ChannelFull(amid("sending"))
        try:
            with self._lock:
                self._post.owner = me
                try:
                    window = self._window
                    if window.sent >= window.limit or self._shut[0] or monotonic() >= self._look_at:
                        self._make_room(timeout)
                        if self._copies is not None:
                            self._copies.append([bytes(part) for part in frame])
                    # Counted first: a call that is interrupted may have sent it, and one too many is put right by a HELLO.
                    window.sent += 1
                    try:
                        if len(frame) == 1 and (part := frame[0]) and part[0] != MARK:
                            self._send(part, NOBLOCK)
                        else:
                            self._send_parts(frame)
                    except zmq.ZMQError as error:
                        window.sent -= 1
                        if self._copies:
                            self._copies.pop()
                        raise broken("a message cannot be sent", error) from error
                finally:
                    self._post.owner = 0
        finally:
            if self._post.later:
                self._post.later.catch_up()

    def _send_parts(self, frame: Frame) -> None:
        joined = b"".join(frame) if sum(memoryview(part).nbytes for part in frame) <= _JOIN_LIMIT else b""
        if joined and joined[0] != MARK:
            self._send(joined, NOBLOCK)
            return
        parts = [joined] if joined else frame
        try:
            self._send(encode(Kind.PARTS, len(parts)), _MORE)
            for part in parts[:-1]:
                self._send(part, _MORE)
            self._send(parts[-1], NOBLOCK)
        except BaseException:
            # How far it came cannot be known: end it with so many parts that the receiver sees that it is void.
            for _ in range(len(parts) + 1):
                self._send(encode(Kind.ABORT), _MORE)
            self._send(encode(Kind.ABORT), NOBLOCK)
            raise

    def _make_room(self, timeout: float | None) -> None:
        """Return when one message may be sent; the lock is held."""
        deadline = Deadline(timeout)
        window = self._window
        parting: Deadline | None = None
        heir: Deadline | None = None
        while True:
            self._check_open()
            self._look()
            if self._shut[0]:
                self._part(Kind.SHUTDOWN)  # whoever set the flag may have been killed before it could tell the receiver
                raise ChannelClosed(f"the channel at {self._place.endpoint} was shut down")
            if self._parting:
                parting = parting or Deadline(_PARTING)
                if not parting.expired:
                    self._post.wait(parting.remaining())
                    continue
            elif window.sent < window.limit:
                return
            if self._lost:
                heir = heir or Deadline(_SUCCESSION)
                if heir.expired or deadline.expired:
                    raise PeerDied(self._epitaph(), self._receiver_pid)
            if deadline.expired and self._parting:
                raise ChannelFull(f"the receiver at {self._place.endpoint} is leaving; another one has to come first")
            if deadline.expired:
                raise ChannelFull(
                    f"{window.capacity} messages of this process wait at {self._place.endpoint}"
                    + ("" if self._met else ", where no receiver has appeared yet")
                )
            left = deadline.remaining()
            if self._ask_at is not None:
                left = _least(left, max(0.0, self._ask_at - monotonic()))
            if self._lost and heir is not None:
                left = _least(left, heir.remaining())
            self._post.wait(left, bell=not self._lost)  # the bell rings already, for others, because the receiver is lost

    def _check_open(self) -> None:
        if self._post.closing:
            raise ChannelClosed("this end is closed")

    def _epitaph(self) -> str:
        who = f"process {self._receiver_pid}" if self._receiver_pid else "it"
        return (
            f"the receiver at {self._place.endpoint} is gone ({who} died or the connection broke) and "
            f"{self._window.outstanding} messages are not known to have been received; start a receiver and send again"
        )

    # ------------------------------------------------------------------ news

    def _look(self) -> None:
        """Take in what the receiver and the monitor have said; the lock is held."""
        try:
            self._take_in()
        except BaseException:
            self._unsure = True
            raise

    def _take_in(self) -> None:
        # The monitor first: what a receiver said before its connection ended is in the inbox by the time this tells of it.
        disconnected = greet = False
        for event, value in self._post.events():
            if event == _CONNECTED:
                self._connection = select.poll()
                self._connection.register(value, select.POLLRDHUP)
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                greet = self._met  # a successor; the first receiver gets the greeting that waits since the start
                if greet:
                    self._hear_all()  # the last words of its predecessor: a successor says nothing before it was greeted
                self._met = self._connected = True
                disconnected = self._lost = self._left = False
                self._copies = None  # zmq hands over what they are copies of
            elif self._connected:  # else it was nobody yet, such as a receiver that was interrupted while it opened
                greet = self._connected = False
                disconnected = True
        if not self._post.closing:
            if greet:
                self._control(Kind.HELLO)
            self._ask_if_stuck()
        # Nothing may be sent after this: only after a recv that found nothing do the descriptors tell of what comes.
        self._hear_all()
        if disconnected and not self._left:
            self._lose()
        self._parting = self._connected and (self._left or (self._connection is not None and bool(self._connection.poll(0))))
        if self._parting:
            self._look_at = 0.0
        elif self._connected and self._copies is None:
            self._look_at = monotonic() + _LOOK_EVERY
        elif self._copies is None and self._place.parks:
            self._copies = []
            self._look_at = 0.0
        if self._post.watched:
            self._post.ring(on=self._has_news())

    def _has_news(self) -> bool:
        """Tell whether a send would do something other than find the channel full."""
        return (self._window.sent < self._window.limit and not self._parting) or self._lost or bool(self._shut[0])

    def _ask_if_stuck(self) -> None:
        """Ask where the receiver is, when there has been no room for long, and more and more seldom.

        A call that was interrupted can leave the two counts apart, or miss that there is a receiver, or that it has died. A
        HELLO behind everything that was sent settles the former, and the kernel knows the latter.
        """
        stuck = self._window.sent >= self._window.limit or (self._parting and self._unsure)
        if not stuck or not (self._connected or self._unsure):
            self._ask_at = None
            return
        if self._unsure and self._connected and self._place.deserted():
            self._connected = False
            self._lose()
            return
        now = monotonic()
        if self._ask_at is None:
            self._ask_at, self._ask_again = now + _ASK_AFTER, 2 * _ASK_AFTER
        elif now >= self._ask_at:
            self._ask_at, self._ask_again = now + self._ask_again, 2 * self._ask_again
            self._control(Kind.HELLO)

    def _lose(self) -> None:
        """Note that the receiver died."""
        self._lost = True
        self._said = self._window.sent, self._parted

    def _hear_all(self) -> None:
        while True:
            try:
                part = self._socket.recv(NOBLOCK)
            except zmq.Again:
                return
            except zmq.ZMQError as error:
                raise broken("news of the receiver cannot be read", error) from error
            self._hear(bytes(part))

    def _hear(self, part: bytes) -> None:
        control = parse(part)
        if control is None:
            return
        if control.kind is Kind.GRANT:
            self._receiver_pid = control.number
            self._window.grant(control.count)
            if self._window.sent < self._window.limit:
                self._ask_at = None  # the next time that there is no room is another one, to be asked about as soon as this
            self._unsure = False
        elif control.kind is Kind.CLOSED:
            self._shut[0] = 1
            self._part(Kind.FIN)
        elif control.kind is Kind.GONE:
            self._left = True
            if self._copies is None and self._place.parks:
                self._copies = []  # it takes nothing any more, though its connection may end a moment later
                self._look_at = 0.0

    def _part(self, kind: Kind) -> None:
        """Say once that no more will come."""
        if not self._parted:
            self._parted = True
            self._control(kind)

    def _control(self, kind: Kind) -> None:
        self._send(encode(kind, os.getpid(), self._window.sent), NOBLOCK)

    # ------------------------------------------------------------------ the rest

    def ready(self) -> bool:
        """Tell whether a send would find room, or that there will be none."""
        return self._post.owner != get_ident() and alone(self._post, self._is_ready)

    def _is_ready(self) -> bool:
        self._check_open()
        self._look()
        return self._has_news()

    def fileno(self) -> int:
        """Return the descriptor that tells of room and of other news."""
        return self._post.fileno()

    def receiver(self) -> int | None:
        """Return the pid of the receiver, if it is on this machine for certain."""
        # What it said itself, which a successor may not have said yet; but what it said may not have been looked at yet.
        said = self._receiver_pid if self._connected and self._place.parks else None
        return said or self._place.receiver()

    def depth(self) -> int | None:
        """Return how many of this process's messages are not known to have been received."""
        return self._window.outstanding if self._post.owner == get_ident() else alone(self._post, self._count)

    def _count(self) -> int | None:
        if self._post.closing:
            return None
        self._look()
        return self._window.outstanding

    def shutdown(self) -> None:
        """End the stream."""
        if not self._post.later.postpone(self._post.owner, self.shutdown):
            alone(self._post, self._shut_down)

    def _shut_down(self) -> None:
        self._check_open()
        self._look()
        self._part(Kind.SHUTDOWN)
        self._shut[0] = 1  # after the message: a kill in between leaves the channel as it was
        self._post.ring(on=True)

    def close(self) -> None:
        """Hand over what is queued, for up to ``LINGER`` seconds while a receiver may come for it, and release this end."""
        if not self._post.later.postpone(self._post.owner, self.close):
            self._post.close_by(self._finish)

    def _finish(self) -> None:
        linger = 0.0
        try:
            with self._lock:
                self._post.owner = get_ident()
                try:
                    linger = self._last_words()
                finally:
                    self._post.owner = 0
        except Exception:  # and no interruption: what it leaves is said by the next close
            self._let_go(0.0)
            raise
        # Without the lock: whoever else uses this end is to be told at once that it is closed.
        self._let_go(linger)

    def _last_words(self) -> float:
        """Say that no more comes, leave what nobody has come for, and return the seconds for handing over the rest."""
        if not self._socket.closed:
            self._look()
            if self._connected:
                self._part(Kind.FIN)
        if copies := self._copies:
            self._place.park(copies, lambda: self._end_alone(copies))
        linger = self._linger()
        self._copies = None  # from here on they are zmq's to hand over, or left behind
        self._window.limit = -1  # every send looks from here on, and sees that this end is closed
        return linger

    def _let_go(self, linger: float) -> None:
        self._post.close(linger)
        self._place.release()

    def _end_alone(self, copies: list[Frame] | None) -> bool:
        """End the socket unless a receiver has, or may have, what is to be parked; say whether it was ended."""
        if not self._socket.closed:  # else what was interrupted is done again
            self._look()
            if self._connected or self._copies is not copies:
                return False
        self._post.close(0.0)
        return True

    def _linger(self) -> float:
        if (self._lost and self._said == (self._window.sent, self._parted)) or (self._place.deserted() and not self._copies):
            return 0.0
        if self._left and self._place.removed():
            return 0.0  # no successor can come
        if self._window.outstanding:
            return LINGER
        if self._connected:
            return _FAREWELL
        # A shutdown that a receiver has not heard of: the state that is shared wakes nobody.
        return LINGER if self._parted else 0.0

    def abandon(self) -> None:
        """Let go of what a forked child inherited."""
        self._post.abandon()
        self._place.abandon()


def _least(one: float | None, other: float | None) -> float | None:
    """Return the shorter of two waits, where None is without limit."""
    if one is None or other is None:
        return one if other is None else other
    return min(one, other)
