"""Every reducer crosses into another process for real, and what must not travel says so."""

from __future__ import annotations

import asyncio
import copyreg
import gc
import importlib.util
import io
import logging
import multiprocessing
import os
import pickle
import re
import resource
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pytest

import ipcbus
from ipcbus.codec import Codec
from ipcbus.errors import ChannelBroken
from ipcbus.plumbing.fds import TravellingFd, packing, unpacking
from ipcbus.serializers import local
from ipcbus.serializers.reducers import DispatchTable

if TYPE_CHECKING:
    from collections.abc import Callable

SHM = pytest.param("shm:", marks=pytest.mark.skipif(not importlib.util.find_spec("ipcbus_shm"), reason="not installed"))
SPAWN = multiprocessing.get_context("spawn")


def private(serializer: str = "pickle") -> Codec:
    return Codec(serializer, None, private=True, max_message=1 << 24)


def public() -> Codec:
    return Codec("pickle", None, private=False, max_message=1 << 24, key=b"0123456789abcdef")


def refused(obj: Any, codec: Codec | None = None) -> str:
    with pytest.raises(ipcbus.EncodeError) as caught:
        (codec or private()).encode([obj])
    return str(caught.value)


def open_descriptors() -> set[int]:
    """Return those of this process, and open none for that."""

    def is_open(fd: int) -> bool:
        try:
            os.fstat(fd)
        except OSError:
            return False
        return True

    return set(filter(is_open, range(resource.getrlimit(resource.RLIMIT_NOFILE)[0])))


def refuse() -> NoReturn:
    raise ValueError("in vain")


class Refused:
    def __reduce__(self) -> tuple[Any, ...]:
        return refuse, ()


class TestDescriptors:
    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    @pytest.mark.parametrize("url", ["pipe:", "unix:", SHM])
    def test_what_arrived_in_vain_closes_its_own_once(self, url: str, few: Callable[[int], None]) -> None:
        few(256)
        with ipcbus.open(url) as channel, packing() as fds:
            pickled = pickle.dumps((channel._end.handle, Refused()))
            before = open_descriptors()
            copies = [os.dup(fd) for fd in fds]
            with pytest.raises(ValueError, match="in vain") as caught, unpacking(copies):
                pickle.loads(pickled)
            others = [os.open(os.devnull, os.O_RDONLY) for _ in range(2 * len(copies))]  # with the same numbers
            del caught
            gc.collect()
            for fd in others:
                os.close(fd)
            assert open_descriptors() == before

    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    @pytest.mark.parametrize("url", ["pipe:", "unix:", SHM])
    def test_a_channel_that_cannot_be_made_keeps_none(self, url: str, scarce: Callable[[int], list[int]]) -> None:
        def is_made() -> bool:
            try:
                ipcbus.open(url).close()
            except ChannelBroken:
                return False
            return True

        assert is_made()  # what is imported for it takes some
        taken = scarce(0)
        before = open_descriptors()
        while not is_made():
            gc.collect()
            assert open_descriptors() == before
            before.remove(taken[-1])
            os.close(taken.pop())

    def test_connection_that_is_duplex(self, child: Any) -> None:
        ours, theirs = multiprocessing.Pipe()
        with ours, theirs:
            ours.send([1])
            child.run("with obj[0] as c: c.send(c.recv() + [c.readable, c.writable])", [theirs])
            assert ours.poll(10)
            assert ours.recv() == [1, True, True]

    def test_connection_that_only_reads(self, child: Any) -> None:
        reader, writer = multiprocessing.Pipe(duplex=False)
        with reader, writer:
            writer.send("hello")
            assert child.run("with obj as c: result = c.recv(), c.readable, c.writable", reader) == ("hello", True, False)

    def test_sender_keeps_its_connection(self, child: Any) -> None:
        ours, theirs = multiprocessing.Pipe()
        with ours, theirs:
            child.run("obj.close()", theirs)
            theirs.send(7)
            assert ours.poll(10)
            assert ours.recv() == 7

    @pytest.mark.parametrize("timeout", [None, 5.0])
    def test_socket_and_its_timeout(self, child: Any, timeout: float | None) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.settimeout(timeout)
            ours.settimeout(10)
            ours.sendall(b"ping")
            code = "with obj['s'] as s: s.sendall(s.recv(9).upper()); result = s.gettimeout(), s.family.name, s.type.name"
            assert child.run(code, {"s": theirs}) == (timeout, "AF_UNIX", "SOCK_STREAM")
            assert ours.recv(9) == b"PING"

    def test_listening_tcp_socket(self, child: Any) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = server.getsockname()
            assert child.run("with obj as s: result = s.getsockname()", server) == address

    def test_tls_socket_is_refused(self) -> None:
        ours, theirs = socket.socketpair()
        context = ssl.create_default_context()
        wrapped = context.wrap_socket(ours, server_hostname="x", do_handshake_on_connect=False)
        with wrapped, theirs:
            assert "TLS socket" in refused(wrapped)

    def test_raw_descriptor(self, child: Any) -> None:
        reader, writer = os.pipe()
        with ipcbus.Fd(writer) as fd, os.fdopen(reader, "rb") as file:
            code = (
                "import os\n"
                "result = type(obj).__name__, os.get_inheritable(obj.fileno())\n"
                "os.write(obj.fileno(), b'hi')\n"
                "obj.close()"
            )
            assert child.run(code, fd) == ("Fd", False)
            fd.close()
            assert file.read() == b"hi"  # the file ends because both copies are closed

    def test_fd_closes_once_and_detaches(self) -> None:
        reader, writer = os.pipe()
        os.close(writer)
        fd = ipcbus.Fd(reader)
        assert repr(fd) == f"Fd({reader})"
        assert fd.detach() == reader
        fd.close()
        assert fd.fileno() == -1
        os.fstat(reader)  # detached, so close left it open
        os.close(reader)
        assert "closed Fd" in refused(fd)

    def test_closed_things_say_so(self, tmp_path: Path) -> None:
        sock = socket.socket()
        sock.close()
        reader, writer = multiprocessing.Pipe()
        reader.close()
        writer.close()
        file = (tmp_path / "x").open("w")
        file.close()
        for thing in (sock, reader, ipcbus.OpenFile(file)):
            assert "closed" in refused(thing)


