"""Services replaced under open sockets: the next process is loaded first, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

import ipcbus
from ipcbus.demo.selfcheck import channel_url
from ipcbus.errors import ConfigError, StartFailed
from ipcbus.web.config import FrontConfig, ServerConfig, ServiceConfig
from ipcbus.web.paths import Paths
from ipcbus.web.server import Server

PATIENCE = 20.0
SCHEMES = [
    scheme
    for scheme in ("unix", "pipe", "shm", "queue", "zmq")
    if scheme in ipcbus.transports and ipcbus.transports.get(scheme).capabilities.crosses_processes
]

SERVICE = """
import asyncio, os
from ipcbus.web import Service

class Counting(Service):
    path, codec = "/", "json"

    def on_start(self):
        {on_start}

    async def on_open(self, conn):
        await conn.join("all")
        await conn.send({{"here": os.getpid()}})

    async def on_message(self, conn, message):
        match message:
            case {{"slow": seconds, "say": n}}:
                await conn.send({{"begun": n}})
                await asyncio.sleep(seconds)
                conn.state["last"] = n
                await self.publish("all", {{"said": n, "version": {version}}})
            case {{"say": n}}:
                conn.state["last"] = n
                await self.publish("all", {{"said": n, "version": {version}}})
            case "last":
                await conn.send({{"last": conn.state["last"]}})
            case {{"ask": n}}:
                await conn.send({{"answer": await self.request("counting", n)}})

    async def on_request(self, message):
        await asyncio.sleep(0.05)
        return [message, {version}]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the service, which children import afresh."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # two versions within one second look alike to the cache
    path = tmp_path / "counting.py"
    write(path, 1)
    return path


def write(path: Path, version: int, on_start: str = "pass") -> None:
    path.write_text(SERVICE.format(version=version, on_start=on_start))


def config(url: str = "unix:", **service: Any) -> ServerConfig:
    front = FrontConfig(bind="127.0.0.1:0", message_rate=0, byte_rate=0)
    return ServerConfig({"counting": ServiceConfig("counting:Counting", **service)}, front, transport=url)


@contextmanager
def clients(server: Server, count: int) -> Iterator[list[ClientConnection]]:
    with ExitStack() as stack:
        url = f"ws://{server.address}/"
        options: dict[str, Any] = {"proxy": None, "open_timeout": PATIENCE, "max_queue": None}  # not all read what they get
        found = [stack.enter_context(connect(url, **options)) for _ in range(count)]
        for ws in found:
            assert "here" in json.loads(ws.recv(PATIENCE))
        yield found


def heard(ws: ClientConnection, count: int) -> list[dict[str, Any]]:
    return [json.loads(ws.recv(PATIENCE)) for _ in range(count)]


@contextmanager
def pouring(senders: list[ClientConnection], pause: float) -> Iterator[list[int]]:
    """Have clients say numbers in turn while the body runs; yields what was said."""
    said: list[int] = []
    done = threading.Event()

    def pour() -> None:
        while not done.wait(pause):
            senders[len(said) % len(senders)].send(json.dumps({"say": len(said)}))
            said.append(len(said))

    thread = threading.Thread(target=pour)
    thread.start()
    try:
        yield said
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_reloads_under_load_lose_nothing_and_close_nothing(scheme: str, module: Path) -> None:
    with Server(config(channel_url(scheme))) as server, clients(server, 6) as all_of_them:
        fronts = {name: pid for name, pid in server.pids.items() if name != "counting"}
        with pouring(all_of_them, 0.001) as said:
            for version in (2, 3, 4):
                write(module, version)
                server.reload()
        assert {name: pid for name, pid in server.pids.items() if name != "counting"} == fronts
        assert len(said) > 100
        for index, ws in enumerate(all_of_them):
            got = [message["said"] for message in heard(ws, len(said))]
            assert sorted(got) == said  # every one, and none twice
            for sender in range(6):  # each client's in the order in which it said them
                own = [number for number in got if number % 6 == sender]
                assert own == sorted(own)
            ws.send(json.dumps("last"))  # and the last process knows what an earlier one has noted
            assert heard(ws, 1) == [{"last": max(number for number in said if number % 6 == index)}]


