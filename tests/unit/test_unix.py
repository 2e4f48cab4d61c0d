"""What is special to unix: large messages, descriptors that run out, room that heals, and what strangers write."""

import errno
import importlib.util
import multiprocessing
import os
import socket
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import ipcbus
from ipcbus.errors import ChannelBroken, ChannelBusy, ChannelClosed, ChannelEmpty, ChannelFull, EndOfChannel
from ipcbus.plumbing.claim import holder
from ipcbus.plumbing.state import SharedState
from ipcbus_unix import Unix, _board
from ipcbus_unix._board import LARGE, STEP
from ipcbus_unix._intake import MARK, Intake

from .rig import Ends, descriptors, drain, in_thread, readable

PATIENCE = 10
BIG = bytes(200_000)
SHM = pytest.param("shm:", marks=pytest.mark.skipif(not importlib.util.find_spec("ipcbus_shm"), reason="not installed"))


class Socket(Ends):
    """One that can be written to and read from as by no end."""

    def write(self, data, fds=()):
        """Write what no sender of ours would."""
        socket.send_fds(self.handle.inlet, [data], fds)

    def steal(self):
        """Take a message out as a receiver does that is killed in the same instant."""
        return self.handle.outlet.recv(1 << 20)


@pytest.fixture
def make():
    with ExitStack() as stack:
        yield lambda *args, **options: Socket(stack, Unix, *args, **options)


@contextmanager
def some_file():
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def fill_with(link, message):
    """Send until the socket has no room for more bytes; return how often that went well."""
    for sent in range(1000):
        try:
            link.send([message], 0)
        except ChannelFull as error:
            if "socket_bytes" in str(error):
                return sent
            raise
    raise AssertionError("the socket took a thousand messages")


