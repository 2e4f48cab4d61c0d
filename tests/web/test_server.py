"""Whole servers: processes, sockets, real clients; the chat over every transport there is."""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

import ipcbus
from ipcbus.demo.selfcheck import channel_url, run_check
from ipcbus.errors import ConfigError, TransportUnavailable
from ipcbus.plumbing.ports import free_port
from ipcbus.supervisor import StartFailed
from ipcbus.web.config import FrontConfig, ServerConfig, ServiceConfig, load_server_config
from ipcbus.web.link import Cid
from ipcbus.web.server import Server

from .rig import chat_config, until_replaced

PATIENCE = 20.0


def schemes() -> Iterator[str]:
    for scheme in sorted(ipcbus.transports):
        try:
            if ipcbus.transports.get(scheme).capabilities.crosses_processes:
                yield scheme
        except (TransportUnavailable, ConfigError):
            continue  # a plugin that is broken fails tests of its own


SCHEMES = list(schemes())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_chat_over_every_transport(scheme: str) -> None:
    (row,) = run_check([channel_url(scheme)])
    assert row.failed is None
    assert row.ok
    assert row.messages > 200


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("pipe", "pipe:"),
        ("pipe:?capacity=9", "pipe:?capacity=9"),
        ("zmq+tcp", "zmq+tcp://127.0.0.1:{port}"),
        ("zmq+tcp:?capacity=9", "zmq+tcp://127.0.0.1:{port}?capacity=9"),
        ("zmq+tcp://127.0.0.1:5555", "zmq+tcp://127.0.0.1:5555"),
        ("auto:", "auto:"),
    ],
)
def test_what_needs_an_address_and_has_none_gets_one(given: str, url: str) -> None:
    assert channel_url(given) == url


def test_the_check_tells_what_is_wrong() -> None:
    rows = run_check(["inproc:", "nosuch:"])
    assert [row.ok for row in rows] == [False, False]
    assert "between threads only" in str(rows[0].failed)
    assert "nosuch" in str(rows[1].failed)


# ---------------------------------------------------------------------- processes that die


Join = Callable[[Server, str], tuple[ClientConnection, int]]


@pytest.fixture
def join() -> Iterator[Join]:
    """Connect, enter the lobby, and say which front end it is."""
    with ExitStack() as stack:

        def enter(server: Server, name: str) -> tuple[ClientConnection, int]:
            ws = stack.enter_context(connect(f"ws://{server.address}/chat", proxy=None, open_timeout=PATIENCE))
            ws.send(json.dumps({"op": "sign-in", "name": name}))
            welcome = json.loads(ws.recv(PATIENCE))
            ws.send(json.dumps({"op": "join", "room": "lobby"}))
            until(ws, "users")
            return ws, Cid.unpack(int(welcome["id"], 16)).front

        yield enter


def until(ws: ClientConnection, op: str, **wanted: Any) -> dict[str, Any]:
    """Receive until a message with this op and these fields comes."""
    while True:
        message: dict[str, Any] = json.loads(ws.recv(PATIENCE))
        if message["op"] == op and all(message[key] == value for key, value in wanted.items()):
            return message


