"""Peers: the clients whose sockets a front end has, and what it remembers of them for the next process of their service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ipcbus.web.link import FRESH, OWN, SNAP_BYTES, SNAP_ENTRIES, Event
from ipcbus.web.rooms import Rooms

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from ipcbus.web.socket import Socket

__all__ = ["ABNORMAL", "Departed", "Peer", "Table"]

ABNORMAL = 1006
"""The close code of a connection that just ended."""


class Peer:
    """A client's connection.

    Attributes:
        cid: its number.
        ws: the socket.
        owner: the index of the process of its service that is responsible for it.
        request: what the service was told of its request.
        state: what the service wants its next process to know, opaque.
        gathered: frames that are sent at the end of the front end's window.
        turn: the last window in which it was published to.
        fresh: whether no process of the service has said OPENED of it.
        busy: whether a message for it needs more care than a write: it is closing, or something waits for it.
        closing: whether nothing is sent to it any more.
        congested: whether much waits for it.
        latest: by key, the frames that are sent once it has caught up.
        pausing: while it is not read, because its service takes no more or it sends too fast, what waits for that.
        write: its transport's, at hand for the loop that fans out.
        protocol: its protocol's state, at hand for the same.
    """

    __slots__ = (
        "busy",
        "cid",
        "closing",
        "congested",
        "fresh",
        "gathered",
        "latest",
        "latest_bytes",
        "owner",
        "pausing",
        "protocol",
        "request",
        "state",
        "turn",
        "write",
        "ws",
    )

    def __init__(self, cid: int, ws: Socket, owner: int, request: dict[str, Any], state: bytes) -> None:
        self.cid = cid
        self.ws = ws
        self.owner = owner
        self.request = request
        self.state = state
        self.fresh = True
        self.busy = self.closing = self.congested = False
        self.latest: dict[str, bytes] = {}
        self.latest_bytes = 0
        self.gathered = bytearray()
        self.turn = 0
        self.pausing: asyncio.Task[None] | None = None
        self.protocol = ws.protocol
        self.write = ws.transport.write

    def settle(self) -> None:
        """Find out again whether it is busy."""
        self.busy = self.closing or self.congested or bool(self.gathered)


class Departed(NamedTuple):
    """A connection that is gone, while no process of its service has said CLOSED of it."""

    peer: Peer
    groups: frozenset[str]
    code: int
    reason: str

    def event(self) -> tuple[Any, ...]:
        """Return the CLOSE that tells of it."""
        return Event.CLOSE, self.peer.cid, self.code, self.reason, self.code != ABNORMAL


class Table:
    """The connections of one service, which all its processes share."""

    __slots__ = ("departed", "peers", "rooms")

    def __init__(self) -> None:
        self.peers: dict[int, Peer] = {}
        self.departed: dict[int, Departed] = {}
        self.rooms: Rooms[Peer] = Rooms()

    def remove(self, peer: Peer, code: int, reason: str) -> Departed:
        """Take out a connection that is gone; it is remembered until ``forget``."""
        del self.peers[peer.cid]
        departed = self.departed[peer.cid] = Departed(peer, self.rooms.groups(peer), code, reason)
        self.rooms.drop(peer)
        return departed

    def forget(self, cid: int) -> None:
        """Forget a connection that is gone."""
        self.departed.pop(cid, None)

    def leaving(self, owner: int) -> list[Departed]:
        """Return the connections of a process that are gone and not forgotten, in the order in which they went."""
        return [departed for departed in self.departed.values() if departed.peer.owner == owner]

    def snapshot(self, owner: int) -> Iterator[tuple[Any, ...]]:
        """Yield the SNAP events that tell a process all of it, with a last one even if there is nothing."""
        entries: list[list[Any]] = [
            [
                peer.cid,
                peer.request,
                peer.state,
                sorted(groups),
                (OWN if peer.owner == owner else 0) | (FRESH if peer.fresh else 0),
            ]
            for peer, groups in (
                *((peer, self.rooms.groups(peer)) for peer in self.peers.values()),
                *((departed.peer, departed.groups) for departed in self.leaving(owner)),
            )
        ]
        begin = size = 0
        for end, entry in enumerate(entries):
            weight = _weight(entry)
            if end - begin == SNAP_ENTRIES or (end > begin and size + weight > SNAP_BYTES):
                yield Event.SNAP, entries[begin:end], False
                begin, size = end, 0
            size += weight
        yield Event.SNAP, entries[begin:], True


def _weight(entry: list[Any]) -> int:
    """Return how many bytes an entry takes, about: what is in it is the client's and the service's choice."""
    _, request, state, groups, _ = entry
    headers = request["headers"].values()
    return len(request["path"]) + len(request["query"]) + len(state) + sum(map(len, headers)) + sum(map(len, groups))