class TestLarge:
    @pytest.mark.parametrize("receivers", ["one", "many"])
    def test_order_around_the_first_one(self, make, receivers):
        ends = make(receivers=receivers)
        sender, other, receiver = ends.sender(), ends.sender(), ends.receiver()
        messages = [b"1", BIG, b"2", BIG + b"x", b"3"]
        for message in messages:
            sender.send([message], 0)
        other.send([BIG + b"other"], 0)
        assert drain(receiver) == [*messages, BIG + b"other"]

    def test_successor_of_a_receiver_that_had_heard_of_them(self, make):
        ends = make()
        sender, receiver = ends.sender(), ends.receiver()
        sender.send([BIG], 0)
        assert drain(receiver) == [BIG]
        receiver.close()
        sender.send([BIG + b"2"], 0)
        assert drain(ends.receiver()) == [BIG + b"2"]

    def test_announced_before_anybody_relies_on_it(self, make, monkeypatch):
        ends = make()
        sender, other = ends.sender(), ends.sender()

        def die(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(sender, "_pass", die)
            with pytest.raises(KeyboardInterrupt):
                sender.send([BIG], 0)
        other.send([BIG + b"2"], 0)
        assert drain(ends.receiver()) == [BIG + b"2"]

    @pytest.mark.parametrize("way", ["recv", "_recv_slowly"])
    def test_announcement_lost_in_an_interruption(self, make, way):
        ends = make()
        sender, receiver = ends.sender(), ends.receiver()
        real = receiver._into

        def interrupted(*args):
            real(*args)
            raise KeyboardInterrupt

        receiver._into = receiver._intake._into = interrupted
        sender.send([BIG], 0)
        with pytest.raises(KeyboardInterrupt):
            getattr(receiver, way)(0)
        assert drain(receiver) == [BIG]

    def test_no_descriptor_for_each_that_is_kept(self, make):
        ends = make(kept_bytes=0)
        sender, receiver = ends.sender(), ends.receiver()
        sender.send([BIG], 0)
        kept = [receiver.recv(0)]
        before = descriptors()
        for _ in range(5):
            sender.send([BIG], 0)
            kept.append(receiver.recv(0))
        assert descriptors() == before

    def test_memory_that_the_kernel_lacks_for_a_datagram(self, make, monkeypatch):
        ends = make()
        sender = ends.sender()
        for code in (errno.ENOBUFS, errno.EMSGSIZE):

            def refuse(*_, code=code):
                raise OSError(code, os.strerror(code))

            monkeypatch.setattr(sender, "_put", refuse)
            sender.send([b"%d" % code], 0)
        assert drain(ends.receiver()) == [b"%d" % errno.ENOBUFS, b"%d" % errno.EMSGSIZE]

    def test_announced_to_the_receiver_before_while_the_next_one_opens(self, make, monkeypatch):
        ends = make()
        sender, first = ends.sender(), ends.receiver()
        attach = SharedState.attach

        def attach_later(state):
            sender.send([BIG], 0)
            assert first.recv(0)
            sender.send([BIG], 0)
            first.close()
            return attach(state)

        monkeypatch.setattr(SharedState, "attach", attach_later)
        second = ends.receiver()
        assert drain(second) == [BIG]


class TestDescriptors:
    @pytest.mark.parametrize("receivers", ["one", "many"])
    def test_receiver_without_any_loses_nothing(self, make, receivers, no_descriptors):
        ends = make(receivers=receivers)
        sender, receiver = ends.sender(), ends.receiver()
        for message in (b"1", BIG, b"2"):
            sender.send([message], 0)
        got = [receiver.recv(0)[0]] if receivers == "one" else []
        with no_descriptors(), pytest.raises(ChannelBroken, match="nothing is lost"):
            receiver.recv(0)
        assert got + drain(receiver) == [b"1", BIG, b"2"]

    def test_sender_without_any_sends_nothing(self, make, no_descriptors):
        ends = make(capacity=1)
        sender, receiver = ends.sender(), ends.receiver()
        for _ in range(3):
            with no_descriptors(), pytest.raises(ChannelBroken, match="nothing was sent"):
                sender.send([BIG], 0)
        sender.send([b"small"], 0)
        assert drain(receiver) == [b"small"]

    def test_sender_without_any_cannot_wait(self, make, no_descriptors):
        ends = make(capacity=1)
        sender, receiver = ends.sender(), ends.receiver()
        sender.send([b"1"], 0)
        for _ in range(3):
            with no_descriptors(), pytest.raises(ChannelBroken, match=r"room cannot be waited for.*nothing was sent"):
                sender.send([b"2"], 0.01)
        assert drain(receiver) == [b"1"]
        sender.send([b"2"], 0)
        assert drain(receiver) == [b"2"]

    def test_too_many_on_their_way(self, make, monkeypatch):
        ends = make(capacity=1, kept_bytes=0)
        sender, receiver = ends.sender(), ends.receiver()

        def refuse(*_):
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))

        with monkeypatch.context() as patch:
            patch.setattr(socket, "send_fds", refuse)
            before = descriptors()
            with pytest.raises(ChannelBroken, match=r"on their way.*nothing was sent"):
                sender.send([BIG], 0)
            assert descriptors() == before
        sender.send([BIG], 0)
        assert drain(receiver) == [BIG]

    def test_one_that_was_lost_on_its_way(self, make, monkeypatch, no_descriptors):
        ends = make(receivers="many", capacity=2)
        sender, receiver = ends.sender(), ends.receiver()
        sender.send([BIG], 0)
        sender.send([b"next"], 0)
        monkeypatch.setattr(Intake, "_make_sure", lambda _: None)  # another thread was faster
        with no_descriptors(), pytest.raises(ChannelBroken, match="it is lost"):
            receiver.recv(0)
        assert drain(receiver) == [b"next"]
        sender.send([b"1"], 0)
        sender.send([b"2"], 0)
        assert drain(receiver) == [b"1", b"2"]

    def test_a_child_forked_while_one_is_closed_leaves_its_number_alone(self, make, monkeypatch):
        ends = make()
        sender, receiver = ends.both()
        sender.send([BIG], 0)
        close, closed = os.close, []

        def meanwhile(fd):
            message = "ipcbus-message" in str(Path(f"/proc/self/fd/{fd}").readlink())
            close(fd)
            if message and not closed:
                with Path(os.devnull).open() as another:
                    closed.append((fd, another.fileno()))
                    receiver.abandon()  # as in a child that another thread forks in this instant
                    os.fstat(another.fileno())

        with monkeypatch.context() as patch:
            patch.setattr(os, "close", meanwhile)
            assert receiver.recv(0) == (BIG,)
        ((number, same),) = closed
        assert number == same

    @pytest.mark.parametrize("url", ["unix:", SHM])
    def test_receiver_that_is_coming_is_not_taken_for_the_one_before(self, monkeypatch, url):
        with ipcbus.open(url, capacity=1) as channel:
            channel.send("first")
            before = multiprocessing.get_context("fork").Process(target=channel.recv, args=(PATIENCE,))
            before.start()
            before.join(PATIENCE)
            channel.send("second")
            write = os.pwrite

            def meanwhile(*args):
                monkeypatch.undo()
                with pytest.raises(ChannelFull):
                    channel.send("third", timeout=0.01)
                return write(*args)

            monkeypatch.setattr(os, "pwrite", meanwhile)
            assert channel.recv(PATIENCE) == "second"
            assert os.pwrite is write

    def test_receiver_that_let_go_while_its_death_is_looked_for(self, make, monkeypatch):
        state = make().handle.state
        before, _ = state.attach()
        after = []

        def meanwhile(fd):
            monkeypatch.undo()
            before.close()
            found = holder(fd)
            after.append(state.attach()[0])
            return found

        monkeypatch.setattr("ipcbus.plumbing.state.holder", meanwhile)
        assert state.died() is None
        after.pop().close()

    def test_failed_opening_claims_nothing(self, make, no_descriptors):
        ends = make(capacity=1)
        sender = ends.sender()
        sender.send([b"1"], 0)
        with no_descriptors():
            with pytest.raises(ChannelBroken, match="ulimit"):
                ends.handle.open_receiver()
            with pytest.raises(ChannelBroken, match="ulimit"):
                ends.handle.open_sender()
        with pytest.raises(ChannelFull):
            sender.send([b"2"], 0.01)
        assert drain(ends.receiver()) == [b"1"]


