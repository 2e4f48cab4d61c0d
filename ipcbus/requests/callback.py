"""Callbacks: functions of this process that other processes can call."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, final

from ipcbus.errors import ChannelClosed, ChannelError, ConfigError, EncodeError, Unsupported
from ipcbus.plumbing import forks
from ipcbus.requests import inbox
from ipcbus.requests.future import Future

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from ipcbus.requests.reply import ReplyTo

__all__ = ["Callback", "callback", "perform", "settle"]

logger = logging.getLogger("ipcbus.requests")

P = ParamSpec("P")
T = TypeVar("T")


@final
class Callback(Generic[P, T]):
    """A function that can be sent to another process and called there; it runs here. Made by :func:`ipcbus.callback`."""

    __slots__ = ("__weakref__", "_function", "_on", "_origin", "timeout")

    def __init__(
        self,
        function: Callable[..., Any] | None,
        on: Executor | asyncio.AbstractEventLoop | None,
        timeout: float | None,
        origin: tuple[bytes, int] | None,
    ) -> None:
        self._function = function
        self._on = on
        self._origin = origin
        self.timeout = timeout

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call it and return what it returns; in its own process, that is an ordinary call.

        Raises:
            RemoteError: it raised an exception.
            PeerDied: its process died.
            ChannelEmpty: it took longer than ``timeout`` (a ``TimeoutError`` too).
            EncodeError: an argument cannot travel.
        """
        if self._function is not None and not isinstance(self._on, asyncio.AbstractEventLoop):
            return self._function(*args, **kwargs)  # type: ignore[no-any-return]  # a function as the caller knows it
        return self.submit(*args, **kwargs).result(self.timeout)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call it without waiting, and return a future of what it returns: wait for that, or ``await`` it."""
        future: Future[T] = Future()
        if self._function is not None:
            _run(self, args, kwargs, _Local(future))
        else:
            assert self._origin is not None
            address, number = self._origin
            inbox.ask(address, ("call", number, args, kwargs), future)
        return future

    def post(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call it and want no answer; what it raises is logged in its own process.

        Raises:
            PeerDied: its process is gone.
            EncodeError: an argument cannot travel.
        """
        if self._function is not None:
            _run(self, args, kwargs, None)
        else:
            assert self._origin is not None
            address, number = self._origin
            inbox.tell(address, ("call", number, args, kwargs))

    def close(self) -> None:
        """Let it be called from other processes no more; those that try get an error. Idempotent."""
        with _here.lock:
            for number in [number for number, known in _here.known.items() if known is self]:
                del _here.known[number]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        what = "of another process" if self._function is None else getattr(self._function, "__qualname__", repr(self._function))
        return f"<ipcbus.Callback {what}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._function is not None and self._origin is None:
            _hook()
            box = inbox.inbox()
            box.attend()
            with _here.lock:
                _here.last += 1
                _here.known[_here.last] = self
                self._origin = (box.address, _here.last)
        return _arrive, (*(self._origin or (b"", 0)), self.timeout)


def callback(
    function: Callable[P, T], *, on: Executor | asyncio.AbstractEventLoop | None = None, timeout: float | None = None
) -> Callback[P, T]:
    """Make a function callable from other processes: send what this returns, inside any message.

    It can be called until it is closed, or its process ends.

    Args:
        function: a function, a bound method, anything callable; a coroutine function runs on an event loop.
        on: where it runs: an executor, or an event loop; None is the running loop for a coroutine function, else one
            thread that this process has for all its callbacks.
        timeout: seconds that a caller waits for its result; None is without limit.

    Raises:
        ConfigError: it is a coroutine function, and there is no loop for it to run on.
    """
    if inspect.iscoroutinefunction(function) and not isinstance(on, asyncio.AbstractEventLoop):
        if on is not None:
            raise ConfigError(f"{function!r} is a coroutine function and runs on an event loop, not on {on!r}")
        try:
            on = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigError(
                f"{function!r} is a coroutine function, and no event loop runs here; say on which: callback(f, on=loop)"
            ) from None
    return Callback(function, on, timeout, None)


