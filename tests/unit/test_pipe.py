"""What is special to pipe: lanes and their order, the door, credits, and what is left of them when something fails."""

import asyncio
import os
import resource
import struct
import threading
import time
from collections import deque
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ipcbus
from ipcbus.errors import ChannelBroken, ChannelClosed, ChannelEmpty, ChannelFull, DecodeError, EndOfChannel, PeerDied
from ipcbus.plumbing.fds import close_all
from ipcbus.plumbing.watch import Watch
from ipcbus_pipe import Pipe, PipeOptions, _lane, _sender, _stream

from .rig import Ends, descriptors, drain, readable

PATIENCE = 10
LARGE = bytes(200_000)


@pytest.fixture
def make():
    with ExitStack() as stack:
        yield lambda *args, **options: Ends(stack, Pipe, *args, **options)


@pytest.fixture
def another_process(monkeypatch):
    """Let the senders opened from now on be those of another process."""
    return lambda: monkeypatch.setattr(_lane, "_identity", (os.getpid(), os.urandom(8)))


@pytest.fixture
def lose_lanes(monkeypatch):
    """Have a receiver close as one that can hand nothing on."""

    def close(receiver):
        monkeypatch.setattr(receiver, "_hand_over", lambda: None)
        receiver.close()

    return close


def fill(link, message):
    """Send until there is no room; return how often."""
    sent = 0
    try:
        while True:
            link.send([message], 0)
            sent += 1
    except ChannelFull:
        return sent


def wakeups(link, call):
    """Return how often a link slept while a call ran: a spin sleeps thousands of times."""
    naps, epoll = [], link._epoll

    class Counting:
        closed = property(lambda _: epoll.closed)

        def poll(self, *args):
            naps.append(args)
            return epoll.poll(*args)

        def __getattr__(self, name):
            return getattr(epoll, name)

    link._epoll = Counting()
    try:
        call()
    finally:
        link._epoll = epoll
    return len(naps)


