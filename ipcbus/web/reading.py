"""Reading: a client's messages go to its service no faster than that takes them and the limits allow."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ipcbus.web.limits import Bucket
from ipcbus.web.link import BINARY, TEXT, Event
from ipcbus.web.moments import pause
from ipcbus.web.terms import TOO_MANY

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.web.config import FrontConfig
    from ipcbus.web.counts import Counts
    from ipcbus.web.peers import Peer
    from ipcbus.web.servicelink import ServiceLink
    from ipcbus.web.terms import Terms

__all__ = ["read"]


async def read(
    peer: Peer, link: ServiceLink, terms: Terms, config: FrontConfig, counts: Counts, close: Callable[[int, str], object]
) -> None:
    """Take a client's messages to its service until its connection ends.

    Args:
        peer: the client.
        link: the service process that it belongs to.
        terms: are told when it speaks.
        config: the limits, where the service has none of its own.
        counts: of the front end.
        close: begins to close the connection, with a code and a reason.

    Raises:
        ConnectionClosed: it has ended.
    """
    ws, limits, now = peer.ws, link.route.limits, peer.ws.loop.time
    rate = config.message_rate if limits.rate is None else limits.rate
    burst = config.message_burst if limits.burst is None else limits.burst
    volume = config.byte_rate if limits.bytes is None else limits.bytes
    messages = Bucket(rate, max(burst, 1), now())
    octets = Bucket(volume, volume, now())
    since = None
    while True:
        message = await ws.recv()
        if terms.listen:
            terms.spoke()
        if peer.closing:
            continue  # what a client says before it notices is not wanted any more
        if isinstance(message, str):
            kind, data = TEXT, message.encode()
        else:
            kind, data = BINARY, message
        size = len(data)
        counts.received += 1
        counts.received_bytes += size
        link.gate.put((Event.MSG, peer.cid, kind, data), size)
        moment = now()
        wait = max(messages.take(moment), octets.take(moment, size))
        if link.full:
            terms.pause()
            await link.room(peer)
            terms.spoke()
            unread = now() - moment
            moment += unread
            wait = max(messages.make_up(unread), octets.make_up(unread))
        if wait <= 0:
            since = None
            continue
        counts.delayed += 1
        since = since or moment
        if config.rate_patience and moment - since > config.rate_patience:
            counts.reasons["rate"] += 1
            close(TOO_MANY, "too many messages")
        await _rest(peer, wait)


async def _rest(peer: Peer, seconds: float) -> None:
    """Wait, but not for who is closed or has gone: its service is to hear of that, and not when it could have said more."""
    if peer.closing:
        return
    peer.pausing = asyncio.create_task(pause(seconds))
    try:
        await asyncio.wait((peer.pausing, peer.ws.connection_lost_waiter), return_when=asyncio.FIRST_COMPLETED)
    finally:
        peer.pausing.cancel()
        peer.pausing = None