def close_code(ws: ClientConnection) -> int:
    try:
        while True:
            ws.recv(PATIENCE)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else 1006


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if ipcbus.transports.get(scheme).capabilities.survives_kill])
def test_a_killed_front_end_takes_its_own_clients_only(scheme: str, join: Join) -> None:
    with Server(chat_config(channel_url(scheme), bind="127.0.0.1:0")) as server:
        clients: dict[int, tuple[ClientConnection, str]] = {}
        number = 0
        while len(clients) < 2:
            ws, front = join(server, f"user{number}")
            clients.setdefault(front, (ws, f"user{number}"))
            number += 1
        (here, _), (there, name) = clients[0], clients[1]
        os.kill(server.pids["front-1"], signal.SIGKILL)
        assert close_code(there) == 1006
        assert until(here, "left", name=name)["room"] == "lobby"
        for _ in range(64):  # until one lands on the new front end; what waited in its queue was not refused
            ws, front = join(server, "again")
            if front == 1:
                break
        here.send(json.dumps({"op": "say", "room": "lobby", "text": "all well?"}))
        assert until(ws, "said")["text"] == "all well?"


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if ipcbus.transports.get(scheme).capabilities.survives_kill])
def test_a_killed_service_is_replaced_under_open_sockets(scheme: str, join: Join) -> None:
    with Server(chat_config(channel_url(scheme), bind="127.0.0.1:0")) as server:
        clients = [join(server, f"user{number}")[0] for number in range(6)]
        for _ in range(2):
            killed = server.pids["chat"]
            os.kill(killed, signal.SIGKILL)
            clients[0].send(json.dumps({"op": "users", "room": "lobby"}))
            until_replaced(server, killed)
        # Rooms and names are there before anything else is, and nobody was closed.
        seventh, _ = join(server, "user0")
        seventh.send(json.dumps({"op": "users", "room": "lobby"}))
        names = ["user0", "user0 2", *(f"user{number}" for number in range(1, 6))]
        assert until(seventh, "users")["users"] == names
        clients[5].send(json.dumps({"op": "say", "room": "lobby", "text": "hi"}))
        for ws in clients:
            assert until(ws, "said")["text"] == "hi"


def test_a_reload_loses_nothing(programs: Any, join: Join) -> None:
    config = ServerConfig({"chat": ServiceConfig("web_programs:Talk")}, FrontConfig(bind="127.0.0.1:0"), transport="unix:")
    with Server(config) as server:
        clients = [join(server, f"user{number}")[0] for number in range(4)]
        before = server.pids
        sent = 0
        done = threading.Event()

        def pour() -> None:
            nonlocal sent
            while not done.is_set():
                clients[sent % 4].send(json.dumps({"op": "say", "room": "lobby", "text": str(sent)}))
                sent += 1
                time.sleep(0.008)

        pouring = threading.Thread(target=pour)
        pouring.start()
        try:
            server.reload()
            for _ in range(20):  # a storm
                server.request_reload()
            server.reload()
        finally:
            done.set()
            pouring.join()
        after = server.pids
        assert before["chat"] != after["chat"]
        assert {name: pid for name, pid in before.items() if name != "chat"} == {
            name: pid for name, pid in after.items() if name != "chat"
        }
        for ws in clients:
            heard = sorted(int(until(ws, "said")["text"]) for _ in range(sent))
            assert heard == list(range(sent))
        # The storm of twenty made one more restart, or two.
        assert 3 <= sum(entry.what == "started" and entry.name == "chat" for entry in server.history) <= 5


