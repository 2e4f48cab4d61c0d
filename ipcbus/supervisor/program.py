"""Programs and occurrences: what a supervisor is told, and what it tells."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Occurrence", "Program", "Restart", "What"]

Restart: TypeAlias = Literal["always", "on-failure", "never"]
"""When a process that ended is started again."""

What: TypeAlias = Literal["started", "ready", "died", "done", "late", "stuck", "stopped", "killed", "kept", "gave up"]
"""What can happen to a process."""


@dataclass(frozen=True, slots=True)
class Program:
    """One process to keep running."""

    name: str
    target: Callable[..., object]
    """A function of an importable module. It returns, or is terminated (SIGTERM), when it is to stop."""
    args: tuple[Any, ...] = ()
    handshake: bool = True
    """True: it is called with a :class:`Life` and ``args``, and is ready once it calls ``life.ready()``. False: it is
    called with ``args`` alone, and is ready once its process is about to call it."""
    restart: Restart = "always"
    """``always``; ``on-failure``: unless it ended with exit code 0, as when the function returns; ``never``."""
    heartbeat: float = 0.0
    """Seconds: once it is ready it calls ``life.beat()`` more often than that, or is killed as stuck. 0: it need not."""

    def __post_init__(self) -> None:
        """Refuse what would be noticed only when the process dies, or never.

        Raises:
            ValueError: ``restart`` is none of the three, or ``heartbeat`` makes no sense, or ``target`` would not be awaited.
            TypeError: ``target`` cannot be called, or ``args`` is neither a tuple nor a list.
        """
        if not callable(self.target):
            raise TypeError(f"{self.name}: target must be a function, not {self.target!r}; name it, and do not call it")
        if not isinstance(self.args, (tuple, list)):  # the process would receive from a channel until its end
            raise TypeError(f"{self.name}: args must be a tuple, not {self.args!r}; one argument is written (x,)")
        if inspect.iscoroutinefunction(self.target):
            raise ValueError(f"{self.name}: {self.target!r} is a coroutine function; name a function that calls asyncio.run()")
        if not self.heartbeat >= 0 or (self.heartbeat and not self.handshake):
            raise ValueError(f"{self.name}: heartbeat is in seconds, and needs a Life to beat with: handshake=True")
        if self.restart not in ("always", "on-failure", "never"):
            raise ValueError(f"{self.name}: restart must be 'always', 'on-failure' or 'never', not {self.restart!r}")


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One thing that happened to a process."""

    at: float
    """Seconds since the epoch."""
    name: str
    """The program, or ``supervisor``."""
    what: What
    """``started``; ``ready``; ``died``: it ended and should not have; ``done``: it ended and is not started again;
    ``late``: it was not ready in time and was killed; ``stuck``: it gave no heartbeat in time and was
    killed; ``stopped``: it ended because it was told to; ``killed``: it did
    not stop in time; ``kept``: what was to replace it ended instead, so it goes on; ``gave up``: of the supervisor, which now
    stops everything."""
    pid: int | None
    exitcode: int | None = None
    """As ``multiprocessing`` counts it: negative for a signal. None while it runs, or where it cannot be known."""
    signal: str | None = None
    """The name of the signal that killed it; None unless one did."""
    detail: str = ""
    """The same as a phrase, with what the process said last."""
