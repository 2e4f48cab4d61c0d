"""Memory files: sealed, and written to again as soon as nobody has them any more, and not sooner."""

import fcntl
import os
import resource
import signal
import socket
from contextlib import contextmanager
from pathlib import Path

import pytest

from ipcbus.errors import ChannelBroken
from ipcbus.plumbing import memfiles
from ipcbus.plumbing.buffers import behind, size
from ipcbus.plumbing.fds import close_all
from ipcbus.plumbing.memfiles import MemoryFiles, open_sealed

FUTURE_WRITE = 0x10
SHAPE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
SIZE = 200_000


@pytest.fixture
def files():
    made = MemoryFiles()
    yield made
    made.close()


@contextmanager
def written(files, content=b"x" * SIZE):
    """Write a message; yield its descriptor."""
    held = []
    try:
        files.write([content], len(content), held)
        (fd,) = held
        yield fd
    finally:
        close_all(held)


def received(files, content=b"x" * SIZE):
    """Write a message and map it, as its receiver does; return its memory, and which file that is."""
    with written(files, content) as fd:
        return open_sealed(fd, len(content), 1 << 30), os.fstat(fd).st_ino


def file_used(files, content=b"x" * SIZE):
    return received(files, content)[1]


@contextmanager
def file_of(content, seals):
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, content)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def child(work):
    """Run a function in a forked child, which then waits to be killed; enter once it has run."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            work()
            os.write(writing, b".")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"."
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)


class TestWhatIsSent:
    @pytest.mark.parametrize("files", [MemoryFiles(), MemoryFiles(0)], ids=["kept", "not kept"])
    def test_nobody_can_change_it(self, files):
        with written(files, b"abcdef") as fd:
            with pytest.raises(OSError, match=r"not permitted|Bad file"):
                os.pwrite(fd, b"x", 0)
            again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
            try:
                for change in (lambda: os.pwrite(again, b"x", 0), lambda: os.ftruncate(again, 0)):
                    with pytest.raises(PermissionError):
                        change()
            finally:
                os.close(again)
            assert bytes(open_sealed(fd, 6, 100)) == b"abcdef"
        files.close()

    @pytest.mark.parametrize("again", [False, True], ids=["new file", "used file"])
    def test_buffers_of_every_kind(self, files, again):
        if again:
            file_used(files)
        parts = [
            b"ab" * 50_000,
            bytearray(b"cd"),
            memoryview(b"ef"),
            memoryview(b"g" * 90_000),
            b"",
            memoryview(bytearray(8)).cast("d"),
        ]
        size = sum(memoryview(part).nbytes for part in parts)
        held = []
        files.write(parts, size, held)
        try:
            assert bytes(open_sealed(held[0], size, 1 << 30)) == b"".join(parts)
        finally:
            close_all(held)

    def test_thousands_of_buffers(self, files):
        parts = [bytes([number % 256]) * 100 for number in range(3_000)]
        for _ in range(2):
            held = []
            files.write(parts, 300_000, held)
            try:
                assert bytes(open_sealed(held[0], 300_000, 1 << 30)) == b"".join(parts)
            finally:
                close_all(held)


class TestWhatArrives:
    @pytest.mark.parametrize("seals", [SHAPE, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE, fcntl.F_SEAL_GROW | FUTURE_WRITE])
    def test_seals_are_insisted_on(self, seals):
        with file_of(b"abc", seals) as fd, pytest.raises(ChannelBroken, match="not sealed"):
            open_sealed(fd, 3, 100)

    @pytest.mark.parametrize(("size", "limit"), [(4, 100), (0, 100), (-1, 100), (3, 2), (1 << 62, 1 << 63)])
    def test_size_is_checked(self, size, limit):
        with file_of(b"abc", SHAPE | fcntl.F_SEAL_WRITE) as fd, pytest.raises(ChannelBroken, match="max_message"):
            open_sealed(fd, size, limit)

    def test_type_is_checked(self):
        reading, writing = os.pipe()
        try:
            with pytest.raises(ChannelBroken, match="no memory file"):
                open_sealed(reading, 3, 100)
        finally:
            os.close(reading)
            os.close(writing)

    def test_ordinary_file_is_none(self, tmp_path):
        (tmp_path / "file").write_bytes(b"abc")
        with (tmp_path / "file").open("rb") as file, pytest.raises(ChannelBroken):
            open_sealed(file.fileno(), 3, 100)

    def test_it_can_be_written_to_and_is_nobody_elses(self, files):
        with written(files, b"abc") as fd:
            first, second = open_sealed(fd, 3, 100), open_sealed(fd, 3, 100)
            first[0] = ord("x")
            assert (bytes(first), bytes(second)) == (b"xbc", b"abc")


class TestUsedAgain:
    def test_once_the_memory_is_gone(self, files):
        memory, first = received(files)
        kept = memory[10:20]
        assert file_used(files) != first
        del memory
        assert file_used(files, b"y" * SIZE) != first, "a part of it is still looked at"
        assert bytes(kept) == b"x" * 10
        del kept
        assert first in {file_used(files), file_used(files)}

    def test_what_a_receiver_keeps_stays_as_it_is(self, files):
        kept = [received(files, bytes([number]) * SIZE)[0] for number in range(8)]
        for number in range(8, 40):
            file_used(files, bytes([number]) * SIZE)
        assert [bytes(memory) for memory in kept] == [bytes([number]) * SIZE for number in range(8)]

    def test_not_while_it_is_on_its_way(self, files):
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with here:
            with written(files) as fd:
                first = os.fstat(fd).st_ino
                socket.send_fds(here, [b"."], [fd])
            assert file_used(files) != first
            there.close()  # nobody will ever take it
        assert file_used(files) == first

    def test_not_while_another_process_has_it_and_at_once_when_that_is_killed(self, files):
        held = []
        files.write([b"x" * SIZE], SIZE, held)
        first = os.fstat(held[0]).st_ino
        kept = []

        def receive():
            kept.append(open_sealed(held[0], SIZE, 1 << 30))
            close_all(held)

        with child(receive):
            close_all(held)
            assert file_used(files) != first
        assert file_used(files) == first

    def test_not_while_a_forked_child_of_the_receiver_has_it(self, files):
        memory, first = received(files)
        with child(lambda: None):
            del memory
            assert file_used(files) != first
        assert file_used(files) == first

    def test_a_child_that_inherits_the_sender_is_no_receiver(self, files):
        first = file_used(files)
        with child(lambda: None):
            assert file_used(files) == first

    def test_a_small_message_does_not_hold_on_to_a_large_file(self, files):
        large = file_used(files, bytes(SIZE * 4))
        assert file_used(files, bytes(SIZE)) != large
        assert file_used(files, bytes(SIZE * 3)) == large

    def test_nothing_of_a_longer_message_is_received_behind_a_shorter(self, files):
        large = file_used(files, b"x" * SIZE)
        memory, file = received(files, b"y" * (SIZE - 50_000))
        assert file == large
        assert bytes(memory) == b"y" * (SIZE - 50_000)


class TestInterrupted:
    """A signal handler sends large messages, or closes the end, while a large message is being written."""

    @staticmethod
    def meanwhile(monkeypatch, work):
        """Do something in the middle of the next message that is written to a used file."""
        copy = memfiles.ctypes.memmove

        def interrupted(*arguments):
            monkeypatch.undo()
            copy(*arguments)
            work()

        monkeypatch.setattr(memfiles.ctypes, "memmove", interrupted)

    @pytest.mark.parametrize("count", [1, 3, 40])
    def test_by_who_sends(self, files, monkeypatch, count):
        file_used(files)
        inner = []
        self.meanwhile(monkeypatch, lambda: inner.extend(received(files, b"i" * SIZE) for _ in range(count)))
        held = []
        files.write([b"o" * 150_000, b"u" * 50_000], SIZE, held)
        try:
            outer = open_sealed(held[0], SIZE, 1 << 30)
            assert bytes(outer) == b"o" * 150_000 + b"u" * 50_000
            assert {bytes(memory) for memory, _ in inner} == {b"i" * SIZE}
            assert os.fstat(held[0]).st_ino not in {file for _, file in inner}
        finally:
            close_all(held)

    def test_by_who_closes(self, files, monkeypatch):
        file_used(files)
        self.meanwhile(monkeypatch, files.close)
        held = []
        with pytest.raises(ChannelBroken, match="closed"):
            files.write([b"o" * 150_000, b"u" * 50_000], SIZE, held)
        assert not held


class TestHowManyAreKept:
    def open_files(self):
        names = []
        for entry in Path("/proc/self/fd").iterdir():
            try:
                names.append(entry.readlink().name)
            except FileNotFoundError:
                continue  # the listing itself
        return sum("ipcbus-message" in name for name in names)

    def test_no_more_bytes_than_allowed(self):
        before = self.open_files()
        files = MemoryFiles(4 * SIZE)
        kept = [received(files)[0] for _ in range(10)]
        assert self.open_files() - before == 4
        received(files, bytes(5 * SIZE))
        assert self.open_files() - before == 4, "what is too large alone sends away nothing"
        files.close()
        assert self.open_files() == before
        assert {bytes(memory[:1]) for memory in kept} == {b"x"}

    def test_no_more_files_than_descriptors_should_be_taken(self, files):
        before = self.open_files()
        kept = [received(files)[0] for _ in range(40)]
        assert len(kept) == 40
        assert self.open_files() - before == 16

    def test_none(self):
        before = self.open_files()
        files = MemoryFiles(0)
        assert bytes(received(files)[0]) == b"x" * SIZE
        assert self.open_files() == before

    def test_those_that_are_kept_make_room_for_a_message(self, files, no_descriptors):
        kept = [received(files)[0] for _ in range(3)]
        before = self.open_files()
        with no_descriptors():
            memory, _ = received(files, b"z" * SIZE)
        assert bytes(memory) == b"z" * SIZE
        assert self.open_files() < before
        assert len(kept) == 3

    def test_without_a_descriptor_to_lend_a_file_is_given_away(self, files, no_descriptors):
        first = file_used(files)
        before = self.open_files()
        with no_descriptors():
            assert file_used(files, b"z" * SIZE) == first
        assert self.open_files() == before - 1
        assert file_used(files) != first

    def test_no_descriptor_at_all(self, files, no_descriptors):
        with no_descriptors(), pytest.raises(ChannelBroken, match="nothing was sent"):
            file_used(files)
        file_used(files)


class TestOtherSystems:
    def test_without_the_seal_that_spares_the_writer(self, files, monkeypatch):
        monkeypatch.setattr(memfiles, "_FUTURE_WRITE", 1 << 20)  # what a kernel says of a seal that it does not know
        with written(files) as fd:
            assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
            first = os.fstat(fd).st_ino
            assert bytes(open_sealed(fd, SIZE, 1 << 30)) == b"x" * SIZE
        assert first not in {file_used(files) for _ in range(3)}

    def test_without_proc(self, files, monkeypatch):
        monkeypatch.setattr(memfiles, "_AGAIN", "/nowhere/{}")
        memory, _ = received(files)
        for number in range(3):
            received(files, bytes([number]) * SIZE)
        assert bytes(memory) == b"x" * SIZE

    def test_without_memory(self, files):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, hard))
        try:
            with pytest.raises(ChannelBroken, match=f"no memory for a message of {SIZE} bytes"):
                file_used(files)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, ignored)
        assert bytes(received(files)[0]) == b"x" * SIZE


def test_behind():
    parts = [b"ab", memoryview(b"cd"), b"", bytearray(b"e")]
    assert [b"".join(behind(parts, done)) for done in range(6)] == [b"abcde", b"bcde", b"cde", b"de", b"e", b""]


def test_size():
    assert size([b"ab", memoryview(bytearray(16)).cast("d"), bytearray(1)]) == 19
