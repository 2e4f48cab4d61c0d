from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import socket
import subprocess
import sys
import urllib.request
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ipcbus
from ipcbus.cli.app import app
from ipcbus.plumbing.kin import members
from ipcbus.testing import mutants
from ipcbus.testing.__main__ import main as contract
from ipcbus.transport import Capabilities, Guarantees

COMMAND = Path(sys.executable).with_name("ipcbus")
TIMEOUT = 30


@pytest.fixture
def run():
    """Run the command in this process."""
    runner = CliRunner()
    return lambda *words: runner.invoke(app, words, prog_name="ipcbus", env={"COLUMNS": "200"})


def ipcbus_command(*words, **options):
    """Run the command as people do."""
    return subprocess.run([COMMAND, *words], capture_output=True, text=True, timeout=TIMEOUT, check=False, **options)


def python(code, **options):
    done = [sys.executable, "-c", code]
    return subprocess.run(done, capture_output=True, text=True, timeout=TIMEOUT, check=False, **options)


class TestCommand:
    def test_version(self, run):
        assert run("--version").stdout == f"ipcbus {ipcbus.__version__}\n"

    def test_help_names_every_command(self, run):
        said = run("--help")
        assert said.exit_code == 0
        assert all(
            word in said.stdout for word in ("transports", "doctor", "check", "demo", "serve", "bus", "send", "recv", "tap")
        )

    @pytest.mark.parametrize("words", [["--version"], ["--help"], ["check", "os:sep"], ["transports", "inproc"]])
    def test_a_full_disk_is_told_in_one_line(self, words):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [COMMAND, *words], stdout=full, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT, check=False
            )
        assert done.returncode == 1
        assert done.stderr == "ipcbus: what was to be printed could not be written: No space left on device\n"

    @pytest.mark.parametrize(
        "words",
        [
            *(["check", "os:sep", "--timeout", much] for much in ("inf", "1e12")),
            ["doctor", "--timeout", "inf"],
            ["bus", "ls", "--interval", "inf"],
            ["bench", "--limit", "inf"],
            ["bench", "--seconds", "inf"],
        ],
        ids=" ".join,
    )
    def test_a_time_that_nobody_can_wait_for_is_a_usage_error(self, run, words):
        said = run(*words)
        assert said.exit_code == 2
        assert f"Invalid value for '{words[-2]}'" in said.stderr

    def test_a_wrong_command_is_a_usage_error(self, run):
        said = run("frobnicate")
        assert said.exit_code == 2
        assert "frobnicate" in said.stderr

    def test_as_a_process(self):
        done = ipcbus_command("--version")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"ipcbus {ipcbus.__version__}\n", "")

    def test_as_a_module(self, tmp_path):
        command = [sys.executable, "-m", "ipcbus", "transports", "pipe"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "yes" in next(line for line in done.stdout.splitlines() if "works here" in line)

    @pytest.mark.parametrize("missing", ["typer", "rich"])
    def test_without_its_extra_it_says_what_to_install(self, missing):
        done = python(f"import sys; sys.modules[{missing!r}] = None\nfrom ipcbus.cli import main; main()")
        assert done.returncode == 1
        assert done.stderr == f"ipcbus: the command line needs {missing}; try: pip install 'ipcbus[cli]'\n"

    @pytest.mark.parametrize(
        ("words", "missing", "said"),
        [
            (("serve", "app.toml"), ("websockets", "msgspec"), "websockets and msgspec; try: pip install 'ipcbus[web]'"),
            (("demo",), ("msgspec", "sqlalchemy"), "msgspec and sqlalchemy; try: pip install 'ipcbus[db,web]'"),
            (("demo", "--check"), ("websockets",), "websockets; try: pip install 'ipcbus[web]'"),
        ],
    )
    def test_without_another_extra_it_says_all_that_is_missing(self, words, missing, said):
        code = f"import sys; sys.modules.update(dict.fromkeys({missing!r})); sys.argv[1:] = {words!r}\n"
        done = python(f"{code}from ipcbus.cli import main; main()")
        assert done.returncode == 1
        assert done.stderr == f"ipcbus: {words[0]} needs {said}\n"

    def test_a_mistake_of_ours_is_not_taken_for_a_missing_extra(self):
        done = python("import sys; sys.modules['ipcbus.registry'] = None\nfrom ipcbus.cli import main; main()")
        assert "Traceback" in done.stderr
        assert "pip install" not in done.stderr

    def test_starting_it_loads_nothing_that_only_one_command_needs(self):
        heavy = "{'asyncio', 'multiprocessing', 'zmq', 'websockets', 'rich.table', 'importlib.metadata'}"
        done = python(f"import sys, ipcbus.cli.app; print(sorted({heavy} & set(sys.modules)))")
        assert done.stdout == "[]\n", done.stderr


@pytest.fixture
def schemes():
    """Return what is installed, perhaps offered by two distributions; other tests register schemes of their own here."""
    return sorted({entry.name for entry in entry_points(group="ipcbus.transports")})


class TestTransports:
    """In processes of their own: a survey opens channels, and what these have of names stays until the process ends."""

    def test_the_table_has_every_scheme_and_every_capability(self, schemes):
        done = ipcbus_command("transports", env={**os.environ, "COLUMNS": "100"})
        assert done.returncode == 0, done.stderr
        assert done.stdout.split("\n")[1].split() == schemes
        rows = {line[:24].strip() for line in done.stdout.splitlines()}
        assert {field.name.replace("_", " ") for field in dataclasses.fields(Capabilities)} <= rows

    def test_a_narrow_terminal_cuts_nothing(self, schemes):
        done = ipcbus_command("transports", env={**os.environ, "COLUMNS": "30"})
        assert done.stdout.split("\n")[0].split() == schemes

    def test_an_ordinary_terminal_is_wide_enough(self):
        done = ipcbus_command("transports", env={**os.environ, "COLUMNS": "80"})
        assert max(map(len, done.stdout.splitlines())) <= 80

    def test_json_says_what_the_classes_declare(self, schemes):
        rows = {row["scheme"]: row for row in json.loads(ipcbus_command("transports", "--json").stdout)}
        assert list(rows) == schemes
        for scheme, row in rows.items():
            transport = ipcbus.transports.get(scheme)
            assert row["works"] is True, row["problem"]
            assert row["capabilities"] == dataclasses.asdict(transport.capabilities)
            assert row["guarantees"] == dataclasses.asdict(transport.guarantees)

    def test_one_of_them_with_its_guarantees(self, run):
        said = run("transports", "inproc:")
        assert said.exit_code == 0, said.output
        assert all(field.name.replace("_", " ") in said.stdout for field in dataclasses.fields(Guarantees))
        assert ipcbus.transports.get("inproc").guarantees.order in said.stdout

    def test_auto_is_what_it_is_here(self, run, monkeypatch):
        monkeypatch.setenv("IPCBUS_TRANSPORT", "inproc:")
        assert "inproc:" in run("transports", "auto:").stdout

    def test_an_unknown_scheme_is_one_line_and_code_2(self, run):
        said = run("transports", "inprocc")
        assert said.exit_code == 2
        assert said.stdout == ""
        assert said.stderr == "ipcbus: no transport 'inprocc' is installed; did you mean 'inproc'?\n"

    def test_what_is_missing_or_broken_is_a_row(self, tmp_path):
        """A plugin of somebody else's, installed for real, with its driver missing; and one that is plain wrong."""
        info = tmp_path / "acme-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\nProvides-Extra: acme\n")
        (info / "entry_points.txt").write_text("[ipcbus.transports]\nacme = acme_bus:Acme\nbroken = acme_broken:Broken\n")
        (tmp_path / "acme_bus.py").write_text("import a_driver_that_is_not_here\n")
        (tmp_path / "acme_broken.py").write_text("1 / 0\n")
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = ipcbus_command("transports", "--json", env=environment)
        assert done.returncode == 0, done.stderr
        rows = {row["scheme"]: row for row in json.loads(done.stdout)}
        assert not rows["acme"]["works"]
        assert "a_driver_that_is_not_here" in rows["acme"]["problem"]
        assert "pip install 'acme[acme]'" in rows["acme"]["problem"]
        assert "ZeroDivisionError" in rows["broken"]["problem"]
        assert rows["inproc"]["works"]
        table = ipcbus_command("transports", env={**environment, "COLUMNS": "250"})
        assert table.returncode == 0
        assert "acme: transport 'acme' cannot be used" in table.stdout
        assert ipcbus_command("transports", "acme", env=environment).returncode == 1


