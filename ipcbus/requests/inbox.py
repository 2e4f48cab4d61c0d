"""The inbox: the channel a process keeps for replies to its requests, and for what other processes ask of it.

No thread is needed to wait for one reply: the threads that wait receive by turns. A thread of the inbox's own (the
*steward*) exists from when somebody is to be called, or something may be asked, while nobody waits.
"""

from __future__ import annotations

import logging
import os
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

from ipcbus import frame as wire
from ipcbus.directory import client as directory
from ipcbus.errors import ChannelBroken, ChannelClosed, ChannelEmpty, ChannelError, ChannelFull, DecodeError, Unsupported
from ipcbus.plumbing import forks
from ipcbus.plumbing.clock import NEVER, Deadline
from ipcbus.plumbing.spin import awake
from ipcbus.requests import reply, route
from ipcbus.requests.addressees import YET, Addressees
from ipcbus.requests.exports import Exports
from ipcbus.requests.future import Future, call_all
from ipcbus.requests.losses import orphaned
from ipcbus.requests.outage import AGAIN, Outage
from ipcbus.requests.table import Requests
from ipcbus.requests.told import remote_error
from ipcbus.requests.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ipcbus.directory.server import Guest
    from ipcbus.endpoint import Endpoint
    from ipcbus.frame import Parsed
    from ipcbus.transport import Frame

__all__ = ["Inbox", "inbox", "settle"]

logger = logging.getLogger("ipcbus.requests")

_REPLIES = frozenset((reply.VALUE, reply.ERROR))
_CAPACITY = 4096
"""Replies that may wait in the inbox (of each process that answers, as the transport counts)."""


