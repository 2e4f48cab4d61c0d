"""What ``ipcbus doctor`` finds, when all is well and when it is not."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import ipcbus
from ipcbus.cli.app import app
from ipcbus.doctor import examine as examining
from ipcbus.doctor import machine, places, trial
from ipcbus.doctor.finding import Finding, size, split
from ipcbus.errors import TransportUnavailable
from ipcbus.plumbing import rundir
from ipcbus.selection import best

COMMAND = Path(sys.executable).with_name("ipcbus")
PROGRAMS = Path(__file__).parent / "programs"
TIMEOUT = 30
HOME = "import sys\nfrom ipcbus.plumbing import rundir\nprint(rundir.create(), flush=True)\nsys.stdin.read()"
BUS = "import sys, ipcbus\nwith ipcbus.Bus() as bus: print(bus.address, flush=True); sys.stdin.read()"


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    """Return a place of this test's own for private directories. Its path is short: a socket's has 107 bytes."""
    place = Path(tempfile.mkdtemp(prefix="p"))
    for name in ("TMPDIR", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(place))
    for name in ("IPCBUS_ADDRESS", "IPCBUS_CONFIG", "IPCBUS_TRANSPORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.chdir(tmp_path)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def start():
    """Start a program that prints a directory, and return both."""
    started = []

    def start(program):
        process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in started:
        process.communicate(timeout=TIMEOUT)


@pytest.fixture
def living(start):
    """A private directory whose process runs; to be asked for before a leftover, for it would remove that."""
    _, directory = start(HOME)
    return directory


@pytest.fixture
def leftover(start):
    """A private directory whose process was killed."""
    process, directory = start(HOME)
    process.kill()
    process.wait(TIMEOUT)
    return directory


@pytest.fixture
def proc(monkeypatch, tmp_path):
    """Write files that the kernel is to seem to have."""
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")

    def write(name, text):
        file = tmp_path / "proc" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    return write


@pytest.fixture
def ailing(monkeypatch):
    """Return the module of transports that do not work, importable by its name in every process of a trial."""
    monkeypatch.syspath_prepend(PROGRAMS)
    spec = importlib.util.spec_from_file_location("ailing", PROGRAMS / "ailing.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ailing", module)
    spec.loader.exec_module(module)
    return module


def command(*words, **options):
    return subprocess.run([COMMAND, "doctor", *words], capture_output=True, text=True, timeout=TIMEOUT, check=False, **options)


def one(findings):
    (finding,) = findings
    return finding


def by_subject(findings):
    return {finding.subject: finding for finding in findings}


def limited(name, soft, hard, function):
    """Return the one finding of a function in a process with a limit of its own."""
    code = (
        "import resource, pickle, sys\nfrom ipcbus.doctor import machine\n"
        f"resource.setrlimit(resource.{name}, ({soft}, {hard}))\n"
        f"sys.stdout.buffer.write(pickle.dumps(list(machine.{function}())))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=TIMEOUT, check=True)
    return one(pickle.loads(done.stdout))


class TestMachine:
    def test_versions(self):
        found = by_subject(machine.versions())
        assert found["ipcbus"].said.startswith(ipcbus.__version__)
        assert sys.executable in found["Python"].said

    @pytest.mark.parametrize(
        ("system", "release", "state"),
        [
            ("Linux", "6.8.0-45-generic", "ok"),
            ("Linux", "5.3", "ok"),
            ("Linux", "5.10.0+", "ok"),
            ("Linux", "5.2.21", "problem"),
            ("Linux", "4.19.0-rc1", "problem"),
            ("Darwin", "23.1.0", "problem"),
        ],
    )
    def test_kernel(self, monkeypatch, system, release, state):
        monkeypatch.setattr("platform.system", lambda: system)
        monkeypatch.setattr("platform.release", lambda: release)
        found = one(machine.kernel())
        assert (found.state, found.said) == (state, f"{system} {release}")
        assert (found.advice is None) == (state == "ok")

    @pytest.mark.parametrize(("methods", "state"), [(["fork", "spawn"], "note"), (["forkserver", "spawn", "fork"], "ok")])
    def test_start_method(self, monkeypatch, methods, state):
        monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: methods)
        found = one(machine.start_method())
        assert found.state == state
        assert found.said.startswith(methods[0] + ",")

    def test_looking_at_the_start_method_settles_nothing(self):
        code = (
            "import multiprocessing as mp\nfrom ipcbus.doctor import machine\nlist(machine.start_method())\n"
            "mp.set_start_method('spawn')"  # raises once it is settled
        )
        subprocess.run([sys.executable, "-c", code], timeout=TIMEOUT, check=True)

    @pytest.mark.parametrize(
        ("soft", "hard", "state", "advice"),
        [
            (1024, 2048, "ok", None),
            (512, 2048, "note", "ulimit -n 2048"),
            (48, 2048, "problem", "ulimit -n 2048"),
            (48, 48, "problem", "LimitNOFILE"),
        ],
    )
    def test_descriptors(self, soft, hard, state, advice):
        found = limited("RLIMIT_NOFILE", soft, hard, "descriptors")
        assert found.state == state
        assert found.said.startswith(f"{soft} for each process, which it may raise to {hard}; ")
        assert found.advice is None if advice is None else advice in found.advice

    def test_descriptors_in_use_are_counted(self):
        before = one(machine.descriptors()).said
        with Path(os.devnull).open(), Path(os.devnull).open():
            now = one(machine.descriptors()).said
        count = [int(said.rpartition("; ")[2].split()[0]) for said in (before, now)]
        assert count[1] == count[0] + 2

    @pytest.mark.parametrize(("soft", "state"), [(65536, "ok"), (4096, "note")])
    def test_locked_memory(self, soft, state):
        found = limited("RLIMIT_MEMLOCK", soft, 65536, "locked_memory")
        assert (found.state, found.said) == (state, f"{size(soft)} for each process, which it may raise to 64 KiB")

    @pytest.mark.parametrize(
        ("blocks", "free", "mounted", "access", "state", "said"),
        [
            (1 << 20, 1 << 19, True, True, "ok", "4 GiB, of which 2 GiB are free"),
            (1 << 20, 1 << 19, False, True, "note", "on a disk"),
            (1 << 14, 1 << 14, True, True, "note", "little for shared arrays"),
            (1 << 20, 10, True, True, "problem", "40 KiB are free"),
            (1 << 20, 1 << 19, True, False, "problem", "may not write"),
        ],
    )
    def test_shared_memory(self, monkeypatch, proc, blocks, free, mounted, access, state, said):
        proc("self/mounts", f"proc /proc proc rw 0 0\ntmpfs {'/dev/shm' if mounted else '/run'} tmpfs rw 0 0\n")
        monkeypatch.setattr("os.statvfs", lambda _: SimpleNamespace(f_frsize=4096, f_blocks=blocks, f_bavail=free))
        monkeypatch.setattr("os.access", lambda *_: access)
        found = one(machine.shared_memory())
        assert found.state == state
        assert said in found.said
        assert (found.advice is None) == (state == "ok")

    def test_no_shared_memory(self, monkeypatch, tmp_path):
        monkeypatch.setattr(machine, "SHM", tmp_path / "shm")
        found = one(machine.shared_memory())
        assert found.state == "problem"
        assert "No such file" in found.said
        assert found.advice.startswith("mount -t tmpfs")

    def limits(self, proc, wmem=4 << 20, pipe=1 << 20, pages=16384):
        proc("sys/net/core/wmem_max", f"{wmem}\n")
        proc("sys/fs/pipe-max-size", f"{pipe}\n")
        proc("sys/fs/pipe-user-pages-soft", f"{pages}\n")
        return by_subject(machine.kernel_limits())

    def test_kernel_limits_that_do(self, proc):
        found = self.limits(proc)
        assert {finding.state for finding in found.values()} == {"ok"}
        assert len(found) == 3
        assert self.limits(proc, pages=0)["fs.pipe-user-pages-soft"].state == "ok"

    def test_kernel_limits_that_transports_would_exceed(self, proc):
        found = self.limits(proc, wmem=212992, pipe=65536, pages=1024)
        assert {finding.state for finding in found.values()} == {"note"}
        assert "about 553 small messages" in found["net.core.wmem_max"].said
        # What a channel asks for: half of socket_bytes, which Linux doubles.
        assert found["net.core.wmem_max"].advice == "sysctl -w net.core.wmem_max=2097152"
        assert found["fs.pipe-max-size"].advice == "sysctl -w fs.pipe-max-size=262144"
        after = self.limits(proc, wmem=2097152, pipe=262144, pages=4096)
        assert {finding.state for finding in after.values()} == {"ok"}

    def test_kernel_limits_that_cannot_be_read(self, proc):
        found = list(machine.kernel_limits())
        assert [finding.state for finding in found] == ["note"] * 3
        assert all("cannot be read" in finding.said for finding in found)

    def test_limits_of_a_transport_that_hangs_are_left_out(self, proc):
        assert set(by_subject(machine.kernel_limits(without=["unix"]))) == {"fs.pipe-max-size", "fs.pipe-user-pages-soft"}


class TestRuntimeDirectory:
    def test_one_that_fits(self, place):
        found = by_subject(places.runtime_directory())
        assert [finding.state for finding in found.values()] == ["ok"] * 3
        assert found["XDG_RUNTIME_DIR"].said == str(place)
        assert found["runtime directory"].said.startswith(f"{place}: for this user alone")

    @pytest.mark.parametrize(
        "unfit", ["not set", "is not an absolute path", "No such file", "has mode 0755", "is not a directory"]
    )
    def test_one_that_does_not(self, unfit, place, monkeypatch, tmp_path):
        other = tmp_path / "other"
        if unfit == "is not a directory":
            other.touch()
        elif unfit == "has mode 0755":
            other.mkdir()
            other.chmod(0o755)
        if unfit == "not set":
            monkeypatch.delenv("XDG_RUNTIME_DIR")
        else:
            monkeypatch.setenv("XDG_RUNTIME_DIR", "here" if unfit == "is not an absolute path" else str(other))
        found = by_subject(places.runtime_directory())["XDG_RUNTIME_DIR"]
        assert found.state == "note"
        assert unfit in found.said
        assert f"{place} is used instead" in found.said
        assert "0700" in found.advice

    def test_one_that_may_not_be_written_to(self, monkeypatch):
        monkeypatch.setattr("os.access", lambda *_: False)
        found = by_subject(places.runtime_directory())["runtime directory"]
        assert (found.state, "may not write" in found.said) == ("problem", True)

    @pytest.mark.parametrize("room", [{"f_bavail": 0}, {"f_favail": 0}])
    def test_one_that_is_full(self, monkeypatch, room):
        state = {"f_frsize": 4096, "f_bavail": 9, "f_files": 9, "f_favail": 9}
        monkeypatch.setattr("os.statvfs", lambda _: SimpleNamespace(**state))
        assert by_subject(places.runtime_directory())["runtime directory"].state == "ok"
        state.update(room)
        found = by_subject(places.runtime_directory())["runtime directory"]
        assert (found.state, "is full" in found.said) == ("problem", True)

    def test_one_in_which_others_can_rename(self, place, monkeypatch):
        monkeypatch.delenv("XDG_RUNTIME_DIR")
        place.chmod(0o1777)
        assert by_subject(places.runtime_directory())["runtime directory"].state == "ok"
        place.chmod(0o777)
        found = by_subject(places.runtime_directory())["runtime directory"]
        assert (found.state, found.advice) == ("problem", f"chmod +t {place}")

    def test_the_length_that_is_a_problem_is_the_one_that_fails(self, place, monkeypatch):
        """With the longest pid; this process's may be shorter."""
        spare = rundir.MAX_SOCKET_PATH - len(os.fsencode(place / "x" / places._LONGEST_NAME)) + 1
        for length, state in ((spare, "ok"), (spare + 1, "problem")):
            directory = place / ("d" * length)
            directory.mkdir(mode=0o700)
            monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
            assert by_subject(places.runtime_directory())["socket paths"].state == state
            path = directory / places._LONGEST_NAME
            if state == "ok":
                rundir.socket_path(path.parent, path.name)
            else:
                with pytest.raises(ipcbus.ChannelBroken):
                    rundir.socket_path(path.parent, path.name)