class TestHandingOver:
    def test_new_lane_of_a_sender_waits_for_the_one_handed_on(self, make):
        ends = make()
        sender, receiver = ends.sender(), ends.receiver()
        sender.send([b"1"], 0)
        sender.send([b"2"], 0)
        assert receiver.recv(0) == (b"1",)
        sender.close()
        ends.sender().send([b"3"], 0)
        receiver.close()
        assert drain(ends.receiver()) == [b"2", b"3"]

    def test_large_message_left_before_its_lane_was_handed_on(self, make):
        ends = make()
        sender, receiver = ends.sender(), ends.receiver()
        sender.send([b"1"], 0)
        assert receiver.recv(0) == (b"1",)
        sender.send([LARGE], 0)
        receiver.close()
        assert drain(ends.receiver()) == [LARGE]

    def test_hundreds_of_lanes(self, make, another_process):
        ends = make()
        receiver = ends.receiver()
        for number in range(400):
            another_process()
            ends.sender().send([b"%d" % number], 0)
            if number % 200 == 0:
                assert receiver.recv(0)
        receiver.close()
        assert len(drain(ends.receiver())) == 398

    def test_beside_a_door_that_is_full(self, make):
        ends = make(5000, large=4096)
        sender, receiver = ends.sender(), ends.receiver()
        sender.send([b"1"], 0)
        assert receiver.recv(0) == (b"1",)
        accepted = fill(sender, bytes(8000))
        assert accepted > 100
        receiver.close()
        assert drain(ends.receiver()) == [bytes(8000)] * accepted
        sender.send([b"2"], 0)

    def test_more_than_senders_can_leave_in_the_door(self, make):
        ends = make(5000, large=4096)
        sender, receiver = ends.sender(), ends.receiver()
        messages = [b"%04d" % number * 2000 for number in range(5000)]
        sent = 0
        for _ in range(2):
            try:
                while True:
                    sender.send([messages[sent]], 0)
                    sent += 1
            except ChannelFull:
                receiver._open_door()
        receiver.close()
        ends.receiver().close()  # which has not looked what there is
        assert drain(ends.receiver()) == messages[:sent]

    def test_to_a_successor_without_descriptors_for_all_of_it(self, make, no_descriptors):
        ends = make(200, large=4096)
        sender, receiver = ends.sender(), ends.receiver()
        messages = [b"%04d" % number * 2000 for number in range(100)]
        for message in messages:
            sender.send([message], 0)
        receiver._open_door()
        receiver.close()
        successor = ends.receiver()
        with no_descriptors(), pytest.raises(ChannelBroken, match="nothing is lost"):
            successor.recv(0)
        assert drain(successor) == messages

    def test_closing_beside_a_stream_without_sense(self, make):
        ends = make()
        sender, receiver = ends.sender(), ends.receiver()
        sender.send([b"1"], 0)
        assert receiver.recv(0) == (b"1",)
        os.write(sender._pipe.fd, struct.pack("<I", 3 << 30))
        receiver._gather(receiver._epoll.poll(0))
        receiver.close()
        assert ends.handle.state.receiver() is None

    def test_what_an_interrupted_close_and_the_next_hand_on_is_kept_once(self, make, monkeypatch):
        ends = make(large=4096, kept_bytes=0)
        before = descriptors()
        sender, receiver = ends.sender(), ends.receiver()
        messages = [b"small", b"large" * 2000]
        for message in messages:
            sender.send([message], 0)
        receiver._open_door()
        hand_over = receiver._hand_over

        def interrupted():
            hand_over()
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(receiver, "_hand_over", interrupted)
            with pytest.raises(KeyboardInterrupt):
                receiver.close()
        receiver.close()
        successor = ends.receiver()
        assert drain(successor) == messages
        sender.close()
        successor.close()
        assert descriptors() == before

    def test_stream_without_sense_ends_alone(self, make, another_process):
        ends = make()
        bad, receiver = ends.sender(), ends.receiver()
        bad.send([b"1"], 0)
        assert receiver.recv(0) == (b"1",)
        os.write(bad._pipe.fd, struct.pack("<I", 3 << 30))
        with pytest.raises(ChannelBroken):
            receiver.recv(0)
        another_process()
        ends.sender().send([b"2"], 0)
        assert receiver.recv(0) == (b"2",)

    def test_order_over_handles_of_one_process(self, make):
        ends = make()
        receiver = ends.receiver()
        for handle in (
            ends.handle,
            ends.handle.__class__(ends.handle._spec, PipeOptions(), ends.handle.state, ends.handle.door),
        ):
            link = handle.open_sender()
            link.send([b"x"], 0)
            link.close()
        receiver._open_door()
        assert len(receiver._senders) == 1  # so that what is in the second lane waits for the end of the first