@pytest.mark.parametrize("scheme", ["unix", "pipe"])
def test_handlers_that_run_for_long_finish_in_the_old_process(scheme: str, module: Path) -> None:
    with Server(config(channel_url(scheme))) as server, clients(server, 4) as (slow, *others):
        write(module, 2)
        began = time.monotonic()
        slow.send(json.dumps({"slow": 3.0, "say": -1}))
        slow.send(json.dumps({"say": -2}))  # its turn comes after that
        assert slow.ping().wait(PATIENCE)  # so the front end has both
        assert heard(slow, 1) == [{"begun": -1}]  # and the old process
        with pouring(others, 0.01) as said:
            server.reload()
            assert time.monotonic() - began >= 3.0
            for _ in range(2):  # the first may be on its way since before that
                count = len(said)
                while len(said) == count:
                    time.sleep(0.001)
        rest = heard(others[0], len(said) + 2)
        assert {message["said"] for message in rest} == {-1, -2, *said}
        versions = {message["said"]: message["version"] for message in rest}
        assert versions[-1] == versions[-2] == 1
        assert versions[said[-1]] == 2
        slow.send(json.dumps("last"))
        assert heard(slow, len(said) + 3)[-1] == {"last": -2}


def test_handlers_have_as_long_as_the_configuration_says(module: Path) -> None:
    # The time in which the old process finishes is no part of the grace, and the next one has that for coming up.
    with Server(config(finish_timeout=2.5, grace=2.0)) as server, clients(server, 2) as (slow, other):
        slow.send(json.dumps({"slow": 600, "say": -1}))
        assert heard(slow, 1) == [{"begun": -1}]
        write(module, 2)
        began = time.monotonic()
        server.reload()
        assert 2.4 < time.monotonic() - began < 9
        other.send(json.dumps({"say": 1}))
        assert heard(other, 1) == [{"said": 1, "version": 2}]
        assert heard(slow, 1) == [{"said": 1, "version": 2}]  # what its handler held is lost, its socket is not


