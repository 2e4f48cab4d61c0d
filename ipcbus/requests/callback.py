"""Callbacks: functions of this process that other processes can call."""

from __future__ import annotations

import _thread
import asyncio
import inspect
import itertools
import logging
import threading
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, final

from ipcbus.errors import ChannelBroken, ChannelClosed, ChannelError, ConfigError, EncodeError, Unsupported
from ipcbus.plumbing import forks
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.finalizers import finalizer
from ipcbus.requests import inbox, questions, route
from ipcbus.requests.future import Future
from ipcbus.requests.worker import Worker, workers

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from concurrent.futures import Future as Run
    from types import TracebackType
    from typing import Self

    from ipcbus.requests.reply import ReplyTo

__all__ = ["Callback", "callback", "perform", "settle"]

logger = logging.getLogger("ipcbus.requests")

PATIENCE = 5.0
"""Seconds that a callback has to end when its process does."""
P = ParamSpec("P")
T = TypeVar("T")


@final
class Callback(Generic[P, T]):
    """A function that can be sent to another process and called there; it runs here. Made by :func:`ipcbus.callback`."""

    __slots__ = ("__weakref__", "_function", "_home", "_on", "_origin", "timeout")

    def __init__(
        self,
        function: Callable[..., Any] | None,
        on: Executor | asyncio.AbstractEventLoop | None,
        timeout: float | None,
        origin: tuple[bytes, int],
    ) -> None:
        self._function = function
        self._home = None if function is None else _here
        """What the process has that the function is to run in: a forked child has another one."""
        self._on = on
        self._origin = origin
        self.timeout = timeout

    @property
    def _local(self) -> bool:
        return self._home is _here

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call it and return what it returns; in its own process, that is an ordinary call.

        Raises:
            RemoteError: it raised an exception.
            PeerDied: its process died.
            ChannelEmpty: it took longer than ``timeout`` (a ``TimeoutError`` too).
            EncodeError: an argument cannot travel.
            Unsupported: it runs on the event loop that this is called on; ``await`` what ``submit`` returns.
        """
        if self._local and not isinstance(self._on, asyncio.AbstractEventLoop):
            assert self._function is not None
            return self._function(*args, **kwargs)  # type: ignore[no-any-return]  # a function as the caller knows it
        if self._local and _runs_here(self._on):
            raise Unsupported(f"{self!r} runs on this event loop, which would wait for itself: await submit() instead")
        deadline = Deadline(self.timeout)
        if not self._local:
            route.reach(self._origin[0], deadline)
        future = self._begin(args, kwargs, deadline.remaining())
        try:
            return future.result(deadline.remaining())
        finally:
            if not future.is_done:
                future.cancel()

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call it and return a future of what it returns: wait for that, or ``await`` it.

        Waits for nothing but to hand over the arguments: up to 5 seconds where its process is stopped and was not called from
        here before, or has no room for them. Then the future fails.

        Raises:
            EncodeError: an argument cannot travel.
            ChannelBroken: there is no thread, or no descriptor, to receive the result with. It was not called.
        """
        inbox.inbox().attend()
        return self._begin(args, kwargs)

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None = None) -> Future[T]:
        future: Future[T] = Future()
        if self._local:
            box = inbox.inbox()
            future.enter(box, None)
            try:
                _run(self, args, kwargs, _Local(box, future))
            except BaseException:
                future.cancel()
                raise
        else:
            address, number = self._origin
            questions.ask(address, ("call", number, args, kwargs), future, timeout)
        return future

    def post(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call it and want no answer; what it raises is logged in its own process. Waits as ``submit`` does.

        Raises:
            PeerDied: its process is gone, or did not answer for 5 seconds when it was called from here for the first time.
            ChannelFull: its process had no room for the arguments for 5 seconds.
            EncodeError: an argument cannot travel.
        """
        if self._local:
            _run(self, args, kwargs, None)
        else:
            address, number = self._origin
            questions.tell(address, ("call", number, args, kwargs))

    def close(self) -> None:
        """Let it be called from other processes no more; those that try get an error. Idempotent."""
        if self._local:
            with _here.lock:
                _here.known.pop(self._origin[1], None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        what = "of another process" if not self._local else getattr(self._function, "__qualname__", repr(self._function))
        return f"<ipcbus.Callback {what}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (*self._origin, self.timeout)


def callback(
    function: Callable[P, T], *, on: Executor | asyncio.AbstractEventLoop | None = None, timeout: float | None = None
) -> Callback[P, T]:
    """Make a function callable from other processes: send what this returns, inside any message.

    It can be called until it is closed, or its process ends. A child that was forked, and inherited it, calls it in this
    process, too. While a function on the thread for all callbacks waits for a reply, others run there.

    Args:
        function: a function, a bound method, anything callable; a coroutine function runs on an event loop.
        on: where it runs: an executor, or an event loop; None is the running loop for a coroutine function, else one
            thread that this process has for all its callbacks.
        timeout: seconds that a caller waits for its result; None is without limit.

    Raises:
        ConfigError: it is a coroutine function, and there is no loop for it to run on; or nothing can run on ``on``.
        TypeError: it cannot be called.
    """
    if not callable(function):
        raise TypeError(f"a callback is made of a function, not of {function!r}; pass f, and not what f() returns")
    if on is not None and not isinstance(on, asyncio.AbstractEventLoop) and not callable(getattr(on, "submit", None)):
        raise ConfigError(f"a callback runs on an executor or an event loop, not on {on!r}")
    if inspect.iscoroutinefunction(function) and not isinstance(on, asyncio.AbstractEventLoop):
        if on is not None:
            raise ConfigError(f"{function!r} is a coroutine function and runs on an event loop, not on {on!r}")
        try:
            on = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigError(
                f"{function!r} is a coroutine function, and no event loop runs here; say on which: callback(f, on=loop)"
            ) from None
    _hook()
    box = inbox.inbox()
    box.attend()
    with _here.lock:
        number = next(_here.numbers)
        # Known before it is sent: a forked child may call what it inherited.
        made: Callback[P, T] = Callback(function, on, timeout, (box.address, number))
        _here.known[number] = made
    return made


def perform(number: int, args: tuple[Any, ...], kwargs: dict[str, Any], answer: ReplyTo | None) -> None:
    """Run a callback that another process called, and answer; raises ``ChannelClosed`` if it is closed."""
    with _here.lock:
        known = _here.known.get(number)
    if known is None:
        raise ChannelClosed("this callback was closed by the process that made it")
    _run(known, args, kwargs, answer)


class _Local:
    """Answers a call from the callback's own process."""

    def __init__(self, box: inbox.Inbox, future: Future[Any]) -> None:
        self._box = box
        self._future = future

    def send(self, value: Any) -> None:
        self._box.fulfil(self._future, value, None)

    def fail(self, error: BaseException) -> None:
        self._box.fulfil(self._future, None, error)

    def give_up(self) -> None:
        self.fail(ChannelBroken("what this callback returned could not be handed over"))

    def waits(self) -> bool:
        return not self._future.is_done


def _runs_here(loop: Executor | asyncio.AbstractEventLoop | None) -> bool:
    """Tell whether this is called on an event loop."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False  # none runs in this thread


def _run(known: Callback[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], answer: ReplyTo | _Local | None) -> None:
    function, on = known._function, known._on  # noqa: SLF001  this module's
    assert function is not None
    if isinstance(on, asyncio.AbstractEventLoop):
        owed = _Owed(function, answer)
        try:
            on.call_soon_threadsafe(_start, function, args, kwargs, owed)
        except RuntimeError as error:
            owed.told = True  # by what is raised
            raise ChannelClosed("the event loop that this callback runs on is closed") from error
        return
    if on is None:
        _here.worker.submit(_call, function, args, kwargs, answer)
        return

    def look(run: Run[None]) -> None:
        if run.cancelled():
            _tell(function, answer, None, ChannelClosed("the executor that this callback runs on was shut down before it ran"))
        elif isinstance(error := run.exception(), Exception):
            _tell(function, answer, None, error)  # the executor's: what the function raises was told, and does not come here

    run = on.submit(_call, function, args, kwargs, answer)
    if hasattr(run, "add_done_callback"):  # of somebody's own that returns nothing, nobody learns what it drops
        run.add_done_callback(look)


def _call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], answer: ReplyTo | _Local | None) -> None:
    try:
        value = function(*args, **kwargs)
    except BaseException as error:
        _tell(function, answer, None, error)
        if not isinstance(error, Exception):
            raise  # whose thread this is may know what to do with an exit or an interrupt
    else:
        _tell(function, answer, value, None)


class _Owed:
    """What the caller of a callback on an event loop is owed. Let go of untold, it says that nothing comes.

    A loop that is closed drops what it has not begun, and what it has not ended, and tells nobody. A forked child that lets
    go of its parent's loop says nothing: the parent may still answer.
    """

    __slots__ = ("_home", "answer", "function", "told")

    def __init__(self, function: Any, answer: ReplyTo | _Local | None) -> None:
        self.function = function
        self.answer = answer
        self.told = False
        self._home = _here

    def tell(self, value: Any, error: BaseException | None) -> None:
        self.told = True
        _tell(self.function, self.answer, value, error)

    @finalizer
    def __del__(self) -> None:
        if self.told or self._home is not _here:
            return
        error = ChannelClosed("the event loop that this callback runs on was closed before it ended")
        try:
            # In a thread of its own, and by what takes no lock: this one may be anywhere, and have any lock.
            _thread.start_new_thread(_tell, (self.function, self.answer, None, error))
        except RuntimeError:
            pass  # this process ends, which tells the caller


def _start(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], owed: _Owed) -> None:
    # Kept by nobody but the loop, which must be able to let go of it.
    asyncio.get_running_loop().create_task(_call_async(function, args, kwargs, owed))


async def _call_async(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], owed: _Owed) -> None:
    try:
        value = function(*args, **kwargs)
        if inspect.isawaitable(value):
            value = await value
    except GeneratorExit:
        raise  # let go of by a loop that is closed, and what is owed is, too
    except BaseException as error:
        owed.tell(None, error)  # a cancelled one, too: its loop ends, and its process may not
        if not isinstance(error, Exception):
            raise
    else:
        owed.tell(value, None)


def _tell(function: Any, answer: ReplyTo | _Local | None, value: Any, error: BaseException | None) -> None:
    name = getattr(function, "__qualname__", repr(function))
    if error is not None and (answer is None or not answer.waits()):
        logger.error("the callback %s failed, and nobody waits for what it does", name, exc_info=error)
    if answer is None:
        return
    try:
        if error is not None:
            answer.fail(error)
        else:
            answer.send(value)
    except (ChannelError, EncodeError) as failed:
        logger.warning("what the callback %s returned could not be told to who called it: %s", name, failed)
        answer.give_up()


# ---------------------------------------------------------------------- of this process


class _Here:
    """The callbacks of this process that others know."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a signal handler may make one, or receive what calls one
        self.known: dict[int, Callback[..., Any]] = {}
        self.numbers = itertools.count(1)
        self.worker = Worker()

    def close(self) -> None:
        with self.lock:
            self.known.clear()
        worker, self.worker = self.worker, Worker()
        for _, (function, _, _, answer) in worker.close(PATIENCE):
            _tell(function, answer, None, ChannelClosed("the process that this callback belongs to ends"))


_here = _Here()
_hooked = False


def settle() -> None:
    """Let no callback of this process be called any more, and wait for the one that runs, but not for long."""
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
        forks.at_exit(settle, 30)
        forks.in_child(_after_fork)
        _hooked = True


def _after_fork() -> None:
    global _here  # noqa: PLW0603  the parent's callbacks are the parent's
    _here = _Here()
    workers.clear()  # a callback may fork, and what waits behind it is not done by its child as well
