"""Life: what runs in a supervised process, and its view of that."""

from __future__ import annotations

import signal
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipcbus.supervisor.line import has_room

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from ipcbus.supervisor.line import Tether
    from ipcbus.supervisor.program import Program

__all__ = ["BEAT", "PREPARED", "READY", "TAKE_OVER", "Life", "main"]

READY = b"ready"
"""What a process says when it serves."""
BEAT = b"beat"
"""What it says while it does; whatever else it says is its last word."""
PREPARED = b"prepared"
"""What it says when it could serve, if only its predecessor did not."""
TAKE_OVER = b"take over"
"""What it is told when that has ended."""

_LONGEST = 4000
"""Bytes of a last word: more than a pipe takes at once would keep the process from ending."""


class Life:
    """A supervised process's own view: who it is, and how it says that it is ready.

    Attributes:
        name: the program's name.
        incarnation: how often the program was started before.
        heartbeat: seconds within which ``beat`` is to be called again; 0 if it need not be.
        replaces: whether another process of the program still runs, which this one is to replace.
    """

    def __init__(
        self, name: str, incarnation: int, line: Connection[Any, Any], heartbeat: float = 0.0, *, replaces: bool = False
    ) -> None:
        self.name = name
        self.incarnation = incarnation
        self.heartbeat = heartbeat
        self.replaces = replaces
        self._line = line

    def prepared(self) -> None:
        """Tell the supervisor that this process can take the place of the one it replaces, which is stopped now.

        When that has ended, ``heard`` returns ``ipcbus.supervisor.TAKE_OVER``.
        """
        _say(self._line, PREPARED)

    def wait_turn(self) -> None:
        """Wait until no other process of the program runs; returns at once unless this one replaces one.

        Call it when everything is loaded that may fail, and before anything is opened that only one process can have.
        """
        if not self.replaces:
            return
        self.prepared()
        try:
            while self._line.recv_bytes() != TAKE_OVER:
                pass
        except (EOFError, OSError):
            return  # the supervisor has let go, and the kernel is about to end this
        self.replaces = False

    def ready(self) -> None:
        """Tell the supervisor that this process serves. Call it once."""
        _say(self._line, READY)

    def beat(self) -> None:
        """Tell the supervisor that this process is not stuck. Never waits; does nothing for a program without ``heartbeat``."""
        # A supervisor that has not read the beats before this one learns nothing from it; without a heartbeat it reads none.
        if self.heartbeat and has_room(self._line):
            _say(self._line, BEAT)

    def fileno(self) -> int:
        """Return a descriptor that polls readable when ``heard`` has something, or the supervisor has ended."""
        return self._line.fileno()

    def heard(self) -> bytes | None:
        """Return the next thing that ``Supervisor.tell`` told this process, or None; never waits."""
        try:
            return self._line.recv_bytes() if self._line.poll() else None
        except (EOFError, OSError):
            return None  # the supervisor has let go, and the kernel is about to end this


def main(tether: Tether, line: Connection[Any, Any], program: Program, incarnation: int, replaces: bool) -> None:  # noqa: FBT001  Process passes it by position
    """Be the process: run the program's function, and say what went wrong."""
    tether.fasten()  # a forked process gets it without unpickling it
    _forget_signals()
    _show(program.name)
    life = Life(program.name, incarnation, line, program.heartbeat, replaces=replaces)
    try:
        if program.handshake:
            program.target(life, *program.args)
        else:
            life.wait_turn()
            life.ready()
            program.target(*program.args)
    except SystemExit as end:
        if isinstance(end.code, str):
            _say(line, end.code.encode())
        raise
    except Exception as error:
        _say(line, "".join(traceback.format_exception_only(error)).strip().encode())
        raise


def _show(name: str) -> None:
    """Have ``ps`` and ``top`` show the name, as far as the kernel has room for it: 15 bytes."""
    try:
        Path("/proc/self/comm").write_text(name, encoding="utf-8")
    except OSError:
        pass  # /proc may be read-only, and nothing here depends on it


def _say(line: Connection[Any, Any], text: bytes) -> None:
    try:
        line.send_bytes(text[:_LONGEST])
    except OSError:
        pass  # nobody listens any more: the supervisor has let go, and the kernel is about to end this


def _forget_signals() -> None:
    """Undo what a forked process inherits: its parent's handlers would be called for signals that are meant for it."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)) and number not in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Ctrl-C, and the end of a terminal, reach the whole group; the supervisor decides what they mean.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # The thread that has started this process is deaf to them.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
