"""The self-check: the chat over every transport, driven by real WebSocket clients, with every message accounted for."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ipcbus.demo import chat_config
from ipcbus.errors import ConfigError, IpcbusError, TransportUnavailable
from ipcbus.selection import transports as installed
from ipcbus.web.link import Cid
from ipcbus.web.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterable

    from websockets.asyncio.client import ClientConnection

__all__ = ["Row", "channel_url", "run_check"]

FRONT_ENDS = 2
BURST = 50
"""Messages each speaker sends in a row."""
PATIENCE = 5.0
"""Seconds for any one message."""
CONNECTIONS = 64
"""Connections tried for having clients on both front ends; each lands on either as the kernel likes."""


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one transport."""

    url: str
    """The URL its channels were opened by."""
    ok: bool
    failed: str | None
    """What went wrong, in one sentence."""
    seconds: float
    """Start and stop of the server included."""
    messages: int
    """WebSocket messages that clients received."""


class _Wrong(Exception):
    """A client got something else than it should have."""


def run_check(transports: list[str] | None = None) -> list[Row]:
    """Run the chat over one transport after the other: two front ends, one service, two rooms, clients on both front ends.

    Args:
        transports: URLs or schemes; None is every installed transport that crosses processes.

    Returns:
        A row per transport, in the order given.
    """
    return [_check(url) for url in (transports if transports is not None else _usable())]


def channel_url(scheme: str) -> str:
    """Return a URL by which a server can open its channels on a transport, with ``{port}`` where it needs an address."""
    from ipcbus.channel import open_channel

    try:
        open_channel(f"{scheme}:").close()
    except ConfigError:
        return f"{scheme}://127.0.0.1:{{port}}"
    return f"{scheme}:"


def _usable() -> Iterable[str]:
    for scheme in sorted(installed):
        try:
            if not installed.get(scheme).capabilities.crosses_processes:
                continue
        except TransportUnavailable:
            continue
        except ConfigError:
            yield f"{scheme}:"  # a broken plugin: its row will say what is wrong
            continue
        yield channel_url(scheme)


def _check(url: str) -> Row:
    from websockets.exceptions import WebSocketException

    began = monotonic()
    run = _Run()
    failed = None
    try:
        with Server(chat_config(url if ":" in url else channel_url(url), bind="127.0.0.1:0", processes=FRONT_ENDS)) as server:
            asyncio.run(run.play(server.address))
    except _Wrong as wrong:
        failed = str(wrong)
    except (IpcbusError, OSError, TimeoutError, WebSocketException) as error:
        failed = f"{type(error).__name__}: {error}"
    return Row(url, failed is None, failed, monotonic() - began, run.messages)


class _Client:
    """One WebSocket client, and which front end it landed on."""

    def __init__(self, run: _Run, ws: ClientConnection, welcome: dict[str, Any]) -> None:
        self._run = run
        self._ws = ws
        self.name: str = welcome["name"]
        self.front = Cid.unpack(int(welcome["id"], 16)).front

    async def send(self, **message: Any) -> None:
        await self._ws.send(json.dumps(message))

    async def expect(self, **message: Any) -> None:
        """Receive the next message, which must be this one."""
        try:
            async with asyncio.timeout(PATIENCE):
                got = json.loads(await self._ws.recv())
        except TimeoutError:
            raise _Wrong(f"{self.name} waited {PATIENCE:g} seconds for {message}") from None
        self._run.messages += 1
        if got != message:
            raise _Wrong(f"{self.name} got {got} where {message} was due")

    async def join(self, room: str, users: list[str]) -> None:
        await self.send(op="join", room=room)
        await self.expect(op="users", room=room, users=sorted(users))

    async def fence(self, room: str, users: list[str]) -> None:
        """Make sure that nothing is on its way to this client: an answer comes after everything sent before it."""
        await self.send(op="users", room=room)
        await self.expect(op="users", room=room, users=sorted(users))

    async def close(self) -> None:
        await self._ws.close()


class _Run:
    """The check itself."""

    def __init__(self) -> None:
        self.messages = 0

    async def play(self, address: str) -> None:
        """Connect, talk, leave.

        Raises:
            _Wrong: somebody got what they should not, or did not get what they should.
        """
        clients: list[_Client] = []
        try:
            await self._connect(address, clients)
            await self._talk(clients)
        finally:
            await asyncio.gather(*(client.close() for client in clients))

    async def _connect(self, address: str, clients: list[_Client]) -> None:
        """Connect until every front end has two clients."""
        from websockets.asyncio.client import connect

        while any(sum(client.front == front for client in clients) < 2 for front in range(FRONT_ENDS)):
            if len(clients) == CONNECTIONS:
                raise _Wrong(f"{CONNECTIONS} connections did not reach all {FRONT_ENDS} front ends")
            name = f"user{len(clients)}"
            ws = await connect(f"ws://{address}/chat?name={quote(name)}", proxy=None, open_timeout=PATIENCE)
            async with asyncio.timeout(PATIENCE):
                welcome = json.loads(await ws.recv())
            self.messages += 1
            clients.append(_Client(self, ws, welcome))
            if clients[-1].name != name:
                raise _Wrong(f"{name} was called {clients[-1].name}")

    async def _talk(self, clients: list[_Client]) -> None:
        """Two rooms, each with one member on either front end."""
        left = [client for client in clients if client.front == 0]
        right = [client for client in clients if client.front == 1]
        green, blue = (left[0], right[0]), (left[1], right[1])
        for room, (first, second) in (("green", green), ("blue", blue)):
            await first.join(room, [first.name])
            await second.join(room, [first.name, second.name])
            await first.expect(op="joined", room=room, name=second.name)
        # Both rooms talk at the same time; everybody must hear their own room in order, and nothing of the other.
        await asyncio.gather(
            *(green[0].send(op="say", room="green", text=f"grün {number}") for number in range(BURST)),
            *(blue[1].send(op="say", room="blue", text=f"bleu {number}") for number in range(BURST)),
        )
        for room, word, members, speaker in (("green", "grün", green, green[0]), ("blue", "bleu", blue, blue[1])):
            for client in members:
                for number in range(BURST):
                    await client.expect(op="said", room=room, name=speaker.name, text=f"{word} {number}")
        for room, members in (("green", green), ("blue", blue)):
            for client in members:
                await client.fence(room, [client.name for client in members])
        await green[1].close()
        await green[0].expect(op="left", room="green", name=green[1].name)
        await green[0].fence("green", [green[0].name])
        await blue[0].send(op="leave", room="blue")
        await blue[1].expect(op="left", room="blue", name=blue[0].name)
        await blue[1].fence("blue", [blue[1].name])
