"""Supervisor: starts processes, waits until they are ready, starts them again when they die, and stops them in order.

No process outlives its supervisor, however that ends: each child holds one end of a *life line* whose other end only
the supervisor has, and where the supervisor is the child's parent the kernel kills the child with it.

::

    def work(life, jobs):                  # importable by its name, as for multiprocessing
        life.ready()
        for job in jobs: ...

    with Supervisor([[Program("worker", work, (jobs,))]]) as supervisor:
        supervisor.wait()
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from dataclasses import dataclass
from time import monotonic, time  # history is read by people, so it has the wall clock
from typing import TYPE_CHECKING, Any, Literal

from ipcbus.errors import IpcbusError
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.wakeup import Wakeup
from ipcbus.wait import wait

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess
    from types import TracebackType
    from typing import Self

__all__ = ["Life", "Occurrence", "Program", "StartFailed", "Supervisor"]

logger = logging.getLogger("ipcbus.supervisor")

ORPHAN_GRACE = 5.0
"""Seconds that a child gets to stop by itself after its supervisor has gone."""

_READY = b"ready"
_PR_SET_PDEATHSIG = 1


class StartFailed(IpcbusError):
    """A process did not become ready. Everything that had been started is stopped again."""


@dataclass(frozen=True, slots=True)
class Program:
    """One process to keep running."""

    name: str
    target: Callable[..., None]
    """A function of an importable module, called with a :class:`Life` and ``args``. It calls ``life.ready()`` when it
    serves, and returns or is terminated (SIGTERM) when it is to stop."""
    args: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One entry of the supervisor's history."""

    at: float
    """Seconds since the epoch."""
    name: str
    what: Literal["started", "ready", "died", "late", "stopped", "killed", "gave up"]
    pid: int | None
    detail: str = ""


class Life:
    """A supervised process's own view: who it is, and how it says that it is ready.

    Attributes:
        name: the program's name.
        incarnation: how often the program was started before.
    """

    def __init__(self, name: str, incarnation: int, line: Connection) -> None:
        self.name = name
        self.incarnation = incarnation
        self._line = line

    def ready(self) -> None:
        """Tell the supervisor that this process serves. Call it once."""
        try:
            self._line.send_bytes(_READY)
        except OSError:
            logger.warning("%s: the supervisor is gone", self.name)


class _Child:
    """The running process of a program."""

    def __init__(self, program: Program, process: BaseProcess, line: Connection, incarnation: int, deadline: Deadline) -> None:
        self.program = program
        self.process = process
        self.line = line
        self.incarnation = incarnation
        self.deadline = deadline
        self.ready = False
        self.said = ""

    def listen(self) -> bool:
        """Take what it says on its line; return False when that has ended."""
        try:
            while self.line.poll():
                text = self.line.recv_bytes()
                if text == _READY:
                    self.ready = True
                else:
                    self.said = text.decode(errors="replace")
        except (EOFError, OSError):
            return False
        return True

    def fate(self) -> str:
        """Say how it ended."""
        code = self.process.exitcode
        if code is None:
            return "is running"
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"