class TestWhatWasNotSent:
    """Its descriptors were left for who receives it, and nobody does."""

    @pytest.mark.parametrize("serializer", ["pickle", "cloudpickle"])
    def test_what_cannot_be_encoded_keeps_no_descriptor(self, serializer: str) -> None:
        codec = private(serializer)
        with ipcbus.Fd(os.dup(0)) as fd:
            codec.encode([fd])  # makes the directory
            before = open_descriptors()
            for _ in range(3):
                with pytest.raises(ipcbus.EncodeError):
                    codec.encode([fd, threading.Lock()])
            assert open_descriptors() == before

    @pytest.mark.parametrize("how", ["send", "send_many", "submit", "aio", "cancelled", "too large", "closed"])
    def test_what_finds_no_room_keeps_none(self, how: str) -> None:
        with ipcbus.open("pipe:", capacity=1, max_message=4096) as full, ipcbus.Fd(os.dup(0)) as fd:
            full.send(fd)
            full.aio  # noqa: B018  and so is what this one takes
            if how == "submit":
                self._ask()  # a thread of its own opens what replies come by
            self._fail_to_send(how, full, fd)
            before = open_descriptors()
            for _ in range(3):
                self._fail_to_send(how, full, fd)
            assert open_descriptors() == before
            if how != "closed":
                full.recv().close()

    def _ask(self) -> None:
        with ipcbus.open("pipe:") as asked:
            answering = threading.Thread(target=lambda: asked.recv_message(5).reply(None))
            answering.start()
            asked.request(None, 5)
            answering.join()

    def _fail_to_send(self, how: str, full: ipcbus.Channel, fd: ipcbus.Fd) -> None:
        async def cancelled() -> None:
            sending = asyncio.create_task(full.aio.send(fd))
            await asyncio.sleep(0)
            sending.cancel()
            await sending

        ways: dict[str, Callable[[], Any]] = {
            "send": lambda: full.send(fd, timeout=0),
            "send_many": lambda: full.send_many([fd, fd], timeout=0),
            "submit": lambda: full.submit(fd, timeout=0),
            "aio": lambda: asyncio.run(full.aio.send(fd, timeout=0)),
            "cancelled": lambda: asyncio.run(cancelled()),
            "too large": lambda: full.send([fd, "x" * 4096]),
            "closed": lambda: (full.close(), full.send(fd)),
        }
        with pytest.raises((ipcbus.ChannelError, asyncio.CancelledError)):
            ways[how]()

    def test_what_is_dropped_keeps_none(self) -> None:
        with ipcbus.open("pipe:", capacity=1, overflow="drop_new") as full, ipcbus.Fd(os.dup(0)) as fd:
            full.send(fd)
            before = open_descriptors()
            full.send(fd)
            assert full.send_many([fd, fd]) == 0
            assert open_descriptors() == before
            full.recv().close()