class TestDoor:
    def test_receiver_without_descriptors_loses_no_lane(self, make, no_descriptors):
        ends = make()
        sender, receiver = ends.sender(), ends.receiver()
        sender.send([b"1"], 0)
        with no_descriptors(), pytest.raises(ChannelBroken, match="nothing is lost"):
            receiver.recv(0)
        assert receiver.recv(0) == (b"1",)

    def test_failed_opening_claims_nothing(self, make, no_descriptors):
        ends = make()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(descriptors())
        for spare in range(2, 5):
            with no_descriptors():
                resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2 + spare, hard))
                try:
                    ends.receiver().close()
                except ChannelBroken:
                    pass
            assert ends.handle.state.receiver() is None
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)

    def test_waiting_for_a_full_door_leaves_the_event_loop_free(self, make, another_process):
        async def main():
            with ipcbus.open("pipe:") as channel, ExitStack() as stack:
                try:
                    while True:
                        another_process()
                        link = channel._end.handle.open_sender()
                        stack.callback(link.close)
                        link.send([b"x"], 0)
                except ChannelFull:
                    pass
                task = asyncio.create_task(channel.aio.send(b"last"))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                link = channel._end.tx
                assert not link.ready()
                assert not readable(link, 0)
                while not task.done():
                    channel._end.rx or channel._end.open_receiver()
                    try:
                        channel._end.rx.recv(0)
                    except ChannelEmpty:
                        pass
                    await asyncio.sleep(0)
                await task

        asyncio.run(asyncio.wait_for(main(), PATIENCE))

    def test_waiting_for_a_full_door_ends_with_the_lane(self, make, monkeypatch, lose_lanes):
        ends = make(5000, large=4096)
        sender, receiver = ends.sender(), ends.receiver()
        sender.send([b"1"], 0)
        assert receiver.recv(0) == (b"1",)
        fill(sender, bytes(8000))
        check = Watch.check

        def close_and_check(watch):  # when it is certain that it has to wait
            lose_lanes(receiver)
            check(watch)

        monkeypatch.setattr(Watch, "check", close_and_check)

        def wait():
            with pytest.raises(PeerDied, match="let this process's pipe go"):
                sender.send([bytes(8000)], PATIENCE)

        assert wakeups(sender, wait) < 5
        with pytest.raises(ChannelFull):
            sender.send([bytes(8000)], 0.01)  # it has no lane any more, and finds no room for a new one

    def test_waiting_for_a_door_that_others_fill_again(self, make, monkeypatch):
        ends = make(5000, large=4096)
        sender, other, receiver = ends.sender(), ends.sender(), ends.receiver()
        sender.send([b"1"], 0)
        fill(other, bytes(8000))
        sleep = sender._sleep

        def emptied_and_filled(*arguments):
            sleep(*arguments)
            receiver._open_door()
            fill(other, bytes(8000))
            return True

        monkeypatch.setattr(sender, "_sleep", emptied_and_filled)
        with pytest.raises(ChannelFull):
            sender.send([bytes(8000)], 0.05)

    def test_no_descriptor_for_each_large_message_that_is_kept(self, make):
        ends = make(kept_bytes=0)
        sender, receiver = ends.sender(), ends.receiver()
        sender.send([LARGE], 0)
        kept = [receiver.recv(0)[0]]
        before = len(descriptors())
        for _ in range(20):
            sender.send([LARGE], 0)
            kept.append(receiver.recv(0)[0])
        assert len(descriptors()) == before
        kept[0][0] = 1
        assert bytes(kept[1]) == LARGE