def perform(number: int, args: tuple[Any, ...], kwargs: dict[str, Any], answer: ReplyTo | None) -> None:
    """Run a callback that another process called, and answer; raises ``ChannelClosed`` if it is closed."""
    with _here.lock:
        known = _here.known.get(number)
    if known is None:
        raise ChannelClosed("this callback was closed by the process that made it")
    _run(known, args, kwargs, answer)


class _Local:
    """Answers a call from the callback's own process."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def send(self, value: Any) -> None:
        self._future.finish(value, None)

    def fail(self, error: BaseException) -> None:
        self._future.finish(None, error)


def _run(known: Callback[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], answer: ReplyTo | _Local | None) -> None:
    function, on = known._function, known._on  # noqa: SLF001  this module's
    assert function is not None
    if isinstance(on, asyncio.AbstractEventLoop):
        running = _call_async(function, args, kwargs, answer)
        try:
            asyncio.run_coroutine_threadsafe(running, on)
        except RuntimeError as error:
            running.close()
            raise ChannelClosed("the event loop that this callback runs on is closed") from error
        return
    (on or _here.executor()).submit(_call, function, args, kwargs, answer)


def _call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], answer: ReplyTo | _Local | None) -> None:
    try:
        value = function(*args, **kwargs)
    except Exception as error:  # noqa: BLE001  whoever called it is told
        _tell(function, answer, None, error)
    else:
        _tell(function, answer, value, None)


async def _call_async(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], answer: ReplyTo | _Local | None) -> None:
    try:
        value = function(*args, **kwargs)
        if inspect.isawaitable(value):
            value = await value
    except Exception as error:  # noqa: BLE001  whoever called it is told
        _tell(function, answer, None, error)
    else:
        _tell(function, answer, value, None)


def _tell(function: Any, answer: ReplyTo | _Local | None, value: Any, error: Exception | None) -> None:
    name = getattr(function, "__qualname__", repr(function))
    if error is not None and (answer is None or not getattr(answer, "waits", lambda: True)()):
        logger.error("the callback %s failed, and nobody waits for what it does", name, exc_info=error)
    if answer is None:
        return
    try:
        if error is not None:
            answer.fail(error)
        else:
            answer.send(value)
    except (ChannelError, EncodeError, Unsupported) as failed:
        logger.warning("what the callback %s returned could not be told to who called it: %s", name, failed)


# ---------------------------------------------------------------------- of this process


class _Here:
    """The callbacks of this process that others know."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.known: dict[int, Callback[..., Any]] = {}
        self.last = 0
        self._executor: ThreadPoolExecutor | None = None

    def executor(self) -> ThreadPoolExecutor:
        with self.lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, thread_name_prefix="ipcbus-callbacks")
            return self._executor

    def close(self) -> None:
        with self.lock:
            executor, self._executor = self._executor, None
            self.known.clear()
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)


_here = _Here()
_hooked = False


def settle() -> None:
    """Let no callback of this process be called any more, and wait for the one that runs."""
    _here.close()


def _arrive(address: bytes, number: int, timeout: float | None) -> Callback[..., Any]:
    with _here.lock:
        known = _here.known.get(number)
    if known is not None and known._origin == (address, number):  # noqa: SLF001  this module's
        return known  # it came home
    return Callback(None, None, timeout, (address, number))


def _hook() -> None:
    global _hooked  # noqa: PLW0603  hooks of the interpreter are per process, and so is this
    if not _hooked:
        _hooked = True
        forks.in_child(_after_fork)
        forks.at_exit(settle, 30)


def _after_fork() -> None:
    global _here  # noqa: PLW0603  the parent's callbacks are the parent's
    _here = _Here()