class Supervisor:
    """Keeps groups of processes running; a context manager that starts and stops them.

    All are started together. They are stopped group by group, the last group first: put what others depend on first.

    Args:
        groups: the programs; names are unique.
        method: multiprocessing start method.
        intensity: how many deaths within ``period`` are mended; one more, and everything is stopped.
        period: seconds.
        ready_timeout: seconds a process has for becoming ready.
        stop_timeout: seconds a group has for stopping; after that it is killed.
        at_end: called once everything has stopped, in whichever way, by a thread of the supervisor's.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Program]],
        *,
        method: Literal["spawn", "forkserver"] = "spawn",
        intensity: int = 5,
        period: float = 10.0,
        ready_timeout: float = 10.0,
        stop_timeout: float = 10.0,
        at_end: Callable[[], None] | None = None,
    ) -> None:
        names = [program.name for group in groups for program in group]
        if len(set(names)) != len(names):
            raise ValueError(f"program names must be unique: {', '.join(names)}")
        self._groups = [list(group) for group in groups]
        self._context = multiprocessing.get_context(method)
        self._method = method
        self._intensity = intensity
        self._period = period
        self._ready_timeout = ready_timeout
        self._stop_timeout = stop_timeout
        self._at_end = at_end
        self._children: dict[str, _Child] = {}
        self._deaths: deque[float] = deque()
        self._history: deque[Occurrence] = deque(maxlen=1000)
        self._started = threading.Event()
        self._ended = threading.Event()
        self._stopping = False
        self._failure: str | None = None
        self._bell = Wakeup()
        self._thread: threading.Thread | None = None
        self._finalizer: Any = None

    # ------------------------------------------------------------------ what users call

    def start(self) -> Self:
        """Start everything and wait until all of it is ready.

        Raises:
            StartFailed: a process ended or was not ready in time; says which and what it said. Nothing is left running.
        """
        if self._thread is not None:
            raise StartFailed("this supervisor was started before; make another one")
        from multiprocessing.util import Finalize

        # A thread that lives as long as the children: the kernel ties them to the thread that started them. Daemonic,
        # because the interpreter joins other threads before it comes to the finalizer that stops this one.
        self._thread = threading.Thread(target=self._run, name="ipcbus-supervisor", daemon=True)
        self._finalizer = Finalize(None, self.stop, exitpriority=20)  # before channels are closed at exit, see endpoint.py
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self.stop()
            raise StartFailed(self._failure)
        return self

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until everything has stopped.

        Args:
            timeout: seconds; None waits without limit.

        Returns:
            0 after ``stop``, 1 after giving up (``failure`` says why), None when the timeout has passed.
        """
        if not self._ended.wait(timeout):
            return None
        return 1 if self._failure is not None else 0

    def request_stop(self) -> None:
        """Begin to stop and return at once. May be called from a signal handler."""
        self._stopping = True
        if self._bell.fileno() >= 0:
            self._bell.set()

    def stop(self) -> None:
        """Stop everything, the last group first, and wait until it has stopped. Idempotent."""
        self.request_stop()
        if self._thread is not None:
            self._thread.join()
        self._bell.close()
        if self._finalizer is not None:
            self._finalizer.cancel()
            self._finalizer = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def failure(self) -> str | None:
        """Why it gave up, or None."""
        return self._failure

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of what runs now, by name."""
        return {name: pid for name, child in list(self._children.items()) if (pid := child.process.pid) is not None}

    @property
    def history(self) -> list[Occurrence]:
        """What has happened, oldest first; the last thousand entries."""
        return list(self._history)

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            for group in self._groups:
                for program in group:
                    self._launch(program, 0)
            while not self._stopping and self._failure is None:
                self._watch()
        except Exception as error:  # whatever it was, no process may be left behind by it
            logger.exception("the supervisor failed")
            self._failure = self._failure or f"the supervisor failed: {type(error).__name__}: {error}"
        finally:
            for group in reversed(self._groups):
                self._stop_group([child for program in group if (child := self._children.get(program.name))])
            self._children.clear()
            if self._at_end is not None:
                self._at_end()
            self._ended.set()
            self._started.set()

    def _launch(self, program: Program, incarnation: int) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(  # type: ignore[attr-defined]  # typeshed gives BaseContext no Process
            target=_main,
            name=program.name,
            args=(program.target, program.args, program.name, incarnation, theirs, os.getpid(), self._method == "spawn"),
        )
        try:
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._children[program.name] = _Child(program, process, ours, incarnation, Deadline(self._ready_timeout))
        self._note(program.name, "started", process.pid)

    def _watch(self) -> None:
        """Sleep until something happens and deal with it."""
        children = list(self._children.values())
        lines = {child.line: child for child in children if not child.ready}
        sentinels = {child.process.sentinel: child for child in children}
        left = [seconds for child in lines.values() if (seconds := child.deadline.remaining()) is not None]
        happened = wait([self._bell, *lines, *sentinels], min(left, default=None))
        if self._bell in happened:
            return
        for child in (lines[line] for line in happened if line in lines):
            if child.listen() and child.ready:
                self._note(child.program.name, "ready", child.process.pid)
        for child in (sentinels[sentinel] for sentinel in happened if sentinel in sentinels):
            child.process.join()
            child.listen()
            self._note(child.program.name, "died", child.process.pid, child.fate())
            self._died(child, child.fate())
        for child in lines.values():
            if not child.ready and child.process.is_alive() and child.deadline.expired:
                child.process.kill()
                child.process.join()
                fate = f"was not ready within {self._ready_timeout:g} seconds"
                self._note(child.program.name, "late", child.process.pid, fate)
                self._died(child, fate)
        if not self._started.is_set() and all(child.ready for child in self._children.values()):
            self._started.set()

    def _died(self, child: _Child, fate: str) -> None:
        name = child.program.name
        self._release(child)
        said = f"; it said: {child.said}" if child.said else ""
        if self._failure is not None or self._stopping:
            return
        if not self._started.is_set():
            self._give_up(f"{name} {fate} before everything was ready{said}")
            return
        now = monotonic()
        self._deaths.append(now)
        while self._deaths[0] < now - self._period:
            self._deaths.popleft()
        if len(self._deaths) > self._intensity:
            self._give_up(
                f"{name} {fate}{said}; that is death number {len(self._deaths)} within {self._period:g} seconds and "
                f"{self._intensity} are mended, so everything is stopped"
            )
            return
        logger.warning("%s (pid %s) %s and is started again%s", name, child.process.pid, fate, said)
        self._launch(child.program, child.incarnation + 1)

    def _give_up(self, why: str) -> None:
        self._failure = why
        self._note("supervisor", "gave up", os.getpid(), why)
        logger.critical("%s", why)

    def _stop_group(self, children: list[_Child]) -> None:
        for child in children:
            child.process.terminate()
        deadline = Deadline(self._stop_timeout)
        waiting = {child.process.sentinel: child for child in children}
        while waiting and (ended := wait(waiting, deadline.remaining())):
            for sentinel in ended:
                child = waiting.pop(sentinel)
                child.process.join()
                self._note(child.program.name, "stopped", child.process.pid, child.fate())
        for child in waiting.values():
            child.process.kill()
            child.process.join()
            self._note(child.program.name, "killed", child.process.pid, f"did not stop within {self._stop_timeout:g} seconds")
        for child in children:
            self._release(child)

    def _release(self, child: _Child) -> None:
        child.line.close()
        self._children.pop(child.program.name, None)

    def _note(self, name: str, what: Any, pid: int | None, detail: str = "") -> None:
        self._history.append(Occurrence(time(), name, what, pid, detail))  # wall clock, for people
        logger.info("%s (pid %s) %s %s", name, pid, what, detail)


# ---------------------------------------------------------------------- in the child


def _main(
    target: Callable[..., None],
    args: tuple[Any, ...],
    name: str,
    incarnation: int,
    line: Connection,
    supervisor: int,
    is_parent: bool,  # noqa: FBT001  passed by multiprocessing, by position
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor decides what it means
    if is_parent:
        _die_with(supervisor)
    threading.Thread(target=_watch_line, args=(line,), name="ipcbus-life-line", daemon=True).start()
    try:
        target(Life(name, incarnation, line), *args)
    except Exception as error:
        try:
            line.send_bytes("".join(traceback.format_exception_only(error)).strip().encode())
        except OSError:
            pass  # the supervisor is gone; the traceback that follows is for the log
        raise


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; see prctl(2), PR_SET_PDEATHSIG."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it ended before the kernel was asked


def _watch_line(line: Connection) -> None:
    try:
        line.recv_bytes()  # nothing is ever sent this way: this ends when the supervisor does
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(ORPHAN_GRACE)
        os.kill(os.getpid(), signal.SIGKILL)
