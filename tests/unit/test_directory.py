"""A directory and those who ask it: what it keeps and for how long, and that nobody can make the others wait."""

import errno
import logging
import os
import resource
import socket
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from ipcbus.directory import client, place, server, wire
from ipcbus.directory.place import Place
from ipcbus.directory.server import Directory
from ipcbus.directory.wire import Datagram, Operation, Status
from ipcbus.errors import ChannelBroken, ConfigError
from ipcbus.plumbing import rundir

from .rig import Amid, until

PATIENCE = 10
SOON = 1.0
"""Seconds that an answer may take on a busy machine."""


@pytest.fixture
def home():
    directory = rundir.create()
    yield directory
    rundir.remove(directory)


@pytest.fixture
def directory(home):
    made = Directory(home)
    yield made
    made.close()


@pytest.fixture
def address(directory):
    """Of the directory; requests go through its socket, because this process does not know that it keeps it."""
    return str(directory.home)


@pytest.fixture
def pipe():
    fds = os.pipe()
    yield fds
    for fd in fds:
        os.close(fd)


def dial(directory):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(PATIENCE)
    sock.connect(str(directory.home / server.SOCKET))
    return sock


def ask(sock, operation, key=b"", content=b"", fds=(), token=1):
    wire.send(sock, Datagram(operation, token, key, content, list(fds)))
    return wire.receive(sock)


def fds():
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def highest():
    """Return one more than the highest descriptor."""
    return max(map(int, fds())) + 1


class TestKeeping:
    def test_a_descriptor_goes_in_and_comes_out(self, address, pipe):
        reader, writer = pipe
        assert client.put(address, b"k", b"words", [writer]) == 1
        found = client.get(address, b"k")
        assert found.content == b"words"
        assert found.guest == 1
        (copy,) = found.fds
        os.write(copy, b"through")
        os.close(copy)
        assert os.read(reader, 10) == b"through"

    def test_large_content(self, address):
        client.put(address, b"k", bytes(300_000), [])
        assert client.get(address, b"k").content == bytes(300_000)

    def test_what_is_put_again_is_replaced(self, directory, address, pipe):
        before = fds()
        client.put(address, b"k", b"one", pipe)
        client.put(address, b"k", b"two", pipe[:1])
        assert len(fds()) == len(before) + 2 + 1, "the connection has two ends here, and there is one descriptor"
        content, copies = directory.look(b"k")
        assert (content, len(copies)) == (b"two", 1)
        os.close(copies[0])

    def test_taken_once(self, address):
        client.put(address, b"k", b"words", [])
        assert client.take(address, b"k").content == b"words"
        with pytest.raises(ChannelBroken, match="does not know this channel any more"):
            client.take(address, b"k")

    def test_users_are_known_until_they_drop_or_go(self, directory, address):
        client.put(address, b"k", b"", [])
        other = dial(directory)
        ask(other, Operation.GET, b"k")
        assert directory.users(b"k") == [os.getpid()]
        client.drop(address, b"k")
        client.place(address).greet()  # answered after that
        assert len(directory._shelf.get(b"k").users) == 1
        other.close()
        until(lambda: not directory.users(b"k"))

    def test_in_the_process_that_keeps_it(self, directory, address, pipe):
        client.keep(directory)
        try:
            client.put(address, b"k", b"words", pipe)
            found = client.get(address, b"k")
            assert (found.content, found.guest) == (b"words", 0)
            for fd in found.fds:
                os.close(fd)
            assert client.keeper(address) is None
            client.drop(address, b"k")
            with pytest.raises(ChannelBroken, match="too long ago"):
                client.get(address, b"other")
            assert not directory.guests()
        finally:
            client.unkeep(directory)


