"""Calls interrupted at every instant: what Ctrl-C may leave behind, without the luck of striking there."""

import contextlib
import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ipcbus
from ipcbus.plumbing.ports import free_port

PROGRAM = Path(__file__).with_name("programs") / "interruptions.py"
PATIENCE = 10
SHM = pytest.param("shm:", marks=pytest.mark.skipif(not importlib.util.find_spec("ipcbus_shm"), reason="not installed"))
LOCAL = ["inproc:", "pipe:", "queue:", "unix:", SHM]


def run(*words):
    """Run the program, in a process of its own: it may not leave the tracing of this one changed."""
    least = 2 if "shm:" in words else 5  # its calls are C, with three; the others have at least twice as many on every Python
    done = subprocess.run([sys.executable, PROGRAM, *map(str, words)], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert sum(map(int, done.stdout.split())) > least, "hardly anything was interrupted"


@pytest.mark.parametrize("url", LOCAL)
def test_the_first_receive(url):
    run("first_receive", url)


def test_the_first_receive_of_what_was_left_before():
    run("first_parked", "zmq:")


@pytest.mark.parametrize("url", [*LOCAL, "zmq:"])
def test_the_first_send(url):
    run("first_send", url)


@pytest.mark.parametrize("scheme", ["pipe", "zmq", "zmq+tcp"])
def test_a_receiver_that_nobody_sends_to_yet(scheme):
    run("first_look", f"{scheme}:" if scheme != "zmq+tcp" else f"zmq+tcp://127.0.0.1:{free_port()}")


@pytest.mark.parametrize("url", LOCAL)
def test_the_close_of_a_receiving_end(url):
    run("closing", url)


@pytest.mark.parametrize("scheme", ["zmq", "zmq+tcp"])
def test_the_close_of_a_receiving_end_that_keeps_nothing(scheme):
    run("replacing", f"{scheme}:" if scheme != "zmq+tcp" else f"zmq+tcp://127.0.0.1:{free_port()}")


@pytest.mark.parametrize("url", [*LOCAL, "zmq:"])
def test_the_close_of_a_sending_end(url):
    run("left", url)


def test_the_close_of_a_sending_end_that_nobody_has_received_from():
    run("left_to_nobody", "zmq:")


@pytest.mark.parametrize("size", [10, 3_000, 300_000])
@pytest.mark.parametrize("way", ["send", "recv"])
@pytest.mark.parametrize("url", [*LOCAL, "zmq:"])
def test_later_calls(url, way, size):
    run(way, url, size)


@pytest.mark.parametrize("url", [*LOCAL, "zmq:"])
def test_a_receive_that_waits(url):
    run("wait", url, 10)


@pytest.mark.parametrize(("way", "size"), [("one", 100), ("one", 10_000), ("many", 100)])
def test_what_a_signal_handler_has_half_written_is_not_mixed_with_the_send_that_it_interrupts(way, size):
    run(f"half_{way}", "pipe:?pipe_bytes=64KiB", size)


@pytest.mark.parametrize("size", [10, 3_000, 300_000])
@pytest.mark.parametrize("way", ["bytes_0", "bytes_3", "list_3"])
@pytest.mark.parametrize("url", ["inproc:", "pipe:", "unix:"])
def test_a_signal_handler_that_sends_takes_room_of_its_own(url, way, size):
    run(f"amid_{way}", url, size)


@pytest.mark.parametrize("size", [10, 3_000, 300_000])
@pytest.mark.parametrize("url", [*LOCAL, "zmq:"])
def test_a_signal_handler_that_receives_amid_a_receive_takes_messages_of_its_own(url, size):
    run("taken", url, size)


@pytest.mark.parametrize("url", [*LOCAL, "zmq:"])
def test_a_signal_handler_may_receive_amid_the_first_receive_or_is_told_that_it_may_not(url):
    run("first_taken", url)


@pytest.mark.parametrize("url", [*LOCAL, "zmq:"])
def test_room_that_a_signal_handler_sees_amid_a_send_is_not_forgotten(url):
    run("regained", url)


@pytest.mark.parametrize("url", [*LOCAL, "zmq:"])
def test_what_a_signal_handler_makes_possible_ends_the_wait_that_it_interrupts(url):
    run("woken", url)


@pytest.mark.parametrize("url", LOCAL)
def test_a_call_whose_channel_a_signal_handler_closes_says_so_also_amid_the_first(url):
    run("ended", url)


# ---------------------------------------------------------------------- a signal handler that receives


@pytest.mark.parametrize(("rounds", "size"), [(3000, 10), (300, 300_000)], ids=["small", "large"])
@pytest.mark.parametrize("url", [*LOCAL, "zmq:", "queue:?receivers=many", "unix:?receivers=many"])
def test_a_signal_handler_may_receive_amid_a_receive(url, rounds, size):
    got = []

    def receive():
        """Take one message, if it can be had."""
        try:
            got.append(channel.recv(0)[0])
        except ipcbus.ChannelEmpty:
            return False
        return True

    with ipcbus.open(url, capacity=64) as channel, Strikes(receive) as strikes:
        for number in range(rounds):
            sent = range(1 + number % 7)
            for each in sent:
                channel.send((each, bytes(size)))
            if url.startswith(("queue:", "zmq:")):  # which move messages in threads of theirs
                ipcbus.wait([channel], PATIENCE)
            with strikes.one(number, 1 + size // 10_000):
                while len(got) < len(sent) and receive():
                    pass
            while len(got) < len(sent):
                got.append(channel.recv(PATIENCE)[0])
            assert sorted(got) == list(sent)
            got.clear()


@pytest.mark.parametrize("size", [10, 3_000])
@pytest.mark.parametrize("url", [*LOCAL, "zmq:"])
def test_a_signal_handler_may_send_amid_a_send_or_is_told_that_it_may_not(url, size):
    sent, got = [], []

    def send():
        try:
            channel.send(("handler", bytes(size)), 0)
        except ipcbus.ChannelFull:
            pass  # nothing was sent
        else:
            sent.append("handler")

    with ipcbus.open(url, capacity=64) as channel, Strikes(send) as strikes:
        channel.receiver.ready()
        for number in range(1500):
            with strikes.one(number):
                for each in range(5):
                    channel.send((each, bytes(size)))
            sent.extend(range(5))
            while len(got) < len(sent):
                got.append(channel.recv(PATIENCE)[0])
        with pytest.raises(ipcbus.ChannelEmpty):
            channel.recv(0)
    for these in (sent, got):
        assert [each for each in these if each != "handler"] == 1500 * list(range(5))
    assert got.count("handler") == sent.count("handler")


@pytest.mark.parametrize("url", [*LOCAL, "zmq:", "queue:?receivers=many", "unix:?receivers=many"])
def test_a_signal_handler_may_look_at_what_it_interrupts_a_call_of(url):
    def look():
        for end in (channel.sender, channel.receiver):
            end.stats()
            ipcbus.wait([end], 0)

    with ipcbus.open(url, capacity=64) as channel, Strikes(look) as strikes:
        channel.receiver.ready()
        for number in range(1000):
            with strikes.one(number):
                channel.send(number)
                assert channel.recv(PATIENCE) == number


@pytest.mark.parametrize("call", ["close", "shutdown"])
@pytest.mark.parametrize("url", [*LOCAL, "zmq:", "queue:?receivers=many"])
def test_a_signal_handler_may_end_what_it_interrupts_a_call_of(url, call):
    def descriptors():
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    ended = 0
    for number in range(40):
        with ipcbus.open(url, capacity=64) as channel, Strikes(lambda channel=channel: getattr(channel, call)()) as strikes:
            channel.send(0)
            channel.recv(PATIENCE)
            with contextlib.suppress(ipcbus.ChannelClosed, ipcbus.EndOfChannel), strikes.one(number, 3):
                for _ in range(50):
                    channel.send(0)
                    channel.recv(PATIENCE)
            with contextlib.suppress(ipcbus.ChannelClosed):
                channel.send(0, 0)
                continue
            ended += 1
    assert ended > 20
    assert descriptors() <= before + 3, "what closed late is not freed"


@pytest.mark.parametrize("role", ["sender", "receiver"])
@pytest.mark.parametrize("url", [*LOCAL, "zmq:", "unix:?receivers=many"])
def test_a_signal_handler_may_use_the_end_that_it_interrupts_the_opening_of(url, role, monkeypatch):
    got = []
    with ipcbus.open(url, capacity=8) as channel:
        handle = type(channel._end.handle)
        name = f"open_{role}"
        open_it = getattr(handle, name)

        def open_amid(self):
            monkeypatch.setattr(handle, name, open_it)
            use("handler")  # on the same thread, as a signal handler is
            return open_it(self)

        def use(who):
            if role == "sender":
                channel.send(who, PATIENCE)
            else:
                got.append(channel.recv(PATIENCE))

        if role == "receiver":
            for each in ("handler", "interrupted"):
                channel.send(each, PATIENCE)
        monkeypatch.setattr(handle, name, open_amid)
        use("interrupted")
        if role == "sender":
            got = [channel.recv(PATIENCE) for _ in range(2)]
        assert got == ["handler", "interrupted"]


class Strikes:
    """Has a function called as a signal handler, at another instant each time."""

    def __init__(self, function):
        self._function = function
        self._armed = False

    def __enter__(self):
        self._before = signal.signal(signal.SIGALRM, self._strike)
        return self

    def _strike(self, *_):
        if self._armed:  # else it is called later than it was due
            self._function()

    @contextlib.contextmanager
    def one(self, number, slowness=1):
        """Strike once while what is inside runs, or not at all where it is over before."""
        self._armed = True
        signal.setitimer(signal.ITIMER_REAL, (15 + number % 97 * slowness) * 1e-6)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._armed = False

    def __exit__(self, *_):
        signal.signal(signal.SIGALRM, self._before)
