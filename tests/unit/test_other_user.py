"""Another user of the machine can neither attach to a bus nor see what it has, not even where directories are open to all."""

import os
import socket
import stat
from pathlib import Path

import pytest

import ipcbus
from ipcbus.directory import client, server, wire
from ipcbus.directory.wire import Datagram, Operation
from ipcbus.plumbing import rundir

NOBODY = 65534
PATIENCE = 10

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user for a moment")


@pytest.fixture
def reachable():
    """A place that every user can reach, for as long as a test runs."""
    base = rundir.create()
    ancestors = [base, base.parent]
    before = [stat.S_IMODE(path.stat().st_mode) for path in ancestors]
    for path in ancestors:
        path.chmod(0o755)
    yield base
    for path, mode in zip(ancestors, before, strict=True):
        path.chmod(mode)
    rundir.remove(base)


@pytest.fixture
def bus(reachable):
    with ipcbus.Bus({"transport": "pipe:"}, address=str(reachable / "b")) as made:
        made.channel("orders").send("secret")
        yield made


def as_nobody(function, *args):
    """Run a function in a process of another user, and return what it returned: a text."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        said = "it failed before it became another user"
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            said = function(*args)
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(writer, said.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


def attach(address):
    return ipcbus.Bus.connect(address).channel("orders").recv(timeout=1)


def look(address):
    return "".join(path.name + path.read_text() for path in Path(address).iterdir())


def knock(address):
    """Go straight for the socket, as a program would that is not ours."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(Path(address) / server.SOCKET))
        try:
            wire.send(sock, Datagram(Operation.CALL, 1, b"channel", b"orders"))
        except BrokenPipeError:
            return "turned away"
        try:
            answer = wire.receive(sock)
        except ConnectionResetError:
            return "turned away"
        return "turned away" if answer is None else f"answered: {answer}"


def force_open(address):
    Path(address).chmod(0o777)
    (Path(address) / server.SOCKET).chmod(0o777)


def test_where_nobody_can_reach_it(reachable, bus):
    reachable.chmod(0o700)
    assert "Permission denied" in as_nobody(attach, bus.address)
    assert as_nobody(knock, bus.address).startswith("PermissionError")


def test_where_the_directory_can_be_seen(bus):
    assert as_nobody(attach, bus.address).startswith(f"InsecureConfiguration: {bus.address} belongs to user 0")
    assert as_nobody(knock, bus.address).startswith("PermissionError")
    assert as_nobody(look, bus.address).startswith("PermissionError")
    assert bus.channel("orders").recv(timeout=PATIENCE) == "secret"


def test_where_only_the_directory_was_opened_by_force(bus):
    Path(bus.address).chmod(0o777)
    assert as_nobody(knock, bus.address).startswith("PermissionError")


def test_where_everything_was_opened_by_force(bus, caplog):
    force_open(bus.address)
    for _ in range(20):
        assert as_nobody(knock, bus.address) == "turned away"
    assert f"of user {NOBODY} tried to connect" in caplog.text
    assert as_nobody(attach, bus.address).startswith("InsecureConfiguration")
    Path(bus.address).chmod(0o700)
    assert ipcbus.Bus.connect(bus.address).channel("orders").recv(timeout=PATIENCE) == "secret"


def test_ours_refuses_what_others_own(reachable):
    theirs = reachable / "theirs"
    theirs.mkdir(0o700)
    os.chown(theirs, NOBODY, NOBODY)
    for use in (lambda: ipcbus.Bus.connect(str(theirs)), lambda: ipcbus.Bus(address=str(theirs))):
        with pytest.raises(ipcbus.InsecureConfiguration, match=f"belongs to user {NOBODY}"):
            use()


def test_ours_refuses_a_home_of_another_user(reachable):
    """One that got its socket into a directory of ours."""
    place = reachable / "b"
    place.mkdir()
    place.chmod(0o777)
    ready, done = socket.socketpair()
    pid = os.fork()
    if not pid:
        try:
            os.setuid(NOBODY)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            listener.bind(str(place / server.SOCKET))
            listener.listen()
            done.send(b"listening")
            done.recv(1)
        finally:
            os._exit(0)
    try:
        ready.settimeout(PATIENCE)
        assert ready.recv(20) == b"listening"
        place.chmod(0o700)
        with pytest.raises(ipcbus.InsecureConfiguration, match=f"process {pid} of user {NOBODY}"):
            client.place(str(place)).greet()
    finally:
        ready.send(b"!")
        os.waitpid(pid, 0)
        ready.close()
        done.close()