class TestLeftovers:
    def test_none(self, living):
        assert one(places.leftovers()) == one(places.leftovers(clean=True)) == Finding("leftovers", "ok", "none")
        assert living.exists()

    def test_looking_leaves_them(self, leftover):
        for _ in range(2):
            found = one(places.leftovers())
            assert found.state == "note"
            assert found.said == f"1 of killed processes: {leftover}"
            assert "--clean" in found.advice
        assert leftover.exists()

    def test_cleaning_removes_them_and_nothing_else(self, living, leftover, place):
        other = place / "ipcbus-not-ours"
        other.mkdir(mode=0o755)
        found = one(places.leftovers(clean=True))
        assert found == Finding("leftovers", "ok", f"removed 1 of killed processes: {leftover}")
        assert not leftover.exists()
        assert living.exists()
        assert other.exists()

    def test_what_somebody_holds_is_none(self, leftover):
        held = rundir.hold(leftover)
        try:
            assert one(places.leftovers(clean=True)).said == "none"
        finally:
            os.close(held)
        assert leftover.exists()


class TestBuses:
    def test_none(self):
        assert one(places.buses()) == Finding("buses", "ok", "none that says where it is")

    def test_one(self, start, monkeypatch):
        process, address = start(BUS)
        monkeypatch.setenv("IPCBUS_ADDRESS", str(address))
        found = by_subject(places.buses())
        assert found["buses"].said == f"1: {address} (process {process.pid})"
        assert found["IPCBUS_ADDRESS"] == Finding("IPCBUS_ADDRESS", "ok", str(address))

    def test_an_address_without_a_bus(self, monkeypatch, place):
        monkeypatch.setenv("IPCBUS_ADDRESS", str(place / "gone"))
        found = by_subject(places.buses())["IPCBUS_ADDRESS"]
        assert found.state == "problem"
        assert "there is no bus at" in found.said
        assert "unset IPCBUS_ADDRESS" in found.advice


