"""A bus: names, configuration, addresses, and what happens when its home ends."""

import os
import pickle
import stat
import threading
import time
from pathlib import Path

import pytest

import ipcbus
from ipcbus.directory import client
from ipcbus.plumbing import rundir
from ipcbus.testing import guests
from ipcbus.testing.subject import Subject

PATIENCE = 10
SOON = 1.0
"""Seconds within which a death must show."""
METHODS = ["fork", "spawn", "forkserver"]


def _schemes():
    for scheme in ipcbus.transports:
        try:
            capabilities = ipcbus.transports.get(scheme).capabilities
        except ipcbus.TransportUnavailable as error:
            yield pytest.param(scheme, marks=pytest.mark.skip(reason=str(error)))
        else:
            if capabilities.crosses_processes and not capabilities.addressable:
                yield scheme


SCHEMES = list(_schemes())


@pytest.fixture
def subject():
    with Subject("pipe:", "forkserver") as made:
        yield made
    rundir.reap(rundir.base())  # what killed homes left: as the next process does that makes a channel


@pytest.fixture
def address(tmp_path):
    """Where a bus may be kept: short enough for a socket."""
    base = rundir.create()
    yield str(base / "b")
    rundir.remove(base)


class Guest:
    """Another process that does what it is told."""

    def __init__(self, subject, method=None):
        self.child = subject.start(guests.obey, start_method=method)

    def __call__(self, *words):
        self.child.say(words)
        said = self.child.hear()
        if isinstance(said, ipcbus.IpcbusError):
            raise said
        return said


@pytest.fixture
def guest(subject):
    return Guest(subject)


@pytest.fixture
def home(subject, address):
    made = Guest(subject)
    assert made("home", None, address) == address
    return made


