"""Calls interrupted at every instant: what Ctrl-C may leave behind, without the luck of striking there."""

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ipcbus
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


# ---------------------------------------------------------------------- a signal handler that receives


@pytest.mark.parametrize(("rounds", "size"), [(3000, 10), (300, 300_000)], ids=["small", "large"])
@pytest.mark.parametrize("receivers", ["one", "many"])
@pytest.mark.parametrize("url", ["inproc:", "pipe:", "unix:", SHM])
def test_a_signal_handler_may_receive_amid_a_receive(url, receivers, rounds, size):
    if receivers == "many" and not ipcbus.transports.get(url[:-1]).capabilities.many_receivers:
        pytest.skip("it has one receiver")
    got = []

    def receive(*_):
        """Take one message, if it can be had."""
        try:
            got.append(channel.recv(0)[0])
        except ipcbus.ChannelEmpty:
            return False
        return True

    before = signal.signal(signal.SIGALRM, receive)
    try:
        with ipcbus.open(url, capacity=64, receivers=receivers) as channel:
            for number in range(rounds):
                sent = range(1 + number % 7)
                for each in sent:
                    channel.send((each, bytes(size)))
                # From here on the handler strikes at another instant each time.
                signal.setitimer(signal.ITIMER_REAL, 15e-6 + number % 97 * 1e-6 * (1 + size // 10_000))
                while len(got) < len(sent) and receive():
                    pass
                signal.setitimer(signal.ITIMER_REAL, 0)
                while receive():
                    pass
                assert sorted(got) == list(sent)
                got.clear()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
