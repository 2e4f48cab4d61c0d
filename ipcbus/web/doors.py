"""Doors: who may come in, and what strangers are told. HTTP, opening handshakes, limits before there is a client."""

from __future__ import annotations

import asyncio
import logging
import resource
from time import time
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl

from ipcbus.web import http
from ipcbus.web.health import health
from ipcbus.web.limits import Doorman, client_address, networks, within
from ipcbus.web.link import Cid
from ipcbus.web.origins import Origins
from ipcbus.web.servicelink import Grant, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Request, Response
    from websockets.typing import Subprotocol

    from ipcbus.web.config import FrontConfig
    from ipcbus.web.counts import Counts
    from ipcbus.web.servicelink import Route, ServiceLink
    from ipcbus.web.socket import Socket

__all__ = ["Doors", "draw_numbers"]

logger = logging.getLogger("ipcbus.web")

ASKED = ("authorization", "cookie", "x-forwarded-for", "x-forwarded-proto")
"""Headers that are for deciding about a client, and nothing else."""
FORWARDED = "x-forwarded-"
"""What headers begin with that are only believed if a trusted proxy sent them."""
_DESCRIPTORS_LEFT = 0.9
"""Part of the descriptors that clients may have."""


class House(Protocol):
    """What the doors need to know of the front end they belong to."""

    routes: dict[str, Route]
    all_routes: list[Route]
    news: asyncio.Event
    stopping: bool


