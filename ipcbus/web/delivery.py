"""Delivery: messages to many clients at once. The loop in here is where a server of this kind spends its time."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from websockets.protocol import State

from ipcbus.web.link import CUT, DROP, LATEST, TEXT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ipcbus.web.counts import Counts
    from ipcbus.web.peers import Peer

__all__ = ["Delivery", "frame"]

logger = logging.getLogger("ipcbus.web")

_HELD = 64 << 10
"""Bytes that wait for a client until the end of a window, about."""

_FIN_TEXT, _FIN_BINARY = 0x81, 0x82


def frame(kind: str, data: bytes) -> bytes:
    """Return an unfragmented WebSocket frame as a server sends it (RFC 6455, section 5.2)."""
    first, size = _FIN_TEXT if kind == TEXT else _FIN_BINARY, len(data)
    if size < 126:
        return bytes((first, size)) + data
    if size < 1 << 16:
        return bytes((first, 126, size >> 8, size & 0xFF)) + data
    return bytes((first, 127)) + size.to_bytes(8, "big") + data


class Delivery:
    """Writes messages to clients, each as its policy says if the client does not keep up.

    A frame is built once and written as it is to every transport, past the library's per-message work: that is valid while
    no extension is negotiated, and the only way to write to so many at the cost of little more than the system call.

    Args:
        counts: what is sent, dropped and cut is counted here.
        write_limit: bytes that may wait for a client.
        coalesce: seconds within which a client gets what is published in one write, except for the first; 0: each in its own.
    """

    def __init__(self, counts: Counts, write_limit: int, coalesce: float = 0.0) -> None:
        self._counts = counts
        self._limit = write_limit
        self._window = coalesce
        self._turn = 0
        """Number of the window that runs, or of the last one."""
        self._running = False
        self._published = False
        """Whether anything was, since it began."""
        self._behind: list[Peer] = []
        """Those for whom something waits until its end."""

    def send(self, peers: Iterable[Peer], kind: str, data: bytes, policy: str, left_out: Peer | None = None) -> None:
        """Write a message to everybody but ``left_out``, now."""
        whole, sent, is_open = frame(kind, data), 0, State.OPEN
        for peer in peers:
            if peer is left_out:
                continue
            if peer.busy:
                sent += self._send_with_care(peer, whole, policy)
            elif peer.protocol.state is is_open:
                peer.write(whole)
                sent += 1
        self._counts.sent += sent
        self._counts.sent_bytes += sent * len(whole)

    def publish(self, peers: Iterable[Peer], kind: str, data: bytes, policy: str, left_out: Peer | None = None) -> None:
        """Write a message to everybody but ``left_out``; to who got one in this window already, at its end.

        The system call is most of what a delivery costs, and so what comes soon after each other goes in one. Nobody waits
        for a lone message, and nothing that is sent to a client itself waits at all.
        """
        if not self._window:
            self.send(peers, kind, data, policy, left_out)
            return
        if not self._running:
            self._begin(asyncio.get_running_loop())
        self._published = True
        turn, whole, held, is_open = self._turn, frame(kind, data), 0, State.OPEN
        now: list[Peer] = []
        for peer in peers:
            if peer is left_out:
                continue
            if peer.turn != turn or peer.congested:
                peer.turn = turn
                now.append(peer)
            elif not peer.closing and peer.protocol.state is is_open:
                self._hold(peer, whole)
                held += 1
        self._counts.sent += held
        self._counts.sent_bytes += held * len(whole)
        self.send(now, kind, data, policy)

    def flush(self, peer: Peer) -> None:
        """Write what waits for the end of the window; what follows must not overtake it."""
        if frames := peer.gathered:
            peer.gathered = bytearray()  # the transport keeps the other one
            peer.settle()
            if not peer.closing and peer.protocol.state is State.OPEN:
                peer.write(frames)

    def drained(self, peer: Peer) -> None:
        """Write what was kept back for a client that has caught up."""
        peer.congested = False
        peer.settle()
        self.flush(peer)
        frames, peer.latest, peer.latest_bytes = peer.latest, {}, 0
        if peer.closing or peer.protocol.state is not State.OPEN:
            return
        for key, whole in frames.items():
            if peer.congested:  # it is behind again: the rest goes on waiting
                self._keep(peer, key, whole)
                continue
            peer.write(whole)
            self._counts.sent += 1
            self._counts.sent_bytes += len(whole)

    def cut(self, peer: Peer) -> None:
        """End a connection at once; what waits for it is lost."""
        self._counts.slow += 1
        peer.busy = peer.closing = True
        peer.latest = {}
        logger.info("%s reads too slowly and is cut off", peer.ws.remote_address)
        peer.ws.transport.abort()

    def _send_with_care(self, peer: Peer, whole: bytes, policy: str) -> int:
        self.flush(peer)
        if peer.closing or peer.protocol.state is not State.OPEN:
            return 0
        if not peer.busy:
            peer.write(whole)
            return 1
        if policy == DROP:
            self._counts.dropped += 1
            return 0
        if policy != CUT:
            self._keep(peer, policy[len(LATEST) :], whole)
            whole = b""
        if peer.ws.transport.get_write_buffer_size() + peer.latest_bytes + len(whole) > self._limit:
            self.cut(peer)
            return 0
        if not whole:
            return 0
        peer.write(whole)
        return 1

    def _hold(self, peer: Peer, whole: bytes) -> None:
        if not peer.gathered:
            self._behind.append(peer)
            peer.busy = True
        peer.gathered += whole
        if len(peer.gathered) >= _HELD:
            self.flush(peer)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._turn += 1
        self._running, self._published = True, False
        loop.call_later(self._window, self._end, loop)

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._published:
            self._running = False
            return
        self._begin(loop)
        behind, self._behind = self._behind, []
        for peer in behind:
            self.flush(peer)
            peer.turn = self._turn

    def _keep(self, peer: Peer, key: str, whole: bytes) -> None:
        before = peer.latest.pop(key, None)
        if before is not None:
            self._counts.superseded += 1
            peer.latest_bytes -= len(before)
        peer.latest[key] = whole
        peer.latest_bytes += len(whole)
