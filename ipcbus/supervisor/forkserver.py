"""What ``multiprocessing`` keeps running beside a program, and which signals it is kept from.

A signal often goes to a whole group of processes: SIGINT from Ctrl-C, SIGHUP at the end of a terminal, SIGTERM from
``timeout``, from job control, and from service managers unless told otherwise. A fork server would die of it (of SIGINT while
it imports what is preloaded), and the kernel kills with it, without a word, whatever it has made: processes that were about
to stop in order.

A fork server that is begun here is kept from all three, and so is one that a supervisor starts, once it has imported what is
preloaded. What it makes hears them as ever.
"""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing import forkserver, resource_tracker
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ["SIGNALS", "begin", "prepare"]

_SHELTERED = f"{__package__}.sheltered"
"""Named here and not imported, as that says."""
SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
"""What goes to a whole group."""


def begin(preload: Iterable[str]) -> None:
    """Start the fork server of this program, unless it runs, and keep it from SIGINT, SIGTERM and SIGHUP at once.

    Args:
        preload: the modules that it imports.

    Raises:
        OSError: the system refused.
    """
    multiprocessing.set_forkserver_preload([_SHELTERED, *preload])
    _start(SIGNALS)


def prepare(start_method: str) -> None:
    """Start what a start method needs, unless it runs, from a thread that is not deaf, as others would become with it.

    Args:
        start_method: one of ``multiprocessing``'s.
    """
    try:
        if start_method == "forkserver":
            # Besides what the program wants to have preloaded, which multiprocessing tells nobody.
            wanted = forkserver._forkserver._preload_modules  # type: ignore[attr-defined]  # noqa: SLF001  as above
            if _SHELTERED not in wanted:
                multiprocessing.set_forkserver_preload([_SHELTERED, *wanted])
            # Without signals blocked from here: where the server cannot import that, what it makes would stay deaf to them.
            _start(())
        elif start_method == "spawn":
            resource_tracker.ensure_running()
    except OSError:
        pass  # who starts the first process tries again, and says why that cannot be


def _start(without: Collection[signal.Signals]) -> None:
    resource_tracker.ensure_running()  # or it is started below, which lets the signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, without)  # inherited
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
