"""Private directories: who may be in them, and what becomes of those whose home was killed."""

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ipcbus.bus import home as bus_home
from ipcbus.errors import ChannelBroken, InsecureConfiguration
from ipcbus.plumbing import rundir

PATIENCE = 20
HOME = """
import sys
from ipcbus.plumbing import rundir
print(rundir.create(), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def runtime(tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def home(runtime):
    """Another process with a private directory; killed at the end at the latest."""
    with subprocess.Popen([sys.executable, "-c", HOME], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            process.directory = Path(process.stdout.readline().strip())
            yield process
        finally:
            process.kill()


def end(process):
    process.kill()
    process.wait(PATIENCE)


def test_is_for_this_user_alone(runtime):
    directory = rundir.create()
    assert directory.parent == runtime
    assert directory.stat().st_mode & 0o7777 == 0o700
    rundir.check(directory)


@pytest.mark.parametrize("unfit", ["missing", "relative", "open to others"])
def test_falls_back_where_the_runtime_directory_is_unfit(unfit, runtime, tmp_path, monkeypatch):
    fallback = tmp_path / "fallback"
    fallback.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(fallback))
    if unfit == "open to others":
        runtime.chmod(0o755)
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime / "no") if unfit == "missing" else "here")
    assert rundir.create().parent == fallback


def test_says_what_to_do_where_nothing_can_be_made(runtime, monkeypatch):
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ChannelBroken, match="XDG_RUNTIME_DIR"):
        rundir.create()


@pytest.mark.parametrize("what", ["a directory", "a hold", "a bus"])
def test_says_what_lacks_where_it_is_a_descriptor(what, runtime, no_descriptors):
    directory = rundir.create()
    use = {
        "a directory": rundir.create,
        "a hold": lambda: rundir.hold(directory),
        "a bus": lambda: bus_home.Home(None, str(runtime / "bus")),
    }[what]
    with no_descriptors(), pytest.raises(ChannelBroken) as caught:
        use()
    assert str(caught.value).endswith("Too many open files; close some descriptors or raise 'ulimit -n', and try again")


def test_refuses_what_others_may_enter():
    directory = rundir.create()
    directory.chmod(0o750)
    with pytest.raises(InsecureConfiguration, match="0750"):
        rundir.hold(directory)


def test_refuses_a_link(runtime):
    directory = rundir.create()
    moved = runtime / "elsewhere"
    directory.rename(moved)
    directory.symlink_to(moved)
    with pytest.raises(InsecureConfiguration, match="replaced"):
        rundir.check(directory)


def test_refuses_a_file(runtime):
    file = runtime / "file"
    file.touch(0o600)
    with pytest.raises(InsecureConfiguration):
        rundir.check(file)


def test_refuses_another_owner(monkeypatch):
    directory = rundir.create()
    monkeypatch.setattr("os.geteuid", lambda: directory.stat().st_uid + 1)
    with pytest.raises(InsecureConfiguration, match="belongs to user"):
        rundir.check(directory)


def test_says_when_it_is_gone():
    directory = rundir.create()
    rundir.remove(directory)
    rundir.remove(directory)
    with pytest.raises(ChannelBroken, match="gone"):
        rundir.hold(directory)


def test_what_a_living_home_made_stays(home, runtime):
    assert rundir.reap(runtime) == []
    assert home.directory.exists()


def test_what_a_killed_home_made_goes(home, runtime):
    end(home)
    assert rundir.reap(runtime) == [home.directory]
    assert not home.directory.exists()


def test_looking_leaves_what_reaping_would_remove(home, runtime):
    assert rundir.leftovers(runtime) == []
    end(home)
    assert rundir.leftovers(runtime) == rundir.leftovers(runtime) == [home.directory]
    assert rundir.reap(runtime) == [home.directory]


@pytest.mark.parametrize("spared", [True, False])
def test_who_only_looks_removes_nothing_when_it_makes_one(spared, home):
    end(home)
    code = f"from ipcbus.plumbing import rundir\nif {spared}: rundir.spare()\nrundir.remove(rundir.create())"
    subprocess.run([sys.executable, "-c", code], timeout=PATIENCE, check=True)
    assert home.directory.exists() == spared


def test_what_somebody_holds_stays(home, runtime):
    held = rundir.hold(home.directory)
    try:
        end(home)
        assert rundir.reap(runtime) == []
        assert home.directory.exists()
    finally:
        os.close(held)
    assert rundir.reap(runtime) == [home.directory]


def test_what_a_living_home_made_can_be_held_while_others_reap(home, runtime):
    over = threading.Event()

    def reap():
        while not over.is_set():
            assert not rundir.reap(runtime)

    reaping = threading.Thread(target=reap)
    reaping.start()
    try:
        for _ in range(500):
            os.close(rundir.hold(home.directory))
    finally:
        over.set()
        reaping.join()


def test_the_next_home_reaps(home, monkeypatch):
    end(home)
    monkeypatch.setattr(rundir, "_reaped_by", 0)
    rundir.create()
    assert not home.directory.exists()


@pytest.mark.parametrize("said", [b"", b"12", b"12 x y"])
def test_what_is_just_being_made_stays(said, runtime):
    directory = rundir.create()
    (directory / "home").write_bytes(said)
    assert rundir.reap(runtime) == []
    (directory / "home").unlink()
    assert rundir.reap(runtime) == []


@pytest.mark.parametrize("said", [None, b"", b"12"])
def test_what_was_being_made_by_a_process_that_was_killed_goes(said, home, runtime):
    if said is None:
        (home.directory / "home").unlink()
    else:
        (home.directory / "home").write_bytes(said)
    assert rundir.reap(runtime) == []
    end(home)
    assert rundir.reap(runtime) == [home.directory]


def test_a_pid_that_was_given_again_is_not_the_home(runtime):
    directory = rundir.create()
    (directory / "home").write_text(f"{os.getpid()} 1")
    assert rundir.reap(runtime) == [directory]


def test_a_path_that_is_too_long_is_refused(runtime):
    room = rundir.MAX_SOCKET_PATH - len(os.fsencode(runtime)) - 1
    assert len(os.fsencode(rundir.socket_path(runtime, "s" * room))) == rundir.MAX_SOCKET_PATH
    with pytest.raises(ChannelBroken, match="108 bytes"):
        rundir.socket_path(runtime, "s" * (room + 1))


def test_a_directory_that_cannot_be_handed_on_stays_that_of_its_home(home, runtime):
    rundir.entrust(home.directory, os.getpid())
    end(home)  # who made it
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # as on a full disk: nothing can be written
    try:
        with pytest.raises(ChannelBroken, match="handed"):
            rundir.entrust(home.directory, os.getpid())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert rundir.leftovers(runtime) == []
    rundir.remove(home.directory)