class TestFiles:
    def test_one_that_merely_came_along_is_refused(self, tmp_path: Path) -> None:
        with (tmp_path / "log").open("w") as file:
            assert "open file" in refused({"job": [file]})
            assert "open file" in refused(file.buffer)

    def test_one_that_came_along_is_not_read_by_cloudpickle(self, tmp_path: Path) -> None:
        (tmp_path / "secrets").write_text("all of it")
        with (tmp_path / "secrets").open() as file:
            assert "obj[0]['job']: cloudpickle cannot encode TextIOWrapper" in refused({"job": file}, private("cloudpickle"))
            assert private("cloudpickle").encode(ipcbus.OpenFile(file))

    def test_text_keeps_position_encoding_and_name(self, child: Any, tmp_path: Path) -> None:
        path = tmp_path / "text"
        path.write_text("häßlich\nzweite\ndritte\n", encoding="latin-1")
        with path.open(encoding="latin-1") as file:
            assert file.readline() == "häßlich\n"
            code = "with obj: result = obj.read(), obj.encoding, obj.name, obj.mode, type(obj).__name__"
            assert child.run(code, ipcbus.OpenFile(file)) == ("zweite\ndritte\n", "latin-1", str(path), "r", "TextIOWrapper")
            assert file.read() == "zweite\ndritte\n"  # the reader over there moved nothing here

    def test_what_was_written_is_flushed_first(self, child: Any, tmp_path: Path) -> None:
        with (tmp_path / "new").open("w+") as file:
            file.write("one,")
            code = "with obj: obj.write('two'); obj.seek(0); result = obj.read(), obj.mode"
            assert child.run(code, ipcbus.OpenFile(file)) == ("one,two", "w+")
            file.seek(0)
            assert file.read() == "one,two"

    def test_binary_append(self, child: Any, tmp_path: Path) -> None:
        path = tmp_path / "log"
        with path.open("ab") as file:
            file.write(b"1")
            child.run("with obj: obj.write(b'2')", ipcbus.OpenFile(file))
            file.write(b"3")
        assert path.read_bytes() == b"123"

    @pytest.mark.parametrize(("mode", "kind"), [("rb", "BufferedReader"), ("rb+", "BufferedRandom"), ("wb", "BufferedWriter")])
    def test_binary_kinds(self, child: Any, tmp_path: Path, mode: str, kind: str) -> None:
        path = tmp_path / "data"
        path.write_bytes(b"0123456789")
        with path.open(mode) as file:
            file.seek(4)
            assert child.run("with obj: result = type(obj).__name__, obj.mode, obj.tell()", ipcbus.OpenFile(file)) == (
                kind,
                mode,
                4,
            )

    def test_exclusive_creation_is_not_tried_again(self, child: Any, tmp_path: Path) -> None:
        with (tmp_path / "once").open("xb") as file:
            file.write(b"a")
            child.run("with obj: obj.write(b'b')", ipcbus.OpenFile(file))
        assert (tmp_path / "once").read_bytes() == b"ab"

    def test_unbuffered_and_deleted(self, child: Any, tmp_path: Path) -> None:
        path = tmp_path / "gone"
        path.write_bytes(b"abcdef")
        with path.open("rb", buffering=0) as file:
            file.read(2)
            path.unlink()
            assert child.run("with obj: result = obj.read(), type(obj).__name__", ipcbus.OpenFile(file)) == (b"cdef", "FileIO")

    def test_pipe_is_shared(self, child: Any) -> None:
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as receiving, os.fdopen(writer, "wb") as sending:
            child.run("with obj: obj.write(b'from there')", ipcbus.OpenFile(sending))
            sending.close()
            assert receiving.read() == b"from there"

    def test_what_is_no_plain_file_is_refused(self, tmp_path: Path) -> None:
        assert "BytesIO" in refused(ipcbus.OpenFile(io.TextIOWrapper(io.BytesIO())))
        with tempfile.NamedTemporaryFile() as temporary:
            assert "deletes" in refused(temporary)
        (tmp_path / "lines").write_text("a\nb\n")
        with (tmp_path / "lines").open() as file:
            next(file)
            assert "iterated" in refused(ipcbus.OpenFile(file))