class TestNames:
    @pytest.mark.parametrize("name", ["", ".x", "-x", ":x", "a b", "a/b", "ä", "x" * 201, "a\n"])
    def test_what_cannot_be_one(self, name):
        with ipcbus.Bus() as bus, pytest.raises(ipcbus.ConfigError, match="cannot name a channel"):
            bus.channel(name)

    @pytest.mark.parametrize("name", ["a", "0", "_", "a.b:c-d", "x" * 200])
    def test_what_can(self, name):
        with ipcbus.Bus({"transport": "pipe:"}) as bus:
            bus.channel(name).send(1)
            assert bus.channel(name).recv(timeout=0) == 1

    def test_the_configuration_says_how(self):
        config = {"transport": "pipe:", "channels": {"jobs": "queue:?capacity=7", "news": {"url": "pipe:", "capacity": 3}}}
        with ipcbus.Bus(config) as bus:
            assert (bus.channel("jobs").url, bus.channel("jobs").stats().capacity) == ("queue:", 7)
            assert bus.channel("news").stats().capacity == 3
            assert bus.channel("other").url == "pipe:"

    def test_every_other_name(self):
        with ipcbus.Bus({"channels": {"*": "pipe:?capacity=5"}, "bus": {"strict": True}}) as bus:
            assert bus.channel("anything").stats().capacity == 5

    def test_a_file_says_it(self, tmp_path):
        (tmp_path / "bus.toml").write_text('[channels]\njobs = "pipe:?capacity=9"\n[bus]\nstrict = true\n')
        with ipcbus.Bus(tmp_path / "bus.toml") as bus:
            assert bus.channel("jobs").stats().capacity == 9

    @pytest.mark.parametrize(
        ("config", "said"),
        [
            ({"channels": {"orders": "pipe:"}, "bus": {"strict": True}}, "no channel 'ordres'.*did you mean 'orders'"),
            ({"channels": {"ordres": {"url": "pipe:", "capacty": 1}}}, r"channels\.ordres.*'capacty'.*'capacity'"),
            ({"channels": {"ordres": "pipe:?capacty=1"}}, r"channels\.ordres.*'capacty'.*'capacity'"),
            ({"channels": {"ordres": {"url": "pipe:", "capacity": "many"}}}, r"channels\.ordres.*capacity"),
            ({"channels": {"ordres": "inproc:"}}, r"channels\.ordres.*between threads only"),
        ],
    )
    def test_a_wrong_one_names_the_key(self, config, said):
        with ipcbus.Bus(config) as bus, pytest.raises(ipcbus.IpcbusError, match=said):
            bus.channel("ordres")

    @pytest.mark.parametrize("wrong", [5, ["pipe:"], None])
    def test_what_is_neither_url_nor_table(self, wrong):
        with ipcbus.Bus({"channels": {"orders": wrong}}) as bus, pytest.raises(ipcbus.ConfigError, match=r"channels\.orders"):
            bus.channel("orders")

    def test_an_unknown_key(self):
        with pytest.raises(ipcbus.ConfigError, match=r"'stric'.*'strict'"):
            ipcbus.Bus({"bus": {"stric": True}})

    def test_a_guest_is_told_the_same(self, guest):
        with ipcbus.Bus({"channels": {"orders": "pipe:"}, "bus": {"strict": True}}) as bus:
            guest("connect", bus.address)
            with pytest.raises(ipcbus.ConfigError, match="did you mean 'orders'"):
                guest("open", "ordres")

    def test_threads_that_ask_at_once_get_one_channel(self):
        with ipcbus.Bus({"transport": "pipe:"}) as bus:
            got = []
            barrier = threading.Barrier(8)

            def ask():
                barrier.wait(PATIENCE)
                got.append(bus.channel("x"))

            threads = [threading.Thread(target=ask) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            assert len(got) == 8
            assert len(set(got)) == 1


class TestOneNameOneChannel:
    """For as long as the home lives, whoever closes it."""

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_the_home_closes_its_ends(self, scheme, subject):
        first, second = Guest(subject), Guest(subject)
        with ipcbus.Bus({"transport": f"{scheme}:"}) as bus:
            for each in (first, second):
                each("connect", bus.address)
            first("open", "x")
            bus.channel("x").close()
            first("send", "x", "from the first")
            assert second("recv", "x") == "from the first"
            second("close", "x")
            first("send", "x", "again")
            assert bus.channel("x").recv(timeout=PATIENCE) == "again"
            first("end")
            second("end")

    @pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme in ("pipe", "queue")])
    def test_messages_wait_for_who_comes_later(self, scheme, guest):
        with ipcbus.Bus({"transport": f"{scheme}:"}) as bus:
            with bus.channel("jobs") as jobs:
                jobs.send("one")
            with bus.channel("jobs") as jobs:
                jobs.send("two")
            guest("connect", bus.address)
            assert [guest("recv", "jobs"), guest("recv", "jobs")] == ["one", "two"]
            guest("end")


