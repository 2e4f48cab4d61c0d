"""Orders: what a front end does for a service, one command after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ipcbus.web.link import Command, Event
from ipcbus.web.servicelink import Grant, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ipcbus.web.counts import Counts
    from ipcbus.web.delivery import Delivery
    from ipcbus.web.peers import Peer
    from ipcbus.web.servicelink import Route, ServiceLink

__all__ = ["Orders"]

_CLOSE_CODES = 1000
"""From here on a number is a close code and no HTTP status."""


class Orders:
    """Carries out commands.

    Args:
        delivery: writes messages.
        counts: of the front end.
        close: begins to close a connection.
    """

    def __init__(self, delivery: Delivery, counts: Counts, close: Callable[[Peer, int, str], None]) -> None:
        self._counts = counts
        self._delivery = delivery
        self._close = close
        self._table: dict[int, Callable[[ServiceLink, list[Any]], None]] = {
            Command.PUB: self._publish,
            Command.SEND: self._send,
            Command.CREDIT: self._credit,
            Command.JOIN: self._join,
            Command.LEAVE: self._leave,
            Command.STATE: self._state,
            Command.OPENED: self._opened,
            Command.CLOSED: lambda link, command: link.route.table.forget(command[1]),
            Command.CLOSE: self._close_all,
            Command.ACCEPT: self._accept,
            Command.REJECT: self._reject,
            Command.QUERY: self._query,
            Command.PING: lambda link, command: link.pump.put((Event.PONG, command[1])),
        }

    def obey(self, link: ServiceLink, command: list[Any]) -> None:
        """Carry out one checked command of a service process."""
        self._table[command[0]](link, command)

    # ------------------------------------------------------------------ messages

    def _publish(self, link: ServiceLink, command: list[Any]) -> None:
        _, target, kind, data, left_out, policy = command
        table = link.route.table
        peers: Iterable[Peer]
        if isinstance(target, str):
            peers = table.rooms.members(target)
        else:
            peers = {peer for room in target for peer in table.rooms.members(room)}
        self._delivery.publish(peers, kind, data, policy, table.peers.get(left_out))

    def _send(self, link: ServiceLink, command: list[Any]) -> None:
        self._delivery.send(self._named(link.route, command[1]), *command[2:])

    def _close_all(self, link: ServiceLink, command: list[Any]) -> None:
        target, route = command[1], link.route
        chosen = list(route.table.rooms.members(target)) if isinstance(target, str) else self._named(route, target)
        for peer in chosen:
            self._close(peer, *command[2:])

    def _credit(self, link: ServiceLink, command: list[Any]) -> None:
        link.gate.grant(command[1])
        link.settle()

    # ------------------------------------------------------------------ what is known of connections

    def _opened(self, link: ServiceLink, command: list[Any]) -> None:
        peer = link.route.table.peers.get(command[1])
        if peer is not None:  # else it is gone by now
            peer.fresh = False

    def _join(self, link: ServiceLink, command: list[Any]) -> None:
        for peer in self._named(link.route, command[1]):
            for group in command[2]:
                link.route.table.rooms.join(peer, group)
            self._share(link, (Event.JOINED, *command[1:]))

    def _leave(self, link: ServiceLink, command: list[Any]) -> None:
        for peer in self._named(link.route, command[1]):
            for group in command[2]:
                link.route.table.rooms.leave(peer, group)
            self._share(link, (Event.LEFT, *command[1:]))

    def _state(self, link: ServiceLink, command: list[Any]) -> None:
        for peer in self._named(link.route, command[1]):
            peer.state = command[2]
            self._share(link, (Event.STATE, *command[1:]))

    def _share(self, link: ServiceLink, event: tuple[Any, ...]) -> None:
        """Tell the other processes of the service."""
        for other in link.route.links:
            if other is not link:
                other.gate.put(event)

    def _named(self, route: Route, target: int | list[int]) -> list[Peer]:
        cids = target if isinstance(target, list) else (target,)
        found = [peer for cid in cids if (peer := route.table.peers.get(cid)) is not None]
        self._counts.unknown += len(cids) - len(found)
        return found

    # ------------------------------------------------------------------ questions and answers

    def _accept(self, link: ServiceLink, command: list[Any]) -> None:
        _, cid, state, subprotocol, headers = command
        self._answer(link, cid, Grant(state, subprotocol, headers))

    def _reject(self, link: ServiceLink, command: list[Any]) -> None:
        _, cid, status, reason = command
        self._answer(link, cid, Grant(b"", close=(status, reason)) if status >= _CLOSE_CODES else Refusal(status, reason))

    def _answer(self, link: ServiceLink, cid: int, answer: Grant | Refusal) -> None:
        if not link.answer(cid, answer):
            self._counts.unknown += 1

    def _query(self, link: ServiceLink, command: list[Any]) -> None:
        _, ref, what = command
        link.pump.put((Event.RESULT, ref, self._counts.as_dict() if what == "counts" else None))