class TestLocks:
    def test_lock_is_the_same_lock(self, child: Any) -> None:
        lock = SPAWN.Lock()
        child.run("assert obj.acquire(timeout=5)", lock)
        assert not lock.acquire(block=False)
        lock.release()

    def test_semaphore_keeps_its_count(self, child: Any) -> None:
        semaphore = SPAWN.BoundedSemaphore(2)
        code = "result = obj.acquire(timeout=5), obj.acquire(timeout=5), obj.acquire(block=False)"
        assert child.run(code, semaphore) == (True, True, False)
        semaphore.release()
        semaphore.release()
        with pytest.raises(ValueError, match="too many times"):
            semaphore.release()

    def test_event_wakes_the_other_side(self, child: Any) -> None:
        event = SPAWN.Event()
        child.run("obj.set()", event)
        assert event.wait(10)

    def test_condition_wakes_the_other_side(self, child: Any) -> None:
        condition = SPAWN.Condition()
        with condition:
            notifier = threading.Thread(target=child.run, args=("with obj: obj.notify()", condition))
            notifier.start()
            assert condition.wait(10)
        notifier.join(10)

    def test_fork_context_has_no_name(self) -> None:
        fork = multiprocessing.get_context("fork")
        for thing in (fork.Lock(), fork.RLock(), fork.Semaphore(), fork.Event(), fork.Condition()):
            assert "fork context" in refused(thing)


class TestPlainThings:
    def test_logger_by_name(self, child: Any) -> None:
        assert child.run("import logging; result = obj is logging.getLogger('a.b')", logging.getLogger("a.b")) is True

    def test_handler_is_refused(self) -> None:
        assert "handlers are those" in refused(logging.StreamHandler())
        assert "handlers are those" in refused(logging.NullHandler())

    def test_mapping_proxy(self, child: Any) -> None:
        proxy = MappingProxyType({"a": 1})
        assert child.run("result = type(obj).__name__, dict(obj)", proxy) == ("mappingproxy", {"a": 1})

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_socket_whose_class_refuses_it_keeps_no_descriptor(self, when: str) -> None:
        class Picky(socket.socket):
            def __init__(self, *args: Any, **options: Any) -> None:
                if when == "before" and "fileno" in options:
                    raise ValueError("not this one")
                super().__init__(*args, **options)
                if "fileno" in options:
                    raise ValueError("not this one")

        state = socket.AF_INET, socket.SOCK_STREAM, 0, None
        with socket.socket() as ours:
            before = open_descriptors()
            for _ in range(3):
                with pytest.raises(ValueError, match="not this one"):
                    local._make_socket(Picky, TravellingFd(os.dup(ours.fileno())), *state)
            gc.collect()
            assert open_descriptors() == before

    def test_what_copyreg_knows(self, child: Any) -> None:
        assert child.run("result = obj.match('aab').end()", re.compile("a+")) == 2

    def test_nothing_is_put_into_copyreg(self) -> None:
        before = dict(copyreg.dispatch_table)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            private().decode(private().encode(theirs)).close()
        assert copyreg.dispatch_table == before

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda: memoryview(b"x"), "memoryview"),
            (lambda: (x for x in ()), "generator"),
            (threading.Lock, "lock"),
            (sys._getframe, "stack"),
        ],
        ids=["memoryview", "generator", "lock", "frame"],
    )
    def test_still_refused(self, make: Any, said: str) -> None:
        assert said in refused(make())


class TestChannelsOthersCanReach:
    def test_nothing_of_this_machine_leaves(self, tmp_path: Path) -> None:
        ours, theirs = socket.socketpair()
        reader, writer = multiprocessing.Pipe()
        with ours, theirs, reader, writer, (tmp_path / "f").open("w") as file, ipcbus.open("pipe:") as channel:
            for thing in (ours, reader, ipcbus.OpenFile(file), SPAWN.Lock(), SPAWN.Event(), ipcbus.Fd(0), channel):
                assert "cannot leave this machine" in refused(thing, public())

    def test_plain_things_do(self) -> None:
        codec = public()
        frame = codec.encode({"p": re.compile("x"), "m": MappingProxyType({})})
        assert codec.decode(frame) == {"p": re.compile("x"), "m": {}}


class Own(socket.socket):
    def __reduce__(self) -> Any:
        return Own, ()