class TestConfiguration:
    def test_none(self):
        assert one(places.configuration()) == Finding("configuration", "ok", "none")
        assert one(places.automatic()) == Finding("auto:", "ok", f"{best({}).scheme}:, the best that is installed")

    def test_a_file(self, tmp_path):
        (tmp_path / "ipcbus.toml").write_text('transport = "pipe:?capacity=7"\n')
        assert one(places.configuration()).said == "ipcbus.toml (in this directory)"
        assert one(places.automatic()).said == "pipe:?capacity=7, says ipcbus.toml"

    def test_a_file_elsewhere_and_a_variable_above_it(self, tmp_path, monkeypatch):
        file = tmp_path / "other.toml"
        file.write_text('transport = "pipe:"\n')
        monkeypatch.setenv("IPCBUS_CONFIG", str(file))
        monkeypatch.setenv("IPCBUS_TRANSPORT", "queue:")
        assert one(places.configuration()).said == f"{file} (IPCBUS_CONFIG names it)"
        assert one(places.automatic()).said == "queue:, says IPCBUS_TRANSPORT"

    @pytest.mark.parametrize(
        ("text", "said"), [("[", "is not valid TOML"), ("trnsport = 'a:'", "unknown key"), (None, "cannot be read")]
    )
    def test_a_file_that_will_not_do(self, tmp_path, monkeypatch, text, said):
        file = tmp_path / "other.toml"
        monkeypatch.setenv("IPCBUS_CONFIG", str(file))
        if text is not None:
            file.write_text(text)
        for found in (one(places.configuration()), one(places.automatic())):
            assert found.state == "problem"
            assert said in found.said
            assert found.advice

    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("ppie:", "auto: is 'ppie:', says IPCBUS_TRANSPORT: no transport 'ppie'"),
            ("nonsense of mine", "not a channel URL"),
            ("pipe:?capacty=7", "unknown option 'capacty'"),
            ("zmq+tcp:", "names no host and port"),
        ],
    )
    def test_a_variable_that_will_not_do(self, monkeypatch, url, said):
        monkeypatch.setenv("IPCBUS_TRANSPORT", url)
        found = one(places.automatic())
        assert found.state == "problem"
        assert said in found.said
        assert found.advice


