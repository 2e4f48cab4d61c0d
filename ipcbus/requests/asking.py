"""Asking: requests through a channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ipcbus.plumbing.clock import Deadline
from ipcbus.requests.inbox import inbox

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ipcbus.endpoint import Endpoint
    from ipcbus.requests.future import Future

__all__ = ["request", "submit"]


class Asked:
    """A request: its frame, to be sent, and its future.

    Args:
        end: the channel that it goes through.
        obj: what is asked.
        timeout: seconds until nobody waits for the reply.
        headers: texts.

    Attributes:
        frame: to be sent.
        future: of the reply.

    Raises:
        Unsupported: strangers can send through this channel.
        EncodeError: the object cannot travel.
        ChannelFull: too many requests of this process wait already.
    """

    def __init__(self, end: Endpoint, obj: Any, timeout: float | None, headers: Mapping[str, str] | None) -> None:
        self._end = end
        self._inbox = inbox(end)
        self.future, self.frame = self._inbox.begin(end, obj, timeout, headers)

    def send(self, timeout: float | None) -> None:
        """Send the frame; raises what ``Channel.send`` raises, and then nothing is asked."""
        end = self._end
        try:
            link = end.tx or end.open_sender()
            link.send(self.frame, timeout if end.patient else 0)  # a request that is dropped would never be answered
            end.sent += 1
            self.sent()
        except BaseException:
            self.close()
            raise

    def sent(self) -> None:
        """Note that the frame was sent: from here on, the death of who receives it ends the request."""
        link = self._end.tx
        self._inbox.sent(self.future, None if link is None else link.receiver())

    def attend(self) -> None:
        """Have the reply taken in even while nobody waits for it."""
        self._inbox.attend()

    async def reply(self, timeout: float | None) -> Any:  # noqa: ASYNC109  a rest of what the caller was given
        """Wait for the reply, once the frame was sent."""
        import asyncio

        self.sent()
        try:
            async with asyncio.timeout(timeout):
                return await self.future
        except TimeoutError:
            return self.future.result(0)  # which says it in the same words as everywhere

    def close(self) -> None:
        """Give the request up, if it was not answered."""
        if not self.future.is_done:
            self.future.cancel()


def request(end: Endpoint, obj: Any, timeout: float | None, headers: Mapping[str, str] | None) -> Any:
    """Send a request and return the reply; see ``Channel.request``."""
    deadline = Deadline(timeout)
    asked = Asked(end, obj, timeout, headers)
    asked.send(timeout)
    try:
        return asked.future.result(deadline.remaining())
    finally:
        asked.close()


def submit(end: Endpoint, obj: Any, timeout: float | None, headers: Mapping[str, str] | None) -> Future[Any]:
    """Send a request and return a future of the reply; see ``Channel.submit``."""
    asked = Asked(end, obj, timeout, headers)
    asked.send(timeout)
    asked.attend()
    return asked.future
