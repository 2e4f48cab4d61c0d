"""Deaf threads: signals are for the main thread, whose wait they have to interrupt."""

from __future__ import annotations

import select
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ipcbus.plumbing.clock import Deadline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ipcbus.plumbing.wakeup import Wakeup

__all__ = ["be_deaf", "deaf_threads", "hear_out"]

_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
_MOMENT = 0.1
"""Seconds that a signal handler may take from the moment on in which the kernel gave it the signal."""
_LONGEST = 5.0
"""Seconds for which the kernel may have one that it cannot give to the main thread: that has no processor, or blocks it."""


def be_deaf() -> None:
    """Have the calling thread take no signal that asks a program to stop or to reload.

    The kernel gives a signal to any thread when the main one has another pending. Python then remembers it, but wakes nobody:
    a main thread that waits for a lock would not see it before the next one comes.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


@contextmanager
def deaf_threads() -> Iterator[None]:
    """Have threads that are started inside of it be deaf from their first instant; what comes meanwhile is late, not lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hear_out(bell: Wakeup) -> None:
    """Wait, in a thread that is deaf, until the main thread has dealt with a signal, if one has come.

    Args:
        bell: what its handler rings.
    """
    poller, until = select.poll(), Deadline(_LONGEST)
    poller.register(bell, select.POLLIN)
    while True:
        kept = signal.sigpending() & _SIGNALS  # before the moment, which begins with its being given
        if poller.poll(_MOMENT * 1000) or not kept or until.expired:
            return
