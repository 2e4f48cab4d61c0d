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
    "WaitsForAll",
]


class CountsTooMany(Sender):
    """Says of several messages that one more was sent than was."""

    def send_many(self, frames: Sequence[Frame], timeout: float | None) -> int:
        return min(len(frames), super().send_many(frames, timeout) + 1)


class LosesBytes(Sender):
    """Has a shorter way for bytes that does not say so when there is no room."""

    def bytes_sender(self, head: bytes, limit: int) -> Callable[[bytes], bool]:
        def send(data: bytes) -> bool:
            if len(data) > limit:
                return False
            try:
                self.link.send((head + data,), 0)
            except ChannelFull:
                pass
            return True

        return send


class Beheads(Receiver):
    """Has a shorter way for bytes that takes whatever comes for some."""

    def bytes_receiver(self, head: bytes) -> Callable[[float | None], Frame | bytes]:
        def recv(timeout: float | None) -> Frame | bytes:
            frame = self.recv(timeout)
            return bytes(frame[0])[len(head) :] if len(frame) == 1 else frame

        return recv


class CountsNoneSent(Sender):
    """Has a shorter way for bytes that does not count what it sends."""

    def bytes_sender(self, head: bytes, limit: int) -> Callable[[bytes], bool]:
        def send(data: bytes) -> bool:
            if len(data) > limit:
                return False
            try:
                self.link.send((head + data,), 0)
            except (ChannelFull, ChannelClosed):
                return False
            return True

        return send


class CountsNoneReceived(Receiver):
    """Has a shorter way for bytes that does not count what it returns."""

    def bytes_receiver(self, head: bytes) -> Callable[[float | None], Frame | bytes]:
        def recv(timeout: float | None) -> Frame | bytes:
            frame = self.recv(timeout)
            first = bytes(frame[0])
            return first[len(head) :] if len(frame) == 1 and first.startswith(head) else frame

        return recv


class BytesAfterEnd(Sender):
    """Has a shorter way for bytes that does not look whether the channel was shut down."""

    def bytes_sender(self, head: bytes, limit: int) -> Callable[[bytes], bool]:
        def send(data: bytes) -> bool:
            if len(data) > limit:
                return False
            try:
                self.link.send((head + data,), 0)
            except ChannelFull:
                return False
            except ChannelClosed:
                pass
            return True

        return send


class WaitsForAll(Sender):
    """Waits for room for each of several messages."""

    def send_many(self, frames: Sequence[Frame], timeout: float | None) -> int:
        for frame in frames:
            self.send(frame, timeout)
        return len(frames)
