"""Deaf threads: signals are for the main thread, whose wait they have to interrupt."""

from __future__ import annotations

import signal

__all__ = ["be_deaf"]

_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


def be_deaf() -> None:
    """Have the calling thread take no signal that asks a program to stop or to reload.

    The kernel gives a signal to any thread when the main one has another pending. Python then remembers it, but wakes nobody:
    a main thread that waits for a lock would not see it before the next one comes.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