class TestWaiting:
    def test_for_bytes_with_credits_left_to_take(self, make):
        ends = make(1000, pipe_bytes=65536)
        sender, receiver = ends.sender(), ends.receiver()
        sender.fileno()
        for _ in range(10):
            sender.send([bytes(4000)], 0)
        assert len(drain(receiver)) == 10
        fill(sender, bytes(4000))

        def wait():
            with pytest.raises(ChannelFull):
                sender.send([bytes(4000)], 0.1)

        assert wakeups(sender, wait) < 5
        assert not sender.ready()
        assert not readable(sender, 0)

    def test_descriptor_shows_room_for_bytes_after_a_failed_send(self, make):
        ends = make(1000, pipe_bytes=65536)
        sender, receiver = ends.sender(), ends.receiver()
        sender.fileno()
        fill(sender, bytes(4000))
        assert not readable(sender, 0)
        assert receiver.recv(0)  # read whole, delivered in part: bytes are free, and no credit has come back
        assert readable(sender, PATIENCE)

    def test_for_a_message_when_others_ended(self, make, another_process):
        ends = make()
        receiver = ends.receiver()
        first = ends.sender()
        first.send([b"1"], 0)
        another_process()
        second = ends.sender()
        second.send([b"2"], 0)
        receiver.fileno()
        got = receiver.recv(0)
        first.close()
        second.close()
        assert {*got, *drain(receiver)} == {b"1", b"2"}

        def wait():
            with pytest.raises(ChannelEmpty):
                receiver.recv(0.1)

        assert wakeups(receiver, wait) < 5
        assert not readable(receiver, 0)

    @pytest.mark.parametrize("full", ["", "lane", "door"])
    def test_a_lane_that_is_lost_is_no_reason_to_wait(self, make, lose_lanes, full):
        ends = make(8 if full == "lane" else 5000, large=4096)
        sender, receiver = ends.sender(), ends.receiver()
        sender.send([b"1"], 0)
        assert receiver.recv(0) == (b"1",)
        if full:
            fill(sender, b"2" if full == "lane" else LARGE[:5000])
            assert not sender.ready()
        lose_lanes(receiver)
        ends.receiver()
        assert readable(sender, 0)
        assert sender.ready()
        with pytest.raises(PeerDied):
            sender.send([b"3"], 0)

    def test_messages_larger_than_the_pipe_need_no_waiting(self, make):
        ends = make(pipe_bytes=8192)
        sender, receiver = ends.sender(), ends.receiver()
        sender.send([bytes(100_000)], 0)
        assert drain(receiver) == [bytes(100_000)]

    @pytest.mark.parametrize("take_note", ["ready", "depth", "send"])
    def test_descriptor_shows_room_that_another_thread_has_taken_note_of(self, make, take_note):
        ends = make(4)
        sender, receiver = ends.sender(), ends.receiver()
        fill(sender, b"1")
        assert readable(sender, 0)  # the first time it is given out: somebody is to look
        assert not sender.ready()
        assert not readable(sender, 0)
        assert len(drain(receiver)) == 4
        if take_note == "send":
            sender.send([b"2"], 0)
        else:
            getattr(sender, take_note)()
        assert readable(sender, 0)
        assert sender.ready()
        fill(sender, b"3")
        assert not sender.ready()
        assert not readable(sender, 0)

    @pytest.mark.parametrize("side", ["sender", "receiver"])
    def test_a_shutdown_that_comes_while_ready_looks(self, make, side):
        ends = make(1)
        link, other = (ends.sender(), ends.receiver()) if side == "sender" else (ends.receiver(), ends.sender())
        if side == "sender":
            link.send([b"1"], 0)
        epoll = link._epoll

        class Late:
            closed = property(lambda _: epoll.closed)

            def poll(self, *args):
                other.shutdown()
                return epoll.poll(*args)

            def __getattr__(self, name):
                return getattr(epoll, name)

        link._epoll = Late()
        assert link.ready()

    def test_threads_that_wait_for_the_same_room(self):
        with ipcbus.open("pipe:", capacity=1) as channel:
            channel.send(1)
            assert not channel.sender.ready()
            woken = []
            waiting = [
                threading.Thread(target=lambda: woken.extend(ipcbus.wait([channel.sender], timeout=PATIENCE))) for _ in range(3)
            ]
            for thread in waiting:
                thread.start()
            threading.Event().wait(0.05)  # so that they are likely to wait; they must be woken either way
            assert channel.recv(timeout=PATIENCE) == 1
            for thread in waiting:
                thread.join(PATIENCE)
            assert len(woken) == 3

    @pytest.mark.parametrize("size", [10, 50_000])
    def test_a_send_in_the_middle_of_another_that_waits_for_bytes(self, make, monkeypatch, size):
        """As of a signal handler, which interrupts the thread that waits."""
        ends = make(1000, pipe_bytes=131072)
        sender, receiver = ends.sender(), ends.receiver()
        before = fill(sender, bytes(3000))
        wait, got = sender._wait, []

        def interrupted(*args, **options):
            monkeypatch.setattr(sender, "_wait", wait)
            with pytest.raises(ChannelFull):
                sender.send([b"x" * size], 0)  # which may have begun
            got.extend(drain(receiver))
            sender.send([b"2" * size], PATIENCE)
            return wait(*args, **options)

        monkeypatch.setattr(sender, "_wait", interrupted)
        sender.send([b"1" * 50_000], PATIENCE)
        sender.send([b"3"], 0)
        assert got + drain(receiver) == [bytes(3000)] * before + [b"1" * 50_000, b"2" * size, b"3"]

    @pytest.mark.parametrize("first", [True, False])
    def test_a_send_in_the_middle_of_another_that_opens_its_lane(self, make, monkeypatch, first):
        """As of a signal handler; both have opened one, and the receiver reads one after the other."""
        ends = make()
        sender, receiver = ends.sender(), ends.receiver()
        leave = sender._leave

        def interrupted(*args):
            monkeypatch.setattr(sender, "_leave", leave)
            if first:
                leave(*args)
            sender.send([b"1"], 0)
            if not first:
                leave(*args)

        monkeypatch.setattr(sender, "_leave", interrupted)
        sender.send([b"2"], 0)
        sender.send([b"3"], 0)
        assert drain(receiver) == [b"1", b"2", b"3"]
        assert fill(sender, b"4") == 8
        assert not sender.ready()
        assert drain(receiver) == [b"4"] * 8
        assert sender.ready()

    def test_a_send_that_gives_up_in_the_middle_of_a_small_one_that_waits_for_bytes(self, make, monkeypatch):
        ends = make(1000, pipe_bytes=131072)
        sender, receiver = ends.sender(), ends.receiver()
        sender.send([b"0"], 0)
        assert drain(receiver) == [b"0"]
        before = fill(sender, bytes(3000))
        (lane,), wait, got = receiver._lanes, sender._wait, []

        def interrupted(*args, **options):
            monkeypatch.setattr(sender, "_wait", wait)
            assert len(os.read(lane, 10 * (3000 + _stream.HEAD))) == 10 * (3000 + _stream.HEAD)
            with pytest.raises(ChannelFull):
                sender.send([b"x" * 50_000], 0)
            assert sender._pipe.begun
            got.extend(drain(receiver))
            return wait(*args, **options)

        monkeypatch.setattr(sender, "_wait", interrupted)
        sender.send([b"1" * 4000], PATIENCE)
        sender.send([b"2"], 0)
        assert got + drain(receiver) == [bytes(3000)] * (before - 10) + [b"1" * 4000, b"2"]

    def test_a_message_that_a_send_in_its_middle_had_to_write_is_sent(self, make, monkeypatch):
        ends = make(1000, pipe_bytes=131072)
        sender, receiver = ends.sender(), ends.receiver()
        fill(sender, bytes(3000))
        wait = sender._wait

        def interrupted(*args, **options):
            monkeypatch.setattr(sender, "_wait", wait)
            drain(receiver)
            sender.send([b"2"], PATIENCE)
            raise ChannelFull("its time is over")

        monkeypatch.setattr(sender, "_wait", interrupted)
        sender.send([b"1" * 50_000], PATIENCE)
        assert drain(receiver) == [b"1" * 50_000, b"2"]

    def test_several_messages_are_not_written_to_a_lane_that_another_thread_lets_go_of(self, make, monkeypatch):
        ends = make()
        sender = ends.sender()
        sender.send([b"1"], 0)
        lock, pipe, others = sender._lock, sender._pipe, []

        class Late:
            release = lock.release

            def acquire(self, *args):
                if sender._pipe is pipe:
                    sender._drop(pipe)
                    others.extend(os.memfd_create("another file with its number") for _ in range(8))
                return lock.acquire(*args)

        with monkeypatch.context() as patch:
            patch.setattr(sender, "_lock", Late())
            sender.send_many([[b"2"], [b"3"]], 0)
        try:
            assert not any(os.fstat(fd).st_size for fd in others)
            assert drain(ends.receiver())[:2] == [b"1", b"2"]
        finally:
            close_all(others)

    def test_stats_and_wait_beside_a_blocked_thread(self):
        with ipcbus.open("pipe:", capacity=1) as channel:
            channel.send(1)
            blocked = threading.Thread(target=channel.send, args=(2,))
            blocked.start()
            assert channel.sender.stats().depth == 1
            assert [channel.recv(PATIENCE), channel.recv(PATIENCE)] == [1, 2]
            blocked.join(PATIENCE)
            blocked = threading.Thread(target=channel.recv)
            blocked.start()
            start = time.monotonic()
            ipcbus.wait([channel], timeout=0.1)
            assert time.monotonic() - start < PATIENCE / 2
            channel.send(3)
            blocked.join(PATIENCE)
            assert not blocked.is_alive()

    def test_wait_ends_when_another_thread_closes(self):
        with ipcbus.open("pipe:") as channel:
            channel.ready()
            closing = threading.Timer(0.05, channel.close)
            closing.start()
            assert ipcbus.wait([channel], timeout=PATIENCE) == [channel]
            closing.join()