class TestCheck:
    def test_what_travels(self, run):
        said = run("check", "fractions:Fraction")
        assert said.exit_code == 0, said.output
        assert "travels" in said.stdout

    def test_what_does_not(self, run):
        said = run("check", "threading:main_thread")
        assert said.exit_code == 1
        assert "main_thread(): thread" in said.stderr

    def test_by_another_serializer(self, run):
        said = run("check", "fractions:Fraction", "--serializer", "json")
        assert said.exit_code == 1
        assert "json cannot encode" in said.stderr
        assert run("check", "string:digits", "--serializer", "json").exit_code == 0
        assert run("check", "string:digits", "--serializer", "jsn").exit_code == 2

    def test_what_only_travels_with_ipcbus(self, tmp_path):
        """A channel and a socket, which the fresh process gets by their descriptors."""
        (tmp_path / "mine.py").write_text(
            "import ipcbus, socket\ndef job(): return {'reply_to': ipcbus.open('pipe:'), 'socket': socket.socketpair()[0]}\n"
        )
        done = ipcbus_command("check", "mine:job", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert "travels" in done.stdout

    def test_a_target_that_is_none(self, run):
        said = run("check", "fractions")
        assert said.exit_code == 2
        assert said.stderr.startswith("ipcbus: ")
        assert said.stderr.count("\n") == 1

    def test_the_working_directory_is_looked_in(self, tmp_path):
        (tmp_path / "here.py").write_text("example = {'job': 1}\n")
        done = ipcbus_command("check", "here:example", cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    def test_interrupted_it_goes_quietly(self, tmp_path):
        # Not in a system call: a signal that comes just before one does not end it.
        (tmp_path / "slow.py").write_text("print('up', flush=True)\nwhile True: pass\n")
        process = subprocess.Popen(
            [COMMAND, "check", "slow:x"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        with process:
            try:
                assert process.stdout.readline() == "up\n"
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=TIMEOUT)
            finally:
                process.kill()
        assert (process.returncode, out, err) == (130, "", "")


@pytest.fixture
def start(tmp_path):
    """Start the command, and end it with its children whatever happens."""
    started = []

    def start(*words):
        process = subprocess.Popen(
            [COMMAND, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=TIMEOUT)


def url_in(line):
    return next(word for word in line.split() if word.startswith("http://"))


def get(url):
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=TIMEOUT) as answer:
        return answer.read()


class TestDemo:
    def test_the_page_is_served_until_interrupted(self, start):
        process = start("demo", "--port", "0", "--transport", "pipe:")
        said = process.stdout.readline()
        assert b"<html" in get(url_in(said))
        family = [os.pidfd_open(pid) for pid in members("group", process.pid)]
        assert len(family) > 3  # itself, two front ends, the service
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, out, err) == (0, "", "")
        for descriptor in family:
            assert select.select([descriptor], [], [], TIMEOUT)[0], "a process is left"
            os.close(descriptor)

    def test_check_says_ok_per_transport(self, run):
        said = run("demo", "--check", "--transport", "pipe:")
        assert said.exit_code == 0, said.output
        (row,) = [line.split() for line in said.stdout.splitlines() if line.split()[:1] == ["pipe:"]]
        assert row[1] == "ok"
        assert int(row[2]) > 0

    def test_check_fails_when_a_row_does(self, run):
        said = run("demo", "--check", "--transport", "inproc:", "--transport", "pipe:")
        assert said.exit_code == 1
        rows = [line.split() for line in said.stdout.splitlines()]
        assert [row[:2] for row in rows if len(row) > 3 and row[0].endswith(":")] == [["inproc:", "FAILED"], ["pipe:", "ok"]]
        assert said.stderr == "ipcbus: the chat failed over inproc:\n"

    def test_a_database_that_nothing_speaks_to_is_named_in_one_line(self, run):
        said = run("demo", "--port", "0", "--database", "nope://")
        assert said.exit_code == 2
        assert said.stderr.splitlines() == ["ipcbus: database: no SQLAlchemy dialect is called 'nope'"]

    def test_check_cuts_nothing_that_failed(self):
        url = "Y" * 100  # as long as a path of a socket
        done = ipcbus_command("demo", "--check", "--transport", url, env={**os.environ, "COLUMNS": "60"})
        assert done.returncode == 1
        assert done.stdout.count("Y") == 2 * len(url), done.stdout

    def test_one_chat_has_one_transport(self, run):
        said = run("demo", "--transport", "pipe:", "--transport", "queue:")
        assert said.exit_code == 2
        assert "--check takes several" in said.stderr

    def test_a_port_that_is_taken(self, run):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            said = run("demo", "--transport", "pipe:", "--port", str(taken.getsockname()[1]))
        assert said.exit_code == 2
        assert "another program listens there" in said.stderr


class TestServe:
    def test_a_file_of_the_users_own(self, start, tmp_path):
        (tmp_path / "page.html").write_text("mine")
        (tmp_path / "mine.py").write_text("from ipcbus.web import Service\nclass Mine(Service):\n    path = '/mine'\n")
        (tmp_path / "app.toml").write_text(
            "transport = 'pipe:'\n[front]\nbind = '127.0.0.1:0'\npage = 'page.html'\n[services.mine]\nfactory = 'mine:Mine'\n"
        )
        process = start("serve", "app.toml")
        assert get(url_in(process.stdout.readline())) == b"mine"
        process.terminate()
        out, err = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, out, err) == (0, "", "")

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            (None, "cannot be read"),
            ("[front", "is not valid TOML"),
            ("[frnot]\n", "did you mean 'front'?"),
            ("", "'services' is required"),
        ],
    )
    def test_a_file_that_will_not_do(self, run, tmp_path, text, problem):
        file = tmp_path / "app.toml"
        if text is not None:
            file.write_text(text)
        said = run("serve", str(file))
        assert said.exit_code == 2
        assert said.stderr.startswith(f"ipcbus: {file}: ")
        assert problem in said.stderr
        assert said.stderr.count("\n") == 1


class TestContract:
    """``python -m ipcbus.testing``, which needs no extra."""

    def test_one_check(self, capsys):
        assert contract(["inproc:", "-k", "fifo"]) == 0
        out = capsys.readouterr().out
        assert "fifo" in out
        assert out.endswith("all passed\n")

    def test_a_check_that_fails_says_what_it_demands(self, capsys):
        mutants.register()
        assert contract(["mutant-duplicate:", "-k", "empty"]) == 1
        out = capsys.readouterr().out
        assert "FAILED\n    Nothing is a message like any other: None and every empty value arrive, once each.\n" in out
        assert out.endswith("1 failed\n")

    def test_that_nothing_was_checked_is_not_a_success(self, capsys):
        assert contract(["inproc:", "-k", "fiffo"]) == 2
        said = capsys.readouterr()
        assert (said.out, said.err) == ("", "no check of inproc: has 'fiffo' in its name\n")