class TestStrangers:
    @pytest.mark.parametrize("receivers", ["one", "many"])
    @pytest.mark.parametrize(
        "data",
        [b"x", b"1234567", bytes(150_000), MARK.pack(LARGE, 5), MARK.pack(LARGE | STEP, 1 << 60), bytes(8) + b"\xff" * 200_000],
    )
    def test_what_they_write_is_dropped(self, make, receivers, data):
        ends = make(receivers=receivers)
        sender, receiver = ends.sender(), ends.receiver()
        ends.write(data)
        sender.send([b"next"], 0)
        with pytest.raises(ChannelBroken):
            receiver.recv(0)
        assert drain(receiver) == [b"next"]

    @pytest.mark.parametrize("count", [1, 2, 20])
    @pytest.mark.parametrize("data", [b"x", MARK.pack(LARGE, 3), MARK.pack(LARGE, 0), bytes(100)])
    def test_descriptors_they_send_are_closed(self, make, data, count):
        ends = make(receivers="many")
        sender, receiver = ends.sender(), ends.receiver()
        with some_file() as fd:
            ends.write(data, [fd] * count)
        sender.send([b"next"], 0)
        before = descriptors()
        with pytest.raises(ChannelBroken):
            receiver.recv(0)
        assert drain(receiver) == [b"next"]
        assert descriptors() == before

    def test_quick_way_throws_descriptors_away(self, make):
        ends = make()
        receiver = ends.receiver()
        with some_file() as fd:
            ends.write(bytes(8) + b"message", [fd])
        before = descriptors()
        assert drain(receiver) == [b"message"]
        assert descriptors() == before