class TestShutdown:
    def test_after_close(self):
        channel = ipcbus.open("pipe:")
        channel.send(1)
        channel.close()
        with pytest.raises(ChannelClosed):
            channel.shutdown()

    @pytest.mark.parametrize("look", [False, True])
    def test_a_send_that_overlaps_it_and_is_late(self, make, monkeypatch, look):
        ends = make()
        sender, receiver = ends.sender(), ends.receiver()
        sender.send([b"1"], 0)
        assert receiver.recv(0) == (b"1",)

        def ended():
            with pytest.raises(EndOfChannel):
                receiver.recv(0)

        def write_late(fd, data):
            receiver.shutdown()
            ended()
            return os.write(fd, data)

        monkeypatch.setattr(_sender, "_write", write_late)
        with pytest.raises(ChannelClosed):
            sender.send([b"2"], 0)
        if look:
            assert receiver.ready()
        ended()

    def test_by_a_process_that_has_no_end_open(self):
        with ipcbus.open("pipe:") as channel:
            channel._end.handle.state.shut()  # as another process does
            channel.shutdown()
            with pytest.raises(EOFError):
                channel.recv(0)


async def test_who_waits_without_descriptors_is_told_what_is_missing(no_descriptors):
    with ipcbus.open("pipe:") as channel:
        channel.fileno()
        aio = channel.aio
        with no_descriptors():
            with pytest.raises(ChannelBroken, match="ulimit"):
                ipcbus.wait([channel], 0)
            with pytest.raises(ChannelBroken, match="ulimit"):
                await aio.recv(1)


