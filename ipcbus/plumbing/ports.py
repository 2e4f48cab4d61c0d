"""Ports: TCP ports of the loopback interface that nobody else will take by accident."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

__all__ = ["free_port"]

_LOWEST = 10_000
"""Below are the ports that services have by custom."""
_APART = 64
"""Processes whose numbers follow each other that cannot get each other's."""
_TRIES = 1000


def free_port() -> int:
    """Return a port that is free now, and that the system gives to no outgoing connection.

    A port that the system picks itself comes from the range of those that it gives to connections, so between here and its
    use any program on the machine can get it. And processes that ask at the same moment, as those that one program has
    started, are given different ones: which it can be depends on the process.

    Raises:
        OSError: none was found.
    """
    try:
        highest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]) - 1
    except (OSError, ValueError, IndexError):
        highest = 32_767
    for _ in range(_TRIES):
        port = random.SystemRandom().randrange(_LOWEST + os.getpid() % _APART, max(highest, _LOWEST + _APART), _APART)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue  # taken
            return port
    raise OSError(f"no free port was found in {_TRIES} tries from {_LOWEST} to {highest}")
