"""The supervisor itself: what users call. What it does is done by the thread of its keeper."""

from __future__ import annotations

import multiprocessing
import os
import threading
from typing import TYPE_CHECKING, Any, Literal

from ipcbus.errors import GaveUp, StartFailed, Unsupported
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.deaf import deaf_threads
from ipcbus.supervisor.forkserver import prepare
from ipcbus.supervisor.keeper import Keeper
from ipcbus.supervisor.program import Occurrence, Program
from ipcbus.supervisor.wish import Wish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType
    from typing import Self

__all__ = ["Supervisor"]


class Supervisor:
    """Keeps processes running; a context manager that starts and stops them.

    All are started together. They are stopped in reverse order, and each only once those behind it have ended: put
    what others depend on first. Leaving the context after the supervisor gave up raises :class:`GaveUp`.

    Args:
        programs: what to run; names are unique. Programs in a list of their own are one group, stopped together.
        start_method: how ``multiprocessing`` makes the processes; None: as the platform does.
        intensity: how many deaths within ``period`` are mended; one more, and everything is stopped.
        period: seconds.
        ready_timeout: seconds a process has for becoming ready.
        stop_timeout: seconds a group has for stopping; after that it is killed.
        at_end: called once everything has stopped, in whichever way, by a thread of the supervisor's.
        on_event: called with everything that happens, by that thread: it must return at once, and of what is below it may
            call what begins something and does not wait. Others receive from ``events``. That thread takes no SIGTERM, SIGINT
            or SIGHUP, and what it starts with ``subprocess`` would never hear one.

    Raises:
        ValueError: a name comes twice, or a number or the start method makes no sense.

    Attributes:
        events: what happens, as a stream to receive from.
    """

    def __init__(
        self,
        programs: Iterable[Program | Sequence[Program]] = (),
        *,
        start_method: Literal["fork", "spawn", "forkserver"] | None = None,
        intensity: int = 5,
        period: float = 10.0,
        ready_timeout: float = 10.0,
        stop_timeout: float = 10.0,
        at_end: Callable[[], None] | None = None,
        on_event: Callable[[Occurrence], None] | None = None,
    ) -> None:
        groups = [[item] if isinstance(item, Program) else list(item) for item in programs]
        names = [program.name for group in groups for program in group]
        if len(set(names)) != len(names):
            raise ValueError(f"program names must be unique: {', '.join(names)}")
        if start_method not in (None, *multiprocessing.get_all_start_methods()):
            raise ValueError(f"start_method must be 'fork', 'spawn', 'forkserver' or None, not {start_method!r}")
        for what, number in (
            ("intensity", intensity),
            ("period", period),
            ("ready_timeout", ready_timeout),
            ("stop_timeout", stop_timeout),
        ):
            if not number >= 0:  # nor is NaN
                raise ValueError(f"{what} must be a number from 0 on, not {number}")
        self._start_method = start_method
        self._keeper = Keeper(
            groups,
            intensity=intensity,
            period=period,
            ready_timeout=ready_timeout,
            stop_timeout=stop_timeout,
            at_end=at_end,
            on_event=on_event,
        )
        self.events = self._keeper.events
        self._told = False
        self._pid = 0  # whose its thread is
        self._thread: threading.Thread | None = None
        self._finalizer: Any = None

    # ------------------------------------------------------------------ what users call

    def start(self, program: Program | None = None) -> Self:
        """Start everything, or one more program, and wait until it is ready. The latter from any thread.

        A program that is added counts as a group of its own behind the others.

        Raises:
            StartFailed: a process ended or was not ready in time; says which and what it said. When everything was to
                be started, nothing is left running; a single program leaves the others as they are.
            ValueError: a program of that name runs.
            Unsupported: one more was to be started by the supervisor's own thread, or in a forked child of its process.
        """
        if program is not None:
            self._wish(Wish("start", program.name, program))
            return self
        if self._thread is not None:
            raise StartFailed("this supervisor was started before; make another one")
        from multiprocessing.util import Finalize

        context = multiprocessing.get_context(self._start_method)
        prepare(context.get_start_method())
        self._pid = os.getpid()
        self._finalizer = Finalize(None, self.stop, exitpriority=20)  # before channels are closed at exit, see endpoint.py
        try:
            with deaf_threads():  # an interruption would leave it running, known to nobody
                self._thread = self._keeper.start(context)
            self._keeper.started.wait()
        except BaseException:
            self.stop()
            raise
        if (failure := self._keeper.failure) is not None:
            self.stop()
            raise StartFailed(str(failure), failure.name)
        return self

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs any more: everything was stopped, or has ended and is not to be started again.

        Args:
            timeout: seconds; None waits without limit.

        Returns:
            Whether that is so; False when the timeout has passed.

        Raises:
            GaveUp: processes died too often, so everything was stopped; says which, how, and what it said.
            Unsupported: by the supervisor's own thread, or in a forked child of its process.
        """
        self._check_waits()
        if not self._keeper.idle.wait(Deadline(timeout).remaining()):
            return False
        if (failure := self._keeper.failure) is not None:
            self._told = True
            raise GaveUp(str(failure), failure.name)
        return True

    def request_stop(self) -> None:
        """Begin to stop everything and return at once. May be called from a signal handler."""
        self._keeper.request_stop()

    def stop(self, name: str | None = None) -> None:
        """Stop everything, or one program, and wait until it has stopped. From any thread. Idempotent.

        Args:
            name: the program; it is not started again, unless by ``start(program)``.

        Raises:
            LookupError: there never was a program of that name.
            Unsupported: one program was to be stopped by the supervisor's own thread, or in a forked child of its process.
        """
        if name is not None:
            self._check_known(name)
            self._wish(Wish("stop", name))
            return
        self.request_stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        finalizer, self._finalizer = self._finalizer, None
        if finalizer is not None:
            finalizer.cancel()

    def restart(self, name: str) -> None:
        """Stop one program, start it again, and wait until it is ready. From any thread. It does not count as a death.

        Raises:
            LookupError: there never was a program of that name.
            StartFailed: it does not run, or everything was stopped before it was ready.
            Unsupported: as for ``wait``.
        """
        self._check_known(name)
        self._wish(Wish("restart", name))

    def request_restart(self, *names: str) -> None:
        """Begin to restart programs and return at once. May be called from a signal handler, in storms, too."""
        self._keeper.ask_in_passing(Wish("restart", name) for name in names)

    def replace(self, name: str) -> None:
        """Start a program's next process beside the one that runs, stop that, and wait until the next one serves.

        The one that runs is stopped once the next one has called ``life.wait_turn()``, or ``life.ready()``. From any thread.

        Raises:
            LookupError: there never was a program of that name.
            StartFailed: the next process ended or did not get that far in time, and the one that runs goes on; or none runs.
            Unsupported: as for ``wait``.
        """
        self._check_known(name)
        self._wish(Wish("replace", name))

    def request_replace(self, *names: str) -> None:
        """Begin to replace programs and return at once. May be called from a signal handler, in storms, too."""
        self._keeper.ask_in_passing(Wish("replace", name) for name in names)

    def tell(self, name: str, data: bytes) -> bool:
        """Tell a process something of at most 4000 bytes, for its ``life.heard()``; return whether it was sent. Never waits."""
        return self._keeper.roster.tell(name, data)

    def __enter__(self) -> Self:
        started = self._thread is not None and self._thread.is_alive()  # as by ``with supervisor.start():``
        return self if started else self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        if (failure := self._keeper.failure) is not None and kind is None and not self._told:
            raise GaveUp(str(failure), failure.name)

    @property
    def failure(self) -> str | None:
        """Why it gave up, or None."""
        failure = self._keeper.failure
        return None if failure is None else str(failure)

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of what runs now, by name."""
        return {name: child.pid for name, child in list(self._keeper.roster.running.items())}

    @property
    def history(self) -> list[Occurrence]:
        """What has happened, oldest first; the last thousand entries. Nothing is taken from ``events``."""
        return list(self._keeper.history)

    def _check_known(self, name: str) -> None:
        if name not in self._keeper.known:
            raise LookupError(f"no program is called {name!r}; known are: {', '.join(sorted(self._keeper.known)) or 'none'}")

    def _check_waits(self) -> None:
        """Make sure that the caller can wait for the supervisor's thread; raises ``Unsupported``."""
        if self._thread is threading.current_thread():
            raise Unsupported(
                "on_event and at_end are called by the supervisor's own thread, which cannot wait for itself: have "
                "request_restart, request_replace or request_stop begin what is wanted, or another thread wait for it"
            )
        if self._thread is not None and self._pid != os.getpid():
            raise Unsupported(f"this supervisor is that of process {self._pid}, which has forked this one: use it there")

    def _wish(self, wish: Wish) -> None:
        """Have the thread grant a wish, and wait until it did; raises why not."""
        name = wish.name
        if self._thread is None:
            raise StartFailed(f"{name}: start the supervisor first, with start() or a with statement", name)
        self._check_waits()
        if self._keeper.ask(wish):
            wish.done.wait()  # the thread keeps to ready_timeout and stop_timeout, and grants or refuses all before it ends
            if wish.error is not None:
                raise wish.error
        elif wish.what == "stop":
            self.stop()  # with everything else
        else:
            raise StartFailed(f"{name} was not started: the supervisor has stopped; make another one", name)
