"""The process that holds client sockets: events to the services, commands from them, rooms fanned out right here."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from websockets.asyncio.server import broadcast, serve
from websockets.exceptions import ConnectionClosed

from ipcbus.errors import ConfigError, SerializationError
from ipcbus.web import http
from ipcbus.web.health import health
from ipcbus.web.link import BINARY, COMMANDS, TEXT, Batch, Cid, Command, Event, LinkError, Sequence, decode, start
from ipcbus.web.pump import Pump
from ipcbus.web.rooms import Rooms

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable
    from collections.abc import Sequence as Many

    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Request, Response

    from ipcbus.channel import Channel
    from ipcbus.web.config import FrontConfig

__all__ = ["Counts", "FrontEnd"]

logger = logging.getLogger("ipcbus.web")

GOING_AWAY = 1001
ABNORMAL = 1006
SERVICE_RESTART = 1012
TRY_LATER = 1013
GRACE = 2.0
"""Seconds that clients, and then the links, get when the process is asked to stop."""


class _Quiet(logging.LoggerAdapter[logging.Logger]):
    """What the WebSocket library says about strangers' mistakes is for debugging: nobody outside may fill our log."""

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        super().log(min(level, logging.DEBUG), msg, *args, **kwargs)


@dataclass(slots=True)
class Counts:
    """What has happened in this front end."""

    opened: int = 0
    closed: int = 0
    received: int = 0
    """Messages of clients."""
    sent: int = 0
    """Messages written to clients."""
    refused: int = 0
    """Opening handshakes answered with 403, 404 or 503."""
    slow: int = 0
    """Connections cut because too much waited for them."""
    unknown: int = 0
    """Commands for a connection that is gone."""
    stale: int = 0
    """Batches of a service that was replaced since."""


class _Peer:
    """A client's connection."""

    __slots__ = ("cid", "closing", "ws")

    def __init__(self, cid: int, ws: ServerConnection) -> None:
        self.cid = cid
        self.ws = ws
        self.closing = False


class _Service:
    """A service as the front end sees it."""

    __slots__ = ("epoch", "name", "path", "peers", "pump", "rooms", "sequence", "token")

    def __init__(self, name: str, pump: Pump) -> None:
        self.name = name
        self.pump = pump
        self.path: str | None = None
        self.token = 0  # 0: not attached
        self.epoch = 0
        self.sequence = Sequence()
        self.peers: dict[int, _Peer] = {}
        self.rooms: Rooms[_Peer] = Rooms()


