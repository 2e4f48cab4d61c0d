"""Children: the running processes of programs, as the supervisor sees them."""

from __future__ import annotations

import os
import signal
from multiprocessing import process
from time import monotonic
from typing import TYPE_CHECKING, Any

from ipcbus.plumbing.clock import Deadline
from ipcbus.supervisor.life import BEAT, PREPARED, READY, TAKE_OVER, main
from ipcbus.supervisor.line import Line, has_room

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

    from ipcbus.supervisor.program import Program

__all__ = ["Child"]

_LONGEST = 4000
"""Bytes that a process may be told at a time."""
_PROVEN = 1.0
"""Seconds for which a function that cannot say that it is ready must have run, for its start to have succeeded."""


class Child:
    """The running process of a program.

    Args:
        context: makes the process, of this one: the kernel ties it to the calling thread.
        program: what it runs.
        incarnation: how often it was started before.
        ready_timeout: seconds it has for becoming ready.
        heir: whether it is to take the place of one that runs.

    Raises:
        Exception: whatever keeps ``multiprocessing`` from starting it. Nothing is left behind then.

    Attributes:
        ready: whether it has said so.
        heir: whether it was made to take the place of one, and was not told to.
        prepared: whether it has said that it can take over, and was not told to.
        stopping: whether it was told to end.
        renew: whether another one is started when it has ended, because somebody asked for that.
        relieve: whether an heir is started for it once it is ready, because somebody asked for that.
        deadline: when it must be ready; once it is, when it must have given its next heartbeat; once it was told to end, when
            it must have ended.
        mute: whether it has closed its end of the line.
        sentinel: a descriptor that is readable once it has ended.
    """

    def __init__(
        self, context: BaseContext, program: Program, incarnation: int, ready_timeout: float, *, heir: bool = False
    ) -> None:
        own = context.get_start_method() != "forkserver"
        self.program = program
        self.incarnation = incarnation
        self.heir = heir
        self.ready = self.prepared = self.stopping = self.renew = self.relieve = self.mute = False
        self._ready_timeout = ready_timeout
        self._serves_since = 0.0
        self._said = ""
        self.line = Line(context, os.getpid() if own else 0)
        self.process: Any = context.Process(  # type: ignore[attr-defined]  # typeshed has it only on the concrete contexts
            target=main, name=program.name, args=(self.line.tether, self.line.voice, program, incarnation, heir)
        )
        # A forked process is deaf to SIGTERM until it has forgotten its parent's handler for it: see life.py.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM} if context.get_start_method() == "fork" else ())
        try:
            self.process.start()
        except BaseException:
            self.line.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        # Whenever another thread starts a process, multiprocessing asks how all of those in there have ended. What it is told
        # of ours in that instant, nobody can be told again: this one is none of its business.
        process._children.discard(self.process)  # type: ignore[attr-defined]  # noqa: SLF001  there is no other way
        self.line.hand_over()
        self.deadline = Deadline(ready_timeout)
        try:
            self._pidfd = _pidfd(self.process.pid) if own else -1
        except BaseException:
            self.kill()
            self.line.close()
            raise
        # multiprocessing's sentinel is a pipe that a process inherited by ours keeps open when ours has long ended. The
        # fork server keeps its own, which nobody inherits.
        self.sentinel: int = self._pidfd if self._pidfd >= 0 else self.process.sentinel

    @property
    def name(self) -> str:
        """The program's name."""
        return self.program.name

    @property
    def pid(self) -> int:
        """The process id."""
        return int(self.process.pid)

    def listen(self) -> None:
        """Take what it has said."""
        try:
            while self.line.heard.poll():
                text = self.line.heard.recv_bytes()
                if text == PREPARED:
                    self.prepared = True
                    if self.heir and not self.stopping:
                        self.deadline = Deadline(None)  # it waits for its predecessor
                    continue
                if text not in (READY, BEAT):
                    self._said = text.decode(errors="replace")
                    continue
                if text == READY and not self.ready:
                    self.ready, self._serves_since = True, monotonic()
                if self.ready and not self.stopping:
                    self.deadline = Deadline(self.program.heartbeat or None)
        except (EOFError, OSError):
            self.mute = True  # it has ended, or is about to: the sentinel says when

    def tell(self, data: bytes) -> bool:
        """Say something to it, and return whether that was possible; never waits."""
        heard = self.line.heard
        if len(data) > _LONGEST:
            raise ValueError(f"a process can be told {_LONGEST} bytes at a time, not {len(data)}")
        try:
            if not has_room(heard):
                return False
            heard.send_bytes(data)
        except OSError:
            return False  # it has ended
        return True

    def take_over(self) -> None:
        """Let one that is prepared begin: its predecessor has ended, or there was none."""
        if not self.prepared:
            return
        self.prepared = False
        if self.heir and not self.stopping:
            self.heir = False
            self.deadline = Deadline(self._ready_timeout)
        self.tell(TAKE_OVER)

    @property
    def proven(self) -> bool:
        """Whether its start has succeeded, as far as that can be known."""
        return self.ready and (self.program.handshake or monotonic() - self._serves_since >= _PROVEN)

    @property
    def due(self) -> bool:
        """Whether it has a deadline to keep."""
        return self.stopping or not self.ready or self.program.heartbeat > 0

    @property
    def talks(self) -> bool:
        """Whether what it says is to be listened for."""
        return not self.mute and (not self.ready or self.program.heartbeat > 0)

    def terminate(self, timeout: float) -> None:
        """Tell it to end (SIGTERM), within so many seconds. Telling it again changes nothing."""
        if not self.stopping:
            self.stopping = True
            self.deadline = Deadline(timeout)
            self.process.terminate()

    def kill(self) -> None:
        """End it (SIGKILL), and wait until it has ended."""
        self.process.kill()
        self.process.join()

    def release(self) -> None:
        """Free what belongs to it, once it has ended. Idempotent."""
        self.line.close()  # kills one that was taken for dead because its fork server died
        fd, self._pidfd = self._pidfd, -1
        if fd >= 0:
            os.close(fd)

    # ------------------------------------------------------------------ how it ended

    @property
    def exitcode(self) -> int | None:
        """As ``multiprocessing`` counts it; None if another part of the program took it from the kernel."""
        code: int | None = self.process.exitcode
        return code

    @property
    def signal(self) -> str | None:
        """The name of the signal that killed it, or None."""
        code = self.exitcode
        if code is None or code >= 0:
            return None
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"  # most real-time signals have no name

    @property
    def fate(self) -> str:
        """How it ended."""
        if self.exitcode is None:
            return "ended, nobody knows how"
        return f"was killed by {self.signal}" if self.signal else f"ended with exit code {self.exitcode}"

    @property
    def said(self) -> str:
        """What it said last, as the end of a sentence about it; empty if it said nothing."""
        return f"; it said: {self._said}" if self._said else ""


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1  # it has ended, and another thread of this program has reaped it; its sentinel shows that