def test_recv_many_keeps_what_it_received_where_another_thread_closes_the_channel_then(monkeypatch):
    def closed(_):
        raise ChannelClosed("closed meanwhile")

    with ipcbus.open("pipe:") as channel:
        channel.send(1)
        monkeypatch.setattr(type(channel._end.open_receiver()), "ready", closed)
        assert channel.recv_many(5, 10) == [1]


def test_recv_many_refuses_what_is_no_whole_number_before_it_receives():
    with ipcbus.open("pipe:") as channel:
        channel.send(1)
        channel.send(2)
        with pytest.raises(TypeError, match="float"):
            channel.recv_many(1e3)
        assert channel.recv_many(5, PATIENCE) == [1, 2]


def test_recv_many_keeps_what_came_before_poison():
    with ipcbus.open("pipe:") as channel:
        channel.send(1)
        channel._end.tx.send([b"garbage"], 0)
        channel.send(2)
        assert channel.recv_many(5) == [1]
        with pytest.raises(DecodeError):
            channel.recv_many(5)
        assert channel.recv_many(5) == [2]


@pytest.mark.parametrize("receive", ["recv", "recv_message", "recv_many", "aio"])
def test_whatever_receives_next_says_what_recv_many_met(receive):
    calls = {
        "recv": lambda: channel.recv(PATIENCE),
        "recv_message": lambda: channel.recv_message(PATIENCE).body,
        "recv_many": lambda: channel.recv_many(1, PATIENCE)[0],
        "aio": lambda: asyncio.run(channel.aio.recv(PATIENCE)),
    }
    with ipcbus.open("pipe:") as channel:
        for message in ([1, b"garbage"], [2, 3, b"garbage"]):  # before and after there was an end to receive by
            for each in message:
                channel._end.open_sender().send([each], 0) if isinstance(each, bytes) else channel.send(each)
            assert channel.recv_many(5) == [each for each in message if not isinstance(each, bytes)]
            assert channel.ready()
            assert ipcbus.wait([channel, channel.receiver], 0) == [channel, channel.receiver]
            with pytest.raises(DecodeError):
                calls[receive]()
            assert not channel.ready()
            channel.send(4)
            assert calls[receive]() == 4
        assert channel.stats().undecodable == 2