class TestAddresses:
    @pytest.mark.parametrize("method", METHODS)
    def test_given(self, method, subject):
        with ipcbus.Bus({"transport": "pipe:"}) as bus:
            guest = Guest(subject, method)
            guest("connect", bus.address)
            guest("send", "x", 1)
            assert bus.channel("x").recv(timeout=PATIENCE) == 1
            guest("end")

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_of_the_environment(self, method, subject):
        with ipcbus.Bus() as bus:
            guest = Guest(subject, method)
            assert guest("connect") == bus.address
            guest("end")

    @pytest.mark.parametrize("method", METHODS)
    def test_pickled(self, method, subject):
        with ipcbus.Bus({"transport": "pipe:"}) as bus:
            guest = Guest(subject, method)
            guest("take", bus)
            guest("send", "x", 1)
            assert bus.channel("x").recv(timeout=PATIENCE) == 1
            guest("end")

    def test_in_the_process_itself(self):
        with ipcbus.Bus({"transport": "pipe:"}) as bus:
            other = ipcbus.Bus.connect()
            other.channel("x").send(1)
            again = pickle.loads(pickle.dumps(bus))
            assert bus.channel("x").recv(timeout=PATIENCE) == 1
            assert again.address == other.address == bus.address
            other.close()
            assert again.channel("x") == bus.channel("x")

    def test_what_was_left_is_not_meant_any_more(self, subject, address, monkeypatch):
        monkeypatch.setattr(client._here, "attached", {})
        monkeypatch.delenv(client.ADDRESS, raising=False)
        homes = Guest(subject), Guest(subject)
        first, second = (home("home", None, address + end) for home, end in zip(homes, "12", strict=True))
        with ipcbus.Bus.connect(first) as bus:
            again = pickle.loads(pickle.dumps(bus))
            with ipcbus.Bus.connect(second):
                assert ipcbus.Bus.connect().address == second
            assert client.attached() == second  # there is an object for it that was not closed
            client.detach(second)
            assert ipcbus.Bus.connect().address == first
            client.detach(first)
        bus.close()  # again
        with ipcbus.Bus.connect() as third:
            assert third.address == first
        again.close()
        with pytest.raises(ipcbus.ConfigError, match="no bus is known here"):
            ipcbus.Bus.connect()
        for home in homes:
            home("end")

    def test_none(self, monkeypatch):
        monkeypatch.delenv(client.ADDRESS, raising=False)
        with pytest.raises(ipcbus.ConfigError, match=r"IPCBUS_ADDRESS.*fork server"):
            ipcbus.Bus.connect()

    def test_relative(self, address, monkeypatch):
        monkeypatch.chdir(Path(address).parent)
        with ipcbus.Bus(address="b") as bus:
            assert bus.address == address
            assert ipcbus.Bus.connect("b").address == address

    def test_nobody_there(self, address):
        with pytest.raises(ipcbus.ChannelBroken, match=r"nobody answers at .*No such file.*start the process"):
            ipcbus.Bus.connect(address)

    @pytest.mark.parametrize("unfit", ["open to others", "a link", "a file"])
    def test_one_that_is_not_private(self, unfit, address, tmp_path):
        place = Path(address)
        if unfit == "open to others":
            place.mkdir(0o755)
        elif unfit == "a link":
            tmp_path.chmod(0o700)
            place.symlink_to(tmp_path)
        else:
            place.touch(0o600)
        with pytest.raises((ipcbus.InsecureConfiguration, ipcbus.ChannelBroken)):
            ipcbus.Bus(address=address)
        with pytest.raises(ipcbus.InsecureConfiguration):
            ipcbus.Bus.connect(address)

    def test_too_long(self, address):
        with pytest.raises(ipcbus.ChannelBroken, match="107 is the most"):
            ipcbus.Bus(address=address + "x" * 100)
        assert not Path(address).exists()

    def test_somewhere_that_is_not_there(self, address):
        with pytest.raises(ipcbus.ChannelBroken, match="there is no"):
            ipcbus.Bus(address=address + "/c/d")

    def test_what_others_have_there_stays(self, address):
        place = Path(address)
        place.mkdir(0o700)
        (place / "precious").write_text("kept")
        with ipcbus.Bus(address=address):
            assert sorted(path.name for path in place.iterdir()) == ["claim", "directory", "ipcbus-topics", "precious"]
            with pytest.raises(ipcbus.ConfigError):
                ipcbus.Bus(address=address)
        assert [path.name for path in place.iterdir()] == ["precious"]

    def test_what_is_made_is_private_and_goes(self, address):
        with ipcbus.Bus(address=address):
            assert stat.S_IMODE(Path(address).stat().st_mode) == 0o700
            assert stat.S_IMODE((Path(address) / "directory").stat().st_mode) == 0o600
        assert not Path(address).exists()

    def test_the_variable_is_what_it_was(self, monkeypatch):
        monkeypatch.setenv(client.ADDRESS, "before")
        first, second, third = ipcbus.Bus(), ipcbus.Bus(), ipcbus.Bus()
        assert os.environ[client.ADDRESS] == third.address
        second.close()  # not in turn
        third.close()
        assert os.environ[client.ADDRESS] == first.address == client.attached()
        first.close()
        assert os.environ[client.ADDRESS] == "before"

    def test_the_variable_that_was_not_set_is_not(self, monkeypatch):
        monkeypatch.delenv(client.ADDRESS, raising=False)
        with ipcbus.Bus():
            pass
        assert client.ADDRESS not in os.environ


