"""What is special to shm: the ring's corners, extents that are used again, hostile memory, and resources that run out."""

import ctypes
import gc
import mmap
import multiprocessing
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

import ipcbus
from ipcbus.errors import (
    ChannelBroken,
    ChannelBusy,
    ChannelClosed,
    ChannelEmpty,
    ChannelFull,
    ConfigError,
    EndOfChannel,
    PeerDied,
)

from .rig import Ends, descriptors, in_thread, readable, until

shm = pytest.importorskip("ipcbus_shm")

PATIENCE = 10
RING = 65536
BIG = 100_000
"""Bytes of a message that lies in an extent, with the ring that these tests use."""
HEADER, EXTENTS_AT, ENTRY, EXTENTS, RING_AT = 0, 8192, 32, 1024, 8192 + 32 * 1024
SHUT, TAIL, HEAD, TO_RECEIVERS, ARENA_LOCK = 24, 64, 128, 192, 320
EMPTY, FREE, GROWING, WRITING, QUEUED, HELD = range(6)


class Ring(Ends):
    """One whose memory can be seen."""

    def memory(self):
        """Return the shared memory itself, for looking at it and for damaging it."""
        return mmap.mmap(self.handle.segment.fds[0], 0)

    def states(self):
        with self.memory() as memory:
            table = memory[EXTENTS_AT : EXTENTS_AT + ENTRY * EXTENTS]
        return [state >> 56 for state, *_ in struct.iter_unpack("=QQQQ", table) if state >> 56 != EMPTY]


@pytest.fixture
def make():
    usual = {"max_message": 1 << 22, "ring_bytes": RING}
    with ExitStack() as stack:
        yield lambda *args, **options: Ring(stack, shm.Shm, *args, **{**usual, **options})


def in_child(call, *args):
    """Run a call in a forked child, and return what it returned; exit codes above 0 are failures."""
    here, there = multiprocessing.get_context("fork").Pipe()
    pid = os.fork()
    if not pid:
        try:
            there.send(call(*args))
        finally:
            os._exit(0)
    assert here.poll(PATIENCE)
    os.waitpid(pid, 0)
    return here.recv()


def killed(call, *args):
    """Run a call in a forked child that is killed as soon as it returns."""
    pid = os.fork()
    if not pid:
        try:
            call(*args)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