@pytest.mark.parametrize(
    ("text", "why"),
    [("this is no Python", "SyntaxError"), (None, "the disk is full"), ("import no_such_thing", "no_such_thing")],
)
def test_code_that_does_not_start_leaves_the_old_process_running(
    text: str | None, why: str, module: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Server(config()) as server, clients(server, 1) as (ws,):
        pids = server.pids
        with pouring([ws], 0.005) as said:
            if text is None:
                write(module, 2, on_start="raise RuntimeError('the disk is full')")
            else:
                module.write_text(text)
            with pytest.raises(StartFailed, match="counting was not replaced, and the process that runs goes on") as error:
                server.reload()
        assert why in str(error.value)
        assert why in caplog.text
        assert server.pids == pids
        assert [message["version"] for message in heard(ws, len(said))] == [1] * len(said)
        write(module, 3)
        server.reload()
        ws.send(json.dumps({"say": 0}))
        assert heard(ws, 1) == [{"said": 0, "version": 3}]
        assert server.failure is None


def test_a_path_of_another_service_leaves_the_old_process_running(module: Path) -> None:
    other = module.with_name("other.py")
    other.write_text(module.read_text().replace('"/", "json"', '"/other", "json"'))
    front = FrontConfig(bind="127.0.0.1:0", processes=2)
    services = {"counting": ServiceConfig("counting:Counting", processes=2), "other": ServiceConfig("other:Counting")}
    with Server(ServerConfig(services, front, transport="unix:")) as server, clients(server, 1) as (ws,):
        with connect(f"ws://{server.address}/other", proxy=None) as one:
            assert "here" in json.loads(one.recv(PATIENCE))
            pids = server.pids
            write(other, 2)
            with pytest.raises(StartFailed, match=r"other was not replaced, and .*other and counting both want the path '/'"):
                server.reload()
            assert {name: pid for name, pid in server.pids.items() if "counting" not in name} == {
                name: pid for name, pid in pids.items() if "counting" not in name
            }
            for path in (ws, one):
                path.send(json.dumps({"say": 1}))
                assert heard(path, 1) == [{"said": 1, "version": 1}]
            other.write_text(other.read_text().replace('"/", "json"', '"/new", "json"'))
            server.reload()
            one.send(json.dumps({"say": 2}))
            assert heard(one, 1) == [{"said": 2, "version": 2}]
            with connect(f"ws://{server.address}/new", proxy=None) as new:
                assert "here" in json.loads(new.recv(PATIENCE))
        assert server.failure is None


def test_of_two_services_that_want_a_new_path_at_the_same_time_one_goes_on_as_it_was(module: Path) -> None:
    other = module.with_name("other.py")
    other.write_text(module.read_text().replace('"/", "json"', '"/other", "json"'))
    services = {"counting": ServiceConfig("counting:Counting", processes=2), "other": ServiceConfig("other:Counting")}
    with Server(ServerConfig(services, FrontConfig(bind="127.0.0.1:0", processes=1), transport="unix:")) as server:
        old = {"counting": "/", "other": "/other"}
        with ExitStack() as stack:
            sockets = {
                name: stack.enter_context(connect(f"ws://{server.address}{path}", proxy=None)) for name, path in old.items()
            }
            for ws in sockets.values():
                assert "here" in json.loads(ws.recv(PATIENCE))
            for file in (module, other):  # each is prepared for long enough to meet the other one
                write(file, 2, on_start="return asyncio.sleep(0.5)")
                file.write_text(file.read_text().replace('"/", "json"', '"/new", "json"'))
            with pytest.raises(StartFailed, match=r"was not replaced, and .* both want the path '/new'"):
                server.reload()
            versions = set()
            for ws in sockets.values():
                ws.send(json.dumps({"say": 1}))
                versions.add(heard(ws, 1)[0]["version"])
            assert versions == {1, 2}
            # Who has given up stands in nobody's way.
            write(module, 3, on_start="raise RuntimeError('on purpose')")
            module.write_text(module.read_text().replace('"/", "json"', '"/newer", "json"'))
            write(other, 3)
            other.write_text(other.read_text().replace('"/", "json"', '"/newer", "json"'))
            with pytest.raises(StartFailed):
                server.reload()
            server._running().replace("other")
            sockets["other"].send(json.dumps({"say": 2}))
            assert heard(sockets["other"], 1) == [{"said": 2, "version": 3}]
        assert server.failure is None


def test_a_path_belongs_to_who_had_it_first() -> None:
    paths = Paths(3)
    try:
        paths.take(0, "chat", "/chat")
        paths.take(1, "chat", "/chat")
        paths.take(2, "rival", "/chat")
        paths.reserve(0, "chat", "/chat")
        with pytest.raises(ConfigError, match="rival and chat both want the path '/chat'"):
            paths.reserve(2, "rival", "/chat")
        paths.take(0, "chat", "/talk")
        paths.take(1, "chat", "/talk")
        paths.reserve(2, "rival", "/chat")
    finally:
        paths.close()


def test_requests_that_were_taken_are_answered_by_the_old_process(module: Path) -> None:
    with Server(config(processes=2)) as server, clients(server, 4) as all_of_them:
        asked = [0] * 4
        done = threading.Event()

        def pour() -> None:
            while not done.wait(0.06):  # an answer takes nearly as long
                for number, ws in enumerate(all_of_them):
                    ws.send(json.dumps({"ask": asked[number]}))
                    asked[number] += 1

        thread = threading.Thread(target=pour)
        thread.start()
        try:
            write(module, 2)
            server.reload()
        finally:
            done.set()
            thread.join()
        for number, ws in enumerate(all_of_them):
            answers = [message["answer"] for message in heard(ws, asked[number])]
            assert [answer for answer, _ in answers] == list(range(asked[number]))


def test_how_long_a_start_may_take_is_configured(module: Path) -> None:
    write(module, 1, on_start="return asyncio.sleep(600)")
    front, services = FrontConfig(bind="127.0.0.1:0", processes=1), {"counting": ServiceConfig("counting:Counting")}
    with pytest.raises(StartFailed, match=r"counting was not ready within 0\.5 seconds"):
        Server(ServerConfig(services, front, transport="unix:", start_timeout=0.5)).start()


def test_stopping_during_a_reload_leaves_nothing(module: Path) -> None:
    with Server(config()) as server:
        write(module, 2, on_start="import time; time.sleep(600)")
        server.request_reload()
        while server.history[-1].what != "started" or server.history[-1].name != "counting":
            server.events.recv(PATIENCE)
    assert {entry.pid for entry in server.history if entry.what == "started"} == {
        entry.pid for entry in server.history if entry.what in ("stopped", "killed")
    }


@pytest.mark.parametrize("way", ["reload", "death"])
def test_a_start_that_takes_long_does_not_hold_up_a_stop(way: str, module: Path) -> None:
    begun = module.with_name("begun")
    with Server(config()) as server:
        write(module, 2, on_start=f"open({str(begun)!r}, 'w').close(); return asyncio.sleep(600)")
        if way == "reload":
            server.request_reload()
        else:
            os.kill(server.pids["counting"], signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while not begun.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    *_, pid = [entry.pid for entry in server.history if (entry.name, entry.what) == ("counting", "started")]
    (last,) = [entry for entry in server.history if entry.pid == pid and entry.what != "started"]
    assert last.what == "stopped"
    assert "exit code 0" in last.detail
