"""What a fork server imports to be kept from the signals that go to a whole group of processes; see ``forkserver``.

Nothing else may import it. A process that a fork server has made would take itself for one: nothing tells it otherwise.
"""

from __future__ import annotations

import os
import signal
import sys

from ipcbus.supervisor.forkserver import SIGNALS

__all__: list[str] = []

_COMMAND = "from multiprocessing.forkserver import main"
"""What a fork server is told to run."""


def _hear_as_ever() -> None:
    if os.getppid() == _SERVER:  # what such a process forks has the mask that it has chosen
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


if sys.orig_argv[-1].startswith(_COMMAND):
    _SERVER = os.getpid()
    # Blocked, and not handled: one that is meant for a process that has just been made waits until that hears.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    os.register_at_fork(after_in_child=_hear_as_ever)
