"""What is special to queue: what it leans on in multiprocessing, what it leaves in the system, what a kill does to it."""

import errno
import fcntl
import multiprocessing
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection

import pytest

import ipcbus_queue
from ipcbus.errors import ChannelBroken, ChannelEmpty, ChannelFull, ConfigError, EndOfChannel
from ipcbus_queue import Queue, feeder, reader, receiving
from ipcbus_queue.gate import Gate
from ipcbus_queue.shared import SPILL_AT

from .rig import Ends

PATIENCE = 10

# From Python 3.12 on a fork beside threads warns; that it works here is what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


@pytest.fixture
def make():
    with ExitStack() as stack:
        yield lambda **changes: Ends(stack, Queue, **changes)


@pytest.fixture
def ends(make):
    return make()


@contextmanager
def forked(work):
    """Run ``work`` in a bare fork, which ends by SIGKILL; wait for that at the end of the block."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    try:
        yield pid
    finally:
        os.waitpid(pid, 0)


def run_script(text):
    """Run a program and return its output."""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestWhatItLeansOn:
    def test_parts_of_the_standard_library_s_queue(self):
        whole = multiprocessing.get_context("fork").Queue()
        try:
            # Queue gives its parts away only while a child is started, so they are counted by giving them back.
            parts = (False, 1, whole._reader, whole._writer, whole._rlock, whole._wlock, whole._sem, 0)
            copy = object.__new__(type(whole))
            copy.__setstate__(parts)
            assert {"_buffer", "_notempty", "_thread", "_writer", "_sem"} <= vars(copy).keys()
            assert callable(copy._start_thread)
        finally:
            whole.close()
            whole._reader.close()
            whole._writer.close()

    @pytest.mark.parametrize("size", [0, 10, 4000, 5000, 20_000, 60_000])
    def test_writes_what_a_connection_reads(self, ends, size):
        sender = ends.sender()
        sender.send([bytes(size)], PATIENCE)
        with Connection(os.dup(ends.handle._shared.reader.fileno()), writable=False) as connection:
            assert connection.poll(PATIENCE)
            assert pickle.loads(connection.recv_bytes()) == bytes(size)

    def test_reads_what_a_connection_writes(self, ends):
        receiver = ends.receiver()
        with Connection(os.dup(ends.handle._shared.writer.fileno()), readable=False) as connection:
            for size in (0, 10, 5000, 20_000):
                connection.send_bytes(pickle.dumps(bytes(size)))
                assert receiver.recv(PATIENCE) == (bytes(size),)

    def test_small_messages_share_a_write(self, make, monkeypatch):
        ends, written = make(capacity=200), []
        sender, receiver = ends.sender(), ends.receiver()
        monkeypatch.setattr(feeder.os, "write", lambda fd, data, write=os.write: written.append(len(data)) or write(fd, data))
        lock = ends.handle._shared.reopen(ends.handle._shared.file, os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # as another sender in the middle of a write
            for n in range(200):
                sender.send([b"%060d" % n], 0)
        finally:
            os.close(lock)
        assert [int(receiver.recv(PATIENCE)[0]) for _ in range(200)] == list(range(200))
        assert len(written) < 10
        assert max(written) <= 4096


def test_what_a_closed_end_still_moves_comes_before_what_the_next_one_is_given(make):
    ends = make(capacity=40)
    large = [bytes(20_000) + bytes([n]) for n in range(20)]  # more than the pipe holds
    small = [bytes([n]) for n in range(20, 40)]
    first = ends.sender()
    for message in large:
        first.send([message], 0)
    first.close()
    second = ends.sender()
    for message in small:
        second.send([message], 0)
    rx = ends.receiver()
    assert [rx.recv(PATIENCE)[0][-1] for _ in range(40)] == [*range(40)]


class TestTraces:
    def test_nothing_with_a_name_and_no_tracker(self):
        said = run_script(
            "import ipcbus, multiprocessing.resource_tracker as tracker\n"
            "with ipcbus.open('queue:') as ch:\n"
            "    ch.send(1); ch.recv()\n"
            "    print(tracker._resource_tracker._fd, 'sem.mp-' in open('/proc/self/maps').read())"
        )
        assert said.split() == ["None", "False"]

    def test_full_queue_that_only_this_process_has_does_not_hold_up_its_exit(self):
        said = run_script(
            "import ipcbus, time, multiprocessing.util as u\n"
            "ch = ipcbus.open('queue:')\n"
            "for n in range(500): ch.send(bytes(1000))\n"
            "started = time.monotonic(); u._exit_function(); print(time.monotonic() - started < 3)"
        )
        assert said.split() == ["True"]

    def test_full_queue_holds_up_an_exit_for_no_longer_than_linger(self):
        said = run_script(
            "import ipcbus, os, time, ipcbus_queue.sending as sending, multiprocessing.util as u\n"
            "sending.LINGER = 0.5\n"
            "ch = ipcbus.open('queue:')\n"
            "alive, lives = os.pipe()\n"
            "if os.fork() == 0: os.close(lives); os.read(alive, 1); os._exit(0)\n"
            "for n in range(500): ch.send(bytes(1000))\n"
            "started = time.monotonic(); u._exit_function(); print(0.4 < time.monotonic() - started < 3)\n"
            "os.close(lives); os.wait()"
        )
        assert said.split() == ["True"]

    def test_close_frees_a_thread_whose_pipe_is_full(self, make):
        ends = make(capacity=100)
        sender = ends.sender()
        for _ in range(100):
            sender.send([bytes(10_000)], 0)
        sender.close()
        ends.handle.release()
        assert not any(thread.name == "QueueFeederThread" for thread in threading.enumerate())

    def test_address_is_refused(self, make):
        with pytest.raises(ConfigError, match="takes no address"):
            make(address="here")

    @pytest.mark.parametrize("call", ["pipe2", "eventfd", "memfd_create"])
    def test_no_descriptors_left(self, make, monkeypatch, call):
        def refuse(*_):
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(os, call, refuse)
        with pytest.raises(ChannelBroken, match="ulimit -n"):
            make()

    def test_no_descriptors_left_for_a_call(self, make, no_descriptors):
        tx, rx = make().both()
        with no_descriptors(), pytest.raises(ChannelBroken, match="nothing was sent; close some descriptors"):
            tx.send([b"1"], 0)
        tx.send([b"2"], 0)
        assert rx.recv(PATIENCE) == (b"2",)
        rx.shutdown()
        with no_descriptors(), pytest.raises(ChannelBroken, match="ulimit -n"):
            rx.recv(0)
        with pytest.raises(EndOfChannel):
            rx.recv(PATIENCE)


class TestThread:
    def test_cannot_be_started(self, ends, monkeypatch):
        def refuse(self):
            raise RuntimeError("can't start new thread")

        sender, receiver = ends.sender(), ends.receiver()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(ChannelBroken, match="none can be started"):
                sender.send([b"lost"], 0)
        assert sender.depth() == 0
        sender.send([b"later"], 0)
        assert receiver.recv(PATIENCE) == (b"later",)


class TestPieces:
    """A message that arrives in pieces: written here by hand, as a slow sender would."""

    BODY = pickle.dumps(b"abcdef" * 1000)
    WIRE = len(BODY).to_bytes(4, "big") + BODY

    def write(self, ends, data):
        os.eventfd_read(ends.handle._shared.room.fileno())
        os.write(ends.handle._shared.writer.fileno(), data)

    @pytest.mark.parametrize("at", [1, 3, 4, 5, 100, len(WIRE) - 1])
    def test_the_next_receiver_goes_on_with_it(self, ends, at):
        first = ends.receiver()
        self.write(ends, self.WIRE[:at])
        with pytest.raises(ChannelEmpty):
            first.recv(0)
        assert not first.ready()
        first.close()
        second = ends.receiver()
        with pytest.raises(ChannelEmpty):
            second.recv(0.02)
        os.write(ends.handle._shared.writer.fileno(), self.WIRE[at:])
        assert second.ready()
        assert second.recv(0) == (b"abcdef" * 1000,)
        assert second.depth() == 0
        assert os.fstat(ends.handle._shared.file.fileno()).st_size == SPILL_AT

    def test_the_timeout_covers_the_wait_for_the_rest(self, ends, monkeypatch):
        receiver, waits = ends.receiver(), []
        monkeypatch.setattr(Gate, "wait", lambda gate, timeout: bool(waits.append(timeout)))
        self.write(ends, self.WIRE[:100])
        with pytest.raises(ChannelEmpty):
            receiver.recv(0.01)
        assert not waits
        with pytest.raises(ChannelEmpty):
            receiver.recv(receiver._patience + 5)
        (left,) = waits
        assert left <= 5

    def test_looking_takes_nothing(self, ends):
        first = ends.receiver()
        self.write(ends, self.WIRE)
        assert first.ready()
        first.close()
        second = ends.receiver()
        assert second.ready()
        assert second.recv(0) == (b"abcdef" * 1000,)
        assert not second.ready()

    @pytest.mark.parametrize("head", [bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff" + b"\x7f" * 8, b"\xff\xff\xff\xfe"])
    def test_a_size_that_cannot_be_breaks_the_channel(self, ends, head):
        sender, receiver = ends.sender(), ends.receiver()
        self.write(ends, head + bytes(100))
        with pytest.raises(ChannelBroken, match="makes no sense"):
            receiver.recv(PATIENCE)
        with pytest.raises(ChannelBroken, match="makes no sense"):
            sender.send([b"x"], PATIENCE)

    def test_what_no_sender_writes_breaks_the_channel(self, ends):
        receiver = ends.receiver()
        self.write(ends, b"\0\0\0\5spoon")
        with pytest.raises(ChannelBroken, match="makes no sense"):
            receiver.recv(PATIENCE)


class TestPauseAfterShutdown:
    """A receiver that does something else for longer than ``LINGER`` while a sender still writes what it had accepted."""

    BODY = pickle.dumps(bytes(100_000))
    WIRE = len(BODY).to_bytes(4, "big") + BODY
    BEGIN, MIDDLE, REST = WIRE[:10], WIRE[10:40_000], WIRE[40_000:]

    @pytest.fixture(params=["one", "many"])
    def begun(self, make, monkeypatch, request):
        """Ends of a channel that is shut down, with the beginning of a message in its pipe, and a receiver that saw it."""
        monkeypatch.setattr(receiving, "LINGER", 0.1)
        ends = make(receivers=request.param)
        receiver = ends.receiver()
        os.eventfd_read(ends.handle._shared.room.fileno())
        self.write(ends, self.BEGIN)
        receiver.shutdown()
        with pytest.raises(ChannelEmpty):
            receiver.recv(0)
        return ends, receiver

    def write(self, ends, data):
        assert os.write(ends.handle._shared.writer.fileno(), data) == len(data)

    def pause(self, receiver):
        """Do something else until the receiver's time is up."""
        with select.epoll() as epoll:
            epoll.register(receiver._alarm.fileno(), select.EPOLLIN)
            assert epoll.poll(PATIENCE)

    def finish(self, ends, receiver):
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(self.write, ends, self.REST)
            assert receiver.recv(PATIENCE) == (bytes(100_000),)
            writing.result(PATIENCE)
        with pytest.raises(EndOfChannel):
            receiver.recv(PATIENCE)

    def test_more_of_a_message_came(self, begun):
        ends, receiver = begun
        for piece in (self.MIDDLE[:100], self.MIDDLE[100:]):
            self.write(ends, piece)
            self.pause(receiver)
            with pytest.raises(ChannelEmpty):
                receiver.recv(0)
        self.finish(ends, receiver)

    def test_nothing_came(self, begun):
        ends, receiver = begun
        self.pause(receiver)
        with pytest.raises(ChannelEmpty):
            receiver.recv(0)
        self.write(ends, self.MIDDLE)
        self.finish(ends, receiver)

    @pytest.mark.parametrize("instant", [1, 2, 3])
    def test_an_interruption_of_the_first_look_for_the_end(self, make, monkeypatch, instant):
        monkeypatch.setattr(receiving, "LINGER", 0.1)
        ends = make()
        receiver = ends.receiver()
        os.eventfd_read(ends.handle._shared.room.fileno())  # a message that never comes
        receiver.shutdown()
        epoll, changes = receiver._gate.epoll, []

        class Interrupted:
            def __getattr__(self, name):
                def call(*args):
                    changes.append(getattr(epoll, name)(*args))
                    if len(changes) == instant:
                        raise KeyboardInterrupt
                    return changes[-1]

                return call

        with monkeypatch.context() as patch:
            patch.setattr(receiver._gate, "epoll", Interrupted())
            with pytest.raises(KeyboardInterrupt):
                receiver.recv(0)
        with pytest.raises(EndOfChannel):
            receiver.recv(PATIENCE)

    def test_it_only_looked(self, begun):
        ends, receiver = begun
        self.write(ends, self.MIDDLE)
        for _ in range(3):
            self.pause(receiver)
            receiver.ready()
        self.finish(ends, receiver)

    def test_another_receiver_took_what_came(self, make, monkeypatch):
        monkeypatch.setattr(receiving, "LINGER", 0.1)
        monkeypatch.setattr(receiving, "_PARTS", 1)
        ends = make(receivers="many")
        first, second = ends.receiver(), ends.receiver()
        os.eventfd_read(ends.handle._shared.room.fileno())
        self.write(ends, self.BEGIN)
        first.shutdown()
        for receiver in (first, second):
            with pytest.raises(ChannelEmpty):
                receiver.recv(0)
        self.write(ends, self.MIDDLE)
        with pytest.raises(ChannelEmpty):
            second.recv(0)
        self.pause(first)
        with pytest.raises(ChannelEmpty):
            first.recv(0)
        self.finish(ends, first)


