"""A server under load loses processes, one after the other: who is told, what is lost, what stays.

``IPCBUS_KILLS`` is how often; the default is few, so that the suite stays fast.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from ipcbus.testing.faults import kills
from ipcbus.web.config import FrontConfig, ServerConfig, ServiceConfig
from ipcbus.web.link import Cid
from ipcbus.web.server import Server

KILLS = kills(3)
PATIENCE = 20.0
CLIENTS, ROOM = 40, 10
RATE = 300
"""Messages a second, over all clients; each goes to everybody in a room."""


@pytest.fixture(autouse=True)
def _programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "web" / "programs"))


def config(**front: Any) -> ServerConfig:
    limits = {"bind": "127.0.0.1:0", "message_rate": 0, "accept_rate": 0, **front}
    return ServerConfig(services={"rooms": ServiceConfig("web_programs:Rooms")}, front=FrontConfig(**limits), transport="unix:")


class Client:
    """Notes what it gets: ``room number from``."""

    def __init__(self, ws: ClientConnection, number: int) -> None:
        self.ws = ws
        self.number = number
        self.front = -1
        self.got: set[tuple[int, int]] = set()
        self.twice = 0
        self.left: list[str] = []
        self.last = self.silence = 0.0
        self.code: int | None = None
        self.members = asyncio.Event()
        self.count = 0

    async def read(self) -> None:
        try:
            async for text in self.ws:
                word, *rest = str(text).split()
                if word == "said":
                    self._said(int(rest[0]), int(rest[1]))
                elif word == "left":
                    self.left.append(rest[0])
                elif word == "members":
                    self.count = int(rest[0])
                    self.members.set()
        except ConnectionClosed:
            pass
        self.code = self.ws.close_code

    def _said(self, sender: int, number: int) -> None:
        now = time.monotonic()
        if self.last:
            self.silence = max(self.silence, now - self.last)
        self.last = now
        self.twice += (sender, number) in self.got
        self.got.add((sender, number))

    async def room(self) -> int:
        """Return how many members the service sees in this client's room."""
        self.members.clear()
        await self.ws.send("members")
        async with asyncio.timeout(PATIENCE):
            await self.members.wait()
        return self.count


class Load:
    """Clients in rooms that talk at a steady rate."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.clients: list[Client] = []
        self.sent: list[tuple[int, int]] = []
        self._reading: list[asyncio.Task[None]] = []
        self._talking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        for number in range(CLIENTS):
            ws = await connect(f"ws://{self._address}/rooms?room={number // ROOM}&name={number}", proxy=None, max_queue=1000)
            client = Client(ws, number)
            client.front = Cid.unpack(int(str(await ws.recv()).split()[1])).front
            self.clients.append(client)
            self._reading.append(asyncio.create_task(client.read()))
        self._talking = asyncio.create_task(self._talk())
        return self

    async def _talk(self) -> None:
        begun, number = time.monotonic(), 0
        while True:
            while number < (time.monotonic() - begun) * RATE:
                client = self.clients[number * 7 % CLIENTS]
                number += 1
                if client.code is None:
                    try:
                        await client.ws.send(f"say {number}")
                    except ConnectionClosed:
                        continue
                    self.sent.append((client.number, number))
            await asyncio.sleep(0.005)

    async def settle(self) -> None:
        """Stop talking and wait until everything that was said had the time to arrive."""
        assert self._talking is not None
        self._talking.cancel()
        for client in self.clients:
            if client.code is None:
                await client.room()  # the answer comes after everything that was sent before

    async def __aexit__(self, *_: object) -> None:
        assert self._talking is not None
        self._talking.cancel()
        for client in self.clients:
            await client.ws.close()
        await asyncio.gather(self._talking, *self._reading, return_exceptions=True)


async def replaced(server: Server, name: str, pid: int) -> None:
    """Wait until another process has taken the place of one."""
    async with asyncio.timeout(PATIENCE):
        while server.pids.get(name, pid) == pid or server.history[-1].what != "ready":  # noqa: ASYNC110  no event loop's event
            await asyncio.sleep(0.01)


async def test_killed_services_lose_no_client_and_hardly_a_message() -> None:
    with Server(config()) as server:
        async with Load(server.address) as load:
            await asyncio.sleep(0.5)
            for _ in range(KILLS):
                pid = server.pids["rooms"]
                os.kill(pid, signal.SIGKILL)
                await replaced(server, "rooms", pid)
                await asyncio.sleep(2.2)  # fewer deaths within the period than stop a server
            await load.settle()
            assert [client.code for client in load.clients] == [None] * CLIENTS
            assert [client.twice for client in load.clients] == [0] * CLIENTS
            assert [await client.room() for client in load.clients] == [ROOM] * CLIENTS
            due = len(load.sent) * ROOM
            got = sum(len(client.got) for client in load.clients)
            silence = max(client.silence for client in load.clients)
            print(f"\n{KILLS} kills: {due - got} of {due} deliveries lost, longest silence {silence * 1000:.0f} ms")
            # A batch or two that the process had taken and not answered; the machine may be busy, so this is generous.
            assert due - got <= KILLS * ROOM * RATE * 0.05
            assert silence < 5


async def test_killed_front_ends_take_their_own_clients_only() -> None:
    with Server(config()) as server:
        async with Load(server.address) as load:
            for _ in range(min(KILLS, 5)):
                pid = server.pids["front-1"]
                os.kill(pid, signal.SIGKILL)
                await replaced(server, "front-1", pid)
                await asyncio.sleep(2.2)
            await load.settle()
            here = [client for client in load.clients if client.front == 0]
            there = [client for client in load.clients if client.front == 1]
            assert [client.code for client in there] == [1006] * len(there)
            assert [client.code for client in here] == [None] * len(here)
            lost = {str(client.number) for client in there}
            for client in here:
                mine = {(sender, number) for sender, number in load.sent if sender // ROOM == client.number // ROOM}
                assert {entry for entry in mine if load.clients[entry[0]].front == 0} <= client.got
                left = [name for name in client.left if int(name) // ROOM == client.number // ROOM]
                assert sorted(left) == sorted(name for name in lost if int(name) // ROOM == client.number // ROOM)
                assert await client.room() == ROOM - len(left)


async def test_ten_thousand_connects_leave_the_others_alone() -> None:
    """As fast as this machine makes them: most are refused, none costs anything for long."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with Server(config(accept_rate=200.0, half_open=100, open_timeout=1.0)) as server:
        host, port = server.address.split(":")
        fronts = {name: pid for name, pid in server.pids.items() if name.startswith("front")}

        def memory() -> int:
            return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4 for pid in fronts.values())

        done = threading.Event()

        def storm() -> None:
            made = 0
            until = time.monotonic() + 5
            held: list[socket.socket] = []
            while made < 10_000 and time.monotonic() < until:
                sock = socket.socket()
                sock.setblocking(False)
                sock.connect_ex((host, int(port)))
                held.append(sock)
                made += 1
                if len(held) > 1000:
                    held.pop(0).close()
            for sock in held:
                sock.close()
            done.set()

        async with Load(server.address) as load:
            before = memory()
            storming = threading.Thread(target=storm)
            storming.start()
            while not done.is_set():  # noqa: ASYNC110  set by a thread
                await asyncio.sleep(0.05)
            storming.join()
            await load.settle()
            assert [client.code for client in load.clients] == [None] * CLIENTS
            due = len(load.sent) * ROOM
            assert sum(len(client.got) for client in load.clients) == due
            assert memory() - before < 60_000  # KiB, of two processes