class TestRoom:
    @pytest.mark.parametrize("capacity", [1, 2, 8, 100])
    def test_all_of_it_is_back_after_receivers_were_killed(self, make, capacity):
        ends = make(capacity=capacity, receivers="many")
        sender = ends.sender()
        for _ in range(3):
            for n in range(capacity):
                sender.send([b"%d" % n], 0)
            with pytest.raises(ChannelFull):
                sender.send([b"over"], 0)
            for _ in range(capacity):
                ends.steal()
            assert sender.ready()
        assert sender.depth() == 0

    def test_some_of_it_is_back_with_the_next_message_taken(self, make):
        ends = make(capacity=4, receivers="many")
        sender, receiver = ends.sender(), ends.receiver()
        for n in range(4):
            sender.send([b"%d" % n], 0)
        ends.steal()
        assert receiver.recv(0) == (b"1",)
        assert sender.depth() == 2

    def test_a_receiver_that_was_held_up_takes_no_room_away_that_others_have_made(self, make):
        ends = make(capacity=1, receivers="many")
        tx, slow, quick, other = ends.sender(), ends.receiver(), ends.receiver(), ends.sender()

        class HeldUp:
            """The board of one that has taken a message, and not written that down yet."""

            def __getattr__(self, name):
                if name == "taken":
                    slow._intake._board = ends.handle.board
                    for message in (b"2", b"3"):
                        tx.send([message], 0)
                        assert drain(quick) == [message]
                return getattr(ends.handle.board, name)

        tx.send([b"1"], 0)
        slow._intake._board = HeldUp()
        assert bytes(slow.recv(0)[0]) == b"1"
        other.send([b"which is there for long"], 0)  # else the empty socket would say that all is taken
        tx.send([b"4"], 0)

    def test_a_sender_that_sleeps_wakes_though_the_receiver_was_killed(self, make):
        ends = make(capacity=1, receivers="many")
        sender = ends.sender()
        sender.send([b"1"], 0)
        result = in_thread(sender.send, [b"2"], PATIENCE)
        threading.Event().wait(0.05)  # so that the send is likely to sleep; it must be woken either way
        ends.steal()
        assert result() is None

    def test_descriptor_shows_it_though_the_receiver_was_killed(self, make):
        ends = make(capacity=1, receivers="many")
        sender = ends.sender()
        sender.send([b"1"], 0)
        sender.fileno()
        assert not sender.ready()
        assert not readable(sender, 0.02)
        ends.steal()
        assert readable(sender, PATIENCE)
        assert sender.ready()

    def test_descriptor_shows_it_after_a_send_that_found_none(self, make):
        ends = make(capacity=16)
        sender, receiver = ends.sender(), ends.receiver()
        sender.fileno()
        for _ in range(16):
            sender.send([b"x"], 0)
        with pytest.raises(ChannelFull):
            sender.send([b"x"], 0)
        assert not readable(sender, 0.02)
        assert len(drain(receiver)) == 16
        assert readable(sender, PATIENCE)

    def test_bytes_are_a_bound_too(self, make):
        ends = make(capacity=1000, socket_bytes=1 << 16, large=1 << 14)
        sender, receiver = ends.sender(), ends.receiver()
        sender.fileno()
        sent = fill_with(sender, bytes(4000))
        assert 1 < sent < 100
        assert not sender.ready()
        assert not readable(sender, 0.02)
        assert len(drain(receiver)) == sent
        assert readable(sender, PATIENCE)
        assert sender.ready()
        assert sender.depth() == 0, "a send that failed used up room"

    def test_room_for_bytes_that_lacked_once_is_forgotten(self, make):
        ends = make(capacity=1000, socket_bytes=1 << 16, large=1 << 14)
        sender, receiver = ends.sender(), ends.receiver()
        sent = fill_with(sender, bytes(4000))
        drain(receiver)
        for _ in range(sent // 2 + 1):
            sender.send([bytes(4000)], 0)
        assert sender.ready()

    def test_sends_that_found_no_room_for_bytes_use_up_none(self, make):
        ends = make(capacity=20, socket_bytes=1 << 16)
        sender, receiver = ends.sender(), ends.receiver()
        for _ in range(100):
            fill_with(sender, bytes(8000))
        drain(receiver)
        for _ in range(20):
            sender.send([b"x"], 0)
        with pytest.raises(ChannelFull, match="20 messages"):
            sender.send([b"x"], 0)

    def test_every_sender_has_its_own(self, make):
        ends = make(capacity=2)
        senders = [ends.sender() for _ in range(3)]
        for sender in senders:
            sender.send([b"1"], 0)
            sender.send([b"2"], 0)
            with pytest.raises(ChannelFull):
                sender.send([b"3"], 0)
        receiver = ends.receiver()
        assert len(drain(receiver)) == 6
        assert [sender.depth() for sender in senders] == [0, 0, 0]

    def test_successor_in_a_slot_is_not_confused_by_what_waits_of_the_one_before(self, make):
        ends = make(capacity=2)
        first, receiver = ends.sender(), ends.receiver()
        first.send([b"1"], 0)
        first.send([b"2"], 0)
        first.close()
        second = ends.sender()
        second.send([b"3"], 0)
        second.send([b"4"], 0)
        for n in (1, 2):
            assert receiver.recv(0) == (b"%d" % n,)
            with pytest.raises(ChannelFull):
                second.send([b"over"], 0)
        assert drain(receiver) == [b"3", b"4"]

    def test_number_of_senders_is_bounded(self, make, monkeypatch):
        monkeypatch.setattr(_board, "SLOTS", 2)
        ends = make()
        first, _ = ends.sender(), ends.sender()
        with pytest.raises(ChannelBroken, match="2 processes"):
            ends.handle.open_sender()
        first.close()
        ends.sender().send([b"x"], 0)

    def test_numbers_are_reserved_again_when_they_run_out(self, make, monkeypatch):
        monkeypatch.setattr(_board, "_BLOCK", 3 * STEP)
        ends = make(capacity=100)
        sender = ends.sender()
        for n in range(20):
            sender.send([b"%d" % n], 0)
        assert drain(ends.receiver()) == [b"%d" % n for n in range(20)]

    def test_oldest_is_dropped_whatever_its_size(self, make):
        ends = make(capacity=2, drops_old=True, kept_bytes=0)
        sender, receiver = ends.sender(), ends.receiver()
        before = descriptors()
        for n in range(6):
            while True:
                try:
                    sender.send([b"%d" % n if n % 2 else BIG + b"%d" % n], 0)
                    break
                except ChannelFull:
                    assert sender.discard_oldest()
        assert drain(receiver) == [BIG + b"4", b"5"]
        assert descriptors() == before
        assert not sender.discard_oldest()


class TestEnd:
    def test_every_receiver_sees_it(self, make):
        ends = make(receivers="many")
        sender, receivers = ends.sender(), [ends.receiver() for _ in range(3)]
        waiting = [in_thread(receiver.recv, PATIENCE) for receiver in receivers]
        sender.shutdown()
        assert [type(result()) for result in waiting] == [EndOfChannel] * 3
        for receiver in receivers:
            assert receiver.ready()
            with pytest.raises(EndOfChannel):
                receiver.recv(None)

    def test_message_between_the_two_looks_of_the_kernel(self, make):
        ends = make()
        receiver = ends.receiver()
        looks = iter([0])
        real = receiver._intake._into

        def look(*args):
            return next(looks, None) if not receiver._intake._ended else real(*args)

        receiver._into = receiver._intake._into = look
        ends.sender().send([b"late"], 0)
        ends.handle.shut()
        assert receiver.recv(0) == (b"late",)
        with pytest.raises(EndOfChannel):
            receiver.recv(0)

    def test_a_shutdown_that_comes_while_ready_looks(self, make, monkeypatch):
        ends = make(capacity=1)
        sender = ends.sender()
        sender.send([b"1"], 0)
        monkeypatch.setattr(_board.Board, "expect_taking", lambda *_: ends.handle.shut())
        assert sender.ready()

    def test_full_and_shut_is_shut(self, make):
        ends = make(capacity=1)
        sender = ends.sender()
        sender.send([b"1"], 0)
        ends.receiver().shutdown()
        with pytest.raises(ChannelClosed, match="shut down"):
            sender.send([b"2"], 0)
        with pytest.raises(ChannelClosed, match="shut down"):
            ends.handle.open_sender()

    def test_default_timeout_of_sockets_changes_nothing(self, make):
        socket.setdefaulttimeout(5)
        try:
            ends = make(capacity=1)
            sender, receiver = ends.sender(), ends.receiver()
            with pytest.raises(ChannelEmpty):
                receiver.recv(0)
            sender.send([b"1"], 0)
            assert drain(receiver) == [b"1"]
        finally:
            socket.setdefaulttimeout(None)


def test_forked_child_leaves_what_its_parent_waits_for(make):
    sender = make().sender()
    waits = Path(f"/proc/self/fdinfo/{sender.fileno()}")
    sender._watch._open(os.getppid())
    before = waits.read_text()
    assert before.count("tfd") == 4
    if not (pid := os.fork()):
        sender.abandon()
        os._exit(0)
    os.waitpid(pid, 0)
    assert waits.read_text() == before


def test_closed_ends_keep_no_descriptor():
    before = descriptors()
    channel = ipcbus.open("unix:", capacity=1)
    for message in (1, BIG):
        channel.send(message, timeout=0)
        ipcbus.wait([channel, channel.sender], timeout=0)
        channel.recv(timeout=PATIENCE)
    channel.close()
    assert descriptors() == before


def test_one_receiver(make):
    ends = make()
    ends.receiver()
    with pytest.raises(ChannelBusy, match=str(os.getpid())):
        ends.handle.open_receiver()


def test_auto_picks_it_where_shm_is_not_installed(monkeypatch):
    if importlib.util.find_spec("ipcbus_shm"):
        monkeypatch.setattr(ipcbus.transports.get("shm"), "preference", 0)
    with ipcbus.open("auto:") as channel:
        assert channel.url == "unix:"
    with ipcbus.open("auto:", receivers="many") as channel:
        assert channel.url == "unix:"


def test_recv_many_says_later_what_was_wrong_behind_what_it_returned():
    with ipcbus.open("unix:", capacity=100) as channel:
        channel.send_many([b"first", b"second"])
        channel._end.handle.inlet.send(bytes(3))  # as any process that has the channel can
        channel.send(b"third")
        assert channel.recv_many(10, PATIENCE) == [b"first", b"second"]
        with pytest.raises(ChannelBroken):
            channel.recv_many(10, PATIENCE)
        assert channel.recv_many(10, PATIENCE) == [b"third"]