class TestClosing:
    def test_twice_and_use_after(self):
        bus = ipcbus.Bus({"transport": "pipe:"})
        channel = bus.channel("x")
        bus.close()
        bus.close()
        with pytest.raises(ipcbus.ChannelClosed, match="closed"):
            bus.channel("x")
        with pytest.raises(ipcbus.ChannelClosed):
            channel.send(1)
        assert not Path(bus.address).exists()

    def test_a_guest_that_leaves_closes_for_nobody_else(self, guest):
        with ipcbus.Bus({"transport": "pipe:"}) as bus:
            guest("connect", bus.address)
            guest("send", "x", 1)
            guest("end")
            guest.child.process.join(PATIENCE)
            assert bus.channel("x").recv(timeout=PATIENCE) == 1

    def test_while_somebody_asks(self, subject):
        """Every answer is a channel or an error, and closing waits for nobody."""
        bus = ipcbus.Bus({"transport": "pipe:"})
        other = ipcbus.Bus.connect(bus.address)
        errors = []

        def ask():
            try:
                while True:
                    other.channel("x").close()
            except ipcbus.IpcbusError as error:
                errors.append(error)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert not threading.Event().wait(0.1)
        started = time.monotonic()
        bus.close()
        assert time.monotonic() - started < SOON
        for thread in threads:
            thread.join(PATIENCE)
        assert len(errors) == 4
        assert all(isinstance(error, (ipcbus.ChannelBroken, ipcbus.ChannelClosed)) for error in errors), errors