@pytest.mark.parametrize("name", ["echo", "front-0"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_process_without_descriptors_keeps_its_clients_and_loses_nothing(scheme: str, name: str, programs: Any) -> None:
    front = FrontConfig(bind="127.0.0.1:0", processes=1, max_size=1 << 20)
    config = ServerConfig({"echo": ServiceConfig("web_programs:Echo")}, front, transport=channel_url(scheme))
    with Server(config) as server, connect(f"ws://{server.address}/echo", proxy=None, open_timeout=PATIENCE) as ws:
        pids, large = server.pids, "x" * (512 << 10)
        taken = {int(entry.name) for entry in Path(f"/proc/{pids[name]}/fd").iterdir()}
        free = next(fd for fd in itertools.count() if fd not in taken)
        before = resource.prlimit(pids[name], resource.RLIMIT_NOFILE, (free, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        for number in range(3):
            ws.send(str(number))
            assert ws.recv(PATIENCE) == str(number)
        ws.send(large)
        assert ws.ping().wait(PATIENCE)  # it is on its way then, or waits
        resource.prlimit(pids[name], resource.RLIMIT_NOFILE, before)
        assert ws.recv(PATIENCE) == large
        assert server.pids == pids


def test_a_service_that_dies_again_and_again_stops_the_server(programs: Any) -> None:
    config = ServerConfig(
        services={"crash": ServiceConfig("web_programs:Crash")},
        front=FrontConfig(bind="127.0.0.1:0", processes=1),
        transport="pipe:",
        restart_period=600.0,  # how long so many starts take is the machine's affair
    )
    with Server(config) as server:
        with connect(f"ws://{server.address}/crash", proxy=None, open_timeout=PATIENCE) as ws:
            while server.wait(0.05) is None:
                try:
                    ws.send("now")
                except ConnectionClosed:  # everything is being stopped
                    assert server.wait(PATIENCE) == 1
            assert close_code(ws) == 1001
        assert server.failure is not None
        assert "crash was killed by SIGKILL" in server.failure


@pytest.mark.parametrize("name", ["crash", "front-0"])
def test_how_many_deaths_are_mended_is_configured(name: str, programs: Any) -> None:
    front = FrontConfig(bind="127.0.0.1:0", processes=1)
    services = {"crash": ServiceConfig("web_programs:Crash")}
    with Server(ServerConfig(services, front, transport="pipe:", restarts=1, restart_period=60.0)) as server:
        first = server.pids[name]
        os.kill(first, signal.SIGKILL)
        until_replaced(server, first)
        assert server.pids[name] != first
        os.kill(server.pids[name], signal.SIGKILL)
        assert server.wait(PATIENCE) == 1
        assert server.failure is not None
        assert "death number 2 within 60 seconds and 1 are mended, so everything is stopped" in server.failure
        assert server.failure.startswith(name)


def test_stopping_closes_clients_and_leaves_no_process(join: Join) -> None:
    with Server(chat_config("pipe:", bind="127.0.0.1:0")) as server:
        pids = server.pids
        assert sorted(pids) == ["chat", "front-0", "front-1"]
        ws, _ = join(server, "Ada")
        server.request_stop()
        assert close_code(ws) == 1001
        assert server.wait(PATIENCE) == 0
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert [entry.what for entry in server.history[-3:]] == ["stopped"] * 3
    assert server.history[-1].name == "chat"
    assert all("exit code 0" in entry.detail for entry in server.history[-3:])


# ---------------------------------------------------------------------- several processes, several services


def ask(ws: ClientConnection, message: Any) -> Any:
    ws.send(json.dumps(message))
    return json.loads(ws.recv(PATIENCE))


def converges(ws: ClientConnection, wanted: list[str]) -> None:
    """Wait until a process of the service has heard what others did."""
    deadline = time.monotonic() + PATIENCE
    while (found := ask(ws, "who")) != wanted:
        assert time.monotonic() < deadline, found


def test_one_service_in_several_processes(programs: Any) -> None:
    config = ServerConfig(
        services={"shards": ServiceConfig("web_programs:Shards", processes=2, shard="query:name")},
        front=FrontConfig(bind="127.0.0.1:0"),
        transport="unix:",
    )
    with Server(config) as server, ExitStack() as stack:
        assert sorted(server.pids) == ["front-0", "front-1", "shards-0", "shards-1"]

        def join(name: str) -> tuple[ClientConnection, int]:
            url = f"ws://{server.address}/shards?name={name}"
            ws = stack.enter_context(connect(url, proxy=None, open_timeout=PATIENCE))
            said = json.loads(ws.recv(PATIENCE))
            assert said["pid"] == server.pids[f"shards-{said['shard']}"]
            return ws, said["shard"]

        names = ["a", "b", "c", "d", "e", "f"]
        clients = dict(zip(names, [join(name) for name in names], strict=True))
        assert {shard for _, shard in clients.values()} == {0, 1}
        assert join("a")[1] == clients["a"][1]  # the same key, the same process
        everybody = sorted([*names, "a"])
        for ws, _ in clients.values():
            converges(ws, everybody)
        # A room spans processes, in the order in which each member speaks.
        for number in range(20):
            clients["b"][0].send(json.dumps({"say": number}))
        for ws, _ in clients.values():
            assert [json.loads(ws.recv(PATIENCE)) for _ in range(20)] == [{"from": "b", "text": n} for n in range(20)]
        # One of the processes is killed; what it comes to know is what the other one knows.
        clients["c"][0].send(json.dumps({"rename": "z"}))
        renamed = sorted([*(name for name in everybody if name != "c"), "z"])
        for ws, _ in clients.values():
            converges(ws, renamed)
        os.kill(server.pids[f"shards-{clients['c'][1]}"], signal.SIGKILL)
        converges(clients["c"][0], renamed)
        clients["c"][0].close()
        for name, (ws, _) in clients.items():
            if name != "c":
                assert json.loads(ws.recv(PATIENCE)) == {"left": "z"}
                converges(ws, [entry for entry in renamed if entry != "z"])


def test_services_ask_each_other(programs: Any) -> None:
    config = ServerConfig(
        services={
            "shards": ServiceConfig("web_programs:Shards"),
            "answers": ServiceConfig("web_programs:Answers", processes=2),
        },
        front=FrontConfig(bind="127.0.0.1:0", processes=1),
        transport="unix:",
    )
    with Server(config) as server, connect(f"ws://{server.address}/shards?name=a", proxy=None) as ws:
        ws.recv(PATIENCE)
        answer = ask(ws, {"ask": 21})
        assert answer["doubled"] == 42
        assert answer["pid"] in (server.pids["answers-0"], server.pids["answers-1"])
        assert ask(ws, "counts") == 1
        ws.send(json.dumps({"ask": "wrong"}))  # what it raises is raised by request, so the handler fails
        assert close_code(ws) == 1011


def beside_shards(**others: str) -> ServerConfig:
    """Return the configuration of the service that asks, and of others, by their names, that it may ask."""
    return ServerConfig(
        services={name: ServiceConfig(f"web_programs:{kind}") for name, kind in {"shards": "Shards", **others}.items()},
        front=FrontConfig(bind="127.0.0.1:0", processes=1),
        transport="unix:",
    )


def test_a_request_that_cannot_be_read_ends_nobody(programs: Any) -> None:
    with Server(beside_shards(answers="Answers")) as server, connect(f"ws://{server.address}/shards?name=a", proxy=None) as ws:
        ws.recv(PATIENCE)
        before = server.pids
        assert "cannot be rebuilt by the process that received it" in ask(ws, "ask in vain")
        assert ask(ws, {"ask": 21}) == {"doubled": 42, "pid": before["answers"]}
        assert server.pids == before


def test_a_service_that_cannot_be_asked_is_named_at_once(programs: Any) -> None:
    with Server(beside_shards(echo="Echo")) as server, connect(f"ws://{server.address}/shards?name=a", proxy=None) as ws:
        ws.recv(PATIENCE)
        assert ask(ws, {"ask whom": "echo"}) == "echo answers no requests: its class does not define on_request"
        assert "no service is called 'ecko'" in ask(ws, {"ask whom": "ecko"})


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_published_in_on_start_reaches_nobody(processes: int, programs: Any) -> None:
    config = ServerConfig(
        services={"early": ServiceConfig("web_programs:Early", processes=processes)},
        front=FrontConfig(bind="127.0.0.1:0", processes=1),
        transport="unix:",
    )
    with Server(config) as server, connect(f"ws://{server.address}/early", proxy=None) as ws:
        assert ws.recv(PATIENCE) == "hello"


def test_a_stuck_service_is_replaced(programs: Any) -> None:
    config = ServerConfig(
        services={"stuck": ServiceConfig("web_programs:Stuck", heartbeat=3.0)},  # a busy machine may hold up a process, too
        front=FrontConfig(bind="127.0.0.1:0", processes=1),
        transport="unix:",
    )
    with Server(config) as server, connect(f"ws://{server.address}/stuck", proxy=None) as ws:
        ws.send("first")
        first = ws.recv(PATIENCE)
        ws.send("stuck")
        assert any(happened.what == "stuck" for happened in server.events)
        ws.send("second")
        second = ws.recv(PATIENCE)
        assert str(second).split()[0] == "second"
        assert str(first).split()[1] != str(second).split()[1]
        assert [entry.what for entry in server.history if entry.name == "stuck"] == [
            "started",
            "ready",
            "stuck",
            "started",
            "ready",
        ]


def test_a_front_end_that_was_killed_serves_others_while_a_service_is_stuck(programs: Any) -> None:
    config = ServerConfig(
        services={"echo": ServiceConfig("web_programs:Echo"), "stuck": ServiceConfig("web_programs:Stuck", heartbeat=0)},
        front=FrontConfig(bind="127.0.0.1:0", processes=1),
        transport="unix:",
    )
    with Server(config) as server:
        os.kill(server.pids["stuck"], signal.SIGSTOP)
        try:
            os.kill(server.pids["front-0"], signal.SIGKILL)
            while (happened := server.events.recv(PATIENCE)).what != "died":
                pass
            assert [server.events.recv(PATIENCE).what for _ in range(2)] == ["started", "ready"]
            with connect(f"ws://{server.address}/echo", proxy=None) as ws:
                ws.send("x")
                assert ws.recv(PATIENCE) == "x"
        finally:
            os.kill(server.pids["stuck"], signal.SIGCONT)
        assert happened.name == "front-0"


# ---------------------------------------------------------------------- starting


def test_the_page_and_health_are_on_the_same_port() -> None:
    with Server(chat_config("pipe:", bind="127.0.0.1:0")) as server:
        with urllib.request.urlopen(server.url, timeout=PATIENCE) as answer:
            page = answer.read().decode()
        assert "<title>ipcbus chat</title>" in page
        assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
        with urllib.request.urlopen(f"{server.url}healthz", timeout=PATIENCE) as answer:
            assert answer.read() == b"ok\n"


def test_a_port_in_use_is_refused_even_if_it_could_be_shared() -> None:
    # Not one of those that the system gives to whoever asks for any: it is to be free once more.
    first = Server(chat_config("pipe:", bind=f"127.0.0.1:{free_port()}", processes=1))
    with first as server, pytest.raises(ConfigError, match="another program listens there"):
        Server(chat_config("pipe:", bind=f"127.0.0.1:{server.port}")).start()
    # And free again at once afterwards.
    with Server(chat_config("pipe:", bind=f"127.0.0.1:{server.port}", processes=1)):
        pass


@pytest.mark.parametrize(
    ("factory", "why"),
    [
        ("web_programs", "must read 'module:Class'"),
        ("web_programs:Nothing", "web_programs has nothing of that name"),
        ("web_programs:__name__", "web_programs has a str of that name"),
        (
            "web_programs:of_a_room",
            "is called without arguments, and it is not made for that: missing a required argument: 'room'",
        ),
        ("no_such_module:Chat", "No module named 'no_such_module'"),
        ("web_programs:not_a_service", "made a int, which is no ipcbus.web.Service"),
    ],
)
def test_a_wrong_factory_is_named(programs: Any, factory: str, why: str) -> None:
    config = ServerConfig(
        services={"x": ServiceConfig(factory)}, front=FrontConfig(bind="127.0.0.1:0", processes=1), transport="pipe:"
    )
    with pytest.raises(StartFailed, match="x ended with exit code 1") as error:
        Server(config).start()
    assert why in str(error.value)


def test_two_services_for_one_path_are_named(programs: Any) -> None:
    services = {"one": ServiceConfig("web_programs:Echo"), "two": ServiceConfig("web_programs:Rival")}
    with pytest.raises(StartFailed, match="both want the path '/echo'"):
        Server(ServerConfig(services=services, front=FrontConfig(bind="127.0.0.1:0", processes=1), transport="pipe:")).start()


@pytest.mark.parametrize("option", ["overflow=fail", "overflow=drop_old", "max_message=1MiB"])
def test_links_that_could_not_carry_everything_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=f"front-0: .* has {option.partition('=')[0]}="):
        Server(chat_config(f"unix:?{option}", bind="127.0.0.1:0")).start()


def test_a_server_that_was_not_started_cannot_be_reloaded() -> None:
    with pytest.raises(ConfigError, match="not started"):
        Server(chat_config("unix:")).reload()


def test_a_transport_between_threads_is_refused() -> None:
    with pytest.raises(ConfigError, match="between threads only"):
        Server(chat_config("inproc:", bind="127.0.0.1:0")).start()


def test_links_never_use_pickle() -> None:
    server = Server(chat_config("pipe:"))
    channel = server._open(None, "chat")
    with pytest.raises(ipcbus.EncodeError):
        channel.send(object())
    with ipcbus.open("pipe:", serializer="pickle") as stranger:
        pickled = stranger._end.codec.encode({"op": "run this"})
    with pytest.raises(ipcbus.ContentRefused):
        channel._end.codec.decode(pickled)
    server.stop()


TOML = """
transport = "pipe:"

[front]
bind = "127.0.0.1:0"
processes = 1
page = "index.html"

[services.echo]
factory = "my_app:Echo"
channel = "pipe:?capacity=100"
"""

APP = """
from ipcbus.web import Service

class Echo(Service):
    path, codec = "/echo", "text"

    def on_message(self, conn, message):
        conn.send(message + "!")
"""

RUN = """
import logging, sys
from ipcbus.web.server import serve

if __name__ == "__main__":
    logging.basicConfig(level="INFO", stream=sys.stdout, format="%(message)s")
    sys.exit(serve(sys.argv[1]))
"""


START = """
    async def on_start(self):
        open("begun", "w").close()
        await asyncio.sleep(600)
"""


def test_a_server_that_is_stopped_while_it_starts_does_not_say_that_it_serves(tmp_path: Path) -> None:
    app = "import asyncio\n" + APP + START
    for name, text in (("app.toml", TOML), ("index.html", ""), ("my_app.py", app), ("run.py", RUN)):
        (tmp_path / name).write_text(text)
    with subprocess.Popen(
        [sys.executable, "run.py", "app.toml"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
    ) as process:
        deadline = time.monotonic() + PATIENCE
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    assert "serving at" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_runs_a_file_until_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    for name, text in (("app.toml", TOML), ("index.html", "<p>mine</p>"), ("my_app.py", APP), ("run.py", RUN)):
        (tmp_path / name).write_text(text)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "app.toml")], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        url = next(line.split()[-1] for line in process.stdout if line.startswith("serving at"))
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            assert answer.read() == b"<p>mine</p>"
        with connect(f"ws{url[4:]}echo", proxy=None) as ws:
            ws.send("hi")
            assert ws.recv(PATIENCE) == "hi!"
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0


def test_the_end_of_its_terminal_stops_a_server_and_another_sighup_reloads_it(tmp_path: Path) -> None:
    for name, text in (("app.toml", TOML), ("index.html", ""), ("my_app.py", APP), ("run.py", RUN)):
        (tmp_path / name).write_text(text)
    screen, terminal = os.openpty()
    words = [sys.executable, "run.py", "app.toml"]
    with subprocess.Popen(words, stdin=terminal, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        os.close(terminal)
        assert process.stdout is not None
        try:
            assert any(line.startswith("serving at") for line in process.stdout)
            process.send_signal(signal.SIGHUP)
            assert any(line.startswith("echo (pid") and line.split()[3] == "ready" for line in process.stdout)
            os.close(screen)
            process.send_signal(signal.SIGHUP)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


STOP = """
    def on_stop(self):
        open("stopped", "w").close()
"""


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
@pytest.mark.parametrize(
    ("handler", "reached", "left"), [(START, "begun", "begun"), (STOP, "serving at", "stopped")], ids=["starting", "serving"]
)
def test_a_signal_to_the_whole_group_lets_everybody_stop(
    tmp_path: Path, start_method: str, handler: str, reached: str, left: str
) -> None:
    app = "import asyncio\n" + APP + handler
    toml = f'start_method = "{start_method}"\n{TOML}'
    for name, text in (("app.toml", toml), ("index.html", ""), ("my_app.py", app), ("run.py", RUN)):
        (tmp_path / name).write_text(text)
    with (
        (tmp_path / "said").open("w") as said,
        subprocess.Popen(
            [sys.executable, "run.py", "app.toml"], stdout=said, stderr=said, cwd=tmp_path, start_new_session=True
        ) as process,
    ):
        deadline = time.monotonic() + PATIENCE
        while not (tmp_path / reached).exists() and reached not in (tmp_path / "said").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert (tmp_path / left).exists()
    text = (tmp_path / "said").read_text()
    assert "started again" not in text
    assert "before everything" not in text


# ---------------------------------------------------------------------- configuration


def test_a_configuration_file_says_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "app.toml"
    for text, why in (
        (TOML.replace("processes", "proceses"), "did you mean 'processes'"),  # codespell:ignore proceses
        (TOML.replace("factory", "factroy"), "did you mean 'factory'"),
        ('transport = "pipe:"', "'services' is required"),
        ("[services]", "a server needs a service"),
        (TOML.replace("processes = 1", "processes = 0"), "processes must be 1 to 1024"),
        (TOML.replace("processes = 1", "max_size = 0"), "max_size"),
        (TOML.replace("processes = 1", "ping_interval = 0"), "ping_interval"),
        (TOML.replace("processes = 1", "write_limit = 10"), "write_limit"),
        (TOML.replace("processes = 1", "ping_timeout = nan"), "ping_timeout must be a number of seconds, not nan"),
        (
            TOML.replace("processes = 1", "message_rate = 'fast'"),
            "message_rate must be a number of messages a second, not 'fast'",
        ),
        (TOML + '\nshard = "room"', "shard must be 'connection' or 'query:NAME', not 'room'"),
        (TOML + '\nshard = "query:"', "shard must be"),
        (
            TOML.replace("services.echo", "services.front-0"),
            "services.front-0: a process of a front end is called 'front-0', too",
        ),
        (
            TOML + '\n[services.x]\nfactory = "a:B"\nprocesses = 2\n[services.x-1]\nfactory = "a:C"',
            "a process of services.x is called 'x-1'",
        ),
        (
            TOML.replace("processes = 1", 'origins = ["https://x.example/"]'),
            "front: origins: 'https://x.example/' is no origin; it reads scheme://host",
        ),
        ("restarts = -1\n" + TOML, "server: restarts must be at least 0"),
        ("restart_period = 0\n" + TOML, "server: restart_period must be more than 0"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=why):
            load_server_config(file)
    file.write_text(TOML)
    config = load_server_config(file)
    assert config.front.page == str(tmp_path / "index.html")
    assert config.services["echo"].channel == "pipe:?capacity=100"
    with pytest.raises(ConfigError, match=r"index\.html' cannot be read"):
        Server(config).start()


@pytest.mark.parametrize("bind", ["8080", "localhost", "127.0.0.1:99999", "127.0.0.1:x", "::1:80", "no-such-host.invalid:80"])
def test_a_wrong_address_is_refused(bind: str) -> None:
    with pytest.raises(ConfigError, match="bind"):
        Server(chat_config("pipe:", bind=bind)).start()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_ipv6(join: Join) -> None:
    with Server(chat_config("pipe:", bind="[::1]:0", processes=1)) as server:
        assert server.address.startswith("[::1]:")
        ws, _ = join(server, "Ada")
        ws.close()


def test_no_code_of_the_server_looks_at_a_scheme() -> None:
    web = Path(ipcbus.__file__).parent / "web"
    for file in web.glob("*.py"):
        code = "\n".join(line for line in file.read_text().splitlines() if not line.lstrip().startswith(("#", '"', "*")))
        for word in (".scheme", "parse_url", "ipcbus_pipe", "ipcbus_zmq", "ipcbus_queue"):
            assert word not in code, (file, word)
