"""The process of one service: takes events from its inbox to the hub, and the hub's commands to the front ends."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any

from ipcbus.errors import ConfigError, SerializationError
from ipcbus.web.hub import Hub
from ipcbus.web.link import EVENTS, Batch, Command, Event, LinkError, Sequence, decode, draw, start
from ipcbus.web.pump import Pump

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Many

    from ipcbus.channel import Channel
    from ipcbus.web.service import Service

__all__ = ["Host"]

logger = logging.getLogger("ipcbus.web")

UNKNOWN_FRONT = 0
GRACE = 2.0
"""Seconds that handlers and commands under way get when the process is asked to stop."""


class _Front:
    """A front end as the service sees it."""

    __slots__ = ("attached", "epoch", "pump", "sequence", "token")

    def __init__(self, pump: Pump) -> None:
        self.pump = pump
        self.token = draw()
        self.epoch = UNKNOWN_FRONT
        self.attached = False
        self.sequence = Sequence()


class Host:
    """Runs a service behind its inbox.

    Args:
        service: the service.
        name: what the configuration calls it.
        index: its index among the services.
        inbox: the channel that front ends send events into.
        fronts: the inboxes of the front ends, by their index.
    """

    def __init__(self, service: Service, name: str, index: int, inbox: Channel, fronts: Many[Channel]) -> None:
        if not service.path.startswith("/") or "?" in service.path:
            raise ConfigError(f"{name}: path = {service.path!r} is no path; it starts with '/' and has no '?'")
        epoch = start()
        self.name = name
        self.refused = 0
        """Batches that made no sense."""
        self.stale = 0
        """Batches meant for an earlier start of this process, or sent by an earlier start of a front end."""
        self._path = service.path
        self._inbox = inbox.receiver
        self._fronts = [_Front(Pump(f"front end {number}", channel, index, epoch)) for number, channel in enumerate(fronts)]
        self.hub = Hub(service, self)
        self._stop = asyncio.Event()

    # ------------------------------------------------------------------ the hub's sink

    def put(self, front: int, command: tuple[Any, ...], size: int = 0) -> None:
        """Queue a command for a front end; one that has gone gets no more."""
        if self._fronts[front].attached:
            self._fronts[front].pump.put(command, size)

    def full(self, front: int) -> bool:
        """Tell whether the link to a front end is full."""
        return self._fronts[front].pump.full

    async def room(self, front: int) -> None:
        """Wait until the link to a front end has room."""
        await self._fronts[front].pump.room()

    # ------------------------------------------------------------------ life

    def stop(self) -> None:
        """Make ``run`` return, after what is under way."""
        self._stop.set()

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until ``stop``.

        Args:
            ready: called once events are taken.

        Raises:
            ChannelBusy: another process is still the receiver of this service's inbox.
            ChannelBroken: the inbox cannot be used any more.
        """
        # Opened before anybody is told: from here on what is sent to this inbox has a living receiver.
        self._inbox.fileno()
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(front.pump.run()) for front in self._fronts]
        for front in self._fronts:
            self._greet(front)
        receiving = asyncio.create_task(self._receive())
        stopping = asyncio.create_task(self._stop.wait())
        ready()
        try:
            await asyncio.wait((receiving, stopping), return_when=asyncio.FIRST_COMPLETED)
            if receiving.done():
                receiving.result()  # raises what ended it
            await self._finish()
        finally:
            tasks += [receiving, stopping]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _finish(self) -> None:
        try:
            async with asyncio.timeout(GRACE):
                await self.hub.idle()
        except TimeoutError:
            logger.warning("%s: handlers still ran %g seconds after the request to stop", self.name, GRACE)
        await asyncio.gather(*(front.pump.flush(GRACE) for front in self._fronts))

    async def _receive(self) -> None:
        aio = self._inbox.aio
        while True:
            await self.hub.calm()
            try:
                batch = decode(await aio.recv(), EVENTS)
                if batch.sender >= len(self._fronts) or batch.sender < 0:
                    raise LinkError(f"front end {batch.sender} does not exist")  # noqa: TRY301  handled as any other nonsense
            except EOFError:
                return
            except (SerializationError, LinkError) as error:
                self.refused += 1
                logger.warning("%s: a message in the inbox is dropped: %s", self.name, error)
                continue
            self._take(batch)
            await asyncio.sleep(0)  # recv does not yield while there is more, and handlers want their turn

    def _take(self, batch: Batch) -> None:
        front = self._fronts[batch.sender]
        if batch.epoch < front.epoch:
            self.stale += 1
            return
        if batch.epoch > front.epoch:
            if front.attached:
                logger.warning("%s: front end %d was restarted; its connections are gone", self.name, batch.sender)
                self._reset(front, batch.sender)
            front.epoch = batch.epoch
            front.sequence = Sequence()
        if not front.sequence.follows(batch) and front.attached:
            # Something is missing between the last batch and this one, so nothing that is known of this front end holds.
            logger.warning("%s: a batch of front end %d is missing; its connections begin anew", self.name, batch.sender)
            self._reset(front, batch.sender)
            self._greet(front)
        for event in batch.events:
            if event[0] == Event.HELLO:
                self._hello(front, batch.sender, pid=event[1], token=event[2])
            elif event[0] == Event.BYE:
                self._reset(front, batch.sender)
                front.pump.put((Command.BYE,))
                return
            elif front.attached:
                self.hub.deliver(event)
        if not front.attached:
            self.stale += 1

    def _hello(self, front: _Front, number: int, *, pid: int, token: int) -> None:
        if token == front.token:
            front.attached = True
            logger.info("%s: front end %d (pid %d) is attached", self.name, number, pid)
            return
        if front.attached:
            self._reset(front, number)
        self._greet(front)

    def _reset(self, front: _Front, number: int) -> None:
        front.attached = False
        front.token = draw()
        self.hub.lose(number)
        front.pump.discard()

    def _greet(self, front: _Front) -> None:
        front.pump.put((Command.READY, self.name, self._path, front.token, front.epoch))

    def __repr__(self) -> str:
        return f"<ipcbus.web.Host {self.name} pid {os.getpid()}>"
