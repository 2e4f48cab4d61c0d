"""Which bus is meant by somebody who does not say."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import ipcbus
from ipcbus.bus.find import find, running
from ipcbus.directory import client

HOME = (
    "import sys, ipcbus\nwith ipcbus.Bus(address=sys.argv[1] or None) as bus: print(bus.address, flush=True); sys.stdin.read()"
)
NO_HOME = (
    "import sys\nfrom ipcbus.directory import client\nprint(client.own().home, flush=True); sys.stdin.read()"  # shares, unnamed
)
TIMEOUT = 20


@pytest.fixture
def place(monkeypatch, tmp_path):
    """Return a place of this test's own for private directories. Its path is short: a socket's has 107 bytes."""
    place = Path(tempfile.mkdtemp(prefix="p"))
    for name in ("TMPDIR", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(place))
    for name in ("IPCBUS_ADDRESS", "IPCBUS_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(client._here, "attached", {})  # as by a test before this one, which connected to a bus
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.chdir(tmp_path)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def start(place):
    started = []

    def start(program, address=""):
        process = subprocess.Popen(
            [sys.executable, "-c", program, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=TIMEOUT)


def test_none(place):
    with pytest.raises(ipcbus.ConfigError, match=r"no bus of yours runs .* IPCBUS_ADDRESS; to start one"):
        find()


def test_the_only_one(start):
    _, address = start(HOME)
    assert find() == address


def test_several_are_listed(start):
    homes = [start(HOME) for _ in range(2)]
    with pytest.raises(ipcbus.ConfigError, match="2 buses of yours run on this machine; choose one:") as caught:
        find()
    for process, address in homes:
        assert f"--address {address}  (process {process.pid}: {sys.executable}" in str(caught.value)
    assert find(homes[1][1]) == homes[1][1]


def test_what_is_no_bus_is_passed_over(start, place):
    """A process that shares without a bus, one that was killed, one that is stopped, and directories of other kinds."""
    start(NO_HOME)
    killed, left = start(HOME)
    killed.kill()
    killed.wait(TIMEOUT)
    assert Path(left).is_dir()
    stopped, _ = start(HOME)
    stopped.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, stopped.pid, os.WSTOPPED)  # it may still run when kill returns
    (place / "ipcbus-other").mkdir(mode=0o700)
    (place / "ipcbus-file").touch()
    _, address = start(HOME)
    assert [bus.address for bus in running()] == [address]
    assert find() == address
    client.settle()


def test_a_directory_that_others_may_enter_is_passed_over(start):
    _, address = start(HOME)
    Path(address).chmod(0o755)
    assert list(running()) == []
    with pytest.raises(ipcbus.InsecureConfiguration, match=r"mode 0755.*for the processes of the user who started it"):
        find(address)
    Path(address).chmod(0o700)


def test_what_is_said_comes_first(start, place, monkeypatch, tmp_path):
    """The argument, the variable, the configuration; then only is looked for one."""
    places = [place / name for name in "abc"]
    for directory in places:
        start(HOME, str(directory))
    _, only = start(HOME)
    assert find() == only
    (tmp_path / "ipcbus.toml").write_text(f"[bus]\naddress = '{places[0]}'\n")
    assert find() == str(places[0])
    (tmp_path / "other.toml").write_text(f"[bus]\naddress = '{places[1]}'\n")
    monkeypatch.setenv("IPCBUS_CONFIG", str(tmp_path / "other.toml"))
    assert find() == str(places[1])
    monkeypatch.setenv("IPCBUS_ADDRESS", str(places[2]))
    assert find() == str(places[2])
    assert find(only) == only
    monkeypatch.chdir(place)
    assert find("a") == str(places[0])


def test_a_configuration_without_an_address_says_nothing(start, tmp_path):
    (tmp_path / "ipcbus.toml").write_text("transport = 'pipe:'\n")
    _, address = start(HOME)
    assert find() == address


def test_an_address_where_nobody_is(place, tmp_path):
    with pytest.raises(ipcbus.ConfigError, match=r"there is no bus at .*nowhere: .*No such file"):
        find(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir(mode=0o700)
    with pytest.raises(ipcbus.ConfigError, match="its home has ended, or has not started yet"):
        find(str(tmp_path / "empty"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_somebody_elses(place):
    directory = place / "theirs"
    directory.mkdir(mode=0o700)
    os.chown(directory, 12345, -1)
    with pytest.raises(ipcbus.InsecureConfiguration, match="belongs to user 12345"):
        find(str(directory))


STRANGER = """
import os, sys
from ipcbus.bus.find import find, running
os.seteuid(12345)
print(list(running()))
for address in sys.argv[1:]:
    try:
        find(address)
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_stranger_is_told_so(place, monkeypatch):
    """Buses of others are passed over where they lie in a place for all, and cannot be reached by their address."""
    everybodys = Path(tempfile.mkdtemp(prefix="it-", dir=place.parents[1]))
    try:
        everybodys.chmod(0o755)
        for name in ("TMPDIR", "XDG_RUNTIME_DIR"):
            monkeypatch.setenv(name, str(everybodys))
        command = [sys.executable, "-c", HOME, ""]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as home:
            address = home.stdout.readline().strip()
            inside = str(Path(address) / "below")
            command = [sys.executable, "-c", STRANGER, address, inside]
            said = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True).stdout.splitlines()
            home.communicate(timeout=TIMEOUT)
    finally:
        shutil.rmtree(everybodys)
    private = "a bus is for the processes of the user who started it"
    assert said == [
        "[]",
        f"InsecureConfiguration {address} belongs to user 0, not to this process's user 12345; {private}",
        f"InsecureConfiguration you may not enter {address}; {private}",
    ]


def test_connect_does_not_look_for_one(start):
    """A program that took the only one would be on another tomorrow."""
    start(HOME)
    with pytest.raises(ipcbus.ConfigError, match="no bus is known here"):
        ipcbus.Bus.connect()
