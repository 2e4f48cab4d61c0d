"""Futures: a reply that has not come yet. They pickle, and what arrives elsewhere brings the same reply."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

from ipcbus.errors import ChannelClosed, ChannelEmpty
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.wakeup import Wakeup

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator
    from typing import Self

    from ipcbus.requests.inbox import Inbox

__all__ = ["Future"]

T = TypeVar("T")

_asking = threading.RLock()
"""Held while a future's value is asked for, which happens once."""


@final
class Future(Generic[T]):
    """The reply to a request that was submitted: wait for it, be called with it, or ``await`` it.

    Picklable, also inside messages, replies and other futures, and before it is done: the process that submitted the
    request then passes the reply on, and must live until that.
    """

    __slots__ = (
        "__weakref__",
        "_bell",
        "_callbacks",
        "_done",
        "_error",
        "_inbox",
        "_lock",
        "_origin",
        "_value",
        "addressee",
        "number",
    )

    def __init__(self, inbox: Inbox | None = None) -> None:
        self.number = 0
        self.addressee: int | None = None
        self._inbox = inbox
        self._lock = threading.Lock()
        self._done = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Self], object]] = []
        self._bell: Wakeup | None = None
        self._origin: tuple[bytes, int] | None = None
        """Where to ask for the value: the inbox of the process that has it, and what it calls this future."""

    def done(self) -> bool:
        """Tell whether the reply, or the error in its place, is here. Never waits."""
        self._seek()
        return self._done

    def result(self, timeout: float | None = None) -> T:
        """Return the reply.

        Args:
            timeout: seconds to wait; None waits without limit, 0 looks.

        Raises:
            ChannelEmpty: it has not come within the timeout (a ``TimeoutError`` too). It may still come.
            RemoteError: what answered raised an exception.
            PeerDied: the process that had the request has died.
            DecodeError: the reply cannot be rebuilt here.
        """
        error = self._error if self._done else self.exception(timeout)
        if error is not None:
            raise error
        return self._value  # type: ignore[no-any-return]  # what the other side sent is known to nobody here

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the error that ``result`` raises, None if it returns a value; raises ``ChannelEmpty`` as it does."""
        if not self._done:
            self._seek()
            if self._inbox is not None:
                self._inbox.wait_for(self, Deadline(timeout))
            if not self._done:
                raise ChannelEmpty(f"no reply came within {timeout:g} s" if timeout else "the reply has not come")
        return self._error

    def add_done_callback(self, function: Callable[[Self], object]) -> None:
        """Have a function called with this future when it is done, by a thread of ipcbus's; at once if it is done.

        It must not wait for other replies. What it raises is logged.
        """
        with self._lock:
            done = self._done
            if not done:
                self._callbacks.append(function)
        if done:
            function(self)
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
        yield from self.arrival()
        return self.result(0)

    def arrival(self) -> asyncio.Future[None]:
        """Return a future of the running event loop that is done when this one is; it has no value and no error."""
        import asyncio

        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()

        def wake(_: Self) -> None:
            try:
                loop.call_soon_threadsafe(_settle, waiting)
            except RuntimeError:
                pass  # that loop is over, and nobody waits in it

        self.add_done_callback(wake)
        return waiting

    def fileno(self) -> int:
        """Return a descriptor that polls readable when the future is done; :func:`ipcbus.wait` takes futures."""
        with self._lock:
            if self._bell is None:
                self._bell = Wakeup()
                if self._done:
                    self._bell.set()
            bell = self._bell
        self._seek()
        if self._inbox is not None:
            self._inbox.attend()
        return bell.fileno()

    def ready(self) -> bool:
        """Tell whether it is done."""
        return self.done()

    def __repr__(self) -> str:
        state = "pending" if not self._done else f"failed: {self._error!r}" if self._error is not None else "done"
        return f"<ipcbus.Future {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._done:
            return _arrive_done, (self._value, self._error)
        if self._origin is None:
            assert self._inbox is not None
            return _arrive, self._inbox.export(self)
        return _arrive, self._origin

    # ------------------------------------------------------------------ inside

    def _seek(self) -> None:
        """Ask the process that has the value for it, if this future came from there and nobody has asked yet."""
        origin = self._unasked
        if origin is None:
            return
        from ipcbus.requests import inbox

        with _asking:
            if self._unasked is not None:
                inbox.ask_for(self, *origin)

    @property
    def _unasked(self) -> tuple[bytes, int] | None:
        return None if self._done or self._inbox is not None else self._origin

    # What the inbox, which brings the reply, does with it:

    @property
    def is_done(self) -> bool:
        """Whether it is done, as far as is known without asking anybody."""
        return self._done

    @property
    def value_now(self) -> Any:
        """The value it has."""
        return self._value

    @property
    def error_now(self) -> BaseException | None:
        """The error it has."""
        return self._error

    @property
    def passed_on(self) -> bool:
        """Whether its value comes from another future, as a pair of value and error."""
        return self._origin is not None

    def enter(self, inbox: Inbox, addressee: int | None) -> None:
        """Become a request of an inbox."""
        self._inbox = inbox
        inbox.adopt(self, addressee)

    def abort(self, error: BaseException) -> None:
        """Fail because the question could not be put."""
        if self._inbox is not None and self._inbox.give_up(self, error):
            return
        self.finish(None, error)

    def finish(self, value: Any, error: BaseException | None) -> bool:
        """Be done, once; false if it was."""
        with self._lock:
            if self._done:
                return False
            self._value, self._error = value, error
            self._done = True
            callbacks, self._callbacks = self._callbacks, []
            if self._bell is not None:
                self._bell.set()
        for function in callbacks:
            try:
                function(self)
            except Exception:
                import logging

                logging.getLogger("ipcbus.requests").exception("a function that was called with a future failed")
        return True


def _arrive(address: bytes, export: int) -> Future[Any]:
    future: Future[Any] = Future()
    future._origin = (address, export)  # noqa: SLF001  this module's
    return future


def _arrive_done(value: Any, error: BaseException | None) -> Future[Any]:
    future: Future[Any] = Future()
    future.finish(value, error)
    return future


def _settle(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
