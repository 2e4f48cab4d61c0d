"""``ipcbus bench`` as people type it: what it prints and writes, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

import ipcbus
from ipcbus.bench import foreign
from ipcbus.cli.app import app
from ipcbus.plumbing.kin import members

COMMAND = Path(sys.executable).with_name("ipcbus")
QUICK = ("--rounds", "1", "--seconds", "0.003", "--size", "64", "--scenario", "one-way")
TIMEOUT = 50


@pytest.fixture
def here(monkeypatch, tmp_path):
    """A directory with a module of the user's."""
    (tmp_path / "shopping.py").write_text(
        "import threading, uuid\nimport numpy\n"
        "def order(): return {'id': 7, 'lines': [['apple', 3], ['pear', 2]]}\n"
        "def sized(size): return {'text': 'x' * size}\n"
        "def locked(): return {'lock': threading.Lock()}\n"
        "def samples(): return {'samples': numpy.arange(8.0), 'missing': float('nan')}\n"
        "def drawn(): return {'id': uuid.uuid4()}\n"
        "def quits(): raise SystemExit\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "shopping", raising=False)
    return tmp_path


@pytest.fixture
def bench(here):
    """Run the command in a process of its own, in that directory."""

    def run(*words, code=0, columns=100):
        env = {**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1"}
        done = subprocess.run([COMMAND, "bench", *words], capture_output=True, text=True, timeout=TIMEOUT, check=False, env=env)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def fails(here):
    """Run the command in this process, and return what it says as it gives up on a wrong command line."""

    def run(*words, code=2):
        said = CliRunner().invoke(app, ["bench", *words], prog_name="ipcbus")
        assert (said.exit_code, said.stdout) == (code, "")
        assert said.stderr.startswith("ipcbus: ")
        assert said.stderr.count("\n") == 1
        return said.stderr

    return run


def test_channels_and_peers_of_one_size(bench):
    done = bench(*QUICK, "--transport", "pipe", "--transport", "unix:")
    assert re.match(r"ipcbus: \d+ cases, 1 round, take about \d+ s\n", done.stderr)
    lines = done.stdout.splitlines()
    assert lines[0] == "one-way: bytes, 64 B"
    assert max(len(line) for line in lines[:20] if "not installed" not in line) <= 100  # a sentence may wrap, a table not
    rows = {line[2:30].strip(): line for line in lines if re.match(r"  \S.*\d", line)}
    assert {"pipe:", "unix:", "multiprocessing.Queue", "multiprocessing.SimpleQueue", "multiprocessing.Pipe"} <= set(rows)
    assert re.search(r" \d+(\.\d\d)?x +\d+(\.\d\d)?x ", rows["pipe:"])
    assert f"ipcbus {ipcbus.__version__}, Python" in done.stdout
    assert "medians of 1 round in turn, 0.003 s each" in done.stdout
    (advised,) = tomllib.loads(lines[-1].strip()).values()
    assert advised in ("pipe:", "unix:")


def test_several_sizes_stand_side_by_side(bench):
    done = bench(*QUICK, "--size", "64KiB", "--transport", "unix:", "--no-peers")
    assert re.search(r"^ +64 B +64 KiB *$", done.stdout, re.MULTILINE)
    assert re.search(r"^  unix: +[\d,]+ +[\d,]+ *$", done.stdout, re.MULTILINE)
    assert "multiprocessing" not in done.stdout


def test_a_narrow_terminal_cuts_nothing(bench):
    wide, narrow = (bench(*QUICK, "--transport", "unix:", "--no-peers", columns=columns).stdout for columns in (200, 30))
    assert wide.splitlines()[2].split() == narrow.splitlines()[1].split() == ["messages/s", "bytes/s", "spread"]


@pytest.mark.parametrize("words", [(), ("--size", "1KiB", "--size", "64KiB", "--size", "1MiB")], ids=["one size", "four"])
@pytest.mark.parametrize("scenario", ["one-way", "round-trip"])
def test_an_ordinary_terminal_is_wide_enough(bench, scenario, words):
    done = bench(*QUICK[:-1], scenario, *words, "--transport", "unix:", columns=80)
    table = done.stdout.partition("ipcbus ")[0].splitlines()
    assert any("multiprocessing.SimpleQueue" in line for line in table)
    assert max(map(len, table)) <= 80, done.stdout


def test_round_trips(bench):
    done = bench(*QUICK[:-1], "round-trip", "--transport", "unix:", "--no-peers")
    assert re.search(r"99 of 100 *\n +round trip +within", done.stdout)
    assert re.search(r"unix: +[\d.]+ [µm]s +[\d.]+ [µm]s", done.stdout)


def test_crowds(bench):
    done = bench(*QUICK[:-1], "fan-in", "--scenario", "fan-out", "--senders", "3", "--receivers", "2",
                 "--transport", "unix:", "--transport", "pipe:", "--no-peers")  # fmt: skip
    assert "fan-in, 3 senders: bytes, 64 B" in done.stdout
    assert "fan-out, 2 receivers: bytes, 64 B" in done.stdout
    assert "not measured: pipe: in fan-out (several receivers cannot compete for its messages)" in done.stdout


def test_an_object_that_nothing_would_send_is_not_ignored(fails):
    assert "--scenario arrays sends nothing but arrays" in fails("--scenario", "arrays", "--object", "dict")


def test_an_address_is_advised_for_one_channel(bench):
    pytest.importorskip("zmq")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"zmq+tcp://127.0.0.1:{listener.getsockname()[1]}"
    lines = bench(*QUICK, "--transport", url, "--no-peers").stdout.splitlines()
    assert lines[-2:] == [
        "in ipcbus.toml, for the one channel that is opened as auto, for another needs another address:",
        f'  transport = "{url}"',
    ]


def test_a_message_of_the_users(bench):
    done = bench(*QUICK[:4], *QUICK[-2:], "--object", "shopping:order", "--transport", "unix:", "--no-peers")
    assert done.stderr.startswith("ipcbus: 1 case, 1 round, take about ")
    assert re.match(r"one-way: shopping:order, \d+ B\n", done.stdout)


@pytest.mark.parametrize("target", ["samples", "drawn"])
def test_a_message_with_arrays_in_it_and_one_that_is_another_each_time(bench, target):
    done = bench(*QUICK[:4], "--object", f"shopping:{target}", "--scenario", "one-way", "--transport", "pipe:", "--no-peers")
    assert "failed" not in done.stdout + done.stderr
    assert re.search(r"pipe: +[\d,]+ ", done.stdout)


def test_every_serializer_that_can(bench):
    done = bench(
        *QUICK, "--object", "shopping:sized", "--serializer", "all", "--transport", "unix:", "--no-peers", "--json", "-"
    )
    found = {row["serializer"]: row for row in json.loads(done.stdout)["results"]}
    assert {"json", "pickle"} <= set(found)
    assert not {"raw", "protobuf"} & set(found)
    assert all(row["problem"] is None for row in found.values())


def test_a_serializer_in_the_url_is_the_one_that_is_measured(bench):
    done = bench(*QUICK, "--object", "dict", "--no-peers", "--transport", "pipe:?serializer=json", "--serializer", "pickle")
    assert re.search(r"pipe:\?serializer=json +[\d,]+ ", done.stdout)
    assert tomllib.loads(done.stdout.splitlines()[-1].strip()) == {"transport": "pipe:?serializer=json"}


def test_a_serializer_in_the_url_that_cannot_is_told_before_anything_is_measured(fails):
    assert "json cannot encode bytes" in fails(*QUICK, "--transport", "pipe:?serializer=json")


def test_a_file_that_cannot_be_written_loses_no_table(bench):
    done = bench(*QUICK, "--transport", "unix:", "--no-peers", "--json", "/dev/full", code=2)
    assert "ipcbus: --json /dev/full: cannot be written: No space left on device" in done.stderr
    assert "For this message on this machine: unix:" in done.stdout


def test_who_reads_no_table_to_its_end_has_the_files_all_the_same(here):
    reader, writer = os.pipe()
    os.close(reader)  # as head, when it has seen enough
    words = ["bench", *QUICK, "--transport", "pipe:", "--no-peers", "--json", "found.json"]
    done = subprocess.run([COMMAND, *words], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT, check=False)
    os.close(writer)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert json.loads((here / "found.json").read_text())


def test_json_and_plot_files(bench, here):
    pytest.importorskip("matplotlib")
    done = bench(*QUICK, "--size", "1KiB", "--transport", "unix:", "--json", "out.json", "--plot", "out.svg")
    assert "unix:" in done.stdout
    made = json.loads((here / "out.json").read_text())
    rows = {(row["carrier"], row["message"]["size"]): row for row in made["results"]}
    assert rows["unix:", 64]["seconds"] == rows["unix:", 64]["rounds"][0]["seconds"] > 0
    assert rows["unix:", 1024]["times_faster_than"]["multiprocessing.Queue"] > 0
    assert made["machine"]["ipcbus"] == ipcbus.__version__
    assert ET.parse(here / "out.svg").getroot().tag.endswith("}svg")


def test_a_channel_that_fails_is_a_row_and_the_others_go_on(bench, here):
    (here / "picky.py").write_text(
        "import os\n"
        "class Picky:\n"
        "    def __reduce__(self):\n"
        "        return (os.getpid if os.environ.get('OMP_NUM_THREADS') else Picky), ()\n"
        "    def __eq__(self, other): return isinstance(other, Picky)\n"
        "def make(): return Picky()\n"
    )
    done = bench("--object", "picky:make", *QUICK[:4], *QUICK[-2:], "--transport", "unix:", code=1)
    assert re.search(r"unix: +failed", done.stdout)
    assert "one-way, unix:, picky:make: the receiver failed: something else arrived than was sent" in done.stdout
    assert "For this message" not in done.stdout


def test_ctrl_c_ends_it_and_all_that_it_started(here):
    (here / "telling.py").write_text("import os\ndef pid():\n    print(os.getsid(0), file=open('pipe', 'w'))\n")
    os.mkfifo("pipe")
    words = [COMMAND, "bench", "--rounds", "50", "--transport", "unix:", "--object", "telling:pid"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            session = os.getsid(0)
            while session == os.getsid(0):  # the command makes the object itself before anything is measured
                session = int(Path("pipe").read_text().split()[-1])  # several processes may have told at once
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
    assert process.returncode == 130
    assert not members("session", session)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--object", "byte"], "--object byte: did you mean 'bytes'? (a message of yours: module:factory)"),
        (["--object", "shoping:order"], "cannot import 'shoping': ModuleNotFoundError"),
        (["--object", "shopping:orderr"], "there is no 'orderr'; did you mean 'order'?"),
        (["--object", "shopping:quits"], "'shopping:quits': calling it failed: SystemExit"),
        (["--object", "shopping:order", "--size", "64"], "shopping:order makes its message as it likes; give it a parameter"),
        (["--scenario", "fanin"], "--scenario fanin: there is none of this name; did you mean 'fan-in'?"),
        (["--size", "12q"], "'12q' is no size; write it as 64, 1KiB or 64MiB"),
        (["--size", "900GiB"], "--size 966367641600: that is more than a message may have, 1.0 GiB"),
        (["--transport", "unixx:"], "no transport 'unixx' is installed; did you mean 'unix'?"),
        (["--transport", "unix:?capacityy=3"], "unknown option 'capacityy'; did you mean 'capacity'?"),
        (["--transport", "inproc:"], "inproc: in one-way (does not cross processes)"),
        (["--serializer", "jsn"], "no serializer 'jsn' is installed; did you mean 'json'?"),
        (["--plot", "out.gif"], "the file must end in .png, .svg or .html"),
        (["--plot", "nowhere/out.png"], "there is no directory nowhere"),
        (["--json", "nowhere/out.json"], "there is no directory nowhere"),
        (["--json", "."], "this is a directory; name a file in it"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_told_before_anything_is_measured(fails, words, said):
    assert said in fails(*words)


@pytest.mark.parametrize("words", [["--json", "out.json"], ["--plot", "out.svg"]], ids=" ".join)
def test_a_file_that_may_not_be_written_is_told_before_anything_is_measured(fails, monkeypatch, words):
    monkeypatch.setattr("os.access", lambda *_: False)  # what is so for all but root
    assert f"{' '.join(words)}: you may not write there; name another file" in fails(*words)


def test_an_object_that_cannot_travel_is_told_with_its_part(fails):
    assert "obj['lock']: thread lock cannot travel" in fails("--object", "shopping:locked", code=1)


def test_a_missing_extra_is_told_with_the_command_that_installs_it(fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "--plot needs matplotlib; try: pip install 'ipcbus[bench]'" in fails("--plot", "out.png", code=1)


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(foreign.FasterFifo, "module", "faster_fifo_of_nobody")
    assert foreign.PEERS["faster-fifo"].missing() == "faster-fifo is not installed; try: pip install 'ipcbus[bench]'"