class TestTable:
    def test_class_that_reduces_itself_wins(self) -> None:
        table = DispatchTable(private=True)
        assert table.find(Own) is None
        assert table.find(socket.socket) is not None
        assert table.find(type("Mine", (socket.socket,), {})) is table.find(socket.socket)
        assert table.find(ssl.SSLSocket) is not table.find(socket.socket)

    def test_copyreg_wins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(copyreg.dispatch_table, socket.socket, lambda sock: (str, ("mine",)))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert private().decode(private().encode(ours)) == "mine"

    def test_classes_are_pickled_by_name(self) -> None:
        with pytest.raises(KeyError):
            DispatchTable(private=True)[type]
        assert private().decode(private().encode([int, Path, type])) == [int, Path, type]

    def test_known_lists_what_is_loaded_with_subclasses(self) -> None:
        known = set(DispatchTable(private=True).known())
        assert {socket.socket, ssl.SSLSocket, re.Pattern, logging.StreamHandler, MappingProxyType} <= known
        assert not {Own, int} & known

    def test_memory_is_bounded(self) -> None:
        table = DispatchTable(private=True)
        for _ in range(5000):
            table[type("Throwaway", (), {})]
        assert len(table) <= 4096

    def test_pickling_loads_no_heavy_module(self) -> None:
        code = "import sys, ipcbus; from ipcbus.serializers.pickle import Pickle; Pickle().dumps([1]); print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
        loaded = set(done.stdout.split())
        heavy = {"google.protobuf", "msgspec", "cloudpickle", "numpy", "socket", "ssl", "multiprocessing.connection"}
        assert not loaded & heavy


class TestArrays:
    @pytest.mark.parametrize("writable", [True, False])
    def test_travel_out_of_band_and_arrive_as_they_were(self, writable: bool) -> None:
        array = np.arange(5000, dtype=np.float64)
        array.flags.writeable = writable
        codec = private()
        frame = codec.encode({"a": array, "n": 1})
        assert len(frame) == 2
        assert array.tobytes()[8:64] not in bytes(frame[0])
        assert len(frame[0]) < 400
        for wire in (frame, [b"".join(frame)], [bytearray(b"".join(frame))]):
            back = codec.decode(wire)["a"]
            np.testing.assert_array_equal(back, array)
            assert back.flags.writeable is writable

    def test_memory_the_receiver_owns_is_not_copied(self) -> None:
        array = np.arange(5000)
        codec = private()
        head, data = codec.encode(array)
        mine = bytearray(data)
        back = codec.decode([head, mine])
        assert np.shares_memory(back, np.frombuffer(mine, dtype=array.dtype))

    def test_small_ones_stay_inside(self) -> None:
        assert len(private().encode(np.arange(10))) == 1

    def test_cross_a_process(self, child: Any) -> None:
        array = np.arange(300_000).reshape(3, -1)
        back = child.run("obj[0] += 1; result = obj", array)
        np.testing.assert_array_equal(back[0], array[0] + 1)
        np.testing.assert_array_equal(back[1:], array[1:])

    def test_more_buffers_than_a_frame_holds_stay_inside(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.modules["ipcbus.serializers.pickle"], "MAX_BUFFERS", 3)
        codec = private()
        arrays = [np.full(1000, n) for n in range(5)]
        frame = codec.encode(arrays)
        assert sum(memoryview(part).nbytes == 8000 for part in frame) == 3
        for sent, back in zip(arrays, codec.decode(frame), strict=True):
            np.testing.assert_array_equal(sent, back)


class TestByValue:
    def test_only_when_asked_for(self, child: Any) -> None:
        factor = 3
        frame = b"".join(private("cloudpickle").encode(lambda x: x * factor))
        code = (
            "from ipcbus.codec import Codec\n"
            "codec = Codec('cloudpickle', None, private=True, max_message=1 << 20)\n"
            "result = codec.decode([obj])(14)"
        )
        assert child.run(code, frame) == 42
        refused(lambda x: x)

    def test_reducers_apply_here_too(self) -> None:
        codec = private("cloudpickle")
        ours, theirs = socket.socketpair()
        with ours, theirs, codec.decode(codec.encode({"s": theirs, "f": lambda: 1}))["s"] as arrived:
            arrived.sendall(b"x")
            assert ours.recv(1) == b"x"

    def test_arrays_stay_out_of_band(self) -> None:
        codec = private("cloudpickle")
        array = np.arange(5000)
        frame = codec.encode([array, lambda: 1])
        assert len(frame) == 2
        np.testing.assert_array_equal(codec.decode(frame)[0], array)
