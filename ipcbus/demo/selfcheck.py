"""The self-check: the chat over every transport, driven by real WebSocket clients, with every message accounted for."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from time import monotonic
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.typing import Subprotocol

from ipcbus.demo import chat_config, sqlite
from ipcbus.demo.token import offer
from ipcbus.errors import ConfigError, IpcbusError, TransportUnavailable
from ipcbus.selection import AUTO
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
NOT_SIGNED_IN = 4401
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


def channel_url(url: str) -> str:
    """Return a URL by which a server can open its channels: with ``{port}`` where it needs an address and has none.

    Args:
        url: such a URL, or a scheme alone.

    Raises:
        UnknownTransport, TransportUnavailable: as :func:`ipcbus.open`.
    """
    from ipcbus.channel import open_channel

    scheme, _, rest = url.partition(":")
    whole = f"{scheme}:{rest}"
    if scheme == AUTO or rest.partition("?")[0] or not installed.get(scheme).capabilities.addressable:
        return whole
    try:
        open_channel(whole).close()
    except ConfigError:
        return f"{scheme}://127.0.0.1:{{port}}{rest}"
    return whole


def _protocols(token: str) -> list[Subprotocol]:
    return [Subprotocol(name) for name in offer(token)]


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
    began = monotonic()
    run = _Run()
    failed = None
    try:
        url_of_channels = channel_url(url)
        with TemporaryDirectory(prefix="ipcbus-demo-") as folder:
            config = chat_config(url_of_channels, "127.0.0.1:0", FRONT_ENDS, database=sqlite(folder))
            with Server(config) as server:
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
        self.token: str = welcome["token"]
        self.front = Cid.unpack(int(welcome["id"], 16)).front

    async def send(self, **message: Any) -> None:
        await self._ws.send(json.dumps(message))

    async def expect(self, **message: Any) -> dict[str, Any]:
        """Receive the next message, which must be this one and may say more."""
        try:
            async with asyncio.timeout(PATIENCE):
                got = json.loads(await self._ws.recv())
        except TimeoutError:
            raise _Wrong(f"{self.name} waited {PATIENCE:g} seconds for {message}") from None
        self._run.messages += 1
        if {**got, **message} != got:
            raise _Wrong(f"{self.name} got {got} where {message} was due")
        return dict(got)

    async def join(self, room: str, users: list[str], said: int = 0, after: int | None = None) -> None:
        """Enter a room in which these are and so many messages were said after that one."""
        await self.send(op="join", room=room, after=after)
        await self.expect(op="users", room=room, users=sorted(users))
        found = (await self.expect(op="history", room=room))["messages"]
        if len(found) != said:
            raise _Wrong(f"{self.name} was shown {len(found)} messages of {room} where {said} were due")

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
            last = await self._talk(clients)
            await self._come_back(address, clients, last)
        finally:
            await asyncio.gather(*(client.close() for client in clients))

    async def _connect(self, address: str, clients: list[_Client]) -> None:
        """Connect until every front end has two clients."""
        while any(sum(client.front == front for client in clients) < 2 for front in range(FRONT_ENDS)):
            if len(clients) == CONNECTIONS:
                raise _Wrong(f"{CONNECTIONS} connections did not reach all {FRONT_ENDS} front ends")
            name = f"user{len(clients)}"
            ws = await connect(f"ws://{address}/chat", proxy=None, open_timeout=PATIENCE)
            await ws.send(json.dumps({"op": "sign-in", "name": name}))
            clients.append(await self._welcome(ws, name))

    async def _welcome(self, ws: ClientConnection, name: str) -> _Client:
        async with asyncio.timeout(PATIENCE):
            client = _Client(self, ws, json.loads(await ws.recv()))
        self.messages += 1
        if client.name != name:
            raise _Wrong(f"{name} was called {client.name}")
        return client

    async def _return(self, address: str, token: str, name: str) -> _Client:
        """Connect with a token."""
        ws = await connect(f"ws://{address}/chat", subprotocols=_protocols(token), proxy=None, open_timeout=PATIENCE)
        return await self._welcome(ws, name)

    async def _forge(self, address: str, token: str) -> None:
        """Try to come in with a token of which somebody has changed the signature."""
        forged = token[:-2] + ("AA" if token[-2:] != "AA" else "BB")
        async with connect(f"ws://{address}/chat", subprotocols=_protocols(forged), proxy=None, open_timeout=PATIENCE) as ws:
            try:
                async with asyncio.timeout(PATIENCE):
                    answer = f"by {await ws.recv()!r}"
            except ConnectionClosed:
                if ws.close_code == NOT_SIGNED_IN:
                    return
                answer = f"with close code {ws.close_code}"
        raise _Wrong(f"a forged token was answered {answer} where it was to be refused with {NOT_SIGNED_IN}")

    async def _talk(self, clients: list[_Client]) -> int:
        """Two rooms, each with one member on either front end; return the number of the fourth last message of the first."""
        left = [client for client in clients if client.front == 0]
        right = [client for client in clients if client.front == 1]
        green, blue = (left[0], right[0]), (left[1], right[1])
        last: dict[str, int] = {}
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
                    said = await client.expect(op="said", room=room, name=speaker.name, text=f"{word} {number}")
                    if number == BURST - 4:
                        last[room] = said["id"]
        for room, members in (("green", green), ("blue", blue)):
            for client in members:
                await client.fence(room, [client.name for client in members])
        await green[1].close()
        await green[0].expect(op="left", room="green", name=green[1].name)
        await green[0].fence("green", [green[0].name])
        await blue[0].send(op="leave", room="blue")
        await blue[1].expect(op="left", room="blue", name=blue[0].name)
        await blue[1].fence("blue", [blue[1].name])
        return last["green"]

    async def _come_back(self, address: str, clients: list[_Client], last: int) -> None:
        """The one who left comes back with its token, and gets what it says it lacks; who forges a token gets nothing."""
        gone, here = next(client for client in clients if client.front == 1), clients[[c.front for c in clients].index(0)]
        back = await self._return(address, gone.token, gone.name)
        clients.append(back)
        await back.join("green", [here.name, back.name], said=3, after=last)
        await here.expect(op="joined", room="green", name=back.name)
        await back.send(op="typing", room="green")
        await here.expect(op="typing", room="green", name=back.name)
        await self._forge(address, gone.token)
