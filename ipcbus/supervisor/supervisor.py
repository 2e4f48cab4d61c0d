"""The supervisor itself: one thread that starts, watches and stops processes, and what users call."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import threading
from collections import defaultdict, deque
from time import monotonic, time  # history is read by people, so it has the wall clock
from typing import TYPE_CHECKING, Any, Literal

from ipcbus.errors import GaveUp, StartFailed
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.deaf import be_deaf
from ipcbus.plumbing.wakeup import Wakeup
from ipcbus.supervisor.child import Child
from ipcbus.supervisor.events import Events
from ipcbus.supervisor.program import Occurrence, Program
from ipcbus.supervisor.wish import Wish
from ipcbus.wait import wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from multiprocessing.context import BaseContext
    from types import TracebackType
    from typing import Self

    from ipcbus.supervisor.program import What

__all__ = ["Supervisor"]

logger = logging.getLogger("ipcbus.supervisor")

_MEMORY = 1000
"""Occurrences that the history keeps, and that may wait to be received."""


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
        on_event: called with everything that happens, by that thread: it must return at once. Others receive from ``events``.

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
        self._groups = [[item] if isinstance(item, Program) else list(item) for item in programs]
        names = [program.name for group in self._groups for program in group]
        if len(set(names)) != len(names):
            raise ValueError(f"program names must be unique: {', '.join(names)}")
        if start_method not in (None, *multiprocessing.get_all_start_methods()):
            raise ValueError(f"start_method must be 'fork', 'spawn', 'forkserver' or None, not {start_method!r}")
        self.events = Events(_MEMORY)
        self._known = set(names)
        self._start_method = start_method
        self._intensity = intensity
        self._period = period
        self._ready_timeout = ready_timeout
        self._stop_timeout = stop_timeout
        self._at_end = at_end
        self._on_event = on_event
        self._children: dict[str, Child] = {}
        self._deaths: deque[float] = deque()
        self._history: deque[Occurrence] = deque(maxlen=_MEMORY)
        self._started = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._stopping = self._told = False
        self._failure: GaveUp | None = None
        self._wishes: deque[Wish] = deque()
        self._wishing: defaultdict[str, list[Wish]] = defaultdict(list)
        self._over = False
        self._lock = threading.Lock()
        # Never closed: it frees itself with its last user, who may be a signal handler that rings it while this is stopped.
        self._bell: Wakeup | None = None
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
        """
        if program is not None:
            self._wish(Wish("start", program.name, program))
            return self
        if self._thread is not None:
            raise StartFailed("this supervisor was started before; make another one")
        from multiprocessing.util import Finalize

        context = multiprocessing.get_context(self._start_method)
        # A thread that lives as long as the children: the kernel ties them to the thread that started them. Daemonic,
        # because the interpreter joins other threads before it comes to the finalizer that stops this one.
        self._thread = threading.Thread(target=self._run, args=(context,), name="ipcbus-supervisor", daemon=True)
        self._finalizer = Finalize(None, self.stop, exitpriority=20)  # before channels are closed at exit, see endpoint.py
        self._idle.clear()
        self._bell = Wakeup()
        self._thread.start()
        try:
            self._started.wait()
        except BaseException:
            self.stop()
            raise
        if self._failure is not None:
            self.stop()
            raise StartFailed(str(self._failure), self._failure.name)
        return self

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs any more: everything was stopped, or has ended and is not to be started again.

        Args:
            timeout: seconds; None waits without limit.

        Returns:
            Whether that is so; False when the timeout has passed.

        Raises:
            GaveUp: processes died too often, so everything was stopped; says which, how, and what it said.
        """
        if not self._idle.wait(timeout):
            return False
        if self._failure is not None:
            self._told = True
            raise GaveUp(str(self._failure), self._failure.name)
        return True

    def request_stop(self) -> None:
        """Begin to stop everything and return at once. May be called from a signal handler."""
        self._stopping = True
        self._ring()

    def stop(self, name: str | None = None) -> None:
        """Stop everything, or one program, and wait until it has stopped. From any thread. Idempotent.

        Args:
            name: the program; it is not started again, unless by ``start(program)``.

        Raises:
            LookupError: there never was a program of that name.
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
        """
        self._check_known(name)
        self._wish(Wish("restart", name))

    def request_restart(self, *names: str) -> None:
        """Begin to restart programs and return at once. May be called from a signal handler, in storms, too."""
        self._wishes.extend(Wish("restart", name) for name in names)
        self._ring()

    def tell(self, name: str, data: bytes) -> bool:
        """Tell a process something of at most 4000 bytes, for its ``life.heard()``; return whether it was sent. Never waits."""
        with self._lock:
            child = self._children.get(name)
            return child is not None and child.tell(data)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        if self._failure is not None and kind is None and not self._told:
            raise GaveUp(str(self._failure), self._failure.name)

    @property
    def failure(self) -> str | None:
        """Why it gave up, or None."""
        return None if self._failure is None else str(self._failure)

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of what runs now, by name."""
        return {name: child.pid for name, child in list(self._children.items())}

    @property
    def history(self) -> list[Occurrence]:
        """What has happened, oldest first; the last thousand entries. Nothing is taken from ``events``."""
        return list(self._history)

    def _check_known(self, name: str) -> None:
        if name not in self._known:
            raise LookupError(f"no program is called {name!r}; known are: {', '.join(sorted(self._known)) or 'none'}")

    def _wish(self, wish: Wish) -> None:
        """Have the thread grant a wish, and wait until it did; raises why not."""
        name = wish.name
        with self._lock:
            if self._thread is None:
                raise StartFailed(f"{name}: start the supervisor first, with start() or a with statement", name)
            over = self._over
            if not over:
                self._wishes.append(wish)
        if over and wish.what != "stop":
            raise StartFailed(f"{name} was not started: the supervisor has stopped; make another one", name)
        if over:
            self.stop()  # with everything else
            return
        self._ring()
        wish.done.wait()  # the thread keeps to ready_timeout and stop_timeout, and grants or refuses all before it ends
        if wish.error is not None:
            raise wish.error

    def _ring(self) -> None:
        bell = self._bell
        if bell is not None:
            bell.set()

    # ------------------------------------------------------------------ the thread

    def _run(self, context: BaseContext) -> None:
        be_deaf()
        self._context = context
        assert self._bell is not None
        bell = self._bell
        try:
            for program in [program for group in self._groups for program in group]:
                if (why := self._launch(program, 0)) is not None:
                    self._give_up(program, why)
                    break
            while not self._stopping and self._failure is None:
                if all(child.ready for child in self._children.values()):
                    self._started.set()
                if self._children:
                    self._idle.clear()
                else:
                    self._idle.set()
                self._watch(bell)
        except Exception as error:  # whatever it was, no process may be left behind by it
            logger.exception("the supervisor failed")
            self._failure = self._failure or GaveUp(f"the supervisor failed: {type(error).__name__}: {error}")
        finally:
            self._idle.clear()
            try:
                self._wind_up()
            finally:
                self._bell = None
                self.events.end()
                self._idle.set()
                self._started.set()

    def _watch(self, bell: Wakeup) -> None:
        """Sleep until something happens and deal with it."""
        children = list(self._children.values())
        lines = {child.line.heard: child for child in children if child.talks}
        ends = {child.sentinel: child for child in children}
        left = [seconds for child in children if child.due and (seconds := child.deadline.remaining()) is not None]
        happened = wait([bell, *lines, *ends], min(left, default=None))
        for child in (lines[thing] for thing in happened if thing in lines):
            self._listen(child)
        for child in (ends[thing] for thing in happened if thing in ends):
            self._ended(child)
        for child in children:
            if self._children.get(child.name) is child and child.due and child.deadline.expired:
                self._overdue(child)
        if bell in happened:
            bell.clear()
            while self._wishes and not self._stopping and self._failure is None:
                self._take_up(self._wishes.popleft())

    def _launch(self, program: Program, incarnation: int) -> str | None:
        """Start a process; return why that cannot be, else None."""
        try:
            child = self._children[program.name] = Child(self._context, program, incarnation, self._ready_timeout)
        except Exception as error:  # noqa: BLE001  of multiprocessing, or of pickling; whoever wants the process is told
            return f"{program.name} cannot be started: {type(error).__name__}: {error}"
        self._note(child, "started")
        return None

    def _listen(self, child: Child) -> None:
        was_ready = child.ready
        child.listen()
        if child.ready and not was_ready:
            self._note(child, "ready")
            self._grant(child.name, starting=True)
            if child.renew:  # asked for again while it was on its way
                child.terminate(self._stop_timeout)

    # ------------------------------------------------------------------ deaths

    def _ended(self, child: Child) -> None:
        child.process.join()
        self._listen(child)
        self._release(child)
        if child.stopping:
            self._stopped(child, "stopped", child.fate)
        else:
            self._died(child, child.fate)

    def _overdue(self, child: Child) -> None:
        self._listen(child)
        if not child.deadline.expired:
            return  # it has said something just now
        child.kill()
        self._release(child)
        if child.stopping:
            self._stopped(child, "killed", f"did not stop within {self._stop_timeout:g} seconds")
        elif child.ready:
            self._died(child, f"gave no heartbeat for {child.program.heartbeat:g} seconds and was killed", "stuck")
        else:
            self._died(child, f"was not ready within {self._ready_timeout:g} seconds", "late")

    def _stopped(self, child: Child, what: What, fate: str) -> None:
        self._note(child, what, fate)
        if not child.renew:
            self._forget(child.program, f"{child.name} was stopped before it was ready")
        elif (why := self._launch(child.program, child.incarnation + 1)) is not None:
            self._give_up(child.program, why)

    def _died(self, child: Child, fate: str, what: What = "died") -> None:
        program, policy = child.program, child.program.restart
        succeeded = what == "died" and child.exitcode == 0
        fate += child.said
        if self._stopping or self._failure is not None:
            self._note(child, what, fate)
        elif child.incarnation == 0 and not child.ready:
            self._note(child, what, fate)
            if not self._started.is_set() and child.name not in self._wishing:
                self._give_up(program, f"{program.name} {fate} before everything was ready")
            self._forget(program, f"{program.name} {fate} before it was ready")
        elif policy == "never" or (policy == "on-failure" and succeeded):
            self._note(child, "done" if succeeded else what, fate)
            self._forget(program, f"{program.name} {fate}")
        else:
            self._note(child, what, fate)
            self._mend(child, fate)

    def _mend(self, child: Child, fate: str) -> None:
        name, now = child.name, monotonic()
        self._deaths.append(now)
        while self._deaths[0] < now - self._period:
            self._deaths.popleft()
        if len(self._deaths) > self._intensity:
            self._give_up(
                child.program,
                f"{name} {fate}; that is death number {len(self._deaths)} within {self._period:g} seconds and "
                f"{self._intensity} are mended, so everything is stopped",
            )
            return
        logger.warning("%s (pid %s) %s and is started again", name, child.pid, fate)
        if (why := self._launch(child.program, child.incarnation + 1)) is not None:
            self._give_up(child.program, f"{name} {fate}; {why}")

    def _give_up(self, program: Program, why: str) -> None:
        self._failure = GaveUp(why, program.name)
        self._note(None, "gave up", why)
        logger.critical("%s", why)

    # ------------------------------------------------------------------ one more, one less

    def _take_up(self, wish: Wish) -> None:
        child, program = self._children.get(wish.name), wish.program
        if wish.what == "stop":
            if child is None:
                wish.done.set()  # it has ended
            else:
                child.renew = False
                self._wishing[wish.name].append(wish)
                child.terminate(self._stop_timeout)
        elif wish.what == "restart":
            if child is None or (child.stopping and not child.renew):
                wish.refuse(StartFailed(f"{wish.name} does not run, so it cannot be restarted; start it", wish.name))
                return
            child.renew = True
            self._wishing[wish.name].append(wish)
            if child.ready:
                child.terminate(self._stop_timeout)
        elif child is not None:
            wish.refuse(ValueError(f"a program called {wish.name!r} runs (pid {child.pid}); stop it first"))
        elif program is not None and (why := self._launch(program, 0)) is not None:
            wish.refuse(StartFailed(why, wish.name))
        elif program is not None:
            self._known.add(wish.name)
            self._groups.append([program])
            self._wishing[wish.name].append(wish)

    def _grant(self, name: str, *, starting: bool) -> None:
        """Let those go who waited for a program to be ready, or to have ended."""
        child = self._children.get(name)
        for wish in self._wishing.pop(name, []):
            again = child is not None and child.renew and wish.what == "restart"
            if (wish.what != "stop") == starting and not again:
                wish.done.set()
            else:
                self._wishing[wish.name].append(wish)

    def _forget(self, program: Program, why: str) -> None:
        """Take out a program that is not started again."""
        self._groups = [rest for group in self._groups if (rest := [other for other in group if other.name != program.name])]
        self._grant(program.name, starting=False)
        for wish in self._wishing.pop(program.name, []):
            wish.refuse(StartFailed(why, program.name))

    # ------------------------------------------------------------------ the end

    def _wind_up(self) -> None:
        with self._lock:
            self._over = True
        try:
            for group in reversed(self._groups):
                self._stop_group([child for program in group if (child := self._children.get(program.name))])
            if self._at_end is not None:
                self._at_end()
        except Exception as error:
            logger.exception("the supervisor failed while it stopped")
            self._failure = self._failure or GaveUp(f"the supervisor failed: {type(error).__name__}: {error}")
        finally:
            for child in list(self._children.values()):
                self._release(child)  # which kills it, if there is one left
            why = str(self._failure or "everything is stopped")
            while self._wishes:  # a signal handler may append meanwhile
                self._wishing[self._wishes[0].name].append(self._wishes.popleft())
            for wish in itertools.chain.from_iterable(self._wishing.values()):
                if wish.what == "stop":
                    wish.done.set()
                else:
                    wish.refuse(StartFailed(f"{wish.name} was not started: {why}", wish.name))

    def _stop_group(self, children: list[Child]) -> None:
        for child in children:
            child.terminate(self._stop_timeout)
        deadline = Deadline(self._stop_timeout)
        waiting = {child.sentinel: child for child in children}
        while waiting and (ended := wait(waiting, deadline.remaining())):
            for sentinel in ended:
                child = waiting.pop(sentinel)
                child.process.join()
                self._release(child)
                self._note(child, "stopped", child.fate)
        for child in waiting.values():
            child.kill()
            self._release(child)
            self._note(child, "killed", f"did not stop within {self._stop_timeout:g} seconds")

    def _release(self, child: Child) -> None:
        child.listen()
        with self._lock:  # nobody tells it anything by a descriptor that is somebody else's by now
            child.release()
            self._children.pop(child.name, None)

    def _note(self, child: Child | None, what: What, detail: str = "") -> None:
        name, pid = ("supervisor", os.getpid()) if child is None else (child.name, child.pid)
        ended = child is not None and what not in ("started", "ready")
        exitcode, killer = (child.exitcode, child.signal) if child is not None and ended else (None, None)
        occurrence = Occurrence(time(), name, what, pid, exitcode, killer, detail)  # wall clock, for people
        self._history.append(occurrence)
        self.events.add(occurrence)
        if self._on_event is not None:
            self._on_event(occurrence)
        logger.info("%s (pid %s) %s %s", name, pid, what, detail)
