"""The ends one process has of its channels: opened once, shared by every Channel object, closed at every kind of exit.

After a fork the child starts with closed ends and opens its own; what it inherited of the parent's is let go without
touching the parent's.
"""

from __future__ import annotations

import pickle
import sys
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ipcbus import endpoints
from ipcbus.errors import ChannelBusy, ChannelClosed, ChannelEmpty, ChannelError, ChannelFull
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.fds import packing
from ipcbus.plumbing.finalizers import finalizer
from ipcbus.plumbing.locks import amid
from ipcbus.plumbing.spin import awake
from ipcbus.transport import Handle

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.codec import Codec
    from ipcbus.settings import ChannelOptions
    from ipcbus.transport import ChannelSpec, Frame, RecvLink, SendLink, Transport

__all__ = ["Endpoint", "Meter", "Stats", "Watcher"]

_HELD_UP = 1.0
"""Seconds after which a sender that drops, and was promised not to block, gives up on another one that holds it up."""


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot of what this process did with a channel."""

    sent: int
    received: int
    dropped: int
    """Messages this process dropped because the channel was full (overflow ``drop_new`` and ``drop_old``)."""
    undecodable: int
    """Messages this process consumed and could not or would not decode."""
    late: int
    """Replies that came when nobody waited for them any more and were dropped, by the inbox that this channel uses."""
    depth: int | None
    """Messages waiting in the channel; None where the transport cannot tell."""
    capacity: int


class Watcher(Protocol):
    """Somebody who waits on the descriptor of an end, which nothing wakes any more once it is closed."""

    def closed(self) -> None:
        """Be told, by any thread, that an end was closed; try it again."""


class Meter(Protocol):
    """Somebody who wants to know what goes through the ends: it opens them, and may put a link of its own around each."""

    def open_sender(self, end: Endpoint) -> SendLink:
        """Open a sending end; raises what ``Handle.open_sender`` raises."""

    def open_receiver(self, end: Endpoint) -> RecvLink:
        """Open a receiving end; raises what ``Handle.open_receiver`` raises."""

    def shut(self, end: Endpoint) -> bool:
        """End the stream without an end; returns what ``Handle.shut`` returns."""

    def after_fork(self) -> None:
        """Start afresh in a forked child: must not lock or wait."""


class Endpoint:
    """This process's ends of one channel."""

    def __init__(
        self,
        handle: Handle,
        spec: ChannelSpec,
        options: ChannelOptions,
        codec: Codec,
        url: str,
        transport: type[Transport],
    ) -> None:
        self.handle = handle
        self.spec = spec
        self.options = options
        self.codec = codec
        self.packs, self.loaders = codec.packs, codec.loaders
        self.url = url
        self.transport = transport
        self.meter: Meter | None = None
        self.patient = options.overflow == "block"
        self.tx: SendLink | None = None
        self.rx: RecvLink | None = None
        self.send_bytes: Callable[[bytes], bool] | None = None
        """The short way of the sending end, where it has one and bytes may travel as they are."""
        self.take: Callable[[float | None], Frame | bytes] | None = None
        """How the receiving end receives; what comes as ``bytes`` is decoded already."""
        self.listen: Callable[[float | None], Frame] | None = None
        """How ``recv_message`` receives."""
        self.asked = False
        """Whether requests come: for each of them somebody waits."""
        self.sent = self.received = self.dropped = self.undecodable = 0
        """Messages. What goes the short ways of the links that there are is counted there."""
        self.watchers: set[Watcher] = set()
        self.postponed: list[Exception] = []
        """What ``recv_many`` met behind messages that it returned; while there is any, ``take`` and ``listen`` are None."""
        self.shared: dict[str, int] = {}
        """Directories that this channel was left at or had from, and which of the homes that followed each other there."""
        self.inbox: Any = None
        """Where replies to requests through this channel come; kept here for who asks."""
        self.addressee: tuple[int | str | None, float] = (None, 0.0)
        """Which other process receives, as the link said when it was asked last, and until when that is taken to be so."""
        self._closed_tx = self._closed_rx = False
        self._lock = threading.RLock()  # a signal handler may open what it interrupts the opening of
        self._opening = False
        """Whether the receiving end is being opened, which may be the receiver already and cannot be used yet."""
        self._links: dict[str, SendLink | RecvLink] = {}
        # Not by a __del__: in a cycle of references what it needs may have been finalized before.
        weakref.finalize(self, _drop, self._links, handle, self.shared, self.key).atexit = False

    def open_sender(self) -> SendLink:
        """Return the sending end, opened if it is not; raises ``ChannelClosed`` after ``close``."""
        with self._lock:
            tx = self.tx
            if self._closed_tx:
                raise self._was_closed()
            if tx is None:
                try:
                    made = self.handle.open_sender() if self.meter is None else self.meter.open_sender(self)
                    # Nothing is called from these looks on: what a signal handler closes then, it finds.
                    if (tx := self.tx) is None and not self._closed_tx:
                        self.tx = self._links["tx"] = tx = made
                        head = self.codec.bytes_head
                        self.send_bytes = made.bytes_sender(head, self.codec.max_message - len(head)) if head else None
                    else:  # opened or closed by a signal handler, meanwhile
                        made.close()
                except Exception as error:
                    if self._closed_tx:  # so was what it is opened with
                        raise self._was_closed() from error
                    raise
                if tx is None:
                    raise self._was_closed()
            return tx

    def open_receiver(self) -> RecvLink:
        """Return the receiving end, opened if it is not.

        Raises:
            ChannelClosed: after ``close``.
            ChannelEmpty: in a signal handler amid the opening.
        """
        with self._lock:
            rx = self.rx
            if self._closed_rx:
                raise self._was_closed()
            if rx is None:
                opening = self._opening  # true in a signal handler amid this
                try:
                    self._opening = True
                    made = self.handle.open_receiver() if self.meter is None else self.meter.open_receiver(self)
                    if (rx := self.rx) is None and not self._closed_rx:  # as above
                        self.rx = self._links["rx"] = rx = made
                    else:
                        made.close()
                except Exception as error:
                    if self._closed_rx:  # as above
                        raise self._was_closed() from error
                    if not isinstance(error, ChannelBusy):
                        raise
                    if (rx := self.rx) is None:  # else opened by a signal handler, meanwhile
                        if opening:
                            raise ChannelEmpty(amid("opening the receiving end")) from None
                        raise
                finally:
                    self._opening = opening
                if rx is None:
                    raise self._was_closed()
            return rx

    def _was_closed(self) -> ChannelClosed:
        return ChannelClosed(f"{self.url} was closed in this process")

    def open_take(self) -> Callable[[float | None], Frame | bytes]:
        """Return ``take`` of the receiving end, opened if it is not; raises ``ChannelClosed`` after ``close``."""
        self._catch_up()
        rx, head = self.open_receiver(), self.codec.accepted_head
        take = self.take = (rx.bytes_receiver(head) if head else None) or rx.recv
        return take

    def open_listen(self) -> Callable[[float | None], Frame]:
        """Return ``listen`` of the receiving end, opened if it is not; raises ``ChannelClosed`` after ``close``."""
        self._catch_up()
        self.codec.prepare_answers()
        rx = self.open_receiver()
        listen = self.listen = awake(rx) if self.asked else rx.recv
        return listen

    def postpone(self, error: Exception) -> None:
        """Have the next call that receives raise an error that came behind messages."""
        self.postponed.append(error)
        self.take = self.listen = None

    def _catch_up(self) -> None:
        if self.postponed:
            raise self.postponed.pop(0)

    def send_or_drop(self, frame: Frame, timeout: float | None) -> bool:
        """Send a message under an overflow policy other than ``block``; say whether it was sent, and count what was dropped."""
        deadline: Deadline | None = None
        link = self.tx or self.open_sender()
        overflow = self.options.overflow
        while True:
            try:
                link.send(frame, 0)
            except ChannelFull:
                if overflow == "fail":
                    raise
                self.dropped += 1
                if overflow == "drop_new":
                    self.codec.unsent(frame)
                    return False
                try:
                    discarded = link.discard_oldest()
                except ChannelError:
                    self.dropped -= 1  # nothing was taken out
                    raise
                if not discarded:
                    self.dropped -= 1  # a receiver was faster, so there is room now
                    if deadline is None:
                        deadline = Deadline(_HELD_UP if timeout is None else timeout)
                    elif deadline.expired:
                        raise  # no room is what is missing: another sender was stopped in the middle, and holds up the others
                continue
            return True

    def shutdown(self, *, may_send: bool, may_receive: bool) -> None:
        """End the stream, by an open end, the handle or an end opened for it; raises ``ChannelClosed`` after ``close``."""
        may_send, may_receive = may_send and not self._closed_tx, may_receive and not self._closed_rx
        if not (may_send or may_receive):
            raise ChannelClosed(f"{self.url} was closed in this process")
        if self.tx is not None and may_send:
            self.tx.shutdown()
        elif self.rx is not None and may_receive:
            self.rx.shutdown()
        elif self.handle.shut() if self.meter is None else self.meter.shut(self):
            pass  # who ends the stream does not have to be the one who may receive
        elif may_send:
            try:
                link = self.open_sender()
            except ChannelClosed:
                if self._closed_tx:
                    raise
                return  # somebody else has shut it down already
            link.shutdown()
        else:
            self.open_receiver().shutdown()

    def close(self, *, sender: bool, receiver: bool) -> None:
        """Close the ends asked for; the handle is let go with the second of them."""
        with self._lock:
            self._closed_tx |= sender
            self._closed_rx |= receiver
            closing: list[SendLink | RecvLink | None] = []
            # The links are left in place: a call that comes now, or is blocked in one, gets ChannelClosed from it.
            closing += [self.tx] if sender else []
            closing += [self.rx] if receiver else []
            done = self._closed_tx and self._closed_rx
        for link in closing:
            if link is not None:
                link.close()
        for watcher in tuple(self.watchers):
            watcher.closed()
        if done:
            self.handle.release()
            endpoints.let_go(self)
            _leave(self.shared, self.key)

    def reopen(self) -> None:
        """Have a side that was closed, while the other was not, open again at its next use."""
        with self._lock:
            if self._closed_tx and not self._closed_rx:
                self.sent, _ = self.totals()
                self.tx = self.send_bytes = None
                self._closed_tx = False
            elif self._closed_rx and not self._closed_tx:
                _, self.received = self.totals()
                self.rx = self.take = self.listen = None
                self._closed_rx = False

    def totals(self) -> tuple[int, int]:
        """Return how many messages were sent and received, whichever way they went."""
        return (
            self.sent + (0 if self.tx is None else self.tx.sent_short),
            self.received + (0 if self.rx is None else self.rx.received_short),
        )

    def state(self) -> tuple[Any, ...]:
        """Return what another process needs to open the same channel."""
        if self._closed_tx and self._closed_rx:
            raise ChannelClosed(f"{self.url} was closed in this process and cannot be passed on")
        path = f"{self.transport.__module__}:{self.transport.__qualname__}"
        return self.handle, self.spec, self.options, self.url, path, self.codec.private, self.meter

    def share(self) -> str | None:
        """Leave the channel where any process of this user can have it, and return where; None if it is but an address.

        Raises:
            ChannelClosed: it is closed here.
            ChannelBroken: the system refused.
        """
        from ipcbus.directory import client as directory

        with self._lock:
            for address, generation in self.shared.items():
                if directory.current(address) == generation:
                    return address
            with packing() as fds:
                content = pickle.dumps(self.state())
            named = type(self.handle).destroy is not Handle.destroy
            if not fds and not named:
                return None
            address = directory.where()
            self.shared[address] = directory.put(address, self.key, content, fds)
            if named and (home := directory.keeper(address)) is not None:
                self.handle.entrust(home)
                endpoints.entrusted(self)
            return address

    @property
    def key(self) -> bytes:
        """What the channel is kept under in directories."""
        return bytes.fromhex(self.spec.id)

    def closed_for(self, role: str) -> bool:
        """Tell whether the end that a sender or a receiver uses is closed here, while the other may be open."""
        return (role == "sender" and self._closed_tx) or (role == "receiver" and self._closed_rx)

    def after_fork(self) -> None:
        """Start afresh in a forked child."""
        self._lock = threading.RLock()
        for link in (self.tx, self.rx):
            if link is not None:
                with endpoints.going_on(f"{self.url}: an end that this forked child inherited was not let go"):
                    link.abandon()
        self.tx = self.rx = self.send_bytes = self.take = self.listen = None
        self.asked = self._opening = False
        if self.meter is not None:
            self.meter.after_fork()
        self._links.clear()
        self.shared.clear()
        self.inbox = None
        self.addressee = (None, 0.0)
        self.watchers.clear()
        self.postponed.clear()
        self.sent = self.received = self.dropped = self.undecodable = 0
        self.codec.after_fork()


@finalizer
def _drop(links: dict[str, SendLink | RecvLink], handle: Handle, shared: dict[str, int], key: bytes) -> None:
    """Free what an endpoint had whose last channel object is gone: nobody can use it any more."""
    for link in links.values():
        link.close()
    handle.release()
    _leave(shared, key)


def _leave(shared: dict[str, int], key: bytes) -> None:
    """Have directories keep a channel no longer for this process."""
    if not shared or sys.is_finalizing():
        return  # an interpreter that ends imports nothing any more, and what is kept here is kept no longer
    from ipcbus.directory import client as directory

    addresses = list(shared)
    shared.clear()
    for address in addresses:
        directory.drop(address, key)
