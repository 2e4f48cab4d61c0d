"""Service links: a front end's side of what ties it to the processes of a service."""

from __future__ import annotations

import asyncio
import os
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

from ipcbus.web.gate import Gate
from ipcbus.web.limits import Limits
from ipcbus.web.link import Event, Sequence
from ipcbus.web.peers import Table
from ipcbus.web.pump import Pump

if TYPE_CHECKING:
    from collections.abc import Sequence as Many

    from ipcbus.channel import Channel
    from ipcbus.web.peers import Peer

__all__ = ["Grant", "Refusal", "Route", "ServiceInbox", "ServiceLink", "shard"]


class Grant(NamedTuple):
    """A service lets a client in."""

    state: bytes
    subprotocol: str | None = None
    headers: dict[str, str] = {}  # noqa: RUF012  a named tuple's default, and nobody changes it
    close: tuple[int, str] | None = None
    """A close code and reason with which it is closed at once: a refusal that a page can read."""


class Refusal(NamedTuple):
    """A service does not."""

    status: int
    reason: str


class ServiceInbox:
    """A service as a front end is told of it.

    Args:
        name: what the configuration calls it.
        inboxes: of its processes, each with the name of the process.
        key: what decides which of them a connection belongs to.
        grace: seconds that connections are kept while a process is away.
        farewell: seconds that a process may take for ending when it is replaced; they do not count as being away.
    """

    def __init__(
        self,
        name: str,
        inboxes: Many[tuple[str, Channel]],
        *,
        key: str = "connection",
        grace: float = 30.0,
        farewell: float = 0.0,
    ) -> None:
        self.name = name
        self.inboxes = inboxes
        self.key = key
        self.grace = grace
        self.farewell = farewell