SERVE = """
import logging, signal, sys
from ipcbus.web.config import *
from ipcbus.web.server import serve
if __name__ == "__main__":
    config = ServerConfig(services={"rooms": ServiceConfig("web_programs:Rooms")},
                          front=FrontConfig(bind="127.0.0.1:0"), transport="unix:")
    sys.exit(serve(config, ready=lambda server: print(server.address, *server.pids.values(), flush=True)))
"""


@pytest.fixture
def master(tmp_path: Path) -> Any:
    """A server in a process of its own; yields it, its address and the pids of its processes."""
    file = tmp_path / "run.py"
    file.write_text(SERVE)
    path = os.pathsep.join([str(Path(__file__).parents[1] / "web" / "programs"), os.environ.get("PYTHONPATH", "")])
    # What has a name is left behind by a master that is killed: the place for that is removed here.
    place = tempfile.mkdtemp(prefix="m-")
    environment = {**os.environ, "PYTHONPATH": path, "XDG_RUNTIME_DIR": place, "TMPDIR": place}
    with subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        address, *pids = process.stdout.readline().split()
        yield process, address, [int(pid) for pid in pids]
        process.kill()
    shutil.rmtree(place)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_nothing_outlives_a_killed_master(master: Any) -> None:
    process, address, pids = master
    assert all(alive(pid) for pid in pids)
    process.kill()
    process.wait(PATIENCE)
    deadline = time.monotonic() + 2
    host, port = address.split(":")
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, [pid for pid in pids if alive(pid)]
        time.sleep(0.01)
    with socket.create_server((host, int(port))):
        assert time.monotonic() < deadline


def test_storms_of_signals(master: Any) -> None:
    process, address, pids = master

    async def talk() -> None:
        async with connect(f"ws://{address}/rooms?room=0&name=0", proxy=None) as ws:
            await ws.recv()
            for number in range(30):
                process.send_signal(signal.SIGHUP)
                for pid in pids[1:]:  # a terminal that ends tells everybody
                    os.kill(pid, signal.SIGHUP)
                await ws.send(f"say {number}")
                async with asyncio.timeout(PATIENCE):
                    assert (await ws.recv()) == f"said 0 {number}"
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) * 5:
                process.send_signal(number)
            with pytest.raises(ConnectionClosed):
                async with asyncio.timeout(PATIENCE):
                    await ws.recv()
            assert ws.close_code == 1001

    asyncio.run(talk())
    assert process.wait(PATIENCE) == 0
    assert not any(alive(pid) for pid in pids)
