"""Socket: one client's connection, watched from its first byte to its last."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Protocol

from websockets.asyncio.server import ServerConnection
from websockets.frames import Frame, Opcode
from websockets.protocol import State

from ipcbus.web.limits import Bucket, plain_address
from ipcbus.web.peers import ABNORMAL

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable

    from websockets.protocol import Event
    from websockets.typing import DataLike

    from ipcbus.web.peers import Peer
    from ipcbus.web.servicelink import Grant, ServiceLink

__all__ = ["Keeper", "Socket"]

POLICY = 1008
_EARLIEST_PING = 0.9
"""The part of the interval after which a client is pinged at the earliest: who came together is not pinged together."""
_END = b"\r\n\r\n"
"""What a request ends with."""
_SLICE = 16 << 10
"""Bytes taken at once: a read from the network may bring 256 KiB, which are 43,000 of the smallest frames."""
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 10\r\n\r\ntoo many.\n"
)


class Keeper(Protocol):
    """What a socket reports to."""

    frame_rate: float
    write_limit: int

    def knock(self, socket: Socket) -> str | None:
        """Decide whether it may begin; a reason is a refusal."""

    def lost(self, socket: Socket) -> None:
        """Note that it ended, if it was let in."""

    def congested(self, peer: Peer, waiting: int) -> None:
        """Note that much waits for it."""

    def drained(self, peer: Peer) -> None:
        """Note that it has caught up."""

    def flooded(self, socket: Socket) -> None:
        """Note that it is closed because of too many pings or fragments."""

    def cut(self, peer: Peer) -> None:
        """End it: it does not even read the answers to its pings."""


class Socket(ServerConnection):
    """A connection that is counted before its handshake, knows whether it keeps up, and bounds the frames it is sent.

    Attributes:
        keeper: the front end's.
        address: of whom it counts for: the client, or what a trusted proxy says of it.
        port: the client's; 0 behind a proxy.
        proxied: whether a trusted proxy speaks for it.
        refused: whether it was turned away before it said a word.
        early: whether it sent more than its request before that was answered.
        peer: what the front end keeps of it, once it is open.
        grant: what the service said when it was asked about it.
        cid: its number, once it may come in.
        link: the service process it is for, then.
    """

    keeper: Keeper
    address = ""
    port = 0
    proxied = refused = False
    half_open = True
    early = False
    peer: Peer | None = None
    grant: Grant | None = None
    cid = 0
    link: ServiceLink
    _tail = _unread = b""
    _frames: Bucket
    _ending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let it in, or turn it away before anything is spent on it."""
        peer = transport.get_extra_info("peername")
        if peer:
            self.address, self.port = plain_address(peer[0]), peer[1]
        if self.ping_interval:
            self.ping_interval *= random.uniform(_EARLIEST_PING, 1)  # noqa: S311  a spread, not a secret
        if self.keeper.knock(self) is None:
            super().connection_made(transport)
            self.recv_messages.pause, self.recv_messages.resume = self._pause_reading, self._resume_reading
            return
        self.refused = True
        self.transport = transport  # type: ignore[assignment]  # the library casts it in the same way
        self.transport.write(_BUSY)
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note its end."""
        if self.refused:
            return
        if self._ending is not None:
            self._ending.cancel()
        self._unread = b""  # with a connection that breaks goes what nobody has read, here and in the kernel
        self.keeper.lost(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, unless it was turned away; a client that has been told to go and stays is cut off."""
        if self.refused:
            return
        if self.protocol.state is State.CONNECTING:
            data = self._of_request(data)
        if data:
            self._take(data)
        if self._ending is None and self.protocol.close_expected():
            # The library waits for ever for who broke the protocol and then keeps the connection open.
            self._ending = self.loop.call_later(self.close_timeout or 0, self.transport.abort)

    def _take(self, data: bytes) -> None:
        """Take bytes for as long as it is read: the library would take all the frames in them, and others would wait."""
        if self._unread:
            self._unread += data
            return
        if len(data) > _SLICE:
            for start in range(0, len(data), _SLICE):
                if self.recv_messages.paused:
                    self._unread = data[start:]
                    return
                super().data_received(data[start : start + _SLICE])
        else:
            super().data_received(data)

    def _go_on(self) -> None:
        data, self._unread = self._unread, b""
        if not data:
            return  # it has ended
        self.data_received(data)
        if not self.recv_messages.paused:
            self.transport.resume_reading()

    def _of_request(self, data: bytes) -> bytes:
        """Return what of the bytes belongs to its request; what follows is dropped.

        The library would take it for frames, answer pings before the handshake, and know no limit of the service yet.
        """
        if self.request is not None:
            self.early = True
            return b""
        seen = self._tail + data
        end = seen.find(_END)
        if end < 0:
            self._tail = seen[1 - len(_END) :]
            return data
        size = end + len(_END) - len(self._tail)
        self.early = size < len(data)
        return data[:size]

    def eof_received(self) -> None:
        """Take the end of the bytes."""
        if not self.refused:
            super().eof_received()

    def process_event(self, event: Event) -> None:
        """Count what is no whole message: pings and one-byte fragments cost a server far more than they cost who sends them."""
        if self.protocol.state is State.OPEN:
            assert isinstance(event, Frame)  # the handshake is over
            message = event.fin and event.opcode in (Opcode.TEXT, Opcode.BINARY)
            if not message and self._frames.take(self.loop.time()) > 0:
                self.keeper.flooded(self)
                self.protocol.fail(POLICY, "too many pings or fragments")
                self.send_data()
                return
            peer, waiting = self.peer, self.transport.get_write_buffer_size
            if event.opcode is Opcode.PING and peer is not None and waiting() > self.keeper.write_limit:
                self.keeper.cut(peer)
                return
        super().process_event(event)
        if self.pending_pings:
            self._excuse()

    async def ping(self, data: DataLike | None = None) -> Awaitable[float]:
        """Send a ping, and return what is done once the client has shown that it lives; at once if it is not read now."""
        answered = await super().ping(data)
        if self.recv_messages.paused:
            self._excuse()
        return answered

    def _pause_reading(self) -> None:
        self.transport.pause_reading()
        self._excuse()

    def _resume_reading(self) -> None:
        if self._unread:
            self.loop.call_soon(self._go_on)  # not now: who reads would go on and on, and nobody else would
        else:
            self.transport.resume_reading()

    def _excuse(self) -> None:
        """Take all pings for answered: it has sent something whole, or its answers wait behind what we do not read.

        The library cuts off whose pong it has not read in time, whoever is to blame for that.
        """
        if self.pending_pings:
            self.acknowledge_pings(next(reversed(self.pending_pings)))

    def ended(self) -> tuple[int, str]:
        """Return the close code and reason of whoever closed it; 1006 if nobody did and it just ended."""
        protocol = self.protocol
        said = protocol.close_rcvd if protocol.close_rcvd_then_sent else protocol.close_sent or protocol.close_rcvd
        return (ABNORMAL, "") if said is None else (int(said.code), said.reason)

    def admit(self, cid: int, link: ServiceLink, grant: Grant, largest: int) -> None:
        """Let it in: from its first frame on it has the limits of a client.

        Args:
            cid: its number.
            link: the service process it is for.
            grant: what the service said of it.
            largest: bytes of the largest message it may send.
        """
        self.cid, self.link, self.grant = cid, link, grant
        self.protocol.max_message_size = largest
        rate = self.keeper.frame_rate
        self._frames = Bucket(rate, 2 * rate, self.loop.time())

    def pause_writing(self) -> None:
        """Note that more waits for it than its soft limit."""
        super().pause_writing()
        if self.peer is not None:
            self.peer.congested = self.peer.busy = True
            self.keeper.congested(self.peer, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Note that it has caught up."""
        super().resume_writing()
        if self.peer is not None:
            self.keeper.drained(self.peer)