BLOCKS = st.one_of(
    st.binary(max_size=40),
    st.binary(max_size=40).map(lambda body: _stream.record(len(body)) + body),
    st.lists(st.binary(max_size=9), max_size=3).map(lambda many: b"".join(_stream.record(len(one)) + one for one in many)),
)


@given(BLOCKS)
def test_a_lone_message_is_what_the_parser_would_have_found(block):
    message = _stream.lone(block)
    if message is not None:
        assert _stream.parse(_stream.State(deque()), block, 5, 1 << 20) == _stream.State(deque([(message,)]), b"", None, 5)


@pytest.mark.parametrize("count", [1, 2])
def test_a_message_behind_a_half_one_is_not_taken_for_a_lone_one(make, count):
    ends = make()
    sender, receiver = ends.sender(), ends.receiver()
    sender.send([b"first"], 0)
    assert receiver.recv(0) == (b"first",)
    inner = _stream.record(3) + b"abc"
    whole = _stream.record(len(inner) * count) + inner * count
    os.write(sender._pipe.fd, whole[:4])
    with pytest.raises(ChannelEmpty):
        receiver.recv(0)
    for number in range(1, count + 1):  # each of these looks like a message of its own
        os.write(sender._pipe.fd, inner)
        if number < count:
            with pytest.raises(ChannelEmpty):
                receiver.recv(0)
    assert receiver.recv(0) == (inner * count,)
    sender.send([b"last"], 0)
    assert receiver.recv(0) == (b"last",)


@given(st.lists(st.lists(st.binary(max_size=2500), max_size=3).map(tuple), max_size=12))
def test_records_that_are_written_together(frames):
    """They are the first, all that one write takes whole, and a parser finds them again."""
    records = _stream.together(frames)
    state = _stream.parse(_stream.State(deque()), b"".join(records), 0, 1 << 20)
    assert list(state.items) == [(b"".join(frame),) for frame in frames[: len(records)]]
    sizes = [_stream.HEAD + len(b"".join(frame)) for frame in frames]
    assert sum(sizes[: len(records)]) <= _stream.ATOMIC + _stream.HEAD
    assert len(records) == len(frames) or sum(sizes[: len(records) + 1]) > _stream.ATOMIC + _stream.HEAD


@pytest.mark.parametrize("lacks", ["credits", "bytes"])
def test_a_send_in_the_middle_of_one_that_waits_lets_it_know_that_the_receiver_is_gone(make, monkeypatch, lose_lanes, lacks):
    ends = make(2 if lacks == "credits" else 10_000, pipe_bytes=4096)
    sender, receiver = ends.sender(), ends.receiver()
    sender.send([b"1"], 0)
    assert receiver.recv(0) == (b"1",)
    message = bytes(1 if lacks == "credits" else 1000)
    fill(sender, message)
    epoll = sender._epoll

    class Interrupted:
        closed = property(lambda _: epoll.closed)

        def poll(self, timeout):
            sender._epoll = epoll
            lose_lanes(receiver)
            with pytest.raises(PeerDied):
                sender.send([message], PATIENCE)  # on the same thread, as a signal handler does; the wait then goes on
            return epoll.poll(timeout)

        def __getattr__(self, name):
            return getattr(epoll, name)

    sender._epoll = Interrupted()
    began = time.monotonic()
    with pytest.raises(PeerDied):
        sender.send([message], PATIENCE)
    assert time.monotonic() - began < PATIENCE / 2