class TestRing:
    def test_records_of_all_sizes_around_the_corner(self, make):
        sender, receiver = make().both()
        sizes = random.Random(1)
        for n in range(3000):
            frames = [[bytes([n % 251]) * sizes.choice((0, 1, 7, 8, 9, 500, 4000)) for _ in range(sizes.randint(1, 4))]]
            frames += [[b"x"]] * sizes.randint(0, 2)
            for frame in frames:
                sender.send(frame, 0)
            for frame in frames:
                assert list(receiver.recv(0)) == frame

    def test_many_parts_are_joined(self, make):
        sender, receiver = make().both()
        parts = [bytes([n]) for n in range(200)]
        sender.send(parts, 0)
        assert receiver.recv(0) == (b"".join(parts),)

    def test_numbers_wrap(self, make):
        ends = make()
        with ends.memory() as memory:
            cursor = (0xFFFF_FFFD << 32) | (0xFFFF_FFF0)
            for at in (TAIL, TAIL + 8, HEAD, HEAD + 8):
                struct.pack_into("=Q", memory, at, cursor)
        sender, receiver = ends.both()
        for n in range(20):
            sender.send([bytes([n]) * 50], 0)
            assert sender.depth() == 1
            sender.send([bytes([n]) * BIG], 0)
            assert receiver.recv(0) == (bytes([n]) * 50,)
            assert bytes(receiver.recv(0)[0]) == bytes([n]) * BIG

    def test_bytes_are_a_bound_too(self, make):
        ends = make(capacity=1000)
        sender, receiver = ends.both()
        for _ in range(RING // 10_008):
            sender.send([bytes(10_000)], 0)
        with pytest.raises(ChannelFull, match="ring_bytes"):
            sender.send([bytes(10_000)], 0)
        assert not sender.ready()
        receiver.recv(0)
        assert sender.ready()
        sender.send([bytes(10_000)], 0)

    @pytest.mark.parametrize("limit", [2**64 - 1, 2**64, 10**30])
    def test_limit_beyond_all_messages(self, make, limit):
        sender, receiver = make(max_message=limit).both()
        frames = [[b"x" * 1000], [b"y" * BIG], [b"z" * 1000, b""]]
        for frame in frames:
            sender.send(frame, 0)
        assert [[bytes(part) for part in receiver.recv(0)] for _ in frames] == frames

    def test_capacity_is_the_channels(self, make):
        ends = make(capacity=3)
        one, two = ends.sender(), ends.sender()
        for link in (one, two, one):
            link.send([b"x"], 0)
        for link in (one, two):
            with pytest.raises(ChannelFull, match="3 messages"):
                link.send([b"x"], 0)
        assert ends.receiver().depth() == 3


class TestExtents:
    def test_one_is_used_again(self, make):
        ends = make()
        sender, receiver = ends.both()
        for n in range(20):
            sender.send([bytes([n]) * BIG], 0)
            assert receiver.recv(0)[0] == bytes([n]) * BIG
        assert ends.states() == [FREE]

    def test_what_is_kept_is_not_used_again(self, make):
        ends = make(capacity=200)
        sender, receiver = ends.both()
        kept = []
        for n in range(150):  # more than may be mapped at a time
            sender.send([bytes([n]) * BIG], 0)
            kept.append(receiver.recv(0)[0])
        for n, view in enumerate(kept):
            assert view == bytes([n]) * BIG
        assert ends.states().count(HELD) == 64

    def test_what_is_kept_of_many_channels_takes_few_descriptors(self, make):
        before, kept = len(descriptors()), []

        def keep(n):
            ends = make()
            sender, receiver = ends.both()
            sender.send([bytes([n]) * BIG], 0)
            kept.append(receiver.recv(0)[0])
            for thing in (sender, receiver):
                thing.close()
            ends.handle.release()
            return len(descriptors()) - before

        each = keep(0)
        assert max(keep(n) for n in range(1, 100)) <= 64 * each
        in_child(int)  # all that is kept is this process's own from here on
        assert keep(100) <= each
        for n, view in enumerate(kept):
            assert view == bytes([n]) * BIG

    def test_what_arrives_can_be_written_to_and_is_nobody_elses(self, make):
        ends = make(receivers="many")
        sender, receiver = ends.both()
        sender.send([bytes(BIG)], 0)
        (view,) = receiver.recv(0)
        view[5] = 7
        with ends.memory() as memory:
            offset = struct.unpack_from("=QQQQ", memory, EXTENTS_AT)[1]
            assert memory[offset + 5] == 0
        assert view[5] == 7

    def test_parts_are_aligned(self, make):
        sender, receiver = make().both()
        parts = [b"head", bytes(range(100)), bytes(BIG), b"end"]
        sender.send(parts, 0)
        got = receiver.recv(0)
        assert [bytes(part) for part in got] == parts
        numpy = pytest.importorskip("numpy")
        assert all(numpy.frombuffer(part, "B").ctypes.data % 64 == 0 for part in got)

    def test_memory_outlives_the_channel(self, make):
        ends = make()
        sender, receiver = ends.both()
        sender.send([b"z" * BIG], 0)
        (view,) = receiver.recv(0)
        receiver.close()
        sender.close()
        ends.handle.release()
        assert view == b"z" * BIG

    def test_a_forked_child_keeps_what_its_parent_had(self, make):
        ends = make()
        sender, receiver = ends.both()
        sender.send([b"a" * BIG], 0)
        (view,) = receiver.recv(0)
        assert ends.states() == [HELD]
        here, there = multiprocessing.get_context("fork").Pipe()
        pid = os.fork()
        if not pid:
            there.recv()
            there.send(view == b"a" * BIG)
            os._exit(0)
        try:
            assert view == b"a" * BIG
            assert ends.states() == [FREE]  # given back before the fork
            del view
            for _ in range(5):
                sender.send([b"b" * BIG], 0)
                assert receiver.recv(0)[0] == b"b" * BIG
            here.send(None)
            assert here.poll(PATIENCE)
            assert here.recv()
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def test_what_a_killed_receiver_had_is_free_again(self, make):
        ends = make(receivers="many")
        sender, receiver = ends.both()
        for n in range(4):
            sender.send([bytes([n]) * BIG], 0)
        assert receiver.recv(0)[0][0] == 0
        kept = []
        killed(lambda: kept.append(ends.handle.open_receiver().recv(0)))
        assert [receiver.recv(0)[0][0] for _ in range(2)] == [2, 3]
        assert sorted(ends.states()) == [FREE, FREE, FREE, HELD]
        sender.send([bytes(3 * BIG)], 0)  # fits in none that is free, so the dead are looked for
        receiver.recv(0)
        assert set(ends.states()) == {FREE}

    def test_who_gets_the_slot_of_a_killed_receiver_frees_what_it_had(self, make):
        ends = make(receivers="many")
        sender = ends.sender()
        for n in range(2):
            sender.send([bytes([n]) * BIG], 0)
        kept = []
        killed(lambda: kept.append(ends.handle.open_receiver().recv(0)))
        assert sorted(ends.states()) == [QUEUED, HELD]
        assert ends.receiver().recv(0)[0][0] == 1
        assert sorted(ends.states()) == [FREE, FREE]

    def test_what_a_killed_sender_had_is_free_again(self, make):
        ends = make()
        sender, receiver = ends.both()
        killed(lambda: ends.handle.open_sender().send([b"k" * BIG], 0))
        assert bytes(receiver.recv(0)[0]) == b"k" * BIG
        assert ends.states() == [FREE]
        sender.send([b"s" * BIG], 0)
        assert receiver.recv(0)[0] == b"s" * BIG

    def test_a_dropped_one_is_free_again(self, make):
        ends = make(capacity=2, drops_old=True)
        sender, receiver = ends.both()
        for n in range(2):
            sender.send([bytes([n]) * BIG], 0)
        assert sender.discard_oldest()
        assert sorted(ends.states()) == [FREE, QUEUED]
        assert receiver.recv(0)[0][0] == 1

    def test_too_much_that_waits_is_full(self, make):
        ends = make(capacity=100, max_message=1 << 30)
        sender, receiver = ends.both()
        message = bytes(60 << 20)
        for _ in range(4):
            sender.send([message], 0)
        with pytest.raises(ChannelFull, match="256 MiB may wait"):
            sender.send([message], 0)
        assert not sender.ready()
        receiver.recv(0)
        assert sender.ready()
        sender.send([message], 0)

    def test_no_extent_is_full_though_the_ring_has_room(self, make):
        ends = make(capacity=2000)
        sender = ends.sender()
        half = bytes(RING // 8 - 2)  # two of these would be in the ring, but for the table of their sizes
        for _ in range(EXTENTS):
            sender.send([half, half], 0)
        started = time.monotonic()
        with pytest.raises(ChannelFull, match="1024 messages have memory"):
            sender.send([half, half], 0.2)
        assert 0.2 <= time.monotonic() - started < 2
        assert ends.states() == [QUEUED] * EXTENTS

    def set_all(self, ends, state, size, count=EXTENTS):
        """Write the table of extents as processes that are dead by now would have left it."""
        with ends.memory() as memory:
            for n in range(count):
                struct.pack_into("=QQQ", memory, EXTENTS_AT + n * ENTRY, state, ends.arena + n * size, size)

    @pytest.mark.parametrize("kind", [WRITING, HELD])
    def test_all_are_a_dead_owners(self, make, kind):
        ends = make()
        ends.arena = RING_AT + RING
        sender, receiver = ends.both()
        self.set_all(ends, kind << 56 | 900 << 32 | 0xFFFFFFFF, 4096)
        sender.send([bytes(BIG)], PATIENCE)
        assert receiver.recv(0)[0] == bytes(BIG)

    def test_what_was_never_published_does_not_wait(self, make):
        ends = make()
        ends.arena = RING_AT + RING
        sender, receiver = ends.both()
        self.set_all(ends, QUEUED << 56 | 900 << 32, 256 << 20, 1)
        for _ in range(3):
            sender.send([bytes(BIG)], PATIENCE)
            assert receiver.recv(0)[0] == bytes(BIG)

    def test_memory_that_is_free_is_given_back_beyond_a_bound(self, make):
        ends = make(capacity=100, max_message=1 << 30)
        sender, receiver = ends.both()
        for size in (200 << 20, 100 << 20, 50 << 20):
            sender.send([bytes(size)], 0)
            receiver.recv(0)
        used = os.fstat(ends.handle.segment.fds[0]).st_blocks * 512
        assert used < 220 << 20


class TestFrames:
    """Frames are sequences, and not all of them keep what they hand out."""

    class Lazy:
        def __init__(self, *sizes):
            self.sizes = sizes

        def __len__(self):
            return len(self.sizes)

        def __getitem__(self, at):
            return bytes([at + 1]) * self.sizes[at]  # nobody else has it

    @pytest.mark.parametrize("sizes", [(1000, 2000, 3000), (BIG, 2 * BIG)], ids=["ring", "extent"])
    def test_parts_that_nobody_else_keeps(self, make, sizes):
        sender, receiver = make().both()
        sender.send(self.Lazy(*sizes), 0)
        assert [bytes(part) for part in receiver.recv(0)] == [bytes([n + 1]) * size for n, size in enumerate(sizes)]


class TestShortWays:
    """Bytes, which need no frame on their way, and messages that are handed over together."""

    HEAD = b"\xb5\x01\0\x01"

    def test_bytes_of_all_sizes_around_the_corner(self, make):
        ends = make(capacity=3)
        sender, receiver = ends.sender(), ends.receiver()
        send, recv = sender.bytes_sender(self.HEAD, 70_000), receiver.bytes_receiver(self.HEAD)
        sizes = [*range(40), *(random.Random(7).randrange(16_000) for _ in range(400))]
        for number, size in enumerate(sizes):
            data = bytes([number % 251]) * size
            if number % 3:
                assert send(data)
            else:
                sender.send((self.HEAD + data,), 0)
            assert (recv(0) if number % 2 else receiver.recv(0)) == (data if number % 2 else (self.HEAD + data,))

    @pytest.mark.parametrize(
        "frame",
        [(b"",), (b"\xb5\x01\0",), (b"\xb5\x01\0\x02abc",), (b"\xb5\x01\0\x01", b"abc"), (b"\xb5\x01\0\x01" + bytes(BIG),)],
        ids=["nothing", "too short", "another head", "two parts", "an extent"],
    )
    def test_what_is_something_else_comes_as_a_frame(self, make, frame):
        ends = make()
        ends.sender().send(frame, 0)
        got = ends.receiver().bytes_receiver(self.HEAD)(0)
        assert type(got) is tuple
        assert b"".join(got) == b"".join(frame)

    def test_large_ones_are_copied_and_their_memory_is_free_at_once(self, make):
        ends = make()
        sender, receiver = ends.both()
        recv = receiver.bytes_receiver(self.HEAD)
        for number in range(20):
            data = bytes([number]) * (BIG + number)
            sender.send((self.HEAD, data), 0)
            assert recv(0) == data
            assert ends.states() == [FREE]
        sender.send((b"\xb5\x01\0\x02", bytes(BIG)), 0)
        frame = recv(0)
        assert [bytes(part) for part in frame] == [b"\xb5\x01\0\x02", bytes(BIG)]
        assert ends.states() == [HELD]

    def test_what_cannot_be_done_at_once_is_not_done(self, make):
        ends = make(capacity=2)
        sender, receiver = ends.sender(), ends.receiver()
        send = sender.bytes_sender(self.HEAD, 100)
        assert not any(map(send, (bytes(101), bytearray(1), "text", type("Other", (bytes,), {})(b"x"))))
        assert sender.depth() == 0
        assert [send(b"1"), send(b"2"), send(b"3")] == [True, True, False]
        assert receiver.bytes_receiver(self.HEAD)(0) == b"1"
        ends.handle.shut()
        assert not send(b"4")
        sender.close()
        assert not send(b"5")
        assert receiver.recv(0) == (self.HEAD + b"2",)
        with pytest.raises(EndOfChannel):
            receiver.recv(0)

    def test_a_message_over_the_limit_of_the_receiver_is_damage(self, make):
        ends = make(max_message=1000)
        ends.sender().send((self.HEAD + bytes(2000),), 0)
        with pytest.raises(ChannelBroken):
            ends.receiver().bytes_receiver(self.HEAD)(0)

    @pytest.mark.parametrize("head", [b"", b"abc", b"abcde", bytearray(4)])
    def test_heads_have_four_bytes(self, make, head):
        ends = make()
        for ask in (lambda: ends.sender().bytes_sender(head, 1), lambda: ends.receiver().bytes_receiver(head)):
            with pytest.raises(ValueError, match="4 bytes"):
                ask()

    def test_many_go_together_as_far_as_there_is_room(self, make):
        ends = make(capacity=5)
        sender, receiver = ends.sender(), ends.receiver()
        frames = [(b"%d" % number,) for number in range(8)]
        assert sender.send_many(frames, 0) == 5
        with pytest.raises(ChannelFull):
            sender.send_many(frames[5:], 0)
        assert [receiver.recv(0) for _ in range(5)] == frames[:5]
        assert sender.send_many([(b"5",), (b"6", b"parts"), (b"7",)], 0) == 1
        for nothing in ([], 7, iter(frames)):
            with pytest.raises(TypeError):
                sender.send_many(nothing, 0)


class TestHostileMemory:
    @pytest.mark.parametrize("at", range(TAIL, HEAD + 16, 8))
    def test_cursors(self, make, at):
        ends = make()
        sender, receiver = ends.both()
        sender.send([b"x" * 100], 0)
        values = random.Random(at)
        with ends.memory() as memory:
            whole = memory[TAIL : HEAD + 16]
            for _ in range(300):
                struct.pack_into("=Q", memory, at, values.choice((values.getrandbits(64), values.getrandbits(20), 1 << 32)))
                for call in (lambda: sender.send([b"y" * 100], 0), lambda: receiver.recv(0), sender.ready, receiver.ready):
                    try:
                        call()
                    except (ChannelBroken, ChannelFull, ChannelEmpty):
                        pass
                assert sender.depth() <= 8
                memory[TAIL : HEAD + 16] = whole

    @pytest.mark.parametrize(
        ("size", "parts", "kind"),
        [(1 << 20, 1, 0), (100, 0, 0), (100, 65, 0), (100, 1, 7), (4, 2, 0), (100, 1, 1), (24, 1, 1), (0xFFFF_FFFF, 1, 0)],
    )
    def test_records(self, make, size, parts, kind):
        ends = make()
        sender, receiver = ends.both()
        sender.send([b"\xff" * 100], 0)
        with ends.memory() as memory:
            struct.pack_into("=Q", memory, RING_AT, size | parts << 32 | kind << 48)
        with pytest.raises(ChannelBroken, match="damaged"):
            receiver.recv(0)

    @pytest.mark.parametrize("field", range(2))
    @pytest.mark.parametrize("value", [0, 4096, 1 << 40, (1 << 64) - 4096, 4097])
    def test_extents(self, make, field, value):
        ends = make()
        sender, receiver = ends.both()
        sender.send([b"x" * BIG], 0)
        with ends.memory() as memory:
            struct.pack_into("=Q", memory, EXTENTS_AT + 8 + 8 * field, value)
        with pytest.raises(ChannelBroken, match="damaged"):
            receiver.recv(0)

    def test_locks(self, make):
        ends = make()
        sender, receiver = ends.both()
        with ends.memory() as memory:
            for at in (TAIL + 16, HEAD + 16):
                memory[at : at + 40] = b"\xa5" * 40
        with pytest.raises(ChannelBroken, match="damaged"):
            sender.send([b"x"], 0)
        with pytest.raises(ChannelBroken, match="damaged"):
            receiver.recv(0)

    def test_a_file_that_is_no_segment(self, tmp_path):
        fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        os.truncate(fd, 1 << 20)
        with pytest.raises(ChannelBroken, match="damaged"):
            shm.Segment(RING, 8, fd, os.dup(0), os.dup(0))

    def test_it_cannot_shrink(self, make):
        with pytest.raises(PermissionError):
            os.ftruncate(make().handle.segment.fds[0], 4096)


class TestWaiting:
    @pytest.mark.parametrize("spin_us", [0, 50])
    def test_a_receiver_wakes(self, make, spin_us):
        sender, receiver = make(spin_us=spin_us).both()
        for n in range(50):
            result = in_thread(receiver.recv, PATIENCE)
            if n % 2:
                time.sleep(0.002)  # both while it spins and while it sleeps
            sender.send([b"x"], 0)
            assert result() == (b"x",)

    @pytest.mark.parametrize("spin_us", [0, 50])
    def test_a_sender_wakes(self, make, spin_us):
        sender, receiver = make(capacity=1, spin_us=spin_us).both()
        sender.send([b"x"], 0)
        for n in range(50):
            result = in_thread(sender.send, [b"x"], PATIENCE)
            if n % 2:
                time.sleep(0.002)
            receiver.recv(0)
            assert result() is None

    def test_a_small_message_finds_room_beside_a_large_one_that_waits(self, make):
        ends = make(capacity=100)
        sender, receiver = ends.both()
        try:
            while True:
                sender.send([bytes(8_000)], 0)
        except ChannelFull:
            pass
        large = in_thread(ends.sender().send, [bytes(16_000)], PATIENCE)
        small = in_thread(ends.sender().send, [bytes(5_000)], PATIENCE)
        receiver.recv(0)
        assert small() is None
        receiver.recv(0)
        receiver.recv(0)
        assert large() is None

    def test_every_wait_is_in_time(self, make):
        sender, receiver = make(capacity=1).both()
        for timeout in (0, 0.001, 0.05):
            started = time.monotonic()
            with pytest.raises(ChannelEmpty):
                receiver.recv(timeout)
            assert timeout <= time.monotonic() - started < timeout + 1
        sender.send([b"x"], 0)
        for timeout in (0, 0.001, 0.05):
            started = time.monotonic()
            with pytest.raises(ChannelFull):
                sender.send([b"x"], timeout)
            assert timeout <= time.monotonic() - started < timeout + 1

    def test_timeouts_that_are_none(self, make):
        sender, receiver = make().both()
        for wrong, error in ((float("nan"), ValueError), ("1", TypeError)):
            with pytest.raises(error):
                receiver.recv(wrong)
        sender.send([b"x"], float("inf"))
        assert receiver.recv(float("inf")) == (b"x",)
        with pytest.raises(ChannelEmpty):
            receiver.recv(-1)

    @pytest.mark.parametrize("side", ["sender", "receiver"])
    def test_a_handler_that_raises_interrupts_a_wait(self, make, side):
        sender, receiver = make(capacity=1).both()
        call = (lambda: receiver.recv(None)) if side == "receiver" else (lambda: sender.send([b"x"], None))
        if side == "sender":
            sender.send([b"x"], 0)

        def interrupt(*_):
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012  the alarm in here too: it may come before the call
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                call()
        finally:
            signal.signal(signal.SIGALRM, before)
        if side == "receiver":
            sender.send([b"x"], 0)
        assert receiver.recv(0) == (b"x",)

    def test_a_handler_may_use_the_channel_that_was_interrupted(self, make):
        sender, receiver = make(capacity=1).both()
        before = signal.signal(signal.SIGALRM, lambda *_: sender.send([b"from the handler"], 0))
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            assert receiver.recv(PATIENCE) == (b"from the handler",)
        finally:
            signal.signal(signal.SIGALRM, before)

    def test_doorbells_are_silent_while_nobody_waits_on_them(self, make):
        ends = make()
        sender, receiver = ends.both()
        bell = ends.handle.segment.fds[1]
        sender.send([b"x"], 0)
        assert not readable(bell, 0)
        receiver.recv(0)
        descriptor = receiver.fileno()
        assert not receiver.ready()
        assert not readable(descriptor, 0)
        sender.send([b"x"], 0)
        sender.send([b"x"], 0)
        assert readable(bell, 0)
        assert readable(descriptor, 0)
        receiver.recv(0)
        receiver.recv(0)
        with pytest.raises(ChannelEmpty):
            receiver.recv(0)
        assert not readable(descriptor, 0)
        assert receiver.fileno() == descriptor

    @pytest.mark.parametrize("look", ["recv", "ready"])
    def test_who_finds_nothing_silences_nobody_else(self, make, look):
        # If it did, and were killed then, the others would sleep beside the messages that follow.
        ends = make(receivers="many")
        sender, first, other = ends.sender(), ends.receiver(), ends.receiver()
        descriptors = [receiver.fileno() for receiver in (first, other)]
        sender.send([b"x"], 0)
        first.recv(0)
        if look == "ready":
            assert not first.ready()
        else:
            with pytest.raises(ChannelEmpty):
                first.recv(0)
        assert [readable(each, 0) for each in descriptors] == [False, True]
        assert not other.ready()
        assert [readable(each, 0) for each in descriptors] == [False, False]
        sender.send([b"x"], 0)
        assert [readable(each, 0) for each in descriptors] == [True, True]

    def test_senders_are_told_when_room_is_worth_waking_up_for(self, make):
        ends = make(capacity=80)
        sender, receiver = ends.both()
        for _ in range(80):
            sender.send([b"x"], 0)
        descriptor = sender.fileno()
        assert not sender.ready()
        for _ in range(10):
            receiver.recv(0)
            assert not readable(descriptor, 0)
        receiver.recv(0)
        assert readable(descriptor, PATIENCE)
        assert sender.ready()

    def test_a_sender_sees_room_for_one_when_its_time_is_over(self, make):
        ends = make(capacity=80, spin_us=0)
        sender, receiver = ends.both()
        for _ in range(80):
            sender.send([b"x"], 0)
        sending = in_thread(sender.send, [b"last"], 0.2)
        receiver.recv(0)
        assert sending() is None
        assert receiver.depth() == 80

    def test_a_close_wakes_both_sides(self, make):
        sender, receiver = make(capacity=1).both()
        sender.send([b"x"], 0)
        sending = in_thread(sender.send, [b"x"], None)
        time.sleep(0.02)
        sender.close()
        assert isinstance(sending(), ChannelClosed)
        receiver.recv(0)
        receiving = in_thread(receiver.recv, None)
        time.sleep(0.02)
        receiver.close()
        assert isinstance(receiving(), ChannelClosed)

    def test_a_close_ends_a_wait_for_the_table_of_extents(self, make):
        """Which a process that was stopped may have for long."""
        sender, libc = make().sender(), ctypes.CDLL(None)
        with mmap.mmap(sender._handle.segment.fds[0], 0) as memory:
            lock = (ctypes.c_char * 40).from_buffer(memory, ARENA_LOCK)
            assert libc.pthread_mutex_lock(lock) == 0
            try:
                said = in_thread(sender.send, [bytes(BIG)], None)
                until(lambda: memory[ARENA_LOCK + 3] & 0x80)  # how the C library notes that somebody waits
                sender.close()
                assert isinstance(said(), ChannelClosed)
            finally:
                assert libc.pthread_mutex_unlock(lock) == 0
                del lock

    def test_a_shutdown_wakes_both_sides(self, make):
        ends = make(capacity=1, receivers="many")
        sender = ends.sender()
        receiving = [in_thread(ends.receiver().recv, None) for _ in range(3)]
        time.sleep(0.02)
        sender.shutdown()
        assert all(isinstance(result(), EndOfChannel) for result in receiving)
        with pytest.raises(ChannelClosed):
            sender.send([b"x"], 0)

    def test_a_receiver_hears_of_a_shutdown_whose_process_was_killed_amid_it(self, make):
        """By the next who would send: there is no message that could wake it."""
        ends = make()
        sender, receiver = ends.both()
        receiving = in_thread(receiver.recv, None)
        with ends.memory() as memory:
            until(lambda: memory[TO_RECEIVERS] & 1)  # it sleeps, or is about to
            memory[SHUT] = 1
        with pytest.raises(ChannelClosed):
            sender.send([b"x"], 0)
        assert isinstance(receiving(), EndOfChannel)

    def test_the_receivers_death_is_told(self, make):
        ends = make(capacity=1)
        sender = ends.sender()
        here, there = multiprocessing.get_context("fork").Pipe()
        pid = os.fork()
        if not pid:
            link = ends.handle.open_receiver()
            there.send(link.depth())
            time.sleep(PATIENCE)
            os._exit(1)
        here.recv()
        sender.send([b"x"], 0)
        sending = in_thread(sender.send, [b"x"], None)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        error = sending()
        assert isinstance(error, PeerDied)
        assert error.pid == pid


class TestResources:
    def limited(self, code, **limits):
        """Run a program under limits and return what it printed."""
        head = "import resource, os, sys, ipcbus\n" + "".join(
            f"resource.setrlimit(resource.RLIMIT_{name}, ({value}, {value}))\n" for name, value in limits.items()
        )
        done = subprocess.run([sys.executable, "-c", head + code], capture_output=True, text=True, timeout=40, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def test_no_descriptors(self):
        said = self.limited(
            "channels = []\n"
            "try:\n"
            "    while True: channels.append(ipcbus.open('shm:')); channels[-1].send(1); channels[-1].recv()\n"
            "except ipcbus.ChannelBroken as error: print(error)\n"
            "channels.pop().close(); channels.pop().close(); channels.pop().close()\n"
            "ch = channels[0]; ch.send(2); print(ch.recv())\n",
            NOFILE=60,
        )
        assert "ulimit -n" in said
        assert said.endswith("2\n")

    def test_no_descriptor_for_a_large_message(self):
        said = self.limited(
            "import os\n"
            "ch = ipcbus.open('shm:'); ch.send(1); ch.recv()\n"
            "taken = []\n"
            "try:\n"
            "    while True: taken.append(os.dup(0))\n"
            "except OSError: pass\n"
            "try: ch.send(bytes(1 << 20))\n"
            "except ipcbus.ChannelBroken as error: print(error)\n"
            "os.close(taken.pop()); os.close(taken.pop()); ch.send(bytes(1 << 20)); print(len(ch.recv()))\n",
            NOFILE=60,
        )
        assert "nothing was sent; close some descriptors" in said
        assert said.endswith("1048576\n")

    def test_no_memory_for_a_ring(self):
        said = self.limited(
            "try: ipcbus.open('shm:?ring_bytes=1048576')\n"
            "except ipcbus.ChannelBroken as error: print(error)\n"
            "ch = ipcbus.open('shm:?ring_bytes=4096'); ch.send(2); print(ch.recv())\n",
            FSIZE=65536,
        )
        assert "ring_bytes" in said
        assert said.endswith("2\n")

    def test_no_memory_for_a_message(self):
        said = self.limited(
            "ch = ipcbus.open('shm:?ring_bytes=4096')\n"
            "try: ch.send(bytes(100_000))\n"
            "except ipcbus.ChannelBroken as error: print(error)\n"
            "ch.send(2); print(ch.recv())\n",
            FSIZE=65536,
        )
        assert "nothing was sent" in said
        assert said.endswith("2\n")

    def test_no_address_space(self):
        said = self.limited(
            "ch = ipcbus.open('shm:')\n"
            "big = bytes(100 << 20)\n"
            "ch.send(big[:1 << 20]); ch.recv()\n"
            "now = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
            "resource.setrlimit(resource.RLIMIT_AS, (now + (50 << 20), -1))\n"
            "try: ch.send(big)\n"
            "except (ipcbus.ChannelBroken, MemoryError) as error: print(type(error).__name__, error)\n"
            "try: ipcbus.open('shm:?ring_bytes=67108864')\n"
            "except ipcbus.ChannelBroken as error: print(error)\n"
            "ch.send(2); print(ch.recv())\n",
        )
        assert said.startswith("ChannelBroken no address space")
        assert "cannot be mapped" in said
        assert said.endswith("2\n")

    def test_a_message_that_cannot_be_mapped_stays(self, make):
        ends = make(max_message=1 << 30)
        sender, receiver = ends.both()
        sender.send([b"m" * (64 << 20)], 0)
        now = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (now + (8 << 20), limits[1]))
        try:
            with pytest.raises(ChannelBroken, match="still in the channel"):
                receiver.recv(0)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
        assert receiver.recv(0)[0] == b"m" * (64 << 20)

    def test_closed_ends_keep_no_descriptor(self):
        def count():
            gc.collect()
            return len(list(Path("/proc/self/fd").iterdir()))

        before = count()
        channel = ipcbus.open("shm:?ring_bytes=65536", capacity=1)
        channel.send(bytes(BIG))
        with pytest.raises(ChannelFull):
            channel.send(1, 0.01)
        channel.recv()
        ipcbus.wait([channel], 0)
        channel.close()
        assert count() == before


class TestOptions:
    @pytest.mark.parametrize("query", ["ring_bytes=1000", "ring_bytes=100000", "ring_bytes=4294967296", "spin_us=-1"])
    def test_nonsense_is_refused(self, query):
        with pytest.raises(ConfigError, match="shm"):
            ipcbus.open(f"shm:?{query}")

    def test_address_is_refused(self):
        with pytest.raises(ConfigError, match="no address"):
            ipcbus.open("shm:somewhere")

    def test_auto_picks_it(self):
        with ipcbus.open("auto:") as channel:
            assert channel.url == "shm:"


def test_one_receiver(make):
    ends = make()
    ends.receiver()
    with pytest.raises(ChannelBusy):
        ends.receiver()


IN_ANOTHER = """
import sys
sys.path[:0] = {path!r}
import ipcbus
try:
    ipcbus.open("shm:")
except ipcbus.TransportUnavailable as error:
    print(error)
with ipcbus.open("auto:") as channel:
    channel.send(1)
    assert channel.recv(5) == 1
"""
IN_TWO = f"""
import _xxsubinterpreters as interpreters
import sys
import ipcbus
channel = ipcbus.open("shm:", capacity=1)
interpreters.run_string(interpreters.create(isolated=False), {IN_ANOTHER!r}.format(path=sys.path))
channel.send(1)
try:
    channel.send(2, timeout=0)
except ipcbus.ChannelFull as error:
    print(error)
"""


def test_another_interpreter_is_told_to_use_another_transport():
    """And the first goes on with errors that are its own."""
    pytest.importorskip("_xxsubinterpreters")
    done = subprocess.run([sys.executable, "-c", IN_TWO], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    refused, full = done.stdout.splitlines()
    assert "one interpreter of a process" in refused
    assert "1 messages wait" in full


def test_a_finalizer_may_use_the_channel(make):
    """Nothing that may collect garbage happens under a lock."""
    sender, receiver = make(capacity=100).both()

    class Noisy:
        def __init__(self):
            self.me = self

        def __del__(self):
            sender.send([b"late"], 0)

    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(20):
            Noisy()
            sender.send([b"a", b"b"], 0)
            receiver.recv(0)
        gc.collect()
        assert sender.depth() == 20
    finally:
        gc.set_threshold(*before)


def test_threads_share_both_ends(make):
    sender, receiver = make(capacity=4).both()
    messages = [[bytes([n]) * size] for n in range(4) for size in (10, 3_000, BIG)]

    def send_all(frames):
        for _ in range(100):
            for frame in frames:
                sender.send(frame, PATIENCE)

    def receive(count):
        got = []
        for _ in range(count):
            (data,) = receiver.recv(PATIENCE)
            assert bytes(data) == bytes([data[0]]) * len(data)
            got.append((data[0], len(data)))
        return got

    sending = [in_thread(send_all, messages[n::3]) for n in range(3)]
    receiving = [in_thread(receive, 400) for _ in range(3)]
    assert all(result() is None for result in sending)
    arrived = [item for result in receiving for item in result()]
    assert len(arrived) == 1200
    assert {arrived.count(item) for item in set(arrived)} == {100}