class ServiceLink:
    """What ties this front end to one process of a service: *up*, *away* for a while, or *gone* for long.

    Args:
        route: the service.
        number: the process's index among all service processes.
        name: what it is called.
        channel: its inbox.
        front: this front end's index.
        epoch: when this front end was started.
    """

    def __init__(self, route: Route, number: int, name: str, channel: Channel, front: int, epoch: int) -> None:
        self.route = route
        self.number = number
        self.name = name
        self.pump = Pump(name, channel, front, epoch, on_dead=self.away)
        self.gate = Gate(self.pump.put)
        self.token = 0
        """What its ATTACH said; 0 while it has said nothing."""
        self.epoch = 0
        self.sequence = Sequence()
        self.up = False
        self.gone = False
        """Whether it has been away for longer than its connections are kept."""
        self.leaving = False
        """Whether it has said that it is being replaced, and was not reported to have ended."""
        self.echo = 0.0
        """The time in its last PONG."""
        self.refused = False
        """Whether it was told nothing because it wants the path of another service."""
        self.since = self.heard = self.greeted = monotonic()
        """When it came up or went away; when it was heard last; when HELLO was said last."""
        self.patience = 1.0
        """Seconds for which the answer to that is waited for."""
        self.asking: dict[int, tuple[asyncio.Future[Grant | Refusal], dict[str, Any]]] = {}
        """Handshakes that wait for its answer."""
        self._room = asyncio.Event()
        self._room.set()

    # ------------------------------------------------------------------ attaching

    def greet(self, *, anew: bool = False) -> None:
        """Say that this front end is here.

        Args:
            anew: and that it wants to be attached again, because something between the two was lost.
        """
        self.greeted = monotonic()
        self.pump.put((Event.HELLO, os.getpid(), 0 if anew else self.token, len(self.route.table.peers)))

    def greet_again(self, longest: float) -> None:
        """Say so once more if no ATTACH has come for a while, though the last one is sent: it may be lost.

        Where one has come, asking is the service's part.

        Args:
            longest: seconds between two such tries, at most.
        """
        if not self.token and not self.refused and self.pump.idle and monotonic() - self.greeted > self.patience:
            self.patience = min(2 * self.patience, longest)
            self.greet()

    def attach(self, token: int) -> None:
        """Answer an ATTACH: tell all that there is, and hold what comes from here on."""
        self.away()
        self.token = token
        self.greet()
        for event in self.route.table.snapshot(self.number):
            self.pump.put(event, 1 << 16)  # each in a batch of its own
        self.gate.hold()
        for departed in self.route.table.leaving(self.number):
            self.gate.put(departed.event())

    def ready(self, credit: int) -> None:
        """Let flow what was held."""
        self.up, self.gone = True, False
        self.since = monotonic()
        for cid, (_, question) in self.asking.items():
            self.pump.put((Event.AUTH, cid, question))
        self.gate.open(credit)
        self.settle()

    def away(self) -> None:
        """Hold what comes from here on, together with what was not sent yet: there is nobody who would take it."""
        if self.up:
            self.since = monotonic()
        self.up = False
        self.gate.shut(self.pump.reclaim())

    def leave(self) -> None:
        """Hold what comes: the process is being replaced, and has still to finish what it has."""
        self.away()
        self.leaving = True

    def ended(self) -> None:
        """Note that the process has ended."""
        if self.leaving:
            self.leaving = False
            self.since = monotonic()

    @property
    def grace(self) -> float:
        """Seconds that connections are kept from ``since`` on, if it does not come up."""
        return self.route.grace + (self.route.farewell if self.leaving else 0.0)

    def renew(self, epoch: int) -> None:
        """Note that another process is there than before."""
        self.ended()
        self.away()
        self.refused = False
        self.token, self.epoch, self.sequence = 0, epoch, Sequence()

    # ------------------------------------------------------------------ flow

    @property
    def full(self) -> bool:
        """Whether clients should not be read for now."""
        if self.gate.full:
            self._room.clear()
            return True
        return self.pump.full

    async def room(self, peer: Peer) -> None:
        """Wait until a client may be read again, or is being closed: what that one says is read and not wanted."""
        peer.pausing = asyncio.create_task(self._roomy())
        try:
            await asyncio.wait((peer.pausing,))
        finally:
            peer.pausing.cancel()
            peer.pausing = None

    async def _roomy(self) -> None:
        await self._room.wait()
        await self.pump.room()

    def settle(self) -> None:
        """Wake those who wait for room, if there is some."""
        if not self.gate.full:
            self._room.set()

    # ------------------------------------------------------------------ questions

    async def ask(self, cid: int, question: dict[str, Any]) -> Grant | Refusal:
        """Ask whether a client may connect; asked again of the next process if this one dies over it."""
        future: asyncio.Future[Grant | Refusal] = asyncio.get_running_loop().create_future()
        self.asking[cid] = (future, question)
        try:
            if self.up:
                self.pump.put((Event.AUTH, cid, question))
            return await future
        finally:
            del self.asking[cid]

    def answer(self, cid: int, answer: Grant | Refusal) -> bool:
        """Take the answer; return False if nobody waits for it any more."""
        waiting = self.asking.get(cid)
        if waiting is None:
            return False
        if not waiting[0].done():
            waiting[0].set_result(answer)
        return True


class Route:
    """A service: a path, the connections for it, and links to the processes it is made of.

    Args:
        name: what the configuration calls it.
        key: what decides which process a connection belongs to: ``"connection"`` or ``"query:NAME"``.
        grace: seconds that its connections are kept while a process is away.
        farewell: seconds that a process may take for ending.
    """

    def __init__(self, name: str, key: str, grace: float, farewell: float = 0.0) -> None:
        self.name = name
        self.key = key
        self.grace = grace
        self.farewell = farewell
        self.path: str | None = None
        self.auth = self.pressure = False
        self.limits = Limits()
        self.table = Table()
        self.links: list[ServiceLink] = []

    def link(self, cid: int, query: dict[str, str]) -> ServiceLink:
        """Return the process a new connection belongs to."""
        return self.links[shard(self.key, cid, query, len(self.links))]

    def others(self, peer: Peer) -> Many[ServiceLink]:
        """Return the processes that a connection does not belong to."""
        if len(self.links) == 1:
            return ()
        return [link for link in self.links if link.number != peer.owner]

    @property
    def up(self) -> bool:
        """Whether every process of it is."""
        return all(link.up for link in self.links)


def shard(key: str, cid: int, query: dict[str, str], count: int) -> int:
    """Return which of ``count`` processes a connection belongs to.

    Args:
        key: ``"connection"``, or ``"query:NAME"`` for having together those whose URLs say the same ``NAME``.
        cid: the connection's number.
        query: what its URL says.
        count: how many processes there are.
    """
    if count == 1:
        return 0
    if key == "connection":
        return cid % count
    return crc32(query.get(key.removeprefix("query:"), "").encode()) % count
