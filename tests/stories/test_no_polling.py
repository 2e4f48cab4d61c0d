"""No polling: a server with two hundred channels on every transport sleeps in one wait."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

import ipcbus

CHANNELS = 200
IDLE = 5.0
"""Seconds in which nothing comes."""
SHARE = 0.002
"""Of a processor, that waiting may cost."""


def used(pid):
    """Return the seconds that all threads of a process have had a processor; the kernel counts nanoseconds there."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _urls():
    for scheme in ipcbus.transports:
        try:
            transport = ipcbus.transports.get(scheme)
        except ipcbus.TransportUnavailable:
            continue
        if transport.capabilities.crosses_processes and not transport.capabilities.addressable:
            yield f"{scheme}:"


URLS = list(_urls())
"""Found before other tests register transports of their own, which the program does not know."""


def asleep(pid):
    """Tell whether the main thread of a process waits for something."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


@pytest.mark.slow
def test_two_hundred_channels_wait_in_one_call(programs):
    assert len(URLS) >= 3
    command = [sys.executable, programs / "idle.py", str(IDLE), str(CHANNELS), *URLS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout.readline() == "waiting\n"
            while not asleep(server.pid):  # to begin to wait for so many takes a moment
                time.sleep(0.01)
            before = used(server.pid)
            assert server.stdout.readline() == "idle\n"
            assert used(server.pid) - before <= SHARE * IDLE
            server.stdin.write("go on\n")
            server.stdin.flush()
            assert server.stdout.readline().split() == sorted(command[4:])
            assert server.wait(20) == 0
        finally:
            server.kill()
