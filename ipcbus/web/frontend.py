"""The process that holds client sockets: events to the services, commands from them, rooms fanned out right here."""

from __future__ import annotations

import asyncio
import logging
import random
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from ipcbus.errors import ChannelBroken, ConfigError, SerializationError
from ipcbus.web.counts import Counts
from ipcbus.web.delivery import Delivery
from ipcbus.web.doors import Doors, draw_numbers
from ipcbus.web.limits import Limits
from ipcbus.web.link import COMMANDS, Batch, Command, Event, LinkError, decode, start
from ipcbus.web.moments import pause, ticks
from ipcbus.web.orders import Orders
from ipcbus.web.paths import both_want
from ipcbus.web.peers import Peer
from ipcbus.web.reading import read
from ipcbus.web.scarcity import outlast
from ipcbus.web.servicelink import Grant, Route, ServiceInbox, ServiceLink
from ipcbus.web.socket import Socket
from ipcbus.web.terms import GOING_AWAY, Terms

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable
    from collections.abc import Sequence as Many

    from ipcbus.channel import Channel
    from ipcbus.web.config import FrontConfig

__all__ = ["Counts", "FrontEnd"]

logger = logging.getLogger("ipcbus.web")

TRY_LATER = 1013
GRACE = 2.0
"""Seconds that clients, and then the links, get when the process is asked to stop."""
_MOMENT = 0.1
"""Seconds within which a signal that goes to the whole group of processes reaches all of them."""
GONE_WINDOW = 5.0
"""Seconds over which connections are closed whose service does not come back: their clients will not all return at once."""


class _Quiet(logging.LoggerAdapter[logging.Logger]):
    """What the WebSocket library says about strangers' mistakes is for debugging: nobody outside may fill our log."""

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        super().log(min(level, logging.DEBUG), msg, *args, **kwargs)