class TestKilled:
    def test_waiting_receiver_takes_nothing_with_it(self, make):
        ends = make(receivers="many")
        sender, receiver = ends.sender(), ends.receiver()
        begun, begins = os.pipe()

        def wait():
            Gate.wait = lambda *arguments, wait=Gate.wait: (os.write(begins, b"!"), wait(*arguments))[1]
            ends.handle.open_receiver().recv(None)

        with forked(wait) as pid:
            os.read(begun, 1)
            os.kill(pid, signal.SIGKILL)
        os.close(begun)
        os.close(begins)
        sender.send([b"x"], 0)
        assert receiver.recv(PATIENCE) == (b"x",)

    def test_receiver_in_the_middle_of_a_message(self, make, monkeypatch):
        ends = make(receivers="many")
        sender, receiver = ends.sender(), ends.receiver()
        sender.send([b"x"], 0)
        assert receiver.recv(PATIENCE)
        sender.send([b"y"], 0)

        def die(fd, size):
            os.read(fd, size)
            os.kill(os.getpid(), signal.SIGKILL)

        def take():
            reader.read = die
            ends.handle.open_receiver().recv(PATIENCE)

        with forked(take):
            pass
        with pytest.raises(ChannelBroken, match="was killed in the middle"):
            receiver.recv(PATIENCE)
        with pytest.raises(ChannelBroken, match="survives_kill"):
            sender.send([b"z"], PATIENCE)

    def test_sender_in_the_middle_of_a_message(self, ends):
        receiver = ends.receiver()

        def die(self, data):
            os.write(self.fileno(), len(data).to_bytes(4, "big") + data[:10])
            os.kill(os.getpid(), signal.SIGKILL)

        def write():
            link = ends.handle.open_sender()
            Connection.send_bytes = die
            link.send([bytes(10_000)], 0)
            threading.Event().wait(PATIENCE)

        with forked(write):
            pass
        ends.sender().send([b"x"], 0)  # accepted, and then its thread finds out
        with pytest.raises(ChannelBroken, match="was killed in the middle"):
            receiver.recv(PATIENCE)

    def test_sender_with_small_messages_harms_only_its_own(self, ends):
        receiver = ends.receiver()

        def write():
            link = ends.handle.open_sender()
            feeder.os.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            link.send([b"lost"], 0)
            threading.Event().wait(PATIENCE)

        with forked(write):
            pass
        ends.sender().send([b"x"], 0)
        assert receiver.recv(PATIENCE) == (b"x",)
        assert receiver.depth() == 1, "its room is lost with it, as the documentation says"

    @pytest.mark.parametrize("receivers", ["one", "many"])
    def test_lost_room_does_not_keep_the_end_away(self, make, monkeypatch, receivers):
        monkeypatch.setattr(receiving, "LINGER", 0.2)
        ends = make(receivers=receivers)
        sender, receiver = ends.sender(), ends.receiver()
        os.eventfd_read(ends.handle._shared.room.fileno())  # as a sender does that is killed then
        sender.send([b"x"], 0)
        sender.shutdown()
        assert receiver.recv(PATIENCE) == (b"x",)
        with pytest.raises(ChannelEmpty):
            receiver.recv(0)
        for _ in range(3):
            with pytest.raises(EndOfChannel):
                receiver.recv(PATIENCE)
        assert receiver.ready()

    def test_lost_room_is_told_to_who_would_drop_old_messages(self, make):
        ends = make(capacity=1)
        sender = ends.sender()
        os.eventfd_read(ends.handle._shared.room.fileno())
        with pytest.raises(ChannelFull):
            sender.send([b"x"], 0)
        with pytest.raises(ChannelBroken, match="killed"):
            sender.discard_oldest(0.2)


class TestHandle:
    def test_child_that_starts_after_its_parent_closed(self):
        said = run_script(
            "import ipcbus, multiprocessing\n"
            "context = multiprocessing.get_context('spawn')\n"
            "there = ipcbus.open('queue:'); back = ipcbus.open('queue:')\n"
            "there.send(len)\n"
            "child = context.Process(target=there.recv.__func__, args=(there,))\n"
            "child.start(); there.close(); child.join(20); print(child.exitcode); back.close()"
        )
        assert said.split() == ["0"]

    def test_guarantees_name_every_loss(self):
        promised = ipcbus_queue.Queue.guarantees
        assert "room" in promised.sender_dies
        assert not ipcbus_queue.Queue.capabilities.survives_kill
