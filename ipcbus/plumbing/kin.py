"""Kin: the processes of a group or a session, for whoever started them and has to end them all."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from typing import Literal

__all__ = ["end", "members"]

_ENDED = ("Z", "X")
"""States of processes that do nothing any more; when their parent takes notice, or the system's first process, is open."""
_FIELDS = {"group": 2, "session": 3}
"""Where ``/proc/PID/stat`` has them, counted behind the name."""


def members(what: Literal["group", "session"], number: int) -> set[int]:
    """Return the processes of a process group or of a session, without those that ended and are yet to be waited for."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if fields[0] not in _ENDED and int(fields[_FIELDS[what]]) == number:
            found.add(int(status.parent.name))
    return found


def end(pid: int, timeout: float) -> None:
    """Kill a process that need not be a child, and wait for so many seconds until it has ended."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        poll = select.poll()
        poll.register(process, select.POLLIN)
        poll.poll(timeout * 1000)
    except ProcessLookupError:
        pass  # it ended by itself
    finally:
        os.close(process)
