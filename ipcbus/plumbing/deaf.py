"""Deaf threads: signals are for the main thread, whose wait they have to interrupt."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["be_deaf", "deaf_threads"]

_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


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