class FrontEnd:
    """Serves clients from one listening socket.

    Args:
        config: limits and the like.
        index: its index among the front ends.
        incarnation: how many times it was started before; goes into connection numbers.
        sock: the listening socket.
        inbox: the channel that services send commands into.
        services: what there is to connect to.
        page: the HTML served at ``/``.
        tls: for ``wss://``.
    """

    def __init__(
        self,
        config: FrontConfig,
        index: int,
        incarnation: int,
        sock: socket.socket,
        inbox: Channel,
        services: Many[ServiceInbox],
        page: bytes | None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.counts = Counts()
        self.frame_rate, self.write_limit = config.frame_rate, config.write_limit
        self.routes: dict[str, Route] = {}
        """The services by path, as far as they have said it."""
        self.all_routes: list[Route] = []
        self.links: list[ServiceLink] = []
        self.news = asyncio.Event()
        """Set, and replaced, when a service process comes up or goes."""
        self.stopping = False
        self._config = config
        self._index = index
        self._sock = sock
        self._tls = tls
        self._inbox = inbox.receiver
        self._epoch = start()
        self._starting = incarnation == 0
        """Whether the server has never served, so that what is wrong may end its start."""
        for service in services:
            route = Route(service.name, service.key, service.grace, service.farewell)
            self.all_routes.append(route)
            for name, channel in service.inboxes:
                link = ServiceLink(route, len(self.links), name, channel, index, self._epoch)
                route.links.append(link)
                self.links.append(link)
        self._doors = Doors(self, config, self.counts, page, draw_numbers(index, incarnation))
        self._delivery = Delivery(self.counts, config.write_limit, config.coalesce)
        self._orders = Orders(self._delivery, self.counts, self._close)
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------ life

    def stop(self) -> None:
        """Make ``run`` return, after clients were told."""
        self._stop.set()

    async def stopped(self) -> None:
        """Wait until ``stop`` is called."""
        await self._stop.wait()

    def gauges(self) -> dict[str, int]:
        """Return what there is now of what is counted."""
        peers = (peer for route in self.all_routes for peer in route.table.peers.values())
        return {
            "connections": self.counts.connections,
            "waiting_bytes": sum(peer.ws.transport.get_write_buffer_size() for peer in peers),
            "waiting_events": sum(len(link.gate) + len(link.pump) for link in self.links),
        }

    async def prepare(self) -> None:
        """Do what can be done before ``run``: nothing."""

    async def dismiss(self) -> None:
        """End without having run."""

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until ``stop``.

        Args:
            ready: called once clients are served, which is when every service has answered; but at once if it takes the place
                of another one: nobody need wait for a service that is away but its own clients.

        Raises:
            ConfigError: two services want the same path, and the server has not served yet.
            ChannelBusy: another process is still the receiver of this front end's inbox.
            ChannelBroken: the inbox cannot be used any more.
        """
        self._inbox.fileno()  # opened before anybody is told
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(link.pump.run()) for link in self.links]
        for link in self.links:
            link.greet()
        work = asyncio.create_task(self._receive())
        stopping = asyncio.create_task(self._stop.wait())
        attached = asyncio.create_task(self._attached())
        tasks += [work, stopping, attached, asyncio.create_task(self._watch())]
        try:
            server = await self._serve()
            try:
                await asyncio.wait((work, stopping, attached), return_when=asyncio.FIRST_COMPLETED)
                if attached.done():
                    self._starting = False
                    ready()
                await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
            finally:
                self.stopping = True
                server.close(close_connections=False)  # no new ones
                await self._drain()
                try:
                    async with asyncio.timeout(GRACE):
                        await server.wait_closed()
                except TimeoutError:
                    logger.warning("front end %d: some connections could not be closed in time", self._index)
            if work.done():
                work.result()  # raises what ended it
            await self._part()
        finally:
            tasks += self._tasks
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self) -> Any:
        config = self._config
        kind = type("Socket", (Socket,), {"keeper": self})
        tls: dict[str, Any] = {"ssl": self._tls, "ssl_handshake_timeout": config.open_timeout} if self._tls is not None else {}
        return await serve(
            self._handle,
            sock=self._sock,
            backlog=4096,
            create_connection=kind,
            process_request=self._doors.process_request,
            process_response=self._doors.process_response,
            select_subprotocol=self._doors.select_subprotocol,
            compression=None,
            server_header=None,
            logger=_Quiet(logging.getLogger("ipcbus.web.websockets")),
            max_size=config.max_size,
            max_queue=config.max_queue,
            write_limit=(config.soft_limit, config.soft_limit // 4),
            open_timeout=config.open_timeout,
            ping_interval=config.ping_interval,
            ping_timeout=config.ping_timeout,
            close_timeout=GRACE,
            **tls,
        )

    async def _drain(self) -> None:
        """Close every connection, at most ``drain_rate`` a second but within ``drain`` seconds; cut what then is left."""
        peers = [peer for route in self.all_routes for peer in route.table.peers.values()]
        window = min(self._config.drain, len(peers) / self._config.drain_rate)
        await asyncio.gather(*(self._close_later(peer, window, GOING_AWAY, "the server stops") for peer in peers))
        for peer in [peer for route in self.all_routes for peer in route.table.peers.values()]:
            peer.ws.transport.abort()

    async def _close_later(self, peer: Peer, window: float, code: int, reason: str) -> None:
        await pause(random.uniform(0, window))  # noqa: S311  a spread, not a secret
        self._close(peer, code, reason)
        await peer.ws.wait_closed()

    async def _part(self) -> None:
        """Say goodbye, and take what services have sent before they heard it: a transport may wait for its being read."""
        now = monotonic()
        for link in self.links:
            if link.up:
                link.pump.put((Event.BYE,))
                link.pump.put((Event.PING, now))
        try:
            async with asyncio.timeout(GRACE):
                while not all(link.echo >= now for link in self.links if link.up):
                    await self.news.wait()
        except TimeoutError:
            logger.warning("front end %d: not every service has answered the goodbye", self._index)

    async def _attached(self) -> None:
        while self._starting and not all(link.up or link.refused for link in self.links):
            await self.news.wait()

    def _announce(self) -> None:
        """Wake whoever waits for a service."""
        self.news.set()
        self.news = asyncio.Event()

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------ clients

    def knock(self, socket: Socket) -> str | None:
        """Decide whether a connection may begin."""
        return self._doors.knock(socket)

    def lost(self, socket: Socket) -> None:
        """Note that a connection has ended."""
        self._doors.lost(socket)

    def congested(self, peer: Peer, waiting: int) -> None:
        """Tell a service that wants to know that a client does not keep up."""
        self._tell(Event.PRESSURE, peer, waiting)

    def drained(self, peer: Peer) -> None:
        """Tell it that it has caught up."""
        self._delivery.drained(peer)
        self._tell(Event.DRAINED, peer, peer.ws.transport.get_write_buffer_size())

    def flooded(self, socket: Socket) -> None:  # noqa: ARG002  the signature is Keeper's
        """Note that a client has sent too many pings or fragments."""
        self.counts.reasons["frames"] += 1

    def cut(self, peer: Peer) -> None:
        """End a connection that takes nothing."""
        self._delivery.cut(peer)

    def _tell(self, op: int, peer: Peer, waiting: int) -> None:
        link = self.links[peer.owner]
        if link.route.pressure and not peer.closing:
            link.gate.put((op, peer.cid, waiting))

    async def _handle(self, ws: Any) -> None:
        socket: Socket = ws
        self._doors.opened(socket)
        grant = socket.grant
        assert grant is not None  # the doors have let it in
        if grant.close is not None:
            self.counts.refuse("authorize")
            await socket.close(*grant.close)
            return
        peer = self._open(socket, grant)
        close = partial(self._close, peer)
        terms = Terms(self._config, close)
        try:
            await read(peer, self.links[peer.owner], terms, self._config, self.counts, close)
        except ConnectionClosed:
            pass  # however it ended, the code says it
        finally:
            terms.end()
            self._gone(peer)

    def _open(self, ws: Socket, grant: Grant) -> Peer:
        request = ws.request
        assert request is not None  # the handshake is over
        link = ws.link
        route = link.route
        self.counts.opened += 1
        peer = Peer(ws.cid, ws, link.number, self._doors.seen(ws, request), grant.state)
        ws.peer = peer
        route.table.peers[peer.cid] = peer
        link.gate.put((Event.OPEN, peer.cid, peer.request, peer.state))
        for other in route.others(peer):
            other.gate.put((Event.PEER, peer.cid, peer.request, peer.state))
        return peer

    def _gone(self, peer: Peer) -> None:
        link = self.links[peer.owner]
        code, reason = peer.ws.ended()
        self.counts.close(code)
        peer.busy = peer.closing = True
        departed = link.route.table.remove(peer, code, reason)
        link.gate.put(departed.event())
        for other in link.route.others(peer):
            other.gate.put(departed.event())

    def _close(self, peer: Peer, code: int, reason: str) -> None:
        """Begin to close; what is sent after this is not sent."""
        if not peer.closing:
            self._delivery.flush(peer)
            peer.busy = peer.closing = True
            if peer.pausing is not None:
                peer.pausing.cancel()
            self._start(peer.ws.close(code, reason))

    # ------------------------------------------------------------------ links

    def notice(self, index: int, at: int) -> None:
        """Take the news that the service process of that index has ended.

        Args:
            index: its index among all service processes.
            at: when that was, as an epoch.
        """
        link = self.links[index]
        if link.epoch >= at:
            return
        link.ended()
        if link.up:
            logger.info("front end %d: %s has ended; its clients wait", self._index, link.name)
            link.away()
            self._announce()

    async def _watch(self) -> None:
        """Look after the links: is anybody silent for too long, or away for longer than clients are kept?"""
        patience = self._config.link_timeout
        async for now, still in ticks(min(1.0, patience / 4)):
            for link in self.links:
                if link.up and now - max(link.heard, still) > patience:
                    logger.warning("front end %d: nothing was heard of %s for %g seconds", self._index, link.name, patience)
                    link.away()
                    self._announce()
                    link.greet(anew=True)
                elif link.up and now - link.heard > patience / 4:
                    link.pump.put((Event.PING, now))
                elif not link.up and not link.gone and now - link.since > link.grace:
                    self._give_up(link)
                if not self.stopping:
                    link.greet_again(patience)

    def _give_up(self, link: ServiceLink) -> None:
        """Close the connections of a service process that does not come back."""
        link.gone = True
        table = link.route.table
        peers = [peer for peer in table.peers.values() if peer.owner == link.number]
        logger.warning("front end %d: %s does not come back; %d connections are closed", self._index, link.name, len(peers))
        window = min(GONE_WINDOW, len(peers) / self._config.drain_rate)
        for peer in peers:
            self._start(self._close_later(peer, window, TRY_LATER, "the service is not available"))
        self._announce()

    # ------------------------------------------------------------------ commands

    async def _receive(self) -> None:
        aio = self._inbox.aio
        while True:
            try:
                batch = decode(await aio.recv(), COMMANDS)
                if batch.sender >= len(self.links) or batch.sender < 0:
                    raise LinkError(f"service process {batch.sender} does not exist")  # noqa: TRY301  handled as any other nonsense
            except EOFError:
                return
            except ChannelBroken as error:
                await outlast(error, f"front end {self._index}")
                continue
            except (SerializationError, LinkError) as error:
                self.counts.nonsense += 1
                logger.warning("front end %d: a message in the inbox is dropped: %s", self._index, error)
                continue
            self.counts.nonsense += len(batch.wrong)
            for fault in batch.wrong:
                logger.warning(
                    "front end %d: a command of %s is dropped: %s", self._index, self.links[batch.sender].name, fault
                )
            self._take(self.links[batch.sender], batch)
            await asyncio.sleep(0)  # recv does not yield while there is more, and sockets want their turn

    def _take(self, link: ServiceLink, batch: Batch) -> None:
        if batch.epoch < link.epoch:
            self.counts.stale += 1
            return
        link.heard = monotonic()
        if batch.epoch > link.epoch:
            link.renew(batch.epoch)
        if not link.sequence.follows(batch) and link.token:
            logger.warning("front end %d: a batch of %s is missing; it is told anew what there is", self._index, link.name)
            link.away()
            link.greet(anew=True)  # and what it wants meanwhile is done: it is the same process
        for command in batch.events:
            if command[0] == Command.ATTACH:
                self._attach(link, command)
            elif link.token:
                self._obey(link, command)
        if not link.token:
            self.counts.stale += 1

    def _attach(self, link: ServiceLink, command: list[Any]) -> None:
        _, name, path, token, front_epoch, wants = command
        if token == link.token:
            return  # heard already
        if front_epoch not in (0, self._epoch):  # said to the process that was here before
            if not link.token:
                link.greet()  # and still said: of this one it has not heard
            return
        route = link.route
        if (owner := self.routes.get(path, route)) is not route:
            self._refuse(link, both_want(name, owner.name, path))
            return
        if route.path is not None and route.path != path:
            del self.routes[route.path]
        self.routes[path] = route
        route.path = path
        route.auth, route.pressure = wants["auth"], wants["pressure"]
        known = Limits.__dataclass_fields__
        route.limits = Limits(**{key: value for key, value in wants["limits"].items() if key in known})
        link.attach(token)

    def _refuse(self, link: ServiceLink, why: str) -> None:
        """Tell a service process nothing, so that what is wrong with it stays its own affair once clients are served."""
        if self._starting:
            raise ConfigError(why)
        if not link.refused:
            link.refused = True
            logger.error("front end %d: %s gets no clients: %s; correct it and reload (SIGHUP)", self._index, link.name, why)
            self._announce()

    def _obey(self, link: ServiceLink, command: list[Any]) -> None:
        op = command[0]
        if op == Command.READY:
            if command[1] == link.token:
                link.ready(command[2])
                self._announce()
        elif op == Command.BYE:
            self._start(self._bye(link, link.epoch))
        elif op == Command.PONG:
            link.echo = command[1]
            self._announce()
        else:
            self._orders.obey(link, command)

    async def _bye(self, link: ServiceLink, epoch: int) -> None:
        """Answer a service process that stops. Until then it is told what happens, so nobody waits for that."""
        try:
            async with asyncio.timeout(_MOMENT):
                await self._stop.wait()  # where all of them stop, it waits for the goodbye, behind the last clients
        except TimeoutError:
            if link.epoch == epoch:  # else another process is there by now
                link.leave()
                link.pump.put((Event.BYE,))
                self._announce()
