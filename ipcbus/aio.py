"""The asyncio face of a channel: the same verbs, awaited. Rests on readiness descriptors; no threads, no polling."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from ipcbus.channel import asking
from ipcbus.errors import ChannelEmpty, ChannelError, ChannelFull
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.fds import refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from ipcbus.channel import Channel
    from ipcbus.endpoint import Endpoint
    from ipcbus.message import Message
    from ipcbus.transport import Frame

__all__ = ["AsyncChannel"]

_TURN = 64
"""Messages that may be handled in a row before other tasks get the event loop."""


class AsyncChannel:
    """A channel for coroutines; get it as ``channel.aio``.

    Cancelling an awaited call loses nothing: a message is taken and returned in one step, or not at all.
    """

    __slots__ = ("_channel", "_end", "_may_send", "_receiving", "_sending", "_turn")

    def __init__(self, channel: Channel, end: Endpoint, *, may_send: bool) -> None:
        self._channel = channel
        self._end = end
        self._may_send = may_send
        self._receiving = _Waiters(end)
        self._sending = _Waiters(end)
        self._turn = 0

    def __repr__(self) -> str:
        return f"{self._channel!r}.aio"

    async def send(self, obj: Any, timeout: float | None = None, headers: Mapping[str, str] | None = None) -> None:  # noqa: ASYNC109  the same signature as Channel.send
        """Send an object; see ``Channel.send``."""
        await self._fair()
        end = self._end
        if not (end.patient and self._may_send):
            self._channel.send(obj, headers=headers)
            return
        await self._send(end.codec.encode(obj, headers), timeout)

    async def _send(self, frame: Frame, timeout: float | None) -> None:  # noqa: ASYNC109  as above
        end = self._end
        deadline: Deadline | None = None
        try:
            link = end.tx or end.open_sender()
            while True:
                try:
                    link.send(frame, 0)
                except ChannelFull:
                    deadline = deadline or Deadline(timeout)
                    if deadline.expired:
                        raise
                    await self._sending.wait(link, deadline)
                    continue
                end.sent += 1  # No await behind this: a cancellation there would seem to have prevented the sending.
                return
        except (ChannelError, asyncio.CancelledError):
            end.codec.unsent(frame)
            raise

    async def request(self, obj: Any, timeout: float | None = None, headers: Mapping[str, str] | None = None) -> Any:  # noqa: ASYNC109  the same signature as Channel.request
        """Send a request and return the reply; see ``Channel.request``. Cancelled, it gives the request up."""
        if not self._may_send:
            await self.send(obj)  # says why not
        return await asking().request_async(self._end, self._send, obj, timeout, headers)

    async def recv(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109  the same signature as Channel.recv
        """Receive the next object; see ``Channel.recv``."""
        await self._fair()
        deadline: Deadline | None = None
        while True:
            try:
                return self._channel.recv(0)
            except ChannelEmpty:
                deadline = deadline or Deadline(timeout)
                if deadline.expired:
                    raise
                # No await may stand between taking a message and returning it: a cancellation there would lose it.
                await self._receiving.wait(self._end.rx, deadline)

    async def recv_message(self, timeout: float | None = None) -> Message:  # noqa: ASYNC109  as above
        """Receive the next message with its envelope; see ``Channel.recv_message``."""
        await self._fair()
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
    """The coroutines that wait for one end, in any number of event loops."""

    __slots__ = ("_end", "_groups")

    def __init__(self, end: Endpoint) -> None:
        self._end = end
        self._groups: dict[asyncio.AbstractEventLoop, _Group] = {}

    async def wait(self, link: Any, deadline: Deadline) -> None:
        """Wait until the link may be tried again, is closed, or the deadline has come."""
        loop = asyncio.get_running_loop()
        group = self._groups.get(loop)
        if group is None:
            group = self._groups[loop] = _Group(loop, link.fileno())
            self._end.watchers.add(group)
        future: asyncio.Future[None] = loop.create_future()
        group.futures.append(future)
        timer = None
        try:
            # The attempt that just failed may have drained the descriptor, so what arrived in between must be asked for.
            if link.ready():
                await asyncio.sleep(0)  # an attempt may fail once more, and must not keep other tasks from running
                return
            if (left := deadline.remaining()) is not None:
                timer = loop.call_later(left, _finish, future)
            await future
        finally:
            if timer is not None:
                timer.cancel()
            group.futures.remove(future)
            if not group.futures:
                self._end.watchers.discard(group)
                del self._groups[loop]
                group.close()


class _Group:
    """The coroutines of one event loop; each time the descriptor is readable all of them try again."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        # A descriptor of our own: two channel objects may watch the same end, and it may be closed while we do.
        try:
            self._fd = os.dup(fd)
        except OSError as error:
            raise refused("there is nothing to wait with", error) from error
        self._loop = loop
        self.futures: list[asyncio.Future[None]] = []
        loop.add_reader(self._fd, self._wake)

    def closed(self) -> None:
        """Wake all of them, from any thread: the end was closed."""
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:
            pass  # that loop is over, and nobody waits in it

    def close(self) -> None:
        """Stop watching."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _wake(self) -> None:
        for future in self.futures:
            _finish(future)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