class TestEviction:
    LIMIT = 400

    @pytest.fixture(autouse=True)
    def _limit(self, few):
        few(max(self.LIMIT, highest() + 250))

    @property
    def budget(self):
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4

    def test_within_the_budget_the_last_used_stays(self, directory, address, pipe):
        before = len(fds())
        for number in range(200):
            client.put(address, b"%d" % number, b"", pipe[:1], held=False)
        client.place(address).greet()
        assert len(fds()) - before <= self.budget // 2 + 2
        assert directory.look(b"0") is None
        for fd in client.take(address, b"199").fds:
            os.close(fd)

    def test_what_is_in_use_stays(self, directory, address, pipe):
        client.put(address, b"guest's", b"", pipe[:1])
        directory.put(b"own", b"", pipe[:1], held=True)
        directory.put(b"pinned", b"", pipe[:1], pinned=True)
        for number in range(200):
            directory.put(b"%d" % number, b"", pipe[:1])
        for key in (b"guest's", b"own", b"pinned"):
            assert directory._shelf.get(key) is not None
        assert directory.look(b"0") is None

    def test_what_was_used_until_just_now_stays_longest(self, directory, pipe):
        directory.put(b"long in use", b"", pipe[:1], held=True)
        for number in range(200):
            directory.put(b"%d" % number, b"", pipe[:1])
        directory.drop(b"long in use")
        directory.put(b"one more", b"", pipe[:1])
        assert directory._shelf.get(b"long in use") is not None

    def test_what_is_used_again_does_not_count(self, directory, address, pipe):
        """Put twice: it is the oldest, but its second put must not lose it before its user is noted."""
        client.put(address, b"k", b"", pipe[:1], held=False)
        for number in range(200):
            directory.put(b"%d" % number, b"", [])
            client.put(address, b"k", b"", pipe[:1])
        assert directory._shelf.get(b"k") is not None

    def test_the_only_one_stays_however_large(self, directory, few):
        few(highest() + 80)
        directory.put(b"large", b"", [0] * 60)
        assert directory._shelf.get(b"large") is not None

    def test_who_made_what_has_a_name_is_told(self, directory):
        told = []
        directory.forgotten = told.append
        for number in range(self.budget + 3):
            directory.put(b"%d" % number, b"content %d" % number, [])
        assert told == [b"content 0", b"content 1", b"content 2"]

    def test_one_who_fails_to_hear_it_does_no_harm(self, directory, address, caplog):
        directory.forgotten = lambda content: 1 / 0
        for number in range(self.budget + 3):
            client.put(address, b"%d" % number, b"", [], held=False)
        assert "cannot be removed" in caplog.text
        client.place(address).greet()


class TestCalls:
    def test_a_handler_answers(self, directory, address, pipe):
        directory.handle("double", lambda guest, content: (content * 2, [os.dup(pipe[0])]))
        found = client.call(address, "double", b"ab")
        assert found.content == b"abab"
        assert os.path.sameopenfile(found.fds[0], pipe[0])
        os.close(found.fds[0])

    def test_its_error_arrives(self, directory, address):
        def refuse(guest, content):
            raise ConfigError("not like this")

        directory.handle("refuse", refuse)
        with pytest.raises(ConfigError, match="not like this"):
            client.call(address, "refuse")

    def test_its_mistake_is_told_and_logged(self, directory, address, caplog):
        directory.handle("fail", lambda guest, content: 1 / 0)
        with pytest.raises(ChannelBroken, match="ZeroDivisionError"):
            client.call(address, "fail")
        assert "answering 'fail' failed" in caplog.text
        client.place(address).greet()

    def test_an_error_that_cannot_travel_leaves_its_words(self, directory, address, caplog):
        def refuse(guest, content):
            error = ConfigError("the words")
            error.lock = threading.Lock()
            raise error

        directory.handle("refuse", refuse)
        with pytest.raises(ChannelBroken, match="ConfigError: the words"):
            client.call(address, "refuse")
        assert "cannot travel" in caplog.text

    def test_an_error_of_a_plugin_that_is_not_here_leaves_its_words(self, directory, address, monkeypatch):
        module = types.ModuleType("only_there")
        module.Odd = type("Odd", (ChannelBroken,), {"__module__": "only_there"})
        monkeypatch.setitem(sys.modules, "only_there", module)

        def refuse(guest, content):
            raise module.Odd("the words")

        def receive(sock, flags=0, receive=wire.receive):
            answer = receive(sock, flags)
            if threading.current_thread() is threading.main_thread():
                sys.modules.pop("only_there")
            return answer

        directory.handle("refuse", refuse)
        monkeypatch.setattr(wire, "receive", receive)
        with pytest.raises(ChannelBroken, match=r"^Odd: the words$"):
            client.call(address, "refuse")

    def test_nobody_knows_the_name(self, address):
        with pytest.raises(ChannelBroken, match="answers no 'nothing'"):
            client.call(address, "nothing")

    def test_one_who_fails_to_hear_of_an_end_does_no_harm(self, directory, address, caplog):
        directory.gone.append(lambda guest: 1 / 0)
        dial(directory).close()
        until(lambda: "telling of the end" in caplog.text)
        client.place(address).greet()


