"""A bus at a shell: every command is a process of its own, as people run it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

import ipcbus
from ipcbus.cli.show import as_json
from ipcbus.testing.children import PATIENCE

COMMAND = Path(sys.executable).with_name("ipcbus")
TIMEOUT = 30
NEW = "ipcbus: nobody has opened 'orders' on this bus before, so it is made now\n"


@pytest.fixture
def bus():
    """Be the home of a bus, which commands find by IPCBUS_ADDRESS."""
    with ipcbus.Bus() as bus:
        yield bus


@pytest.fixture
def orders(bus):
    return bus.channel("orders")


def ipcbus_command(*words, **options):
    options = {"capture_output": True, "text": True, "timeout": TIMEOUT, "check": False, **options}
    return subprocess.run([COMMAND, *words], **options)


@pytest.fixture
def start(tmp_path):
    """Start the command; it is killed at the end whatever happens."""
    started = []

    def start(*words, **options):
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path, **options}
        process = subprocess.Popen([COMMAND, *words], **options)
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate(timeout=TIMEOUT)


def line_of(stream):
    assert select.select([stream], [], [], TIMEOUT)[0], "it says nothing"
    return stream.readline()


class TestLs:
    def test_the_table(self, bus, orders):
        orders.send(1)
        bus.channel("prices")
        done = ipcbus_command("bus", "ls", env={**os.environ, "COLUMNS": "100"})
        assert (done.returncode, done.stderr) == (0, "")
        rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if ":" in line}
        head = done.stdout.splitlines()[1].split()
        assert head == ["channel", "url", "waiting", "capacity", "in/s", "out/s", "sent", "received", "users"]
        assert rows["orders"] == ["orders", orders.url, "1", "1024", "0", "0", "1", "0", "1:", str(os.getpid())]
        assert rows["prices"][2:] == ["0", "1024", "0", "0", "0", "0", "0"]

    def test_a_narrow_terminal_cuts_nothing(self, orders):
        orders.send(1)
        done = ipcbus_command("bus", "ls", "--interval", "0", env={**os.environ, "COLUMNS": "20"})
        assert f"1: {os.getpid()}" in done.stdout

    def test_json(self, orders):
        orders.send(1)
        with ipcbus.Bus.connect().tap("orders"):
            done = ipcbus_command("bus", "ls", "--json", "--interval", "0")
        (row,) = json.loads(done.stdout)
        assert (row["name"], row["users"], row["taps"], row["depth"]) == ("orders", [os.getpid()], [os.getpid()], 1)
        assert row["sent_per_second"] is None

    def test_watched_it_goes_on(self, start, orders):
        """Rates are those between two looks."""
        process = start("bus", "ls", "--json", "--watch", "--interval", "0.2")
        assert json.loads(line_of(process.stdout))[0]["sent"] == 0
        for number in range(10):
            orders.send(number)
        rates = []
        while not rates or not rates[-1]:
            (row,) = json.loads(line_of(process.stdout))
            rates.append(row["sent_per_second"])
        assert rates[-1] > 10
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == 130

    def test_watched_at_a_terminal_it_ends_with_enter(self, start, orders):
        orders.send(1)
        here, there = pty.openpty()
        process = start("bus", "ls", "--watch", "--interval", "0.1", stdin=there, stdout=there, stderr=there)
        os.close(there)
        said = b""
        while b"orders" not in said:
            assert select.select([here], [], [], TIMEOUT)[0], said
            said += os.read(here, 4096)
        os.write(here, b"\n")
        with contextlib.suppress(OSError):  # the other end is closed
            while os.read(here, 4096):
                pass
        os.close(here)
        assert process.wait(TIMEOUT) == 0

    @pytest.mark.parametrize("columns", [40, 80])
    def test_a_terminal_cuts_no_name(self, start, columns):
        # Not what is inherited: readline, which pytest loads, sets COLUMNS behind the back of os.environ.
        env = {**os.environ, "TERM": "xterm", "COLUMNS": ""}
        with ipcbus.Bus() as bus, bus.channel("orders.incoming.europe"):
            here, there = pty.openpty()
            termios.tcsetwinsize(there, (24, columns))
            process = start("bus", "ls", "--interval", "0", stdin=there, stdout=there, stderr=there, env=env)
            os.close(there)
            said = b""
            with contextlib.suppress(OSError):  # the other end is closed
                while select.select([here], [], [], TIMEOUT)[0] and (more := os.read(here, 4096)):
                    said += more
            os.close(here)
            assert process.wait(TIMEOUT) == 0
            text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())
            assert "orders.incoming.europe" in text
            assert "capacity" in text
            assert max(map(len, text.splitlines())) <= columns or columns == 40  # which is left to the terminal

    def test_nothing_to_show(self, bus):
        done = ipcbus_command("bus", "ls", "--interval", "0")
        assert "no process has opened a channel by name" in done.stdout

    def test_the_home_ends_meanwhile(self, start, bus):
        process = start("bus", "ls", "--watch", "--json", "--interval", "0.1")
        line_of(process.stdout)
        bus.close()
        assert process.wait(TIMEOUT) == 1
        assert "start the process again that keeps the bus" in process.stderr.read()

    def test_no_bus(self, tmp_path):
        environment = {name: value for name, value in os.environ.items() if name != "IPCBUS_ADDRESS"}
        environment |= {"TMPDIR": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
        done = ipcbus_command("bus", "ls", env=environment, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith("ipcbus: no bus of yours runs on this machine")
        done = ipcbus_command("bus", "ls", "--address", str(tmp_path / "nowhere"), env=environment)
        assert done.returncode == 2
        assert done.stderr.startswith(f"ipcbus: there is no bus at {tmp_path / 'nowhere'}: ")


class TestSend:
    @pytest.mark.parametrize(
        ("words", "value"),
        [
            (('{"a": [1, null, "x"]}',), {"a": [1, None, "x"]}),
            (("7",), 7),
            (("--", "-7"), -7),
            (("seven", "--text"), "seven"),
            (("", "--text"), ""),
        ],
    )
    def test_a_value(self, orders, words, value):
        done = ipcbus_command("send", "orders", *words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert orders.recv(timeout=PATIENCE) == value

    def test_a_file(self, orders, tmp_path):
        (tmp_path / "data").write_bytes(bytes(range(256)))
        assert ipcbus_command("send", "orders", "--bytes-from", str(tmp_path / "data")).returncode == 0
        assert orders.recv(timeout=PATIENCE) == bytes(range(256))

    def test_headers(self, orders):
        assert ipcbus_command("send", "orders", "1", "--header", "a=b=c", "--header", "d=").returncode == 0
        message = orders.recv_message(timeout=PATIENCE)
        assert (message.body, dict(message.headers)) == (1, {"a": "b=c", "d": ""})

    def test_lines(self, orders):
        done = ipcbus_command("send", "orders", "-", input='1\n\n{"a": 2}')
        assert done.returncode == 0, done.stderr
        assert [orders.recv(timeout=PATIENCE) for _ in range(2)] == [1, {"a": 2}]
        assert ipcbus_command("send", "orders", "-", "--text", input="one\n\n").returncode == 0
        assert [orders.recv(timeout=PATIENCE) for _ in range(2)] == ["one", ""]

    def test_a_line_that_is_not_json(self, orders):
        done = ipcbus_command("send", "orders", "-", input="1\n{2\n3\n")
        assert done.returncode == 2
        assert done.stderr.startswith("ipcbus: line 2 of standard input is not JSON")
        assert orders.recv(timeout=PATIENCE) == 1
        with pytest.raises(ipcbus.ChannelEmpty):
            orders.recv(timeout=0)

    @pytest.mark.parametrize(("how", "said"), [("<&-", "closed"), ("0>written", "cannot be read")])
    def test_a_standard_input_that_cannot_be_read(self, orders, tmp_path, how, said):
        shell = ["sh", "-c", f'exec "$0" send orders - {how}', COMMAND]
        done = subprocess.run(shell, capture_output=True, text=True, timeout=TIMEOUT, check=False, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "standard input" in done.stderr
        assert said in done.stderr

    @pytest.mark.parametrize(
        ("words", "problem"),
        [
            ((), "give one of VALUE and --bytes-from"),
            (("1", "--bytes-from", "x"), "give one of VALUE and --bytes-from"),
            (("--text", "--bytes-from", "x"), "exclude each other"),
            (("--bytes-from", "nowhere"), "nowhere cannot be read: No such file"),
            (("{",), "VALUE is not JSON"),
            (("1", "--header", "x"), "write KEY=VALUE"),
        ],
    )
    def test_what_is_typed_wrong(self, orders, words, problem):
        done = ipcbus_command("send", "orders", *words)
        assert done.returncode == 2
        assert problem in done.stderr
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize("words", [("send", "ordres", "1"), ("recv", "ordres"), ("tap", "ordres"), ("recv", "../x")])
    def test_a_name_that_is_refused_is_not_said_to_be_made(self, words):
        with ipcbus.Bus({"bus": {"strict": True}, "channels": {"orders": "pipe:"}}):
            done = ipcbus_command(*words, "--timeout", "0")
            assert done.returncode == 2
            assert "is made now" not in done.stderr

    def test_a_full_channel(self):
        with ipcbus.Bus({"channels": {"orders": {"url": "pipe:", "capacity": 1}}}) as bus:
            bus.channel("orders").ready()
            done = ipcbus_command("send", "orders", "-", "--timeout", "0.1", input="1\n2\n3\n")
            assert done.returncode == 1
            assert done.stderr.startswith("ipcbus: ")
            assert bus.channel("orders").recv(timeout=PATIENCE) == 1

    def test_a_name_that_nobody_knows(self, bus, orders):
        done = ipcbus_command("send", "ordres", "1")
        assert done.returncode == 0
        assert done.stderr == "ipcbus: nobody has opened 'ordres' on this bus before, so it is made now; there are orders\n"
        done = ipcbus_command("send", "not a name", "1")
        assert done.returncode == 2


@pytest.mark.parametrize(
    ("url", "code", "said", "left"),
    [
        ("pipe:?capacity=1&overflow=drop_new", 1, "2 of these messages found no room", 1),
        ("unix:?capacity=1&overflow=drop_old", 0, "2 older messages were dropped", 3),
    ],
)
def test_what_a_channel_drops_is_said(url, code, said, left):
    with ipcbus.Bus({"channels": {"orders": url}}) as bus:
        orders = bus.channel("orders")
        orders.ready()  # somebody receives
        ran = ipcbus_command("send", "orders", "-", input="1\n2\n3\n")
        assert (ran.returncode, ran.stdout) == (code, ""), ran.stderr
        assert said in ran.stderr
        assert orders.recv(PATIENCE) == left


class TestRecv:
    def test_so_many(self, orders):
        for value in ({"a": b"x"}, "text", 3):
            orders.send(value)
        done = ipcbus_command("recv", "orders", "-n", "2")
        assert (done.returncode, done.stdout, done.stderr) == (0, "{'a': b'x'}\n'text'\n", "")
        assert orders.recv(timeout=PATIENCE) == 3

    def test_json(self, orders):
        for value in ({"a": [1, None]}, {"b": b"x"}, {(1, 2): 3}, float("nan"), "ä"):
            orders.send(value, headers={"k": "v"} if value == "ä" else None)
        done = ipcbus_command("recv", "orders", "--json", "--headers", "-n", "5")
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert [row["body"] for row in rows] == [{"a": [1, None]}, {"b": "b'x'"}, "{(1, 2): 3}", "nan", "ä"]
        assert [row["headers"] for row in rows] == [{}, {}, {}, {}, {"k": "v"}]

    def test_what_is_there(self, orders):
        orders.send(1)
        done = ipcbus_command("recv", "orders", "--timeout", "0")
        assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
        done = ipcbus_command("recv", "orders", "--timeout", "0")
        assert (done.returncode, done.stdout, done.stderr) == (1, "", "ipcbus: no message within the timeout\n")

    def test_too_few(self, orders):
        orders.send(1)
        done = ipcbus_command("recv", "orders", "-n", "2", "--timeout", "0.1")
        assert (done.returncode, done.stdout) == (1, "1\n")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_until_a_signal(self, start, orders, number):
        process = start("recv", "orders")
        for value in range(3):
            orders.send(value, timeout=PATIENCE)
            assert line_of(process.stdout) == f"{value}\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, out, err) == (128 + number, "", "")

    def test_the_end(self, start, orders):
        process = start("recv", "orders")
        orders.send(1)
        assert line_of(process.stdout) == "1\n"
        orders.sender.shutdown()
        out, err = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, out, err) == (0, "", "ipcbus: the channel was shut down\n")

    def test_at_a_terminal(self, start, orders):
        orders.send({"key": "value"}, headers={"h": "w"})
        here, there = pty.openpty()
        process = start("recv", "orders", "-n", "1", stdout=there, env={**os.environ, "TERM": "xterm", "NO_COLOR": "1"})
        os.close(there)
        said = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while more := os.read(here, 4096):
                said += more
        os.close(here)
        assert process.wait(TIMEOUT) == 0
        plain = re.sub(rb"\x1b\[[0-9;]*m", b"", said)
        assert plain.split() == [b"{'key':", b"'value'}", b"h='w'"]

    def test_another_receiver(self, bus):
        with ipcbus.Bus({"channels": {"orders": "pipe:"}}) as bus:
            bus.channel("orders").ready()
            done = ipcbus_command("recv", "orders", "-n", "1")
        assert done.returncode == 1
        assert f"process {os.getpid()} is the receiver" in done.stderr
        assert done.stderr.endswith("to look at copies of what is sent: ipcbus tap orders\n")

    def test_nobody_reads_what_it_prints(self, start, orders):
        """Like ``ipcbus recv orders | head -1``: what comes later stays in the channel."""
        process = start("recv", "orders")
        orders.send(1)
        assert line_of(process.stdout) == "1\n"
        process.stdout.close()
        assert process.wait(TIMEOUT) == 1
        orders.send(2)
        assert orders.recv(timeout=PATIENCE) == 2

    def test_what_cannot_be_printed_is_said_otherwise(self, orders):
        """Standard output is full: the message that was taken is on standard error."""
        orders.send({"precious": 1})
        with Path("/dev/full").open("w") as full:
            done = ipcbus_command("recv", "orders", "-n", "1", capture_output=False, stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 1
        assert "was received and could not be printed" in done.stderr
        assert self.rebuilt(done.stderr) == {"precious": 1}

    def test_what_cannot_be_rebuilt_is_given_as_it_came(self, orders, tmp_path):
        (tmp_path / "of_the_sender.py").write_text("class Order: pass\n")
        code = "import ipcbus, of_the_sender; ipcbus.Bus.connect().channel('orders').send(of_the_sender.Order())"
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=TIMEOUT)
        orders.send(2)
        done = ipcbus_command("recv", "orders", "-n", "2")
        assert (done.returncode, done.stdout) == (1, "2\n")
        assert "No module named 'of_the_sender'" in done.stderr
        assert b"of_the_sender" in self.raw(done.stderr)

    def test_classes_of_the_working_directory(self, orders, tmp_path):
        (tmp_path / "mine.py").write_text("class Order:\n    def __repr__(self): return 'an order'\n")
        code = "import ipcbus, mine; ipcbus.Bus.connect().channel('orders').send(mine.Order())"
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=TIMEOUT)
        done = ipcbus_command("recv", "orders", "-n", "1", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, "an order\n")

    def test_a_request_is_not_left_waiting(self, start, orders):
        process = start("recv", "orders", "-n", "1")
        with pytest.raises(ipcbus.RemoteError, match="cannot answer"):
            orders.request("question", timeout=PATIENCE)
        assert process.wait(TIMEOUT) == 0
        assert process.stdout.read() == "'question'\n"

    @staticmethod
    def raw(said):
        import base64

        return base64.b64decode(said.splitlines()[-1])

    def rebuilt(self, said):
        from ipcbus.codec import Codec

        return Codec("auto", None, private=True, max_message=1 << 20).decode([self.raw(said)])


class TestTap:
    def test_copies(self, start, orders):
        orders.send("before")
        process = start("tap", "orders", "--json", "-n", "2")
        assert line_of(process.stderr) == "ipcbus: copies of what is sent to 'orders' from now on; Ctrl-C ends it\n"
        for value in (1, {"a": 2}, 3):
            orders.send(value)
        assert process.communicate(timeout=TIMEOUT) == ('1\n{"a": 2}\n', "")
        assert process.returncode == 0
        assert [orders.recv(timeout=PATIENCE) for _ in range(4)] == ["before", 1, {"a": 2}, 3]

    def test_interrupted(self, start, bus, orders):
        process = start("tap", "orders")
        line_of(process.stderr)
        assert bus.channels()[0].taps == (process.pid,)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, out, err) == (130, "", "")
        assert bus.channels()[0].taps == ()

    def test_stopped_for_a_while_it_says_what_it_missed(self, start, orders):
        process = start("tap", "orders", "--capacity", "5")
        line_of(process.stderr)
        process.send_signal(signal.SIGSTOP)
        for number in range(50):
            orders.send(number, timeout=PATIENCE)
        process.send_signal(signal.SIGCONT)
        orders.shutdown()
        out, err = process.communicate(timeout=TIMEOUT)
        shown = len(out.splitlines())
        assert 0 < shown < 50
        assert f"ipcbus: {50 - shown} more were sent and missed here ({50 - shown} in all)\n" in err

    def test_a_new_name(self, start, bus):
        process = start("tap", "orders", "-n", "1")
        assert line_of(process.stderr) == NEW
        assert "copies of what is sent" in process.stderr.readline()  # it may have been read with the line before
        bus.channel("orders").send(1)
        assert process.communicate(timeout=TIMEOUT) == ("1\n", "")


def test_json_of_what_has_no_words():
    class Silent:
        def __repr__(self):
            raise RuntimeError

    circle = []
    circle.append(circle)
    assert json.loads(as_json(circle)) == "[[...]]"
    assert "Silent object at" in json.loads(as_json([Silent()]))[0]