class Inbox:
    """An inbox; a process has one, and another one for what its threads ask each other.

    Args:
        url: how its channel is opened.

    Attributes:
        address: what its requests carry, for others to answer to.
        route: the same, as their frames have it.
        late: replies that came when nobody waited for them any more, and were dropped.
    """

    def __init__(self, url: str) -> None:
        from ipcbus.channel import open_channel  # which imports this: a channel asks, and the inbox is one

        self.late = 0
        self._pid = os.getpid()
        self._channel = open_channel(url, capacity=_CAPACITY)
        self._end = self._channel._end  # noqa: SLF001  this package's
        self._codec = self._end.codec
        self._table = Requests()
        # No lock guards this, and who is watched: each step is one in C, and their order is what counts.
        self._waiting: dict[int, Future[Any]] = {}
        """By number. Who takes one out is the one to finish it."""
        self._spare: list[Future[Any]] = []
        """For the next request; entered, but nobody has its number yet."""
        self._lock = threading.RLock()
        """Held while the steward is hired."""
        self._exports = Exports()
        self._turns = Turns(self._lead)
        self._receive: Callable[[float | None], Frame] | None = None
        self.wait_for = self._turns.wait_for
        """Returns when a future is done or the deadline has come."""
        self.seeking = threading.RLock()
        """Held while somebody finds out whether a future of another process was asked for, and does."""
        self._endless: Future[Any] = Future()
        self._steward: threading.Thread | None = None
        self.closed = False
        try:
            self._directory = directory.own()
            self.address = route.publish(self._end, self._table.fd)
            self.route = wire.Routed(self.address)
        except BaseException:
            self._channel.destroy()
            self._table.free()
            raise
        self._addressees = Addressees(self._directory, route.key(self.address), self._table, self._waiting, self._fail)
        self.entrust = self._addressees.entrust
        """Notes which process is to answer a future that waits already."""
        self.unanswered = self._addressees.unanswered
        """Fails a request that nobody will answer."""
        self._directory.handle(reply.UNANSWERED, _unanswered)

    # ------------------------------------------------------------------ asking

    def enter(self) -> Future[Any]:
        """Enter a request that is to be sent, and return its future; ``give_up`` undoes it. ``expect`` is to follow.

        Raises:
            ChannelFull: too many requests wait already.
            ChannelClosed: the inbox is closed.
        """
        try:
            future = self._spare.pop()
        except IndexError:
            return self._make()
        return future if future.outcome is None else self._make()  # all that waits may fail, and this was among it

    def expect(self, future: Future[Any], end: Endpoint) -> None:
        """Note who is to answer a request that was sent through a channel, and prepare for the next while it is answered.

        From here on, the death of the process that is the one receiver of the channel ends the request.
        """
        addressee, until = end.addressee
        if monotonic() > until:
            addressee = self._addressees.find(end)
        self.entrust(future, addressee)
        if not self._spare:
            try:
                self._spare.append(self._make())
            except (ChannelFull, ChannelClosed):
                pass  # who asks next is told

    def _make(self) -> Future[Any]:
        future: Future[Any] = Future(self)
        self.adopt(future, YET)
        return future

    def adopt(self, future: Future[Any], addressee: int | str | None) -> int:
        """Give a future the number by which its reply is known, and return it.

        Args:
            future: it.
            addressee: the process that is to answer, if it is known and another one; or the channel that it is to open yet;
                or ``YET``, and it is entrusted later.

        Raises:
            ChannelFull: too many requests wait already.
            ChannelClosed: the inbox is closed.
        """
        number = future.number = self._table.open()
        future.addressee = addressee
        self._waiting[number] = future
        if self.closed and self._take_out(number) is not None:  # after this was entered: else close() has not seen it
            raise ChannelClosed("the inbox of this process is closed")
        if addressee:
            self.entrust(future, addressee)
        return number

    def give_up(self, future: Future[Any], error: BaseException | None = None) -> bool:
        """Forget a request; a reply that comes is late. False if it was answered already."""
        waited = self._take_out(future.number) is not None
        if waited and error is not None:
            future.finish(None, error)
        return waited

    # ------------------------------------------------------------------ waiting

    def attend(self) -> None:
        """Have a thread receive from now on whenever nobody waits; raises ``ChannelBroken`` if none can be had."""
        with self._lock:
            if self._steward is None and not self.closed:
                # Set first: a signal handler may come here, too, before it has started.
                self._steward = steward = threading.Thread(target=self._serve, name="ipcbus-inbox", daemon=True)
                try:
                    steward.start()
                except BaseException as error:
                    self._steward = None
                    if isinstance(error, RuntimeError):
                        raise ChannelBroken(f"there is no thread to receive replies: {error}; see 'ulimit -u'") from error
                    raise

    def _serve(self) -> None:
        outage = Outage()
        while not self.closed:
            try:
                self._turns.wait_for(self._endless, NEVER)
            except ChannelClosed:
                return
            except ChannelError as error:  # a lack of descriptors for one, and what waits in the channel is not lost by that
                if not outage.endure(error):
                    self._fail(list(self._waiting.copy()), error)

    def _lead(self, future: Future[Any], deadline: Deadline) -> None:
        if (receive := self._receive) is None:
            self._receive = receive = awake(self._end.open_receiver())
        while future.outcome is None:
            try:
                frame = receive(None if deadline is NEVER else deadline.remaining())
            except ChannelEmpty:
                return
            try:
                self._dispatch(frame)
            except BaseException as error:  # else the others who wait would learn nothing more
                if not isinstance(error, Exception) and threading.current_thread() is not self._steward:
                    raise  # an exit or an interrupt of somebody's own thread
                logger.exception("what came to the inbox could not be taken in")

    # ------------------------------------------------------------------ what comes

    def _dispatch(self, frame: Frame) -> None:
        codec = self._codec
        load: Callable[[Any], Any] | None
        what: Any
        quick = wire.unroute(first) if len(frame) == 1 and type(first := frame[0]) is bytes else None
        if quick is not None and not quick[2] and (load := codec.alone.get(quick[0])) is not None:
            # The common reply, of a kind that came before; the long way would do the same.
            serializer, number, kind, _, what = quick
        elif (parsed := self._open(frame)) is not None:
            assert parsed.route is not None
            (number, kind), serializer, load, what = parsed.route, 0, codec.load, parsed
        else:
            return
        future = self._waiting.pop(number, None)  # as _take_out, without the call
        if future is None:
            self.late += 1
            return
        self._table.close(number)
        value: Any = None
        failure: BaseException | None = None
        try:
            value = load(what)
            if kind:
                value, failure = None, remote_error(value)
            elif future.origin is not None:  # passed on, as a pair
                value, failure = value
        except Exception as error:  # noqa: BLE001  whatever the reply's parts do when they are rebuilt is this future's
            failure = codec.undecodable(serializer, what, error) if serializer else error
        except BaseException:
            future.finish(None, ChannelBroken("the reply was lost: the thread that received it was interrupted"))
            raise
        if future.settle(value, failure) and future.callbacks:
            future.call()

    def _open(self, frame: Frame) -> Parsed | None:
        """Take a frame apart and do what it asks; return it if it is a reply."""
        try:
            parsed = self._codec.open(frame)
        except DecodeError as error:
            logger.warning("what came to the inbox is no message: %s", error)
            return None
        if parsed.route is None:
            return None  # a nudge
        if parsed.route[1] in _REPLIES:
            return parsed
        self._answer(parsed)
        return None

    def _answer(self, parsed: Parsed) -> None:
        """Do what another process asks of this one."""
        assert parsed.route is not None
        answer = reply.ReplyTo(*parsed.route)
        try:
            body = self._codec.load(parsed)
            if body[0] == "future":
                self._exports.pass_on(body[1], answer)
            else:
                from ipcbus.requests import callback

                _, which, args, kwargs = body
                callback.perform(which, args, kwargs, answer)
        except Exception as error:
            if not parsed.route[0]:
                logger.exception("a callback was not called, and nobody waits for what it does")
            answer.fail_quietly(error)

    def export(self, future: Future[Any]) -> tuple[bytes, int]:
        """Make a future known to other processes, and return where and by what number they can ask for its value."""
        if not self._end.transport.capabilities.crosses_processes:
            return inbox().export_for(future)  # it may go to a process that cannot ask here
        self._exports.add(future)
        self.attend()
        return self.address, future.number

    def export_for(self, other: Future[Any]) -> tuple[bytes, int]:
        """Export, in place of another inbox's future, one that brings the same."""
        future: Future[Any] = Future(self)
        self.adopt(future, None)

        def bring(done: Future[Any]) -> None:
            assert done.outcome is not None  # this is called when it is done
            self.fulfil(future, *done.outcome)

        exported = self.export(future)
        other.add_done_callback(bring)
        return exported

    def fulfil(self, future: Future[Any], value: Any, error: BaseException | None) -> None:
        """Finish a future that is this process's own to finish."""
        if self._take_out(future.number) is not None:
            future.finish(value, error)
            self._nudge()

    # ------------------------------------------------------------------ what does not come

    def _fail(self, numbers: list[int], error: ChannelError) -> None:
        """End requests with an error, but those that were answered meanwhile."""
        called: list[Future[Any]] = []
        for number in numbers:
            future = self._take_out(number)
            if future is not None and future.settle(None, error):
                called.append(future)
        if numbers:
            self._nudge()
        self._call([future for future in called if future.callbacks])

    def _call(self, futures: list[Future[Any]]) -> None:
        """Call who wants to know that these are done."""
        if futures:
            # Not in this thread, which is the directory's: what is called may wait for processes that wait for that.
            thread = threading.Thread(target=call_all, args=(futures,), name="ipcbus-deaths", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no thread can be had
                self._directory.later(AGAIN, lambda: self._call(futures))

    def _nudge(self) -> None:
        """Have the leader, if there is one, look whether what it waits for is done."""
        if self._turns.led:
            try:
                self._channel.send(None, 0)
            except ChannelFull:
                pass  # it has something to read, and looks then
            except ChannelError as error:
                if not self.closed:
                    logger.warning("the thread that receives from the inbox could not be woken, for now: %s", error)
                    self._directory.later(AGAIN, self._nudge)

    # ------------------------------------------------------------------ the rest

    def _take_out(self, number: int) -> Future[Any] | None:
        """Forget a request and return its future, if it is waited for."""
        future = self._waiting.pop(number, None)
        if future is not None:
            self._table.close(number)
        return future

    def close(self) -> None:
        """Stop receiving; whoever waits for a reply gets ``ChannelClosed``. Called once."""
        self.closed = True
        self._addressees.close()
        self._directory.forget(route.key(self.address))
        self._channel.destroy()
        self._endless.finish(None, None)
        if self._steward is not None and self._steward is not threading.current_thread():
            self._steward.join(route.PATIENCE)
        self._exports.clear()
        for number in self._waiting.copy():
            future = self._take_out(number)
            if future is not None:
                future.finish(None, ChannelClosed("the inbox of this process was closed"))
        self._table.free()

    def abandon(self) -> None:
        """Free what a forked child inherited. Takes no lock: a thread of the parent may have it."""
        self.closed = True
        for future in self._waiting.values():
            future.orphan(orphaned(self._pid))
        self._table.free()


def _unanswered(_guest: Guest, content: bytes) -> tuple[bytes, Sequence[int]]:
    """Take in what another process says in ``ReplyTo.give_up``."""
    key, number = content[:-8], int.from_bytes(content[-8:], "little")
    for box in list(_here.inboxes.values()):
        if route.key(box.address) == route.key(key):
            box.unanswered(number)
    return b"", ()


class _Here:
    """The inboxes of this process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a signal handler may ask amid the first request
        self.inboxes: dict[str, Inbox] = {}


_here = _Here()
_hooked = False


def inbox(end: Endpoint | None = None) -> Inbox:
    """Return this process's inbox: on the transport that ``auto:`` would pick, or for a channel between threads on that one's.

    Raises:
        Unsupported: strangers can send through the channel.
    """
    if end is not None and (known := end.inbox) is not None:
        return known  # type: ignore[no-any-return]  # an endpoint knows nothing of what it keeps here
    if end is not None and not end.codec.trusted:
        raise Unsupported(
            f"requests cannot go through {end.url}: other users or machines can reach it, and would be told how to reach "
            "this process; use a private channel such as pipe:, or give both ends a key_file"
        )
    from ipcbus.selection import best

    between_threads = end is not None and not end.transport.capabilities.crosses_processes
    transport = end.transport if end is not None and between_threads else best({})
    _hook()
    with _here.lock:
        found = _here.inboxes.get(transport.scheme)
        if found is None:
            made = Inbox(f"{transport.scheme}:")
            found = _here.inboxes.setdefault(transport.scheme, made)
            if found is not made:  # the handler's was faster
                made.close()
    if end is not None:
        end.inbox = found
    return found


def settle() -> None:
    """Close the inboxes and the ways to those of others."""
    with _here.lock:
        boxes = list(_here.inboxes.values())
        _here.inboxes.clear()
    for box in boxes:
        box.close()
    route.settle()


def _hook() -> None:
    global _hooked  # noqa: PLW0603  hooks of the interpreter are per process, and so is this
    if not _hooked:
        forks.at_exit(settle, 20)  # before channels are closed: a reply may still have to be handed over
        forks.in_child(_after_fork)
        _hooked = True


def _after_fork() -> None:
    global _here
    before, _here = _here, _Here()
    for box in before.inboxes.values():
        box.abandon()