class Doors:
    """Lets clients in.

    Args:
        house: the front end.
        config: its limits.
        counts: refusals are counted here.
        page: what ``/`` shows.
        number: draws the numbers of connections.
    """

    def __init__(
        self, house: House, config: FrontConfig, counts: Counts, page: bytes | None, number: Callable[[], int]
    ) -> None:
        self._house = house
        self._config = config
        self._counts = counts
        self._page = page
        self._number = number
        self._proxies = networks(config.trusted_proxies)
        self._origins = Origins(config.origins)
        self.doorman = Doorman(
            total=config.max_connections or int(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * _DESCRIPTORS_LEFT),
            half_open=config.half_open,
            per_address=config.per_address,
            exempt=config.exempt,
            rate=config.accept_rate,
            burst=config.accept_burst,
            now=asyncio.get_running_loop().time(),
        )

    # ------------------------------------------------------------------ before the first byte

    def knock(self, socket: Socket) -> str | None:
        """Decide whether a connection may begin its handshake."""
        proxied = bool(self._proxies) and within(socket.address, self._proxies)
        reason = self.doorman.knock(socket.address, socket.loop.time(), proxied=proxied)
        if reason is not None:
            self._counts.refuse(reason)
        return reason

    def opened(self, socket: Socket) -> None:
        """Note that a handshake is over."""
        socket.half_open = False
        self.doorman.opened()

    def lost(self, socket: Socket) -> None:
        """Note that a connection has ended."""
        self.doorman.leave(socket.address, half_open=socket.half_open)

    # ------------------------------------------------------------------ the handshake

    async def process_request(self, ws: ServerConnection, request: Request) -> Response | None:
        """Answer a request, or let it become a WebSocket (None)."""
        try:
            return await self._answer(ws, request)  # type: ignore[arg-type]  # every connection here is a Socket
        except Exception:  # the library would log it as a stranger's mistake
            logger.exception("a request could not be answered")
            raise

    def process_response(self, ws: ServerConnection, request: Request, response: Response) -> None:  # noqa: ARG002  the library's signature
        """Add what the service wants to tell with the 101."""
        grant = ws.grant  # type: ignore[attr-defined]  # as above
        if grant is not None and response.status_code == 101:
            for name, value in grant.headers.items():
                response.headers[name] = value

    def select_subprotocol(self, ws: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        """Return what the service has chosen of what the client offers."""
        grant = ws.grant  # type: ignore[attr-defined]  # as above
        if grant is not None and grant.close is not None and offered:
            return offered[0]  # a browser that offers some and is given none fails, and the page cannot read the close code
        chosen: Subprotocol | None = None if grant is None else grant.subprotocol
        return chosen

    async def _answer(self, ws: Socket, request: Request) -> Response | None:
        path, _, query = request.path.partition("?")
        if http.is_upgrade(request):
            return await self._admit(ws, request, path, query)
        if request.method not in ("GET", "HEAD"):
            return http.plain(request, 405, "Only GET and HEAD are understood here.", ("Allow", "GET, HEAD"))
        if path == "/" and self._page is not None:
            return http.page(request, self._page)
        away = [link.name for route in self._house.all_routes for link in route.links if not link.up]
        if (found := health(path, away, draining=self._house.stopping)) is not None:
            return http.plain(request, *found)
        if path in self._house.routes:
            return http.plain(request, 426, "This is a WebSocket.", ("Upgrade", "websocket"))
        return http.plain(request, 404, "There is nothing here.")

    async def _admit(self, ws: Socket, request: Request, path: str, query: str) -> Response | None:
        if not self._origins.allow(request.headers.get_all("Origin"), request.headers.get_all("Host")):
            return self._refuse(
                request, "origin", 403, "Pages of that origin may not connect; the server's 'origins' says which may."
            )
        ws.proxied = within(ws.address, self._proxies)
        client = client_address(ws.address, request.headers.get_all("X-Forwarded-For"), self._proxies)
        if self.doorman.move(ws.address, client) is not None:
            return self._refuse(request, "address", 429, "Too many connections from your address.", ("Retry-After", "60"))
        if client != ws.address:
            ws.address, ws.port = client, 0
        cid = self._number()
        try:
            # Shorter than the library's own limit, which ends a handshake without an answer.
            async with asyncio.timeout(self._config.open_timeout * 0.8):
                link = await self._find(path, cid, query)
                if link is None:
                    return self._refuse(request, "path", 404, "There is nothing here.")
                if link.gone:
                    return self._away(request)
                answer = await self._ask(ws, link, cid, request) if link.route.auth else Grant(b"")
        except TimeoutError:
            return self._away(request)
        if isinstance(answer, Refusal):
            return self._refuse(request, "authorize", answer.status, answer.reason or "You may not connect.")
        if ws.early:
            return self._refuse(request, "early", 400, "Nothing may be sent before the handshake is answered.")
        largest = self._config.max_size if (most := link.route.limits.message) is None else min(most, self._config.max_size)
        ws.admit(cid, link, answer, largest)
        return None

    async def _find(self, path: str, cid: int, query: str) -> ServiceLink | None:
        """Return the service process for a new connection once it is up or gone; None if there is no such service."""
        while True:
            route = self._house.routes.get(path)
            if route is not None:
                link = route.link(cid, dict(parse_qsl(query)) if len(route.links) > 1 else {})
                if link.up or link.gone:
                    return link
            else:
                unknown = [link for known in self._house.all_routes if known.path is None for link in known.links]
                if not unknown:
                    return None
                if all(link.gone for link in unknown):
                    return unknown[0]  # it may be the path of one of them, and no more can be said of those
            await self._house.news.wait()

    async def _ask(self, ws: Socket, link: ServiceLink, cid: int, request: Request) -> Grant | Refusal:
        question = {
            **self.seen(ws, request, (*self._config.headers, *ASKED)),
            "cookies": http.cookies(request),
            "protocols": [
                offer.strip() for value in request.headers.get_all("Sec-WebSocket-Protocol") for offer in value.split(",")
            ],
        }
        asking = asyncio.create_task(link.ask(cid, question))
        lost = ws.connection_lost_waiter
        try:
            await asyncio.wait((asking, lost), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                return Refusal(400, "gone")  # nobody reads this
            return asking.result()
        finally:
            asking.cancel()

    def seen(self, ws: Socket, request: Request, headers: tuple[str, ...] | None = None) -> dict[str, Any]:
        """Return what a service gets to see of a request."""
        path, _, query = request.path.partition("?")
        names = self._config.headers if headers is None else headers
        if not ws.proxied:
            names = tuple(name for name in names if not name.lower().startswith(FORWARDED))
        return {
            "path": path,
            "query": query,
            "headers": http.picked(request, names),
            "peer": f"{ws.address}:{ws.port}" if ws.address else "",
            "at": time(),  # the wall clock: it is told to other processes
        }

    def _away(self, request: Request) -> Response:
        return self._refuse(request, "away", 503, "The service is being started; try again.", ("Retry-After", "1"))

    def _refuse(self, request: Request, reason: str, status: int, text: str, *more: tuple[str, str]) -> Response:
        self._counts.refuse(reason)
        return http.plain(request, status, text, *more)


def draw_numbers(front: int, incarnation: int) -> Callable[[], int]:
    """Return a function that draws the numbers of connections, one after the other."""
    counter = 0

    def draw() -> int:
        nonlocal counter
        counter += 1
        return Cid(front, incarnation, counter).pack()

    return draw