class TestTwoHomes:
    def test_the_second_is_refused_with_the_pid(self, home, address):
        with pytest.raises(ipcbus.ConfigError, match=rf"process {home.child.pid} is the home .*Bus\.connect\('{address}'\)"):
            ipcbus.Bus(address=address)
        with ipcbus.Bus.connect(address) as bus:
            assert bus.channel("x").url

    def test_it_takes_over_from_one_that_was_killed(self, home, guest, address):
        guest("connect", address)
        guest("open", "x")
        home.child.kill()
        with ipcbus.Bus({"transport": "pipe:"}, address=address) as bus:
            guest("send", "y", "to the new home")  # the guest was not started again
            assert bus.channel("y").recv(timeout=PATIENCE) == "to the new home"
            guest("end")

    def test_it_takes_over_although_a_child_of_the_other_lives(self, subject, address):
        """A forked child inherits the claim, which must not go on with it."""
        home = Guest(subject, "fork")
        home.child.say(("home", None, address))
        home.child.hear()
        orphan = subject.start(guests.make_orphan, address + "2", start_method="fork")
        pid = orphan.hear()
        try:
            orphan.kill()
            with ipcbus.Bus(address=address + "2"):
                pass
        finally:
            os.kill(pid, 9)
        home.child.kill()
        with ipcbus.Bus(address=address):
            pass

    def test_one_after_another(self, address):
        for _ in range(20):
            with ipcbus.Bus(address=address) as bus:
                assert bus.address == address

    def test_never_two_at_once(self, address):
        """Homes come and go at one address; what a bus says under it is always its own."""
        wrong, turns = [], []

        def keep(number):
            end = time.monotonic() + 1
            while time.monotonic() < end:
                try:
                    with ipcbus.Bus(address=address):
                        inside.append(number)
                        if len(inside) != 1:
                            wrong.append(list(inside))
                        turns.append(number)
                        inside.remove(number)
                except ipcbus.ConfigError:
                    pass  # the other is

        inside = []
        threads = [threading.Thread(target=keep, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert turns
        assert not wrong


class TestTheHomeDies:
    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_open_channels_go_on(self, scheme, subject, address):
        home, one, two = Guest(subject), Guest(subject), Guest(subject)
        home("home", {"transport": f"{scheme}:"}, address)
        for guest in (one, two):
            guest("connect", address)
        held = ipcbus.Bus.connect(address).channel("x")
        one("send", "x", "before")
        assert held.recv(timeout=PATIENCE) == "before"
        home.child.kill()
        child = subject.start(guests.receive_role, ipcbus_channel := subject.open())
        assert child.hear() == "ready"
        # The channel itself can still be sent on: from here, as its home is gone.
        ipcbus_channel.send(held.sender, timeout=PATIENCE)
        assert child.result() == "limited"
        assert held.recv(timeout=PATIENCE) == "sent"
        held.close()

    def test_new_attaches_fail_at_once_and_say_what_to_do(self, home, guest, address):
        guest("connect", address)
        guest("open", "x")
        home.child.kill()
        for attach in (lambda: guest("open", "y"), lambda: ipcbus.Bus.connect(address)):
            started = time.monotonic()
            with pytest.raises(ipcbus.ChannelBroken, match="start the process again that keeps the bus"):
                attach()
            assert time.monotonic() - started < SOON
        guest("end")

    @pytest.mark.skipif("zmq" not in SCHEMES, reason="zmq is not installed")
    @pytest.mark.parametrize("close", [True, False], ids=["home closes", "home is killed"])
    def test_what_zmq_has_in_the_file_system_goes_in_the_end(self, close, subject, address):
        place = rundir.base()
        before = set(place.glob("ipcbus-*"))
        home = Guest(subject)
        home("home", None, address)
        maker = subject.start(guests.send_own_channel, address, jobs := subject.open(), "zmq:", {})
        assert maker.hear() == "sent"
        maker.result()
        got = jobs.recv(timeout=PATIENCE)["nested"][0]
        assert set(place.glob("ipcbus-*")) - before, "the channel should have outlived its maker"
        got.close()
        if close:
            home.child.say(("end",))
            home.child.result()
        else:
            home.child.kill()
            rundir.reap(place)
        assert not {path for path in place.glob("ipcbus-*") if path not in before and path != Path(address).parent}


class TestBusesInBuses:
    @pytest.mark.parametrize("method", METHODS)
    def test_a_child_of_a_home_keeps_another(self, method, subject, address):
        with ipcbus.Bus({"transport": "pipe:"}) as bus:
            bus.channel("x").send("outer")
            child = Guest(subject, method)
            child("home", {"transport": "pipe:"}, address)
            child("send", "x", "inner")
            inner = ipcbus.Bus.connect(address)
            assert inner.channel("x").recv(timeout=PATIENCE) == "inner"
            assert bus.channel("x").recv(timeout=PATIENCE) == "outer"
            child.child.say(("end",))
            child.child.result()
            assert bus.channel("y").url == "pipe:"
            assert Path(bus.address).exists()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_end_that_comes_again_is_open_although_the_first_was_closed(scheme, subject):
    """As every worker does that answers through the channel in each job, and closes that."""
    with ipcbus.open(f"{scheme}:") as answers, ipcbus.open("pipe:") as jobs:
        child = subject.start(guests.answer_and_close, jobs.receiver)
        for number in range(3):
            jobs.send((number, answers.sender), timeout=PATIENCE)
            assert answers.recv(timeout=PATIENCE) == number
        jobs.shutdown()
        child.result()


_ONE_SIDE = """
import ipcbus
kept = obj.channel(where)  # else all would be made anew
for number in range(3):
    with obj.channel(where).sender as sender:
        sender.send(number)
        sender.send(b"bytes")
    try:
        kept.send(b"bytes")
    except ipcbus.ChannelClosed:
        pass
    else:
        raise AssertionError("it was not closed")
    assert [kept.recv(10), kept.recv_message(10).body] == [number, b"bytes"]
kept.receiver.close()
obj.channel(where).send("last")
with obj.channel(where).receiver as receiver:
    assert receiver.recv(10) == "last"
"""


def test_a_side_that_was_closed_is_open_when_the_channel_is_asked_for_again(child):
    with ipcbus.Bus({"channels": {"*": "pipe:"}}) as bus:
        exec(_ONE_SIDE, {"obj": bus, "where": "home"})
        child.run("where = 'guest'" + _ONE_SIDE, bus)