class TestGuestsThatMisbehave:
    def test_one_that_says_nothing(self, directory, monkeypatch, caplog):
        monkeypatch.setattr(server, "HANDSHAKE", 0.2)
        with dial(directory) as silent, dial(directory) as other:
            assert ask(other, Operation.HELLO).kind == Status.OK
            last = wire.receive(silent)
            assert last.token == wire.UNASKED
            assert wire.receive(silent) is None
            assert ask(other, Operation.HELLO).kind == Status.OK
        assert "asked nothing for 0.2 seconds" in caplog.text

    @pytest.mark.parametrize(
        "data",
        [b"x", b"\0" * 100, bytes([99, wire.VERSION, 0, 0, 1, 0, 0, 0]), bytes([1, wire.VERSION | 128, 0, 0, 1, 0, 0, 0])],
        ids=["short", "no version", "no such operation", "no file"],
    )
    def test_one_that_makes_no_sense(self, directory, data, caplog):
        before = fds()
        with dial(directory) as wild, dial(directory) as other:
            wild.send(data)
            assert wire.receive(wild).token == wire.UNASKED
            assert wire.receive(wild) is None
            assert ask(other, Operation.HELLO).kind == Status.OK
        until(lambda: not directory.guests())
        assert fds() == before

    def test_one_that_floods_and_does_not_read(self, directory, address, caplog):
        client.place(address).greet()
        with dial(directory) as wild:
            wild.settimeout(PATIENCE)
            stop = threading.Event()

            def flood():
                try:
                    while not stop.is_set():
                        wire.send(wild, Datagram(Operation.HELLO, 1))
                except OSError:
                    pass

            thread = threading.Thread(target=flood)
            thread.start()
            try:
                started = time.monotonic()
                for _ in range(50):
                    client.place(address).greet()
                assert time.monotonic() - started < SOON
                until(lambda: len(directory.guests()) == 1)
            finally:
                stop.set()
                thread.join()
        until(lambda: "does not take its answer" in caplog.text)  # the thread that serves says so in its own time

    def test_one_that_floods_and_reads(self, directory, address):
        client.put(address, b"k", b"", [])
        stop = threading.Event()

        def flood():
            with dial(directory) as busy:
                while not stop.is_set():
                    for _ in range(20):
                        wire.send(busy, Datagram(Operation.GET, 1, b"k"))
                    for _ in range(20):
                        wire.receive(busy)

        threads = [threading.Thread(target=flood) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            started = time.monotonic()
            for _ in range(20):
                client.place(address).greet()
            assert time.monotonic() - started < 2 * SOON
        finally:
            stop.set()
            for thread in threads:
                thread.join()


class TestWithoutDescriptors:
    def test_newcomers_are_turned_away_and_told(self, directory, scarce, caplog):
        with dial(directory) as guest, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as newcomer:
            assert ask(guest, Operation.HELLO).kind == Status.OK
            newcomer.settimeout(PATIENCE)
            scarce(0)
            newcomer.connect(str(directory.home / server.SOCKET))
            assert wire.receive(newcomer).token == wire.UNASKED
            assert wire.receive(newcomer) is None
            assert ask(guest, Operation.HELLO).kind == Status.OK
        assert "no descriptors left" in caplog.text

    def test_the_client_says_so(self, directory, address, scarce):
        client.place(address).greet()
        client.place(address).close()
        until(lambda: not directory.guests())
        scarce(1)  # for its socket, and none for the other end
        with pytest.raises(ChannelBroken, match=f"process {os.getpid()} has no descriptors left.*ulimit"):
            client.place(address).greet()

    def test_the_thread_does_not_spin(self, directory, scarce, few, caplog):
        """Not even where another thread has the descriptor that was kept for turning newcomers away."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as newcomer, dial(directory) as guest:
            assert ask(guest, Operation.HELLO).kind == Status.OK
            newcomer.settimeout(PATIENCE)
            directory._close_spare()
            taken = scarce(0)
            newcomer.connect(str(directory.home / server.SOCKET))
            until(lambda: directory._deaf)
            used = time.process_time()
            assert not threading.Event().wait(0.5)
            assert time.process_time() - used < 0.1, "it spins"
            assert ask(guest, Operation.HELLO).kind == Status.OK
            while taken:
                os.close(taken.pop())
            until(lambda: not directory._deaf)
            with dial(directory) as later:  # the first may be turned away: not all were free yet when it was heard
                assert ask(later, Operation.HELLO).kind == Status.OK

    def test_what_cannot_be_kept_is_refused(self, directory, pipe, scarce):
        with dial(directory) as guest:
            assert ask(guest, Operation.HELLO).kind == Status.OK
            scarce(1)
            answer = ask(guest, Operation.PUT, b"k", fds=pipe)
            assert (answer.kind, answer.token) == (Status.REFUSED, 1)
            assert directory._shelf.get(b"k") is None
            with pytest.raises(ChannelBroken, match="ulimit"):
                directory.put(b"k", b"", [0] * 5)
            assert ask(guest, Operation.HELLO).kind == Status.OK

    def test_what_cannot_be_had_says_why(self, directory, address, pipe, scarce):
        client.put(address, b"k", b"", pipe)
        scarce(1)
        with pytest.raises(ChannelBroken, match="this process has no descriptors left"):
            client.get(address, b"k")

    @pytest.mark.parametrize("left", range(3))
    def test_a_directory_that_cannot_be_made_leaves_nothing(self, left, home, scarce):
        taken = scarce(left)
        with pytest.raises(ChannelBroken, match="Too many open files"):
            Directory(home)
        again = [os.open(os.devnull, os.O_RDONLY) for _ in range(left)]
        taken += again
        with pytest.raises(OSError, match="Too many open files"):
            os.open(os.devnull, os.O_RDONLY)


class TestTheEnd:
    def test_close_frees_everything(self, home, pipe):
        before = fds(), threading.active_count()
        directory = Directory(home)
        with dial(directory) as guest:
            ask(guest, Operation.PUT, b"k", fds=pipe)
            directory.put(b"own", b"", pipe, held=True)
            directory.close()
            directory.close()
            assert wire.receive(guest) is None
        assert (fds(), threading.active_count()) == before
        with pytest.raises(ChannelBroken, match="closed"):
            directory.put(b"k", b"", pipe)
        with pytest.raises(ChannelBroken):
            directory.watch(os.dup(pipe[0]), lambda: None)
        assert fds() == before[0]

    def test_settle_frees_everything(self, directory, address, pipe):
        before = fds(), threading.active_count()
        client.put(address, b"k", b"", [])
        own = client.own()
        client.put(str(own.home), b"k", b"", pipe)
        client.settle()
        client.settle()
        until(lambda: not directory.guests())
        assert (fds(), threading.active_count()) == before
        assert not own.home.exists()
        assert client.own() is not own
        client.settle()

    def test_asking_after_the_end(self, directory, address):
        client.place(address).greet()
        directory.close()
        started = time.monotonic()
        with pytest.raises(ChannelBroken, match="nobody answers"):
            client.place(address).greet()
        client.drop(address, b"k")
        assert time.monotonic() - started < SOON

    @pytest.mark.timeout(20)
    def test_a_signal_handler_that_asks_amid_a_question_is_told(self, directory, address, monkeypatch):
        directory.put(b"k", b"words", pinned=True)
        said, receive = [], wire.receive

        def interrupted(sock, flags=0):
            if threading.current_thread() is threading.main_thread():
                for call in (client.get, client.current):
                    with pytest.raises(ChannelBroken, match="signal handler") as error:
                        call(address, b"k") if call is client.get else call(address)
                    said.append(error)
                client.drop(address, b"x")  # a finalizer, which waits until the question is answered
            return receive(sock, flags)

        monkeypatch.setattr(wire, "receive", interrupted)
        assert client.get(address, b"k").content == b"words"
        monkeypatch.undo()
        assert len(said) == 2
        assert client.get(address, b"k").content == b"words"

    @pytest.mark.timeout(20)
    def test_a_signal_handler_closes_it_amid_a_call(self, directory, monkeypatch):
        monkeypatch.setattr(directory, "_lock", Amid(directory, "_lock", directory.close))
        with pytest.raises(ChannelBroken, match="is closed"):
            directory.put(b"k", b"words")
        directory.close()
        assert not directory._thread.is_alive()

    def test_a_mistake_of_its_own_ends_it_for_all_at_once(self, directory, address, monkeypatch):
        """Guests find nobody, instead of waiting for an answer."""
        client.place(address).greet()
        monkeypatch.setattr(threading, "excepthook", lambda args: None)
        monkeypatch.setattr(directory, "_expel_silent", lambda: 1 / 0)
        started = time.monotonic()
        dial(directory).close()  # wakes it
        directory._thread.join(PATIENCE)
        with pytest.raises(ChannelBroken):
            client.place(address).greet()
        assert time.monotonic() - started < SOON

    def test_a_path_that_is_too_long(self, tmp_path):
        long = tmp_path / ("x" * 100)
        long.mkdir(0o700)
        with pytest.raises(ChannelBroken, match="107 is the most"):
            Directory(long)

    def test_no_socket_can_be_made(self, home):
        (home / server.SOCKET).touch()
        with pytest.raises(ChannelBroken, match="Address already in use"):
            Directory(home)


class TestForks:
    def in_child(self, function):
        """Run a function in a forked child and return what it returned, as bytes."""
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.write(writer, function())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            said = file.read()
        os.waitpid(pid, 0)
        return said

    def test_a_child_leaves_the_parents_alone(self, home, pipe):
        before = open_sockets()
        directory = Directory(home)
        address = str(home)
        client.keep(directory)
        try:
            client.put(address, b"k", b"kept", pipe)

            def child():
                sockets = open_sockets()
                assert not client.keeps(address)
                found = client.get(address, b"k")
                return b"%d %s %d" % (sockets, found.content, len(found.fds))

            with dial(directory) as guest:
                ask(guest, Operation.HELLO)
                sockets, content, count = self.in_child(child).split()
                assert (content, count) == (b"kept", b"2")
                answer = ask(guest, Operation.GET, b"k")
                assert answer.content[8:] == b"kept"
                answer.close()
            until(lambda: not directory.guests())
            # The test's own connection stays; nothing but the directory's ends is what the child let go of.
            assert int(sockets) == before + 1
        finally:
            client.unkeep(directory)
            directory.close()

    def test_a_child_has_a_connection_of_its_own(self, directory, address):
        client.put(address, b"k", b"kept", [])
        assert self.in_child(lambda: client.get(address, b"k").content) == b"kept"
        until(lambda: len(directory.guests()) == 1)
        assert client.get(address, b"k").content == b"kept"
        assert client.current(address) == 1


def open_sockets():
    with os.scandir("/proc/self/fd") as entries:
        return sum(entry.is_symlink() and str(Path(entry.path).readlink()).startswith("socket:") for entry in entries)


class TestAsking:
    def test_many_threads_at_once(self, directory, address, pipe):
        directory.handle("same", lambda guest, content: (content, ()))
        wrong, done = [], []

        def work(number):
            for turn in range(30):
                said = b"%d %d" % (number, turn)
                if client.call(address, "same", said).content != said:
                    wrong.append(said)
                client.put(address, said, said, pipe[:1])
                found = client.take(address, said)
                os.close(found.fds.pop())
                if found.content != said:
                    wrong.append(said)
            done.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(done) == list(range(12))
        assert not wrong
        assert len(directory.guests()) == 1

    def test_an_interruption_in_the_middle(self, directory, address, monkeypatch):
        """The answer to the question that was interrupted is not taken for that to the next."""
        client.put(address, b"k", b"words", [])
        receive = wire.receive

        def interrupted(sock, *flags):
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            return receive(sock, *flags)

        monkeypatch.setattr(wire, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.get(address, b"other")
        monkeypatch.setattr(wire, "receive", receive)
        assert client.get(address, b"k").content == b"words"

    def test_a_finalizer_in_the_middle(self, directory, address, monkeypatch):
        """Garbage is collected at any moment, also while this thread asks, and what is collected drops what it used."""
        client.put(address, b"k", b"", [])
        client.put(address, b"other", b"", [])
        send, inside = wire.send, []

        def collecting(sock, datagram, *flags):
            if not inside and datagram.kind == Operation.HELLO:
                inside.append(True)
                client.drop(address, b"k")
            send(sock, datagram, *flags)

        monkeypatch.setattr(wire, "send", collecting)
        client.place(address).greet()
        client.place(address).greet()
        assert directory.users(b"k") == []
        assert directory.users(b"other") == [os.getpid()]

    def test_one_that_does_not_answer(self, directory, address, monkeypatch):
        monkeypatch.setattr(place, "PATIENCE", 0.3)
        release = threading.Event()
        directory.handle("wait", lambda guest, content: (bytes(release.wait(PATIENCE)), ()))
        try:
            with pytest.raises(ChannelBroken, match=r"did not answer within 0\.3 s"):
                client.call(address, "wait")
            with pytest.raises(ChannelBroken, match=r"did not answer within 0\.3 s"):
                client.place(address).greet()
            client.drop(address, b"k")  # waits for nothing
        finally:
            release.set()
        client.place(address).greet()

    def test_more_than_can_wait_to_be_let_in(self, home, monkeypatch):
        """Who comes while many wait is let in when it is their turn."""
        monkeypatch.setattr(server, "_BACKLOG", 1)
        directory = Directory(home)
        release, failed = threading.Event(), []
        directory.handle("wait", lambda guest, content: (bytes(release.wait(PATIENCE)), ()))

        def visit():
            there = Place(str(home))
            try:
                there.greet()
            except ChannelBroken as error:
                failed.append(error)
            finally:
                there.close()

        blocker = threading.Thread(target=client.call, args=(str(home), "wait"))
        visitors = [threading.Thread(target=visit) for _ in range(8)]
        try:
            blocker.start()
            for thread in visitors:
                thread.start()
            assert not threading.Event().wait(0.2)
            assert any(thread.is_alive() for thread in visitors)
        finally:
            release.set()
            for thread in (blocker, *visitors):
                thread.join(PATIENCE)
            directory.close()
        assert not failed

    def test_one_that_answers_another_question(self, home):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(home / server.SOCKET))
            listener.listen()

            def lie():
                sock, _ = listener.accept()
                with sock:
                    request = wire.receive(sock)
                    wire.send(sock, Datagram(Status.OK, request.token + 1, fds=[0]))
                    assert wire.receive(sock) is None

            liar = threading.Thread(target=lie)
            liar.start()
            with pytest.raises(ChannelBroken, match="makes no sense"):
                client.place(str(home)).greet()
            liar.join(PATIENCE)

    def test_another_home_is_found(self, home, pipe):
        address = str(home)
        first = Directory(home)
        assert client.put(address, b"k", b"", pipe) == 1
        first.close()
        assert client.current(address) == -1
        (home / server.SOCKET).unlink()
        second = Directory(home)
        try:
            with pytest.raises(ChannelBroken, match="does not know"):
                client.get(address, b"k")
            assert client.put(address, b"k", b"", pipe) == client.current(address) == 2
        finally:
            second.close()
            client.place(address).close()

    def test_a_relay_of_errno(self, address, monkeypatch):
        def refuse(*_):
            raise OSError(errno.ETOOMANYREFS, "Too many references")

        monkeypatch.setattr(wire, "send", refuse)
        with pytest.raises(ChannelBroken, match="Too many references"):
            client.place(address).greet()


@pytest.fixture(autouse=True)
def _quiet(caplog):
    """Warnings of the directory are for those who run it; tests look at them where they matter."""
    caplog.set_level(logging.WARNING, "ipcbus.directory")


def test_what_is_to_be_called_later_is_called_once_and_never_by_one_that_is_closed(directory):
    calls, called = [], threading.Event()

    def call():
        calls.append(threading.current_thread().name)
        called.set()

    for _ in range(3):
        directory.later(0.05, call)
    assert called.wait(PATIENCE)
    called.clear()
    directory.later(0, call)
    assert called.wait(PATIENCE), "it was not called again"
    assert calls == ["ipcbus-directory"] * 2
    directory.close()
    directory.later(0, call)
    assert not directory._due
