"""Calls interrupted at every instant: what Ctrl-C may leave behind, without the luck of striking there."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from ipcbus.plumbing.ports import free_port

PROGRAM = Path(__file__).with_name("programs") / "interruptions.py"
SHM = pytest.param("shm:", marks=pytest.mark.skipif(not importlib.util.find_spec("ipcbus_shm"), reason="not installed"))
LOCAL = ["inproc:", "pipe:", "queue:", "unix:", SHM]


def run(*words):
    """Run the program, in a process of its own: it may not leave the tracing of this one changed."""
    least = 2 if "shm:" in words else 9  # its calls are C, with three; the others have ten and more on every Python
    done = subprocess.run([sys.executable, PROGRAM, *map(str, words)], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > least, "hardly anything was interrupted"


@pytest.mark.parametrize("url", LOCAL)
def test_the_first_receive(url):
    run("first_receive", url)


@pytest.mark.parametrize("url", [*LOCAL, "zmq:"])
def test_the_first_send(url):
    run("first_send", url)


@pytest.mark.parametrize("scheme", ["pipe", "zmq", "zmq+tcp"])
def test_a_receiver_that_nobody_sends_to_yet(scheme):
    run("first_look", f"{scheme}:" if scheme != "zmq+tcp" else f"zmq+tcp://127.0.0.1:{free_port()}")


@pytest.mark.parametrize("size", [10, 3_000, 300_000])
@pytest.mark.parametrize("way", ["send", "recv"])
@pytest.mark.parametrize("url", [*LOCAL, "zmq:"])
def test_later_calls(url, way, size):
    run(way, url, size)


@pytest.mark.parametrize("url", [*LOCAL, "zmq:"])
def test_a_receive_that_waits(url):
    run("wait", url, 10)
