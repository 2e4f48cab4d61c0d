"""A message with what travels beside its body."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ipcbus.errors import Unsupported
from ipcbus.frame import NO_HEADERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ipcbus.requests.reply import ReplyTo

__all__ = ["Message"]


@dataclass(slots=True)
class Message:
    """What ``recv_message`` returns: the body that ``recv`` would have returned, and its envelope."""

    body: Any
    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)
    """Texts to texts, as given to ``send``."""
    content_type: str = ""
    """How the body travelled."""
    size: int = 0
    """Bytes of the frame."""
    deadline: float | None = None
    """When whoever sent it stops waiting for a reply, in seconds since 1970 (UTC); None is never."""
    reply_to: ReplyTo | None = None
    """For a request: what sends the reply. It pickles, so that another process can answer in this one's place. Let go of
    without an answer, it fails the request."""

    def __getstate__(self) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        state: Any = object.__getstate__(self)  # a pair, as of any object with slots
        own, slots = state
        return own, {**slots, "headers": dict(self.headers)}  # the view of them can be neither pickled nor copied

    def __setstate__(self, state: tuple[dict[str, Any] | None, dict[str, Any]]) -> None:
        own, slots = state
        for name, value in {**(own or {}), **slots}.items():
            setattr(self, name, value)
        self.headers = MappingProxyType(slots["headers"])

    def reply(self, value: Any, timeout: float | None = None) -> None:
        """Answer a request; the other side's ``request`` returns the value.

        Args:
            value: anything that can be sent.
            timeout: seconds to wait for room in the requester's inbox; None is a default of a few seconds.

        Raises:
            Unsupported: nobody asked, or it was answered before.
            PeerDied: who asked is gone.
            EncodeError: the value cannot travel; who asked is told so.
            ChannelFull: who asked does not take its replies. Nothing was sent, and it can be tried again.
            ChannelBroken: it could not be sent, for lack of descriptors, say. The same.
        """
        self._replier().send(value, timeout)

    def fail(self, error: BaseException, timeout: float | None = None) -> None:
        """Answer a request with an error; the other side's ``request`` raises ``RemoteError``. Raises what ``reply`` raises."""
        self._replier().fail(error, timeout)

    def remaining(self) -> float | None:
        """Return the seconds for which the other side still waits, never negative; None is without limit."""
        return None if self.deadline is None else max(0.0, self.deadline - time.time())  # the sender's wall clock said it

    def _replier(self) -> ReplyTo:
        if self.reply_to is None:
            raise Unsupported("this message is no request, so nobody waits for a reply; it was sent with send()")
        return self.reply_to
