"""The links of the mutants that go wrong where several messages, or bytes, have a shorter way."""

# ruff: noqa: D102  what a link has to do is said in ipcbus.transport, and what each of these does wrong in MUTANTS

from __future__ import annotations

from typing import TYPE_CHECKING

from ipcbus.errors import ChannelClosed, ChannelFull
from ipcbus.testing.broken import Receiver, Sender

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ipcbus.transport import Frame

__all__ = [
    "Beheads",
    "BytesAfterEnd",
    "CountsNoneReceived",
    "CountsNoneSent",
    "CountsTooMany",
    "LosesBytes",
    "ShortReceiver",
    "ShortSender",
    "WaitsForAll",
]


class ShortSender(Sender):
    """Has a shorter way for bytes that does everything right."""

    says_when_full = says_when_shut = False
    counts = True

    def bytes_sender(self, head: bytes, limit: int) -> Callable[[bytes], bool]:
        def send(data: bytes) -> bool:
            if len(data) > limit:
                return False
            try:
                self.link.send((head + data,), 0)
                sent = True
            except ChannelFull:
                sent = self.says_when_full
            except ChannelClosed:
                sent = self.says_when_shut
            self.sent_short += sent and self.counts
            return sent

        return send


class ShortReceiver(Receiver):
    """Has a shorter way for bytes that does everything right."""

    looks = counts = True

    def bytes_receiver(self, head: bytes) -> Callable[[float | None], Frame | bytes]:
        def recv(timeout: float | None) -> Frame | bytes:
            frame = self.recv(timeout)
            first = bytes(frame[0])
            if len(frame) > 1 or (self.looks and not first.startswith(head)):
                return frame
            self.received_short += self.counts
            return first[len(head) :]

        return recv


class LosesBytes(ShortSender):
    """Does not say so when there is no room."""

    says_when_full = True


class BytesAfterEnd(ShortSender):
    """Does not look whether the channel was shut down."""

    says_when_shut = True


class CountsNoneSent(ShortSender):
    """Does not count what it sends."""

    counts = False


class Beheads(ShortReceiver):
    """Takes whatever comes for bytes."""

    looks = False


class CountsNoneReceived(ShortReceiver):
    """Does not count what it returns."""

    counts = False


class CountsTooMany(Sender):
    """Says of several messages that one more was sent than was."""

    def send_many(self, frames: Sequence[Frame], timeout: float | None) -> int:
        return min(len(frames), super().send_many(frames, timeout) + 1)


class WaitsForAll(Sender):
    """Waits for room for each of several messages."""

    def send_many(self, frames: Sequence[Frame], timeout: float | None) -> int:
        for frame in frames:
            self.send(frame, timeout)
        return len(frames)
