"""Ports: TCP ports of the loopback interface that nobody else will take by accident."""

from __future__ import annotations

import os
import random
import socket
from itertools import count, islice
from pathlib import Path

__all__ = ["free_port"]

_LOWEST = 10_000
"""Below are the ports that services have by custom."""
_APART = 64
"""From one port of a process to its next one; what lies between belongs to processes with other numbers."""
_TRIES = 1000
_places = count(random.SystemRandom().randrange(_TRIES))
"""Where in its own this process looks next: what it was given last may be in use again by who closed it just now."""


def free_port() -> int:
    """Return a port that is free now, and that the system gives to no outgoing connection.

    A port that the system picks itself comes from the range of those that it gives to connections, so between here and its
    use any program on the machine can get it. A process is given the same one again only after some hundred others, and
    processes that were started one after the other are given different ones.

    Raises:
        OSError: none was found.
    """
    try:
        highest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]) - 1
    except (OSError, ValueError, IndexError):
        highest = 32_767
    own = range(_LOWEST + os.getpid() % _APART, max(highest, _LOWEST + _APART) + 1, _APART)
    for place in islice(_places, _TRIES):
        port = own[place % len(own)]
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue  # taken
            return port
    raise OSError(f"no free port was found in {_TRIES} tries from {_LOWEST} to {highest}")
