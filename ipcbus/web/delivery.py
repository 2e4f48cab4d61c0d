"""Delivery: messages to many clients at once. The loop in here is where a server of this kind spends its time."""

from __future__ import annotations

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
    """

    def __init__(self, counts: Counts, write_limit: int) -> None:
        self._counts = counts
        self._limit = write_limit

    def send(self, peers: Iterable[Peer], kind: str, data: bytes, policy: str, left_out: Peer | None = None) -> None:
        """Write a message to everybody but ``left_out``."""
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

    def drained(self, peer: Peer) -> None:
        """Write what was kept back for a client that has caught up."""
        peer.congested = False
        peer.busy = peer.closing
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
        if peer.closing or peer.protocol.state is not State.OPEN:
            return 0
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

    def _keep(self, peer: Peer, key: str, whole: bytes) -> None:
        before = peer.latest.pop(key, None)
        if before is not None:
            self._counts.superseded += 1
            peer.latest_bytes -= len(before)
        peer.latest[key] = whole
        peer.latest_bytes += len(whole)