class FrontEnd:
    """Serves clients from one listening socket.

    Args:
        config: limits and the like.
        index: its index among the front ends.
        incarnation: how many times it was started before; goes into connection numbers.
        sock: the listening socket.
        inbox: the channel that services send commands into.
        services: names and inboxes of the services, by their index.
        page: the HTML served at ``/``.
    """

    def __init__(
        self,
        config: FrontConfig,
        index: int,
        incarnation: int,
        sock: socket.socket,
        inbox: Channel,
        services: Many[tuple[str, Channel]],
        page: bytes | None,
    ) -> None:
        self.counts = Counts()
        self._config = config
        self._index = index
        self._incarnation = incarnation
        self._sock = sock
        self._inbox = inbox.receiver
        self._page = page
        self._epoch = start()
        self._services = [_Service(name, Pump(name, channel, index, self._epoch)) for name, channel in services]
        self._routes: dict[str, _Service] = {}
        self._counter = 0
        self._news = asyncio.Event()
        self._stop = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------ life

    def stop(self) -> None:
        """Make ``run`` return, after clients were told."""
        self._stop.set()

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until ``stop``.

        Args:
            ready: called once clients are served, which is when every service has answered.

        Raises:
            ConfigError: two services want the same path.
            ChannelBusy: another process is still the receiver of this front end's inbox.
            ChannelBroken: the inbox cannot be used any more.
        """
        self._inbox.fileno()  # opened before anybody is told
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(service.pump.run()) for service in self._services]
        for service in self._services:
            self._greet(service)
        work = asyncio.create_task(self._receive())
        stopping = asyncio.create_task(self._stop.wait())
        attached = asyncio.create_task(self._attached())
        tasks += [work, stopping, attached]
        config = self._config
        try:
            server = await serve(
                self._handle,
                sock=self._sock,
                backlog=4096,
                process_request=self._process_request,
                compression=None,
                server_header=None,
                logger=_Quiet(logging.getLogger("ipcbus.web.websockets")),
                max_size=config.max_size,
                max_queue=config.max_queue,
                open_timeout=config.open_timeout,
                ping_interval=config.ping_interval,
                ping_timeout=config.ping_timeout,
                close_timeout=GRACE,
            )
            try:
                await asyncio.wait((work, stopping, attached), return_when=asyncio.FIRST_COMPLETED)
                if attached.done():
                    ready()
                await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
            finally:
                server.close(code=GOING_AWAY, reason="the server stops")
                try:
                    async with asyncio.timeout(2 * GRACE):
                        await server.wait_closed()
                except TimeoutError:
                    logger.warning("front end %d: some connections could not be closed in time", self._index)
            if work.done():
                work.result()  # raises what ended it
            await self._part()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _part(self) -> None:
        """Say goodbye, and take what services have sent before they heard it: a transport may wait for its being read."""
        for service in self._services:
            if service.token:
                service.pump.put((Event.BYE,))
        try:
            async with asyncio.timeout(GRACE):
                while any(service.token for service in self._services):
                    await self._news.wait()
        except TimeoutError:
            logger.warning("front end %d: not every service has answered the goodbye", self._index)

    async def _attached(self) -> None:
        while not all(service.token for service in self._services):
            await self._news.wait()

    def _announce(self) -> None:
        """Wake whoever waits for a service."""
        self._news.set()
        self._news = asyncio.Event()

    # ------------------------------------------------------------------ clients

    async def _process_request(self, _: ServerConnection, request: Request) -> Response | None:
        try:
            return await self._answer(request)
        except Exception:  # the library would log it as a stranger's mistake
            logger.exception("front end %d: a request could not be answered", self._index)
            raise

    async def _answer(self, request: Request) -> Response | None:
        path = request.path.partition("?")[0]
        if http.is_upgrade(request):
            return await self._admit(request, path)
        if request.method not in ("GET", "HEAD"):
            return http.plain(request, 405, "Only GET and HEAD are understood here.", ("Allow", "GET, HEAD"))
        if path == "/" and self._page is not None:
            return http.page(request, self._page)
        away = [service.name for service in self._services if not service.token]
        if (found := health(path, away, draining=self._stop.is_set())) is not None:
            return http.plain(request, *found)
        if path in self._routes:
            return http.plain(request, 426, "This is a WebSocket.", ("Upgrade", "websocket"))
        return http.plain(request, 404, "There is nothing here.")

    async def _admit(self, request: Request, path: str) -> Response | None:
        if not http.allowed_origin(request, self._config.origins):
            self.counts.refused += 1
            return http.plain(request, 403, "Pages of that origin may not connect; the server's 'origins' says which may.")
        try:
            # Shorter than the library's own limit, which ends a handshake without an answer.
            async with asyncio.timeout(self._config.open_timeout * 0.8):
                while not self._is_up(path):
                    if all(service.token for service in self._services):
                        self.counts.refused += 1
                        return http.plain(request, 404, "There is nothing here.")
                    await self._news.wait()
        except TimeoutError:
            self.counts.refused += 1
            return http.plain(request, 503, "The service is being started; try again.", ("Retry-After", "1"))
        return None

    def _is_up(self, path: str) -> bool:
        service = self._routes.get(path)
        return service is not None and service.token != 0

    async def _handle(self, ws: ServerConnection) -> None:
        request = ws.request
        assert request is not None  # the handshake is over
        service = self._routes[request.path.partition("?")[0]]
        if not service.token:
            await ws.close(TRY_LATER, "the service is being started")
            return
        peer = self._open(service, ws, request)
        pump = service.pump
        try:
            while True:
                message = await ws.recv()
                if isinstance(message, str):
                    kind, data = TEXT, message.encode()
                else:
                    kind, data = BINARY, message
                if peer.cid not in service.peers:
                    continue  # the service was restarted and the connection is being closed
                self.counts.received += 1
                pump.put((Event.MSG, peer.cid, kind, data), len(data))
                if pump.full:
                    await pump.room()
        except ConnectionClosed:
            pass  # however it ended, the code says it
        finally:
            self._gone(service, peer)

    def _open(self, service: _Service, ws: ServerConnection, request: Request) -> _Peer:
        path, _, query = request.path.partition("?")
        self._counter += 1
        self.counts.opened += 1
        peer = _Peer(Cid(self._index, self._incarnation, self._counter).pack(), ws)
        service.peers[peer.cid] = peer
        address = ws.remote_address
        seen = {
            "path": path,
            "query": query,
            "headers": http.picked(request, self._config.headers),
            "peer": f"{address[0]}:{address[1]}" if address else "",
        }
        service.pump.put((Event.OPEN, peer.cid, seen))
        return peer

    def _gone(self, service: _Service, peer: _Peer) -> None:
        self.counts.closed += 1
        if service.peers.pop(peer.cid, None) is None:
            return  # the service that knew it is gone as well
        service.rooms.drop(peer)
        code = peer.ws.close_code or ABNORMAL
        service.pump.put((Event.CLOSE, peer.cid, code, peer.ws.close_reason or "", code != ABNORMAL))

    # ------------------------------------------------------------------ commands

    async def _receive(self) -> None:
        aio = self._inbox.aio
        while True:
            try:
                batch = decode(await aio.recv(), COMMANDS)
                if batch.sender >= len(self._services) or batch.sender < 0:
                    raise LinkError(f"service {batch.sender} does not exist")  # noqa: TRY301  handled as any other nonsense
            except EOFError:
                return
            except (SerializationError, LinkError) as error:
                logger.warning("front end %d: a message in the inbox is dropped: %s", self._index, error)
                continue
            self._take(self._services[batch.sender], batch)
            await asyncio.sleep(0)  # recv does not yield while there is more, and sockets want their turn

    def _take(self, service: _Service, batch: Batch) -> None:
        if batch.epoch < service.epoch:
            self.counts.stale += 1
            return
        if batch.epoch > service.epoch:
            self._detach(service)
            service.epoch = batch.epoch
            service.sequence = Sequence()
        if not service.sequence.follows(batch) and service.token:
            logger.warning("front end %d: a batch of %s is missing; its connections begin anew", self._index, service.name)
            self._detach(service)
            self._greet(service)
        for command in batch.events:
            if command[0] == Command.READY:
                self._ready(service, command)
            elif command[0] == Command.BYE:
                self._detach(service)
                self._announce()
                return
            elif service.token:
                self._obey(service, command)
        if not service.token:
            self.counts.stale += 1

    def _ready(self, service: _Service, command: list[Any]) -> None:
        _, name, path, token, front_epoch = command
        if token == service.token or front_epoch not in (0, self._epoch):
            return  # heard already, or said to the process that was here before
        if self._routes.get(path, service) is not service:
            raise ConfigError(f"{name} and {self._routes[path].name} both want the path {path!r}; a path has one service")
        self._detach(service)
        if service.path is not None and service.path != path:
            del self._routes[service.path]
        self._routes[path] = service
        service.path = path
        service.token = token
        self._greet(service)
        self._announce()

    def _greet(self, service: _Service) -> None:
        service.pump.put((Event.HELLO, os.getpid(), service.token))

    def _detach(self, service: _Service) -> None:
        """Let go of everything that one start of a service knew: its next one begins with nothing."""
        if service.peers:
            logger.warning("front end %d: %d connections of %s are closed", self._index, len(service.peers), service.name)
        service.token = 0
        peers = list(service.peers.values())
        service.peers.clear()
        service.rooms = Rooms()
        service.pump.discard()
        for peer in peers:
            self._close(peer, SERVICE_RESTART, "the service was restarted")

    def _obey(self, service: _Service, command: list[Any]) -> None:
        op, target, *fields = command
        if op == Command.PUB:
            kind, data, left_out = fields
            self._send((peer for peer in service.rooms.members(target) if peer.cid != left_out), kind, data)
            return
        peer = service.peers.get(target)
        if peer is None:
            self.counts.unknown += 1
        elif op == Command.SEND:
            self._send((peer,), *fields)
        elif op == Command.JOIN:
            for group in fields[0]:
                service.rooms.join(peer, group)
        elif op == Command.LEAVE:
            for group in fields[0]:
                service.rooms.leave(peer, group)
        elif op == Command.CLOSE:
            self._close(peer, *fields)

    def _send(self, peers: Iterable[_Peer], kind: str, data: bytes) -> None:
        limit = self._config.write_limit
        receivers = []
        for peer in peers:
            if peer.closing:
                continue
            if peer.ws.transport.get_write_buffer_size() > limit:
                self._cut(peer)
                continue
            receivers.append(peer.ws)
        self.counts.sent += len(receivers)
        broadcast(receivers, data, text=kind == TEXT)

    def _cut(self, peer: _Peer) -> None:
        self.counts.slow += 1
        peer.closing = True
        logger.info("front end %d: %s reads too slowly and is cut off", self._index, peer.ws.remote_address)
        peer.ws.transport.abort()

    def _close(self, peer: _Peer, code: int, reason: str) -> None:
        """Begin to close; what is sent after this is not sent."""
        if peer.closing:
            return
        peer.closing = True
        task = asyncio.create_task(peer.ws.close(code, reason))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
