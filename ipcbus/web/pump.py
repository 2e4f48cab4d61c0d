"""The sending half of a link: events of one event-loop turn go as one message of a channel."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from ipcbus.errors import ChannelBroken, ChannelClosed, EncodeError, MessageTooLarge, PeerDied
from ipcbus.plumbing.fds import lacking
from ipcbus.web.link import Batcher
from ipcbus.web.scarcity import outlast

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.aio import AsyncChannel
    from ipcbus.channel import Channel

__all__ = ["Pump"]

logger = logging.getLogger("ipcbus.web")

HIGH_EVENTS = 2048
HIGH_BYTES = 1 << 20
MOST_TRIES = 10
"""How often, within some seconds, what needs a descriptor is tried again; what is small need not wait behind it for longer."""


class Pump:
    """Sends events through a channel from a task of its own, in order and in batches.

    ``put`` never waits. Who produces more than the channel takes asks ``full`` and awaits ``room``; that is how a slow
    service in the end stops the reading of client sockets.

    Args:
        name: the receiver, for the log.
        channel: its inbox.
        sender: this process's index among its kind.
        epoch: when this process was started.
        on_dead: called when the receiver is found dead; what it does not ``reclaim`` is dropped.
    """

    def __init__(
        self, name: str, channel: Channel, sender: int, epoch: int, on_dead: Callable[[], None] = lambda: None
    ) -> None:
        self._name = name
        self._on_dead = on_dead
        self._channel = channel.sender
        self._batcher = Batcher(sender, epoch)
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._apart = 0  # events at the head of what waits that go one by one
        self._tries = 0  # how often the batch at its head was put back for want of a descriptor
        self.lost = 0
        """Events that could not be delivered because the receiver was dead, or that the channel cannot carry."""

    def __len__(self) -> int:
        return len(self._batcher)

    @property
    def full(self) -> bool:
        """Whether more waits than should."""
        return not self._room.is_set()

    @property
    def idle(self) -> bool:
        """Whether all is handed to the channel."""
        return self._idle.is_set()

    def put(self, event: tuple[Any, ...], size: int = 0) -> None:
        """Queue an event whose payload has ``size`` bytes."""
        batcher = self._batcher
        batcher.add(event, size)
        self._wake.set()
        self._idle.clear()
        if len(batcher) >= HIGH_EVENTS or batcher.bytes >= HIGH_BYTES:
            self._room.clear()

    async def room(self) -> None:
        """Wait until no more waits than should."""
        await self._room.wait()

    def discard(self) -> None:
        """Forget what waits: it is meant for nobody any more."""
        self._batcher.discard()
        self._settle()

    def reclaim(self) -> list[tuple[Any, ...]]:
        """Take back what was not sent."""
        events = self._batcher.reclaim()
        self._settle()
        return events

    async def flush(self, seconds: float) -> bool:
        """Wait until all is handed to the channel; return False if that took longer than ``seconds``."""
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Send until cancelled or until the channel is shut down."""
        aio = self._channel.aio
        while True:
            # put() sets the event in one turn of the loop and this task runs in the next: the turn's events are together.
            await self._wake.wait()
            self._wake.clear()
            while (batch := self._batcher.take(1) if self._apart else self._batcher.take()) is not None:
                try:
                    sent = await self._send(aio, batch)
                except ChannelClosed:
                    self._batcher.discard()
                    self._settle()
                    return
                except (EncodeError, MessageTooLarge) as error:
                    self._refuse(batch, error)
                else:
                    if sent:
                        self._apart, self._tries = max(0, self._apart - 1), 0
                self._settle()

    def _refuse(self, batch: tuple[Any, ...], error: Exception) -> None:
        """Leave out the event that the channel cannot carry, and no other: those around it concern other clients."""
        events = batch[4]
        if len(events) > 1:
            self._batcher.back(batch)
            self._apart = len(events)
            return
        self._batcher.back((*batch[:4], []))  # so that it leaves no gap
        if self._apart:
            self._apart -= 1
        self.lost += 1
        logger.error("what was to be said to %s cannot be sent and is left out (op %d): %s", self._name, events[0][0], error)

    async def _send(self, aio: AsyncChannel, batch: tuple[Any, ...]) -> bool:
        """Send a batch, or have what becomes of those whose receiver is dead; return False if it is to be tried again."""
        try:
            try:
                await aio.send(batch)
            except ChannelBroken:
                # The receiver has died since the last send. If its replacement is there by now, a second try reaches it.
                await aio.send(batch)
        except ChannelBroken as error:
            if lacking(error) and self._tries < MOST_TRIES:
                self._tries += 1
                self._batcher.back(batch)
                await outlast(error, f"to {self._name}")
                return False
            if isinstance(error, PeerDied):
                self._batcher.back(batch)  # nothing of it was sent
                lost = 0
            else:
                lost = len(batch[4])
            self._on_dead()
            lost += self._batcher.discard()
            self.lost += lost
            if lost:
                logger.warning("%d events for %s are dropped: %s", lost, self._name, error)
        return True

    def _settle(self) -> None:
        waiting = len(self._batcher)
        if waiting < HIGH_EVENTS // 2 and self._batcher.bytes < HIGH_BYTES // 2:
            self._room.set()
        if not waiting:
            self._idle.set()
