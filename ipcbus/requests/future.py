"""Futures: a reply that has not come yet. They pickle, and what arrives elsewhere brings the same reply."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, final

from ipcbus.errors import ChannelClosed, ChannelEmpty
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.fds import loading
from ipcbus.plumbing.wakeup import Wakeup

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator, Iterable
    from typing import Self

    from ipcbus.requests.inbox import Inbox

__all__ = ["Future", "call_all"]

logger = logging.getLogger("ipcbus.requests")

T = TypeVar("T")


class Sleeper(Protocol):
    """Somebody who sleeps until a future is done."""

    def set(self) -> object:
        """Wake up. May be called more than once, by any thread."""


@final
class Future(Generic[T]):
    """The reply to a request that was submitted: wait for it, be called with it, or ``await`` it.

    Picklable, also inside messages, replies and other futures, and before it is done: the process that submitted the
    request then passes the reply on, and must live until that.
    """

    __slots__ = (
        "__weakref__",
        "_inbox",
        "addressee",
        "callbacks",
        "number",
        "origin",
        "outcome",
        "sleepers",
    )

    def __init__(self, inbox: Inbox | None = None) -> None:
        self.number = 0
        self.addressee: int | str | None = None
        self._inbox = inbox
        # No lock: each step that others may see is one step in C, and a future is done by one of them.
        self.outcome: tuple[Any, BaseException | None] | None = None
        """Its value and its error, as soon as it is done."""
        self.callbacks: list[Callable[[Self], object]] = []
        """Who is to be called when it is done."""
        self.sleepers: list[Sleeper] = []
        """Who is woken then: the first ``Wakeup`` among them was given out, to be polled."""
        self.origin: tuple[bytes, int] | None = None
        """Where to ask for the value, which comes from another future as a pair with its error: the inbox of the process that
        has that, and what it calls it."""

    def done(self) -> bool:
        """Tell whether the reply, or the error in its place, is here. Does not wait for it."""
        if self.outcome is None:
            self._seek()
            if self._inbox is not None:
                self._inbox.attend()
        return self.outcome is not None

    def result(self, timeout: float | None = None) -> T:
        """Return the reply.

        Args:
            timeout: seconds to wait; None waits without limit, 0 looks.

        Raises:
            ChannelEmpty: it has not come within the timeout (a ``TimeoutError`` too). It may still come.
            RemoteError: what answered raised an exception, or let go of the request without an answer.
            PeerDied: the process that had the request has died.
            DecodeError: the reply cannot be rebuilt here.
        """
        value, error = self.outcome or self._wait(timeout)
        if error is not None:
            try:
                raise error.with_traceback(None)  # one future may fail many times, and each traceback would be added
            finally:
                del self, error  # the traceback holds this frame, and the error must not hold its future by that
        return value  # type: ignore[no-any-return]  # what the other side sent is known to nobody here

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the error that ``result`` raises, None if it returns a value; raises ``ChannelEmpty`` as it does."""
        return (self.outcome or self._wait(timeout))[1]

    def _wait(self, timeout: float | None) -> tuple[Any, BaseException | None]:
        self._seek()
        if self._inbox is not None:
            self._inbox.wait_for(self, Deadline(timeout))
        if self.outcome is None:
            raise ChannelEmpty(f"no reply came within {timeout:g} s" if timeout else "the reply has not come")
        return self.outcome

    def add_done_callback(self, function: Callable[[Self], object]) -> None:
        """Have a function called with this future when it is done, by a thread of ipcbus's; at once if it is done.

        It may make requests and wait for their replies; but what comes meanwhile for others is received by it alone, so it
        should be short. What it raises is logged.
        """
        self.callbacks.append(function)
        if self.is_done:  # perhaps just now; whoever takes a function out of the list calls it
            self.call()
            return
        self._seek()
        if self._inbox is not None:
            self._inbox.attend()

    def cancel(self) -> bool:
        """Give the request up: the future fails, and a late reply is dropped. False if it is done already."""
        if self._inbox is not None:
            return self._inbox.give_up(self, ChannelClosed("this request was cancelled here"))
        return self.finish(None, ChannelClosed("this request was cancelled here"))

    def __await__(self) -> Generator[Any, None, T]:
        waiting, wake = self._expect()
        try:
            yield from waiting
        finally:  # who gives up waiting may come again, any number of times
            with contextlib.suppress(ValueError):  # it was called
                self.callbacks.remove(wake)
        return self.result(0)

    def arrival(self) -> asyncio.Future[None]:
        """Return a future of the running event loop that is done when this one is; it has no value and no error."""
        return self._expect()[0]

    def _expect(self) -> tuple[asyncio.Future[None], Callable[[Self], object]]:
        """Return what ``arrival`` does, and the function that is called for it."""
        import asyncio

        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()

        def wake(_: Self) -> None:
            try:
                loop.call_soon_threadsafe(_settle, waiting)
            except RuntimeError:
                pass  # that loop is over, and nobody waits in it

        self.add_done_callback(wake)
        return waiting, wake

    def fileno(self) -> int:
        """Return a descriptor that polls readable when the future is done; :func:`ipcbus.wait` takes futures."""
        bell = self._bell()
        if self.outcome is not None:
            bell.set()
        self._seek()
        if self._inbox is not None:
            self._inbox.attend()
        return bell.fileno()

    def ready(self) -> bool:
        """Tell whether it is done."""
        return self.done()

    def __repr__(self) -> str:
        outcome = self.outcome
        state = "pending" if outcome is None else "done" if outcome[1] is None else f"failed: {outcome[1]!r}"
        return f"<ipcbus.Future {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self.outcome is not None:
            return _arrive_done, self.outcome
        if self.origin is not None:
            return _arrive, self.origin
        if self._inbox is None:
            raise ValueError("this future was made by nobody who could finish it")
        return _arrive, self._inbox.export(self)

    # ------------------------------------------------------------------ inside

    def _bell(self) -> Wakeup:
        """Return what was, or now is, given out to be polled."""
        while True:
            for sleeper in self.sleepers.copy():
                if isinstance(sleeper, Wakeup):
                    return sleeper
            self.sleepers.append(Wakeup())  # another thread may do the same, and then the first one counts

    def _seek(self) -> None:
        """Ask the process that has the value for it, if this future came from there and nobody has asked yet."""
        if self.origin is not None and not self.asked:
            with loading("what asks for a future of another process"):
                from ipcbus.requests import questions

            questions.ask_for(self, *self.origin)

    @property
    def asked(self) -> bool:
        """Whether nobody need ask for its value any more."""
        return self.outcome is not None or self._inbox is not None

    # What the inbox, which brings the reply, does with it:

    @property
    def is_done(self) -> bool:
        """Whether it is done, as far as is known without asking anybody."""
        return self.outcome is not None

    def enter(self, inbox: Inbox, addressee: int | str | None) -> None:
        """Become a request of an inbox."""
        self._inbox = inbox
        inbox.adopt(self, addressee)

    def abort(self, error: BaseException) -> None:
        """Fail because the question could not be put."""
        if self._inbox is not None and self._inbox.give_up(self, error):
            return
        self.finish(None, error)

    def finish(self, value: Any, error: BaseException | None) -> bool:
        """Be done, and call who wants to know; false if it was done."""
        if not self.settle(value, error):
            return False
        if self.callbacks:
            self.call()
        return True

    def settle(self, value: Any, error: BaseException | None) -> bool:
        """Be done; ``call`` is to follow. False if it was done.

        Not for two threads at once: a request is settled by who took it out of its inbox.
        """
        if self.outcome is not None:
            return False
        self.outcome = value, error
        if self.sleepers:
            for sleeper in self.sleepers.copy():
                sleeper.set()
        return True

    def call(self) -> None:
        """Call who wants to know that it is done."""
        while self.callbacks:
            try:
                function = self.callbacks.pop(0)
            except IndexError:
                return  # another thread took the last one
            try:
                function(self)
            except Exception:
                logger.exception("a function that was called with a future failed")
            except BaseException:
                self.call()  # an interrupt is one thread's, the others wait for this
                raise

    def orphan(self, error: BaseException) -> None:
        """Fail in a forked child, where nothing comes; calls nobody, and wakes nobody of the parent's."""
        self.sleepers = []
        self.callbacks = []
        self.outcome = None, error


def call_all(futures: Iterable[Future[Any]]) -> None:
    """Call who wants to know of each of these futures that it is done."""
    for future in futures:
        future.call()


def _arrive(address: bytes, export: int) -> Future[Any]:
    future: Future[Any] = Future()
    future.origin = (address, export)
    return future


def _arrive_done(value: Any, error: BaseException | None) -> Future[Any]:
    future: Future[Any] = Future()
    future.finish(value, error)
    return future


def _settle(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
