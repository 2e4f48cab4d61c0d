"""Keeper: the thread of a supervisor, which starts, watches, replaces and stops processes."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import Counter, deque
from time import monotonic, time  # history is read by people, so it has the wall clock
from typing import TYPE_CHECKING

from ipcbus.errors import GaveUp, StartFailed
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.deaf import be_deaf, hear_out
from ipcbus.plumbing.wakeup import Wakeup
from ipcbus.supervisor.child import Child
from ipcbus.supervisor.events import Events
from ipcbus.supervisor.program import Occurrence
from ipcbus.supervisor.roster import Roster
from ipcbus.supervisor.wish import Wish, Wishes
from ipcbus.wait import wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from multiprocessing.context import BaseContext

    from ipcbus.supervisor.program import Program, What

__all__ = ["Keeper"]

logger = logging.getLogger("ipcbus.supervisor")

_LACKS = {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM}
"""Errors that say that the system has no descriptors, processes or memory for another process."""
_SHORTAGE = 2.0
"""Seconds for which it is tried to start one all the same; meanwhile the others are not looked at."""
_PAUSE = 0.1
"""Seconds between two tries."""
_AGAIN = 0.1
"""Seconds after which a process whose start has not succeeded is started again; twice as many each further time in a row."""
_DOUBLED = 30
"""How often that is counted: by then it is years."""
_LEAST = 0.01
"""Seconds below which a pause is none: hardly a process starts and fails sooner."""
_LONGEST = 5.0
"""Seconds of the longest pause where so many deaths are mended that it is never given up."""
_MEMORY = 1000
"""Occurrences that the history keeps, and that may wait to be received."""


class Keeper:
    """What a supervisor's thread does, and what the others need to see of it.

    Args:
        groups: the programs; those of one list are stopped together.
        intensity: how many deaths within ``period`` are mended.
        period: seconds.
        ready_timeout: seconds a process has for becoming ready.
        stop_timeout: seconds a group has for stopping.
        at_end: called once everything has stopped.
        on_event: called with everything that happens.

    Attributes:
        events: what happens, as a stream.
        history: the same, to look at.
        roster: the processes.
        known: the names of all programs there ever were.
        failure: why it gave up, or None.
        started: set once everything was ready, or has failed.
        idle: set while nothing runs.
    """

    def __init__(
        self,
        groups: list[list[Program]],
        *,
        intensity: int,
        period: float,
        ready_timeout: float,
        stop_timeout: float,
        at_end: Callable[[], None] | None,
        on_event: Callable[[Occurrence], None] | None,
    ) -> None:
        self.events = Events(_MEMORY)
        self.history: deque[Occurrence] = deque(maxlen=_MEMORY)
        self.roster = Roster()
        self.known = {program.name for group in groups for program in group}
        self.failure: GaveUp | None = None
        self.started = threading.Event()
        self.idle = threading.Event()
        self.idle.set()
        self._groups = groups
        self._intensity = intensity
        self._period = period
        self._ready_timeout = ready_timeout
        self._stop_timeout = stop_timeout
        self._at_end = at_end
        self._on_event = on_event
        self._deaths: deque[float] = deque()
        self._failed: Counter[str] = Counter()  # starts in a row that came to nothing, by program
        self._later: dict[str, tuple[Deadline, Child]] = {}  # those that are started again in a moment, and when
        self._wishes: deque[Wish] = deque()
        self._wishing = Wishes()
        self._stopping = self._over = False
        # Never closed: it frees itself with its last user, who may be a signal handler that rings it while this is stopped.
        self._bell: Wakeup | None = None

    # ------------------------------------------------------------------ what other threads call

    def start(self, context: BaseContext) -> threading.Thread:
        """Start the thread; raises ``StartFailed`` if there can be none."""
        self.idle.clear()
        self._bell = Wakeup()
        # It lives as long as the children: the kernel ties them to the thread that started them. Daemonic, because the
        # interpreter joins other threads before it comes to the finalizer that stops this one.
        thread = threading.Thread(target=self._run, args=(context,), name="ipcbus-supervisor", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self.idle.set()
            raise StartFailed(f"the supervisor has no thread to work in: {error}; see 'ulimit -u'") from error
        return thread

    def ask(self, wish: Wish) -> bool:
        """Have a wish granted or refused some time; return False if everything has stopped, so that nobody will."""
        # No lock: a signal handler may come amid it that waits for the thread, which would wait for the lock.
        self._wishes.append(wish)
        self._ring()
        if not self._over:
            return True  # it is looked for once more after that is set
        try:
            self._wishes.remove(wish)
        except ValueError:
            return True  # it was found there
        return False

    def ask_in_passing(self, wishes: Iterable[Wish]) -> None:
        """Have wishes granted whose end nobody waits for; takes no lock, for signal handlers."""
        self._wishes.extend(wishes)
        self._ring()

    def request_stop(self) -> None:
        """Begin to stop everything; takes no lock, for signal handlers."""
        self._stopping = True
        self._ring()

    def _ring(self) -> None:
        bell = self._bell
        if bell is not None:
            bell.set()

    # ------------------------------------------------------------------ the thread

    def _run(self, context: BaseContext) -> None:
        be_deaf()
        self._context = context
        bell = self._bell
        assert bell is not None
        try:
            for program in [program for group in self._groups for program in group]:
                if self._stopping:
                    break
                if (why := self._launch(program, 0)) is not None:
                    self._give_up(program, why)
                    break
            while not self._stopping and self.failure is None:
                self._tell_whether_idle()  # first, for who has waited for the start may ask for that at once
                if not self._later and all(child.ready for child in self.roster.running.values()):
                    self.started.set()
                self._watch(bell)
        except Exception as error:  # whatever it was, no process may be left behind by it
            logger.exception("the supervisor failed")
            self.failure = self.failure or GaveUp(f"the supervisor failed: {type(error).__name__}: {error}")
        finally:
            self.idle.clear()
            try:
                self._wind_up()
            finally:
                self._bell = None
                self.events.end()
                self.idle.set()
                self.started.set()

    def _tell_whether_idle(self) -> None:
        (self.idle.clear if self.roster.running or self._later else self.idle.set)()

    def _watch(self, bell: Wakeup) -> None:
        """Sleep until something happens and deal with it."""
        children = self.roster.everybody
        lines = {child.line.heard: child for child in children if child.talks}
        ends = {child.sentinel: child for child in children}
        deadlines = [child.deadline for child in children if child.due] + [moment for moment, _ in self._later.values()]
        left = [seconds for deadline in deadlines if (seconds := deadline.remaining()) is not None]
        happened = wait([bell, *lines, *ends], min(left, default=None))
        for child in (lines[thing] for thing in happened if thing in lines):
            self._listen(child)
        for child in (ends[thing] for thing in happened if thing in ends):
            if self.roster.has(child):  # else it went with the one it was to replace
                self._ended(child)
        for child in children:
            if self.roster.has(child) and child.due and child.deadline.expired:
                self._overdue(child)
        for name in [name for name, (moment, _) in self._later.items() if moment.expired]:
            self._start_again(name)
        if bell in happened:
            bell.clear()
            while self._wishes and not self._stopping and self.failure is None:
                self._take_up(self._wishes.popleft())

    def _launch(self, program: Program, incarnation: int, *, heir: bool = False) -> str | None:
        """Start a process; return why that cannot be, else None."""
        until = Deadline(_SHORTAGE)
        while True:
            try:
                child = Child(self._context, program, incarnation, self._ready_timeout, heir=heir)
            except Exception as error:  # noqa: BLE001  of multiprocessing, or of pickling; whoever wants the process is told
                # What the system lacks for a moment must not be the end of everything.
                if getattr(error, "errno", None) not in _LACKS or self._stopping or until.expired:
                    return f"{program.name} cannot be started: {type(error).__name__}: {error}"
                threading.Event().wait(_PAUSE)  # nothing tells when there is some again
                continue
            self.roster.add(child)
            self.known.add(child.name)  # before it is told: who hears of it may stop it
            self._note(child, "started")
            return None

    def _listen(self, child: Child) -> None:
        was_ready = child.ready
        child.listen()
        if self.roster.is_heir(child):
            old = self.roster.running.get(child.name)  # none: it has just ended, and everything ends with it
            if old is not None and (child.prepared or child.ready):
                old.renew = True  # also if the heir does not live to see it
                old.terminate(self._stop_timeout)
            return
        child.take_over()
        if child.ready and not was_ready:
            self._serves(child)

    def _serves(self, child: Child) -> None:
        if child.proven:
            del self._failed[child.name]
        self._note(child, "ready")
        self._wishing.grant(child.name, starting=True, again=child.renew or child.relieve)
        if child.renew:  # asked for again while it was on its way
            child.terminate(self._stop_timeout)
        elif child.relieve:
            self._relieve(child)

    # ------------------------------------------------------------------ deaths

    def _ended(self, child: Child) -> None:
        child.process.join()
        if self.roster.is_heir(child):
            child.listen()  # and no more than that: nobody is stopped for it
            self._disinherit(child, child.fate)
            return
        self._listen(child)
        self.roster.release(child)
        if child.stopping:
            self._stopped(child, "stopped", child.fate)
        else:
            self._died(child, child.fate)

    def _overdue(self, child: Child) -> None:
        self._listen(child)
        if not child.deadline.expired:
            return  # it has said something just now
        child.kill()
        late = f"was not ready within {self._ready_timeout:g} seconds"
        if self.roster.is_heir(child):
            self._disinherit(child, late)
            return
        self.roster.release(child)
        if child.stopping:
            self._stopped(child, "killed", f"did not stop within {self._stop_timeout:g} seconds")
        elif child.ready:
            self._died(child, f"gave no heartbeat for {child.program.heartbeat:g} seconds and was killed", "stuck")
        else:
            self._died(child, late, "late")

    def _stopped(self, child: Child, what: What, fate: str) -> None:
        self._note(child, what, fate)
        if not child.renew:
            self._forget(child.program, f"{child.name} was stopped before it was ready")
        elif (why := self._follow(child)) is not None:
            self._give_up(child.program, why)

    def _died(self, child: Child, fate: str, what: What = "died") -> None:
        program, policy = child.program, child.program.restart
        succeeded = what == "died" and child.exitcode == 0
        whole = fate + child.said
        if child.signal == "SIGTERM" or (succeeded and policy == "always"):
            self._hear_out()
        if self._stopping or self.failure is not None:
            self._note(child, what, whole)
        elif child.incarnation == 0 and not child.ready:
            self._note(child, what, whole)
            if not self.started.is_set() and child.name not in self._wishing:
                self._give_up(program, f"{program.name} {fate} before everything was ready{child.said}")
            self._forget(program, f"{program.name} {fate} before it was ready{child.said}")
        elif policy == "never" or (policy == "on-failure" and succeeded):
            self._note(child, "done" if succeeded else what, whole)
            self._forget(program, f"{program.name} {whole}")
        else:
            self._note(child, what, whole)
            self._mend(child, fate)

    def _hear_out(self) -> None:
        """Let the main thread say that everything is to stop, if what has ended a process was meant for the whole group."""
        if self._bell is not None and not self._stopping:
            hear_out(self._bell)

    def _mend(self, child: Child, fate: str) -> None:
        name, now = child.name, monotonic()
        self._deaths.append(now)
        while self._deaths[0] < now - self._period:
            self._deaths.popleft()
        if len(self._deaths) > self._intensity:
            self._give_up(
                child.program,
                f"{name} {fate}{child.said}; that is death number {len(self._deaths)} within {self._period:g} seconds and "
                f"{self._intensity} are mended, so everything is stopped",
            )
            return
        pause = self._pause(child)
        when = f" in {pause:g} seconds" if pause else ""
        logger.warning("%s (pid %s) %s and is started again%s%s", name, child.pid, fate, when, child.said)
        self._later[name] = Deadline(pause), child
        if not pause:
            self._start_again(name)

    def _pause(self, child: Child) -> float:
        """Return for how long one is not started again: what it lacked when it could not start may be there by then."""
        if child.proven:
            del self._failed[child.name]
            return 0.0
        self._failed[child.name] = times = min(self._failed[child.name] + 1, _DOUBLED)
        # At most half of the period goes by in pauses, so that it is still given up, if so many deaths can come in it at all.
        longest = self._period / (2 * self._intensity)
        return min(_AGAIN * 2.0 ** (times - 1), longest if longest >= _LEAST else _LONGEST)

    def _start_again(self, name: str) -> None:
        _, child = self._later.pop(name)
        if (why := self._follow(child)) is not None:
            self._give_up(child.program, f"{name} {child.fate}{child.said}; {why}")

    def _give_up(self, program: Program, why: str) -> None:
        self.failure = GaveUp(why, program.name)
        self._note(None, "gave up", why)
        if self.started.is_set():  # else whoever waits for the start is told
            logger.critical("%s", why)

    # ------------------------------------------------------------------ one after the other

    def _follow(self, child: Child) -> str | None:
        """Put the heir of one that has ended into its place, or start another one; return why that cannot be, else None."""
        heir = self.roster.succeed(child.name)
        if heir is None:
            return self._launch(child.program, child.incarnation + 1)
        heir.take_over()
        if heir.ready:
            self._serves(heir)
        return None

    def _relieve(self, child: Child) -> None:
        """Start an heir for one that runs."""
        child.relieve = False
        if (why := self._launch(child.program, child.incarnation + 1, heir=True)) is not None:
            self._keep(child.name, why)

    def _disinherit(self, heir: Child, fate: str) -> None:
        """Go on with the process that an heir was to replace: it has ended."""
        name = heir.name
        self.roster.release(heir)
        old = self.roster.running.get(name)
        self._note(heir, "died" if old is None or old.stopping else "kept", fate + heir.said)
        if old is None or old.stopping:
            return  # everything ends, or the end of the old one starts another one
        if heir.relieve:  # asked for again meanwhile: what made this one fail may have been mended by then
            self._relieve(old)
            return
        self._keep(name, f"its next process (pid {heir.pid}) {fate}{heir.said}")

    def _keep(self, name: str, why: str) -> None:
        logger.error("%s was not replaced, and the process that runs goes on: %s", name, why)
        self._wishing.refuse(name, f"{name} was not replaced, and the process that runs goes on: {why}", only="replace")

    # ------------------------------------------------------------------ one more, one less

    def _take_up(self, wish: Wish) -> None:
        if wish.name in self._later and self._take_up_later(wish):
            return
        child, program = self.roster.running.get(wish.name), wish.program
        if wish.what == "stop":
            if child is None:
                wish.done.set()  # it has ended
            else:
                child.renew = child.relieve = False
                self._discard_heir(wish.name)
                self._wishing.add(wish)
                child.terminate(self._stop_timeout)
        elif wish.what in ("restart", "replace"):
            if child is None or (child.stopping and not child.renew):
                wish.refuse(StartFailed(f"{wish.name} does not run, so it cannot be restarted; start it", wish.name))
                return
            self._wishing.add(wish)
            self._renew(child, beside=wish.what == "replace")
        elif child is not None:
            wish.refuse(ValueError(f"a program called {wish.name!r} runs (pid {child.pid}); stop it first"))
        elif program is not None and (why := self._launch(program, 0)) is not None:
            wish.refuse(StartFailed(why, wish.name))
        elif program is not None:
            self._groups.append([program])
            self._wishing.add(wish)

    def _take_up_later(self, wish: Wish) -> bool:
        """Take up what is wanted of a process that is to be started again; return False if it only had to be, for that."""
        if wish.what == "stop":
            _, child = self._later.pop(wish.name)
            self._forget(child.program, f"{child.name} was stopped before it was ready")
            wish.done.set()
            return True
        self._start_again(wish.name)
        if wish.what == "start":
            return False
        self._wishing.add(wish)
        return True

    def _renew(self, child: Child, *, beside: bool) -> None:
        """Have another process take the place of one, or begin with that as soon as it is possible."""
        heir = self.roster.heirs.get(child.name)
        if not beside:
            child.renew = True
            if child.ready:
                child.terminate(self._stop_timeout)
        elif heir is not None:
            heir.relieve = True  # it may have loaded what has changed since
        elif child.stopping:
            pass  # the one that follows is not even started
        elif child.ready:
            self._relieve(child)
        else:
            child.relieve = True

    def _discard_heir(self, name: str) -> None:
        heir = self.roster.heirs.get(name)
        if heir is not None:
            heir.kill()
            self.roster.release(heir)
            self._note(heir, "killed", "is not needed any more")

    def _forget(self, program: Program, why: str) -> None:
        """Take out a program that is not started again."""
        self._discard_heir(program.name)
        del self._failed[program.name]
        self._groups = [rest for group in self._groups if (rest := [other for other in group if other.name != program.name])]
        self._tell_whether_idle()  # before whoever wanted it to end, and may ask for that at once
        self._wishing.grant(program.name, starting=False)
        self._wishing.refuse(program.name, why)

    # ------------------------------------------------------------------ the end

    def _wind_up(self) -> None:
        self._over = True
        try:
            for group in reversed(self._groups):
                self.roster.stop([program.name for program in group], self._stop_timeout, self._wound_up)
            if self._at_end is not None:
                self._at_end()
        except Exception as error:
            logger.exception("the supervisor failed while it stopped")
            self.failure = self.failure or GaveUp(f"the supervisor failed: {type(error).__name__}: {error}")
        finally:
            for child in self.roster.everybody:
                self.roster.release(child)  # which kills it, if there is one left
            untouched = []
            while self._wishes:  # a signal handler may append meanwhile
                untouched.append(self._wishes.popleft())
            self._wishing.end(untouched, str(self.failure or "everything is stopped"))

    def _wound_up(self, child: Child, killed: bool) -> None:  # noqa: FBT001  the roster calls it
        if killed:
            self._note(child, "killed", f"did not stop within {self._stop_timeout:g} seconds")
        else:
            self._note(child, "stopped", child.fate)

    def _note(self, child: Child | None, what: What, detail: str = "") -> None:
        name, pid = ("supervisor", os.getpid()) if child is None else (child.name, child.pid)
        ended = child is not None and what not in ("started", "ready")
        exitcode, killer = (child.exitcode, child.signal) if child is not None and ended else (None, None)
        occurrence = Occurrence(time(), name, what, pid, exitcode, killer, detail)  # wall clock, for people
        self.history.append(occurrence)
        self.events.add(occurrence)
        if self._on_event is not None:
            self._on_event(occurrence)
        logger.info("%s (pid %s) %s %s", name, pid, what, detail)
