"""The process of one service: takes events from its inbox to the hub, and the hub's commands to the front ends."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import os
import re
from time import monotonic
from typing import TYPE_CHECKING, Any

from ipcbus.errors import ChannelBroken, ConfigError, PeerDied, SerializationError
from ipcbus.web.failures import FAILURES, pass_on_cancellation
from ipcbus.web.frontlink import FrontLink
from ipcbus.web.hub import Counts, Hub
from ipcbus.web.limits import Limits
from ipcbus.web.link import CREDIT, EVENTS, Batch, Command, Event, LinkError, Sequence, decode, draw, start
from ipcbus.web.moments import ticks
from ipcbus.web.outside import Outside, answers
from ipcbus.web.pump import Pump
from ipcbus.web.scarcity import outlast
from ipcbus.web.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from collections.abc import Sequence as Many

    from ipcbus.channel import Channel
    from ipcbus.web.paths import Paths

__all__ = ["Host"]

logger = logging.getLogger("ipcbus.web")

BARRIER = 2.0
"""Seconds that a service waits for what the front ends have to tell, before it begins without those that have not."""
GRACE = 2.0
"""Seconds that front ends and commands under way get when the process is asked to stop."""
LEFT_OVER = 4096
"""Messages of one front end, sent to an earlier process and not read by it, that are kept until it is attached."""


class Host:
    """Runs a service behind its inbox.

    Args:
        service: the service.
        name: what the configuration calls it.
        index: this process's index among all service processes.
        inbox: the channel that front ends send events into.
        fronts: the inboxes of the front ends, by their index.
        shard: which process of the service this is, and of how many.
        services: the names of all services, for requests.
        bus: the address of the server's bus; None if there is none.
        link_timeout: seconds after which a silent front end counts as gone.
        max_groups: rooms that a connection may be in, unless the service says so.
        finish_timeout: seconds that handlers have for finishing when the process is asked to stop.
        paths: where it is noted which path it serves.
    """

    def __init__(
        self,
        service: Service,
        name: str,
        index: int,
        inbox: Channel,
        fronts: Many[Channel],
        *,
        shard: tuple[int, int] = (0, 1),
        services: Collection[str] = (),
        bus: str | None = None,
        link_timeout: float = 10.0,
        max_groups: int = 128,
        finish_timeout: float = 10.0,
        paths: Paths | None = None,
    ) -> None:
        _check(service, name)
        self.name = name
        self._service = service
        self._inbox = inbox.receiver
        self._index = index
        self._front_inboxes = fronts
        self._fronts: list[FrontLink] = []
        self._link_timeout, self._tick = link_timeout, min(1.0, link_timeout / 4)
        self._finish_timeout, self._paths = finish_timeout, paths
        self._refs = itertools.count(1)
        self._queries: dict[int, tuple[int, asyncio.Future[Any]]] = {}
        self._everywhere: list[int] = []
        self.hub = Hub(service, self, self._everywhere, max_groups)
        self.outside = service._outside = Outside(name, shard, bus, services, paths, self.query)  # noqa: SLF001  the host is the rest of Service
        self._told = asyncio.Event()  # a front end said something about being there
        self._begun = asyncio.Event()
        self._finishing = False
        self._stop = asyncio.Event()

    # ------------------------------------------------------------------ the hub's sink

    def put(self, front: int, command: tuple[Any, ...], size: int = 0) -> None:
        """Queue a command for a front end; one that has gone gets no more."""
        if self._fronts[front].here:
            self._fronts[front].pump.put(command, size)

    def full(self, front: int) -> bool:
        """Tell whether the link to a front end is full."""
        return self._fronts[front].pump.full

    async def room(self, front: int) -> None:
        """Wait until the link to a front end has room."""
        await self._fronts[front].pump.room()

    def settled(self, front: int) -> bool:
        """Tell whether what a front end has told is taken over, and it is not asked anew."""
        return self._fronts[front].ready

    # ------------------------------------------------------------------ life

    def stop(self) -> None:
        """Make ``run`` return, after what is under way."""
        self._stop.set()

    async def stopped(self) -> None:
        """Wait until ``stop`` is called."""
        await self._stop.wait()

    @property
    def counts(self) -> Counts:
        """What has happened here."""
        return self.hub.counts

    def gauges(self) -> dict[str, int]:
        """Return what there is now of what is counted."""
        return {
            "connections": self.counts.connections,
            "waiting_events": self.hub.turns.waiting,
            "waiting_commands": sum(len(front.pump) for front in self._fronts),
        }

    async def prepare(self) -> None:
        """Do what can be done while an earlier process of the service still serves; call it before ``run``.

        Raises:
            Exception: what ``on_start`` raised.
        """
        await _call(self._service.on_start)

    async def dismiss(self) -> None:
        """End without having served."""
        await _call(self._service.on_stop)
        self.outside.close()

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until ``stop``.

        Args:
            ready: called once events are taken.

        Raises:
            ChannelBusy: another process is still the receiver of this service's inbox.
            ChannelBroken: the inbox cannot be used any more.
            Exception: what ``on_attach`` raised.
        """
        epoch = start()  # later than the end of any earlier process, which front ends are told in epochs, too
        self._fronts = [
            FrontLink(Pump(f"front end {number}", channel, self._index, epoch), self._tick)
            for number, channel in enumerate(self._front_inboxes)
        ]
        if self.outside.shard[1] > 1:
            self._everywhere += range(len(self._fronts))
        # Opened before anybody is told: from here on what is sent to this inbox has a living receiver.
        self._inbox.fileno()
        if self._paths is not None:
            self._paths.take(self._index, self.name, self._service.path, answers=answers(self._service))
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(front.pump.run()) for front in self._fronts]
        for front in self._fronts:
            self._greet(front)
        work = [asyncio.create_task(self._receive()), asyncio.create_task(self._begin()), asyncio.create_task(self._watch())]
        if answers(self._service):
            work.append(self.outside.begin(self._service.on_request))
        stopping = asyncio.create_task(self._stop.wait())
        ready()
        try:
            waiting = {*work, stopping}
            while not stopping.done() and not work[0].done():
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # raises what ended it
            await self._finish()
        finally:
            tasks += [*work, stopping]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.hub.stop()
            await self.outside.stop()
            self.outside.close()

    async def _begin(self) -> None:
        """Wait for the barrier, take over what there is, and let events flow."""
        try:
            async with asyncio.timeout(BARRIER):
                while not all(front.attached for front in self._fronts):
                    await self._told.wait()
                    self._told.clear()
        except TimeoutError:
            late = [number for number, front in enumerate(self._fronts) if not front.attached]
            logger.warning("%s: begins without front ends %s, which have not answered", self.name, late)
        await self._take_over([front for front in self._fronts if front.attached])
        self._begun.set()
        self._service._ticker.start()  # noqa: SLF001  the host is the rest of Service
        while True:  # front ends that come later
            await self._told.wait()
            self._told.clear()
            await self._take_over([front for front in self._fronts if front.attached and not front.ready])

    async def _take_over(self, fronts: list[FrontLink]) -> None:
        restored, fresh, numbers = [], [], {id(front): number for number, front in enumerate(self._fronts)}
        tokens = [front.token for front in fronts]
        for front in fronts:
            old, new = self.hub.restore(numbers[id(front)], front.entries)
            front.entries = []
            restored += old
            fresh += new
        if restored:
            logger.info("%s: takes over %d connections", self.name, len(restored))
            await _call(lambda: self._service.on_attach(restored))
        self.hub.begin(fresh)
        for front, token in zip(fronts, tokens, strict=True):
            if front.token != token:
                continue  # it was asked anew meanwhile: what it has told since is taken over first
            left, front.left = front.left, []
            for event in left:
                self.hub.deliver(event)
            if front.attached and not self._finishing:  # else it goes on holding, for the next process
                front.ready, front.taken = True, 0
                front.pump.put((Command.READY, front.token, CREDIT))

    async def _finish(self) -> None:
        """Have front ends hold their messages, deal with those that are here, and hand over what came of it."""
        try:
            # First things first: what it has read of messages to an earlier process is handled once it has begun.
            async with asyncio.timeout(BARRIER + GRACE):
                await self._begun.wait()
        except TimeoutError:
            logger.warning("%s: was asked to stop before it had begun", self.name)
        self._finishing = True
        told = [front for front in self._fronts if front.attached]
        for front in told:
            front.pump.put((Command.BYE,))
        parted = await self._hear_of(told, lambda front: front.parted)
        try:
            async with asyncio.timeout(self._finish_timeout):
                if not parted and self.hub.turns.waiting:  # so many that nothing more is taken from the inbox
                    await self.hub.turns.idle()
                    parted = await self._hear_of(told, lambda front: front.parted)
                await self.hub.turns.idle()
                await self.outside.finish()
        except TimeoutError:
            logger.warning(
                "%s: handlers still run %g seconds after the request to stop; %d messages are lost (finish_timeout)",
                self.name,
                self._finish_timeout,
                self.hub.turns.waiting,
            )
        if not parted:
            logger.warning("%s: not every front end has answered the goodbye", self.name)
        await self._service._ticker.stop()  # noqa: SLF001  as above
        try:
            await _call(self._service.on_stop)
        except FAILURES as error:  # what the service has said is sent nevertheless
            pass_on_cancellation(error)
            self.hub.count_failure()
            logger.exception("%s: on_stop failed", self.name)
        self.hub.flush()
        await asyncio.gather(*(front.pump.flush(GRACE) for front in self._fronts))
        # What the next process says travels by a lane of its own, and must not arrive before the last of this.
        now, there = monotonic(), [front for front in told if front.parted]
        for front in there:
            front.pump.put((Command.PING, now))
        if not await self._hear_of(there, lambda front: front.echo >= now):
            logger.warning("%s: a front end did not say that it has taken everything", self.name)

    async def _hear_of(self, fronts: list[FrontLink], true: Callable[[FrontLink], bool]) -> bool:
        """Wait until something is true of all front ends that are still there; return False if that takes too long."""
        try:
            async with asyncio.timeout(GRACE):
                while not all(true(front) or not front.attached for front in fronts):
                    self._told.clear()
                    await self._told.wait()
        except TimeoutError:
            return False
        return True

    async def _watch(self) -> None:
        """Look after the links: who is silent for too long is gone, who does not answer is asked again."""
        patience = self._link_timeout
        deaf = 0.0
        async for now, still in ticks(self._tick):
            deaf = now if self.hub.turns.crowded else max(deaf, still)  # crowded, the inbox is not read either
            for number, front in enumerate(self._fronts):
                if front.here and now - max(front.heard, deaf) > patience:
                    logger.warning("%s: nothing was heard of front end %d for %g seconds", self.name, number, patience)
                    self._reset(front, number)
                    self._greet(front)
                elif not front.attached:
                    self._ask_again(front, now)
                elif now - front.heard > patience / 4:
                    front.pump.put((Command.PING, now))

    def _ask_again(self, front: FrontLink, now: float) -> None:
        """Say ATTACH once more if nothing comes of the last one: it may be lost, as may what the front end said to it."""
        if front.parted or self._finishing:  # nobody is meant to answer
            return
        if front.pump.idle and now - max(front.asked, front.heard) > front.wait:
            front.wait = min(2 * front.wait, self._link_timeout)  # a slow answer is not overtaken by the next question for ever
            self._detach(front)
            self._greet(front)

    def notice(self, number: int, at: int) -> None:
        """Take the news that a front end has ended.

        Args:
            number: its index.
            at: when that was, as an epoch.
        """
        if not self._fronts:
            return  # it does not run yet
        front = self._fronts[number]
        if front.here and front.epoch < at:
            logger.info("%s: front end %d has ended; its connections are gone", self.name, number)
            self._reset(front, number)

    # ------------------------------------------------------------------ events

    async def _receive(self) -> None:
        aio = self._inbox.aio
        while True:
            await self.hub.turns.calm()
            try:
                batch = decode(await aio.recv(), EVENTS)
                if batch.sender >= len(self._fronts) or batch.sender < 0:
                    raise LinkError(f"front end {batch.sender} does not exist")  # noqa: TRY301  handled as any other nonsense
            except EOFError:
                return
            except ChannelBroken as error:
                await outlast(error, self.name)
                continue
            except (SerializationError, LinkError) as error:
                self.counts.nonsense += 1
                logger.warning("%s: a message in the inbox is dropped: %s", self.name, error)
                continue
            for fault in batch.wrong:
                self.counts.nonsense += 1
                logger.warning("%s: an event of front end %d is dropped: %s", self.name, batch.sender, fault)
            self._take(batch)
            await asyncio.sleep(0)  # recv does not yield while there is more, and handlers want their turn

    def _take(self, batch: Batch) -> None:
        front = self._fronts[batch.sender]
        if batch.epoch < front.epoch:
            self.counts.stale += 1
            return
        front.heard = monotonic()
        if batch.epoch > front.epoch:
            if front.here:
                logger.warning("%s: front end %d was restarted; its connections are gone", self.name, batch.sender)
                self._reset(front, batch.sender)
            front.epoch = batch.epoch
            front.sequence = Sequence()
            front.left = []
        if not front.sequence.follows(batch) and (front.attached or front.hello):
            # What was in the missing batch nobody knows, but the front end knows what there is now.
            logger.warning("%s: a batch of front end %d is missing; it is asked what there is", self.name, batch.sender)
            self._detach(front)
            self._greet(front)
        for event in batch.events:
            if event[0] in _OF_THE_LINK:
                self._hear(front, batch.sender, event)
            elif front.ready:
                if event[0] == Event.MSG:
                    front.taken += 1
                self.hub.deliver(event)
            elif event[0] == Event.MSG and len(front.left) < LEFT_OVER:
                front.left.append(event)  # an earlier process never read it, so this one may
            else:
                self.counts.stale += 1
        if front.taken >= CREDIT // 4:
            front.pump.put((Command.CREDIT, front.taken))
            front.taken = 0

    def _hear(self, front: FrontLink, number: int, event: list[Any]) -> None:
        op = event[0]
        if op == Event.HELLO:
            self._hello(front, number, pid=event[1], token=event[2])
        elif op == Event.SNAP:
            if front.token == front.hello:
                front.entries += event[1]
                if event[2]:
                    front.attached = front.here = True
                    front.wait = self._tick
                    self._told.set()
        elif op == Event.BYE and front.hello:  # else it is the answer to an earlier process, which did not live to take it
            front.parted = True
            if not self._stop.is_set():  # it is the front end that stops
                self._reset(front, number)
                front.pump.put((Command.BYE,))
            self._told.set()
        elif op == Event.RESULT:
            _, future = self._queries.pop(event[1], (0, None))
            if future is not None and not future.done():
                future.set_result(event[2])
        elif op == Event.PING:
            front.pump.put((Command.PONG, event[1]))
        elif op == Event.PONG:
            front.echo = event[1]
            self._told.set()

    def _hello(self, front: FrontLink, number: int, *, pid: int, token: int) -> None:
        front.parted = False
        if token != front.token:
            if front.hello:
                self._detach(front)  # it has begun anew, or wants to
            self._greet(front)
            return
        front.hello = token
        front.entries = []
        logger.info("%s: front end %d (pid %d) is attached", self.name, number, pid)

    def _detach(self, front: FrontLink) -> None:
        """Take nothing from a front end before it has told what there is; its connections stay known."""
        front.attached = front.ready = False
        front.hello, front.token = 0, draw()
        front.entries = []

    def _reset(self, front: FrontLink, number: int) -> None:
        """Forget a front end and all its connections."""
        self._detach(front)
        front.here = False
        front.pump.discard()
        front.left = []
        self.hub.lose(number)
        for ref, (asked, future) in list(self._queries.items()):
            if asked == number:
                del self._queries[ref]
                if not future.done():
                    future.set_exception(PeerDied(f"front end {number} has ended, or was not heard of, before it answered"))
        self._told.set()

    def _greet(self, front: FrontLink) -> None:
        service = self._service
        kind = type(service)
        wants = {
            "auth": kind.authorize is not Service.authorize,
            "pressure": kind.on_pressure is not Service.on_pressure or kind.on_drained is not Service.on_drained,
            "limits": service.limits.given(),
        }
        front.asked = monotonic()
        front.pump.put((Command.ATTACH, self.name, service.path, front.token, front.epoch, wants))

    def query(self, what: str) -> list[asyncio.Future[Any]]:
        """Ask every front end that is there something, and return futures of what they say."""
        futures = []
        for number, front in enumerate(self._fronts):
            if front.attached:
                ref = next(self._refs)
                future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                self._queries[ref] = (number, future)
                futures.append(future)
                front.pump.put((Command.QUERY, ref, what))
        return futures

    def __repr__(self) -> str:
        return f"<ipcbus.web.Host {self.name} pid {os.getpid()}>"


_OF_THE_LINK = frozenset({Event.HELLO, Event.SNAP, Event.BYE, Event.RESULT, Event.PING, Event.PONG})


def _check(service: Service, name: str) -> None:
    path: Any = service.path
    limits: Any = service.limits
    if not isinstance(path, str) or not re.fullmatch(r"""/[!"$->@-~]*""", path):
        raise ConfigError(f"{name}: path = {path!r} is no path; it starts with '/' and has no '?' or '#', and 'é' reads %C3%A9")
    if not isinstance(limits, Limits):
        raise ConfigError(f"{name}: limits = {limits!r} are no ipcbus.web.Limits; write limits = Limits(rate=5)")
    try:
        limits.check()
    except ValueError as error:
        raise ConfigError(f"{name}: limits: {error}") from error


async def _call(handler: Callable[[], Any]) -> None:
    result = handler()
    if inspect.isawaitable(result):
        await result
