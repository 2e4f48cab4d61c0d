"""Outside: what a service process reaches beyond its own clients: other services, the front ends, the bus."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any

from ipcbus.bus.bus import Bus
from ipcbus.errors import ChannelBroken, ChannelError, ConfigError, EncodeError, IpcbusError, SerializationError
from ipcbus.web.failures import FAILURES, pass_on_cancellation
from ipcbus.web.scarcity import outlast

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from ipcbus.channel import Channel
    from ipcbus.message import Message
    from ipcbus.web.paths import Paths
    from ipcbus.web.service import Service

__all__ = ["Outside", "answers", "bus_config", "request_channel"]

logger = logging.getLogger("ipcbus.web")

AT_A_TIME = 1000
"""Requests that may be under way in one process; more wait in the channel."""
QUERY_TIMEOUT = 5.0


def request_channel(service: str) -> str:
    """Return the name, on the server's bus, of the channel of requests to a service."""
    return f"service.{service}"


def answers(service: Service) -> bool:
    """Tell whether a service defines ``on_request``."""
    from ipcbus.web.service import Service as Base

    return type(service).on_request is not Base.on_request


class Outside:
    """The world of one service process.

    Args:
        name: what the configuration calls the service.
        shard: which of its processes this is, and of how many.
        address: of the server's bus; None if there is none.
        services: the names of all services.
        paths: where it is noted which of them answer requests; None if it is nowhere.
        query: sends a QUERY to every front end that is there, and returns futures of the results.
    """

    def __init__(
        self,
        name: str,
        shard: tuple[int, int],
        address: str | None,
        services: Collection[str],
        paths: Paths | None,
        query: Callable[[str], list[asyncio.Future[Any]]],
    ) -> None:
        self.shard = shard
        self._name = name
        self._address = address
        self._services = services
        self._paths = paths
        self._query = query
        self._bus: Bus | None = None
        self._channels: dict[str, Channel] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._serving: asyncio.Task[None] | None = None

    @property
    def bus(self) -> Bus:
        """The server's bus."""
        if self._bus is None:
            if self._address is None:
                raise IpcbusError(f"{self._name}: this server has no bus")
            self._bus = Bus.connect(self._address)
        return self._bus

    async def request(self, service: str, message: Any, timeout: float | None) -> Any:  # noqa: ASYNC109  as Channel.request
        """Ask another service."""
        if service not in self._services:
            raise ConfigError(f"no service is called {service!r}; there are: {', '.join(sorted(self._services))}")
        if service not in self._channels and self._paths is not None and not self._paths.answers(service):
            raise ConfigError(f"{service} answers no requests: its class does not define on_request")
        return await self._channel(service).aio.request(message, timeout)

    async def front_counts(self) -> list[dict[str, Any]]:
        """Return the counts of every front end."""
        async with asyncio.timeout(QUERY_TIMEOUT):
            found: list[dict[str, Any]] = await asyncio.gather(*self._query("counts"))
        return found

    def begin(self, handler: Callable[[Any], Any]) -> asyncio.Task[None]:
        """Answer the requests of other services, until ``finish`` or until the task that is returned is cancelled."""
        self._serving = asyncio.create_task(self._serve(handler))
        return self._serving

    async def finish(self) -> None:
        """Take no more requests, and wait until those that were taken are answered."""
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait((self._serving,))
        if self._answering:
            await asyncio.wait(self._answering)

    async def _serve(self, handler: Callable[[Any], Any]) -> None:
        inbox = self._channel(self._name).aio
        free = asyncio.Semaphore(AT_A_TIME)
        while True:
            await free.acquire()
            try:
                message = await inbox.recv_message()
            except SerializationError as error:  # who asked is told, and nobody else is concerned
                free.release()
                logger.warning("%s: a request is dropped: %s", self._name, error)
                continue
            except ChannelBroken as error:
                free.release()
                await outlast(error, self._name)
                continue
            task = asyncio.create_task(self._answer(handler, message))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
            task.add_done_callback(lambda _: free.release())

    async def _answer(self, handler: Callable[[Any], Any], message: Message) -> None:
        try:
            value = handler(message.body)
            if inspect.isawaitable(value):
                value = await value
        except FAILURES as error:  # whatever it is, it is raised where the request came from
            pass_on_cancellation(error)
            await _tell(message.fail, error)
            return
        await _tell(message.reply, value)

    def _channel(self, service: str) -> Channel:
        channel = self._channels.get(service)
        if channel is None:
            channel = self._channels[service] = self.bus.channel(request_channel(service))
        return channel

    async def stop(self) -> None:
        """Answer nothing any more."""
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    def close(self) -> None:
        """Leave the bus."""
        if self._bus is not None:
            for channel in self._channels.values():
                channel.close()
            self._bus.close()


async def _tell(reply: Callable[[Any], None], value: Any) -> None:
    """Reply in a thread: it may wait for room in the inbox of who asked."""
    try:
        await asyncio.to_thread(reply, value)
    except (ChannelError, EncodeError) as error:
        logger.info("a request could not be answered: %s", error)


def bus_config(services: Mapping[str, int]) -> dict[str, Any]:
    """Return the configuration of a server's bus, given the services and how many processes each has."""
    return {
        "channels": {
            request_channel(name): {"url": "auto:", "receivers": "many"} for name, count in services.items() if count > 1
        }
    }
