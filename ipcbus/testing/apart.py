"""More links of the mutants, as in :mod:`ipcbus.testing.broken`: around pipe's, for what shows between processes."""

# ruff: noqa: D102  what a link has to do is said in ipcbus.transport, and what each of these does wrong in MUTANTS

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from ipcbus.errors import ChannelEmpty, EndOfChannel, PeerDied
from ipcbus.testing.broken import Receiver, Sender
from ipcbus.transport import LINGER

if TYPE_CHECKING:
    from ipcbus.transport import Frame

__all__ = ["EndsAtMark", "InParts", "MarksEnd", "SendsAgain", "WaitsForTheRest"]

_HEAD, _MARK = b"more of it comes", b"nothing more comes"


class InParts(Sender):
    """Writes what a large message is made of one after the other."""

    def send(self, frame: Frame, timeout: float | None) -> None:
        if sum(memoryview(part).nbytes for part in frame) > 1 << 20:
            super().send((_HEAD,), timeout)
            time.sleep(0.2)
        super().send(frame, timeout)


class WaitsForTheRest(Receiver):
    """Waits for the rest of a message that has begun to arrive, however long that takes."""

    def recv(self, timeout: float | None) -> Frame:
        frame = super().recv(timeout)
        return super().recv(None) if bytes(frame[0]) == _HEAD else frame


class MarksEnd(Sender):
    """Ends the stream by a message, and says with each of whom it is, as a connection of its own would."""

    def send(self, frame: Frame, timeout: float | None) -> None:
        super().send((_sender(), *frame), timeout)

    def shutdown(self) -> None:
        super().send((_sender(), _MARK), LINGER)


class EndsAtMark(Receiver):
    """Takes the end of what one process sent for the end of everything."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._ended = False
        self._ahead: list[bytes] = []

    def recv(self, timeout: float | None) -> Frame:
        if not self._ahead and not self._ended:
            self._read(timeout)
        if not self._ahead:
            raise EndOfChannel("the channel was shut down")
        return (self._ahead.pop(0)[len(_sender()) :],)

    def _read(self, timeout: float | None) -> None:
        try:
            while True:
                self._ahead.append(b"".join(super().recv(0 if self._ahead else timeout)))
        except ChannelEmpty:
            if not self._ahead:
                raise
        marks = [message for message in self._ahead if message.endswith(_MARK)]
        if marks:
            self._ended = True
            who = marks[0].removesuffix(_MARK)
            self._ahead = [message for message in self._ahead if message.startswith(who) and message not in marks]


def _sender() -> bytes:
    return b"%8d" % os.getpid()


class SendsAgain(Sender):
    """Sends again, when its receiver has died, what that one may have received."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._sent: list[Frame] = []

    def send(self, frame: Frame, timeout: float | None) -> None:
        try:
            super().send(frame, timeout)
        except PeerDied:
            self._sent, again = [], self._sent[:1]
            for message in again:
                super().send(message, timeout)
            raise
        self._sent.append([bytes(part) for part in frame])