def gone(pid):
    """Wait for the end of a process that need not be a child."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], TIMEOUT)[0])
    finally:
        os.close(fd)


class TestTrial:
    @pytest.mark.parametrize("scheme", sorted(entry.name for entry in entry_points(group="ipcbus.transports")))
    def test_what_works(self, scheme):
        tried = trial.attempt(scheme, timeout=20)
        assert tried.problem is None
        assert 0 < tried.milliseconds < 20_000
        found = examining.transport(tried)
        assert (found.subject, found.state, found.advice) == (f"{scheme}:", "ok", None)
        assert ("another thread" in found.said) == (scheme == "inproc")

    @pytest.mark.parametrize(
        ("name", "said", "advice"),
        [
            ("Raises", "ChannelBroken: there is no room", "make some"),
            ("Surprises", "ZeroDivisionError: division by zero", None),
            ("Dies", "ended with exit code 3 (out of paper) while making a channel", None),
            ("Killed", "was killed by SIGSEGV while making a channel", None),
            ("SenderRaises", "ChannelBroken: the door is shut", "open it"),
            ("Confuses", "another message arrived than was sent", None),
        ],
    )
    def test_what_does_not(self, ailing, name, said, advice):
        tried = trial.attempt("ailing", getattr(ailing, name), timeout=20)
        assert tried.milliseconds is None
        found = examining.transport(tried)
        assert found.state == "problem"
        assert said in found.said
        assert found.advice == advice

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("Loses", "the message that was sent had not arrived after"),
            ("SenderHangs", "the message that was sent had not arrived after"),
            ("SenderDies", "the child process that was to send died with exit code 7"),
        ],
    )
    def test_what_never_arrives(self, ailing, name, said):
        tried = trial.attempt("ailing", getattr(ailing, name), timeout=8)  # a fifth is for ending
        assert said in tried.problem

    def test_one_that_needs_an_address_gets_one(self, ailing):
        assert trial.attempt("ailing", ailing.WantsAddress, timeout=20).problem is None

    def test_one_that_hangs_is_killed_with_all_that_it_started(self, ailing, monkeypatch, tmp_path):
        monkeypatch.setenv(ailing.PIDS, str(tmp_path / "pids"))
        timeout = 3
        tried = trial.attempt("ailing", ailing.Hangs, timeout=timeout)
        while tried.hung != "making a channel" or not (tmp_path / "pids").exists():
            timeout *= 2  # on a busy machine it may not have come so far
            tried = trial.attempt("ailing", ailing.Hangs, timeout=timeout)
        assert tried.problem.startswith(f"it hung while making a channel, and was killed after {timeout} s; ")
        assert (tried.hung, examining.transport(tried).state) == ("making a channel", "problem")
        first, second, directory = (tmp_path / "pids").read_text().split()
        assert gone(int(first))
        assert gone(int(second))
        assert not Path(directory).exists()

    def test_trying_removes_no_leftovers(self, leftover):
        assert trial.attempt("zmq", timeout=20).problem is None  # makes a private directory
        assert leftover.exists()

    def test_what_is_not_installed(self):
        error = TransportUnavailable("transport 'x' cannot be used: No module named 'x'; try: pip install 'ipcbus[x]'")
        found = examining.transport(trial.Trial("x", None, "a child process", str(error), missing=True))
        assert (found.state, found.advice) == ("note", "pip install 'ipcbus[x]'")
        assert found.said == "transport 'x' cannot be used: No module named 'x'"


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Install a plugin whose module is this text, for processes started from here."""

    def install(text):
        info = tmp_path / "acme-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\nProvides-Extra: acme\n")
        (info / "entry_points.txt").write_text("[ipcbus.transports]\nacme = acme_bus:Acme\n")
        (tmp_path / "acme_bus.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return install


class TestCommand:
    def test_json(self, start):
        start(BUS)
        done = command("--json")
        found = json.loads(done.stdout)
        assert all(list(finding) == ["subject", "state", "said", "advice"] for finding in found)
        states = {finding["subject"]: finding["state"] for finding in found}
        assert len(states) == len(found)
        assert set(states.values()) <= {"ok", "note"}, done.stdout
        assert done.returncode == 0
        schemes = {f"{entry.name}:" for entry in entry_points(group="ipcbus.transports")}
        subjects = {"Python", "ipcbus", "kernel", "start method", "descriptors", "locked memory", "/dev/shm"}
        assert schemes | subjects | {"runtime directory", "leftovers", "buses", "configuration", "auto:"} <= set(states)

    def test_the_table_has_every_finding_and_its_advice(self, monkeypatch):
        findings = [
            Finding("a[b]", "ok", "fine"),
            Finding("c", "note", "so [so]", "look"),
            Finding("d", "problem", "bad", "do it"),
        ]
        given = {}
        monkeypatch.setattr(examining, "examine", lambda **options: given.update(options) or iter(findings))
        said = CliRunner().invoke(app, ["doctor", "--timeout", "7"], prog_name="ipcbus")
        assert given == {"clean": False, "timeout": 7.0}
        lines = [line.split() for line in said.stdout.splitlines() if line.strip()]
        assert ["a[b]", "ok", "fine"] in lines
        assert ["c", "note", "so", "[so]"] in lines
        assert ["->", "look"] in lines
        assert ["->", "do", "it"] in lines
        assert lines[-1] == ["1", "problem,", "1", "note"]
        assert said.exit_code == 1
        findings.pop()
        said = CliRunner().invoke(app, ["doctor"], prog_name="ipcbus")
        assert said.stdout.splitlines()[-1] == "no problems, 1 note"
        assert said.exit_code == 0

    def test_a_problem_is_exit_code_1(self):
        done = command("--json", env={**os.environ, "IPCBUS_TRANSPORT": "ppie:"})
        assert done.returncode == 1, done.stderr
        assert [row["subject"] for row in json.loads(done.stdout) if row["state"] == "problem"] == ["auto:"]

    def test_a_plugin_whose_driver_is_missing_is_a_note(self, plugin):
        plugin("import a_driver_that_is_not_here\n")
        done = command("--json")
        rows = {row["subject"]: row for row in json.loads(done.stdout)}
        assert rows["acme:"]["state"] == "note"
        assert "a_driver_that_is_not_here" in rows["acme:"]["said"]
        assert rows["acme:"]["advice"] == "pip install 'acme[acme]'"
        assert done.returncode == 0

    def test_a_plugin_that_cannot_be_loaded_is_a_problem_and_the_others_work(self, plugin):
        plugin("1 / 0\n")
        done = command("--json")
        rows = {row["subject"]: row for row in json.loads(done.stdout)}
        assert rows["acme:"]["state"] == "problem"
        assert "ZeroDivisionError" in rows["acme:"]["said"]
        assert rows["unix:"]["state"] == "ok"
        assert done.returncode == 1

    def test_a_plugin_that_hangs_when_it_is_loaded_hangs_nothing_else(self, plugin):
        plugin("import threading\nthreading.Event().wait()\n")
        for timeout in ("3", "20"):
            done = command("--json", "--timeout", timeout)
            rows = {row["subject"]: row for row in json.loads(done.stdout)}
            if "on a very busy machine" not in rows["unix:"]["said"]:
                break
        assert "hung while loading it" in rows["acme:"]["said"]
        assert rows["auto:"]["state"] == "problem"
        assert "acme" in rows["auto:"]["said"]
        assert rows["unix:"]["state"] == "ok"
        assert done.returncode == 1

    def test_nothing_is_removed_without_being_asked(self, living, leftover):
        assert "--clean" in command().stdout
        assert leftover.exists()
        done = command("--clean", "--json")
        rows = {row["subject"]: row for row in json.loads(done.stdout)}
        assert rows["leftovers"] == {
            "subject": "leftovers",
            "state": "ok",
            "said": f"removed 1 of killed processes: {leftover}",
            "advice": None,
        }
        assert not leftover.exists()
        assert living.exists()

    def test_interrupted_it_leaves_no_process(self, ailing, plugin, tmp_path):
        plugin("from ailing import Hangs\nclass Acme(Hangs):\n    scheme = 'acme'\n")
        pids = tmp_path / "pids"
        os.mkfifo(pids)
        paths = os.pathsep.join((str(tmp_path), str(PROGRAMS)))
        environment = {**os.environ, "PYTHONPATH": paths, ailing.PIDS: str(pids)}
        with subprocess.Popen([COMMAND, "doctor", "--timeout", "30"], env=environment, stdout=subprocess.PIPE) as process:
            told = pids.read_text().split()  # when it hangs
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=TIMEOUT)
        assert process.returncode == 130
        assert all(gone(int(pid)) for pid in told[:2])
        assert not Path(told[2]).exists()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (65536, "64 KiB"), (212992, "208 KiB"), (25 << 30, "25 GiB"), (3 << 40, "3 TiB")],
)
def test_size(count, text):
    assert size(count) == text


def test_split():
    assert split("it failed; try: this; or that") == ("it failed", "this; or that")
    assert split("it failed") == ("it failed", None)
