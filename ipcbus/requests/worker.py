"""The thread that callbacks run on unless their owner says otherwise: one at a time, in the order of the calls.

A callback that waits for a reply steps aside, so that others can run, among them those that it waits for: two processes
whose callbacks call each other do not wait for each other for ever. It goes on when no other one runs, and before any that has
not begun.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from threading import get_ident
from typing import TYPE_CHECKING, Any

from ipcbus.errors import ChannelClosed
from ipcbus.plumbing.clock import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable

    _Task = tuple[Callable[..., None], tuple[Any, ...]]

__all__ = ["Worker", "workers"]

logger = logging.getLogger("ipcbus.requests")

workers: dict[int, Worker] = {}
"""By thread: for whom it works."""


class Worker:
    """Runs functions one at a time. Its threads are daemons: one that hangs does not keep the process from ending."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._todo: deque[_Task] = deque()
        self._busy = False
        """Whether a function runs that has not stepped aside."""
        self._aside: set[int] = set()
        """Threads whose functions have stepped aside."""
        self._returning = 0
        """How many of them are about to go on."""
        self._idle = 0
        self._threads: set[threading.Thread] = set()
        self._closed = False

    def submit(self, function: Callable[..., None], *args: Any) -> None:
        """Have a function called; raises ``ChannelClosed``, and ``RuntimeError`` where no thread can be had."""
        with self._change:
            if self._closed:
                raise ChannelClosed("the callbacks of this process are called no more: it ends")
            self._todo.append((function, args))
            try:
                self._staff()
            except RuntimeError:  # no thread can be had
                self._todo.pop()  # who is told so must not find it done later
                raise

    def begin_aside(self) -> bool:
        """Let others run while the function that calls this waits; false if it has stepped aside before."""
        with self._change:
            if get_ident() in self._aside:
                return False
            self._aside.add(get_ident())
            self._busy = False
            with contextlib.suppress(RuntimeError):  # no thread can be had: they run when this one has gone on
                self._staff()
            return True

    def end_aside(self) -> None:
        """Go on, when no other function runs, and before the next one begins."""
        with self._change:
            self._returning += 1
            while self._busy and not self._closed:
                self._change.wait()  # without a deadline: as long as the other function takes
            self._returning -= 1
            self._busy = True
            self._aside.discard(get_ident())

    def close(self, timeout: float) -> list[_Task]:
        """Run nothing more, wait for what runs, and return what was not run.

        Args:
            timeout: seconds to wait.
        """
        deadline = Deadline(timeout)
        with self._change:
            self._closed = True
            left = list(self._todo)
            self._todo.clear()
            self._change.notify_all()
            threads = self._threads - {threading.current_thread()}
        for thread in threads:
            thread.join(deadline.remaining())
        return left

    def _staff(self) -> None:
        """See to it that somebody does what is to be done. The lock is held."""
        self._change.notify_all()
        if self._todo and not self._busy and not self._idle:
            thread = threading.Thread(target=self._run, name="ipcbus-callbacks", daemon=True)
            thread.start()
            self._threads.add(thread)

    def _run(self) -> None:
        workers[get_ident()] = self
        try:
            while (task := self._next()) is not None:
                function, args = task
                try:
                    function(*args)
                except BaseException:  # whatever it is, it ends neither this thread nor, silently, the function
                    logger.exception("a callback ended with an error that is none to be told")
                with self._change:
                    self._busy = False
                    self._change.notify_all()
                del task, function, args
        finally:
            workers.pop(get_ident(), None)  # not there in a forked child
            with self._change:
                self._threads.discard(threading.current_thread())

    def _next(self) -> _Task | None:
        """Return what is to be done next; None when there is no need of this thread any more."""
        with self._change:
            # Who has just ended a function has the lock, and would be faster than any that is woken by that.
            while not self._todo or self._busy or self._returning:
                if self._closed or self._idle:
                    return None
                self._idle += 1
                try:
                    self._change.wait()
                finally:
                    self._idle -= 1
            self._busy = True
            return self._todo.popleft()