@pytest.mark.parametrize("instant", ["before its file is left", "behind that"])
def test_a_large_send_in_the_middle_of_another_loses_neither(monkeypatch, instant):
    with ipcbus.open("pipe:?large=4096", capacity=8) as channel:
        channel.send(b"first")
        assert channel.recv(PATIENCE) == b"first"
        tx = channel._end.tx
        leave = tx._leave

        def leave_amid(note, deadline):
            monkeypatch.setattr(tx, "_leave", leave)
            if instant.startswith("behind"):
                leave(note, deadline)
            channel.send(b"handler" * 1000, PATIENCE)  # on the same thread, as a signal handler does
            if instant.startswith("before"):
                leave(note, deadline)

        monkeypatch.setattr(tx, "_leave", leave_amid)
        channel.send(b"interrupted" * 1000, PATIENCE)
        assert [channel.recv(PATIENCE) for _ in range(2)] == [b"handler" * 1000, b"interrupted" * 1000]


def test_a_large_send_whose_room_in_the_pipe_was_taken_in_the_middle_of_it_waits_for_other(monkeypatch):
    with ipcbus.open("pipe:?pipe_bytes=4096&large=4096", capacity=10_000) as channel:
        channel.send(b"first")
        assert channel.recv(PATIENCE) == b"first"
        tx, sent = channel._end.tx, []
        leave = tx._leave

        def leave_amid(note, deadline):
            monkeypatch.setattr(tx, "_leave", leave)
            leave(note, deadline)
            sent.append(fill(tx, b"x"))  # on the same thread, as a signal handler does

        monkeypatch.setattr(tx, "_leave", leave_amid)
        with pytest.raises(ChannelFull):
            channel.send(bytes(10_000), 0.01)
        for _ in range(sent[0]):
            channel._end.rx.recv(PATIENCE)
        channel.send(bytes(10_000), PATIENCE)
        assert channel.recv(PATIENCE) == bytes(10_000)


def test_a_second_receiver_is_told_what_has_several(make):
    ends = make()
    ends.receiver()
    with pytest.raises(ipcbus.ChannelBusy, match="such as unix:, with receivers='many'"):
        ends.receiver()


@pytest.mark.parametrize("then", ["goes on", "is interrupted"])
def test_a_large_message_that_a_signal_handler_takes_while_its_file_is_dealt_with_is_closed_once(monkeypatch, then):
    with ipcbus.open("pipe:?large=4096", capacity=8) as channel:
        channel.send(b"first")
        assert channel.recv(PATIENCE) == b"first"
        rx, got = channel._end.rx, []
        for number in range(3):
            channel.send(b"%d" % number * 5000, PATIENCE)

        def receive_amid(files):
            monkeypatch.setattr(lane, "keep_large", keep)
            keep(files)
            before = descriptors()
            got.append(channel.recv(0)[:1])  # on the same thread, as a signal handler does
            reused.extend(os.memfd_create("another's") for _ in range(len(before) - len(descriptors())))
            if then == "is interrupted":
                raise KeyboardInterrupt

        (lane,), reused = rx._names.values(), []
        keep = lane.keep_large
        monkeypatch.setattr(lane, "keep_large", receive_amid)
        with ExitStack() as interrupted:
            if then == "is interrupted":
                interrupted.enter_context(pytest.raises(KeyboardInterrupt))
            got.append(channel.recv(PATIENCE)[:1])
        while len(got) < 3:
            got.append(channel.recv(PATIENCE)[:1])
        assert sorted(got) == [b"0", b"1", b"2"]
        assert reused, "the handler's message had no descriptor"
        for fd in reused:
            os.close(fd)  # OSError if it was closed as the message's
