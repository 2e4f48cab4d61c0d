"""Asking: requests through a channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ipcbus.errors import ChannelEmpty, ChannelError
from ipcbus.plumbing.clock import NEVER, Deadline
from ipcbus.requests.inbox import inbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from ipcbus.endpoint import Endpoint
    from ipcbus.requests.future import Future
    from ipcbus.requests.inbox import Inbox
    from ipcbus.transport import Frame

__all__ = ["request", "request_async", "send", "submit"]


def request(end: Endpoint, obj: Any, timeout: float | None, headers: Mapping[str, str] | None) -> Any:
    """Send a request and return the reply; see ``Channel.request``."""
    deadline = NEVER if timeout is None else Deadline(timeout)
    box = end.inbox or inbox(end)
    future = send(box, end, obj, timeout, headers)
    try:
        box.wait_for(future, deadline)
        if future.outcome is None:
            raise _late(end, timeout)
        value, error = future.outcome
        return value if error is None else future.result(0)
    finally:
        if future.outcome is None:
            future.cancel()


def submit(end: Endpoint, obj: Any, timeout: float | None, headers: Mapping[str, str] | None) -> Future[Any]:
    """Send a request and return a future of the reply; see ``Channel.submit``."""
    box = inbox(end)
    box.attend()  # before it is sent: what raises did not ask
    return send(box, end, obj, timeout, headers)


async def request_async(
    end: Endpoint,
    send: Callable[[Frame, float | None], Awaitable[None]],
    obj: Any,
    timeout: float | None,  # noqa: ASYNC109  as Channel.request
    headers: Mapping[str, str] | None,
) -> Any:
    """Send a request and return the reply.

    Args:
        end: the channel that it goes through.
        send: sends a frame.
        obj: what is asked.
        timeout: seconds for all of it.
        headers: texts.
    """
    import asyncio

    deadline = Deadline(timeout)
    box = inbox(end)
    future = box.enter()
    try:
        arrival = future.arrival()  # before it is sent, as above
        frame = end.codec.encode_routed(obj, box.route, future.number, timeout, headers)
        await send(frame, timeout if end.patient else 0)
        box.expect(future, end)
        try:
            async with asyncio.timeout(deadline.remaining()):
                await arrival
        except TimeoutError:
            pass  # the next line finds out
        if future.outcome is None:
            raise _late(end, timeout)
        return future.result(0)
    finally:
        if not future.is_done:
            future.cancel()


def send(box: Inbox, end: Endpoint, obj: Any, timeout: float | None, headers: Mapping[str, str] | None) -> Future[Any]:
    """Send a request and return its future, for somebody to wait for; raises what ``submit`` raises."""
    future = box.enter()
    try:
        frame = end.codec.encode_routed(obj, box.route, future.number, timeout, headers)
        try:
            link = end.tx or end.open_sender()
            link.send(frame, timeout if end.patient else 0)  # a request that is dropped would never be answered
        except ChannelError:
            end.codec.unsent(frame)
            raise
        box.expect(future, end)
    except BaseException:
        box.give_up(future)
        raise
    end.sent += 1
    return future


def _late(end: Endpoint, timeout: float | None) -> ChannelEmpty:
    return ChannelEmpty(f"no reply to a request through {end.url} came within {timeout or 0:g} s")
