"""The asyncio face of a channel: the same verbs, awaited. Rests on readiness descriptors; no threads, no polling."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from ipcbus.errors import ChannelEmpty, ChannelFull
from ipcbus.plumbing.clock import Deadline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from ipcbus.channel import Channel
    from ipcbus.endpoint import Endpoint
    from ipcbus.message import Message

__all__ = ["AsyncChannel"]

_TURN = 64
"""Messages that may be handled in a row before other tasks get the event loop."""


class AsyncChannel:
    """A channel for coroutines; get it as ``channel.aio``.

    Cancelling an awaited call loses nothing: a message is taken and returned in one step, or not at all.
    """

    __slots__ = ("_channel", "_end", "_receiving", "_sending", "_turn")

    def __init__(self, channel: Channel, end: Endpoint) -> None:
        self._channel = channel
        self._end = end
        self._receiving = _Waiters()
        self._sending = _Waiters()
        self._turn = 0

    async def send(self, obj: Any, timeout: float | None = None, *, headers: Mapping[str, str] | None = None) -> None:  # noqa: ASYNC109  the same signature as Channel.send
        """Send an object; see ``Channel.send``."""
        end = self._end
        if not end.patient:
            self._channel.send(obj, headers=headers)
            return
        frame = end.codec.encode(obj, headers)
        link = end.tx or end.open_sender()
        deadline: Deadline | None = None
        while True:
            try:
                link.send(frame, 0)
            except ChannelFull:
                deadline = deadline or Deadline(timeout)
                if deadline.expired:
                    raise
                await self._sending.wait(link, deadline)
                continue
            end.sent += 1
            await self._fair()
            return

    async def recv(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109  the same signature as Channel.recv
        """Receive the next object; see ``Channel.recv``."""
        deadline: Deadline | None = None
        while True:
            try:
                obj = self._channel.recv(0)
            except ChannelEmpty:
                deadline = deadline or Deadline(timeout)
                if deadline.expired:
                    raise
                await self._receiving.wait(self._end.rx, deadline)
                continue
            # No await may stand between taking a message and returning it: a cancellation there would lose it.
            self._turn += 1
            return obj

    async def recv_message(self, timeout: float | None = None) -> Message:  # noqa: ASYNC109  as above
        """Receive the next message with its envelope; see ``Channel.recv_message``."""
        deadline: Deadline | None = None
        while True:
            try:
                return self._channel.recv_message(0)
            except ChannelEmpty:
                deadline = deadline or Deadline(timeout)
                if deadline.expired:
                    raise
                await self._receiving.wait(self._end.rx, deadline)

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Receive until the end of the channel."""
        while True:
            await self._fair()
            try:
                obj = await self.recv()
            except EOFError:
                return
            yield obj

    async def _fair(self) -> None:
        self._turn += 1
        if self._turn >= _TURN:
            self._turn = 0
            await asyncio.sleep(0)


class _Waiters:
    """Tasks that wait for one descriptor; each time it is readable the first of them tries again."""

    __slots__ = ("_loop", "_queue")

    def __init__(self) -> None:
        self._queue: deque[asyncio.Future[None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def wait(self, link: Any, deadline: Deadline) -> None:
        """Wait until the link may be tried again or the deadline has come."""
        loop = asyncio.get_running_loop()
        fd = link.fileno()
        # The descriptor may have been drained by the attempt that just failed, so what arrived in between must be asked for.
        if link.ready():
            return
        future: asyncio.Future[None] = loop.create_future()
        if not self._queue:
            loop.add_reader(fd, self._wake)
        self._queue.append(future)
        timer = None
        if (left := deadline.remaining()) is not None:
            timer = loop.call_later(left, self._finish, future)
        try:
            await future
        finally:
            if timer is not None:
                timer.cancel()
            if future in self._queue:
                self._queue.remove(future)
            if not self._queue:
                loop.remove_reader(fd)

    def _wake(self) -> None:
        for future in self._queue:
            self._finish(future)

    @staticmethod
    def _finish(future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_result(None)
