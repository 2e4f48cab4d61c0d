"""More links of the mutants, as in :mod:`ipcbus.testing.broken`: around pipe's, for what shows between processes."""

# ruff: noqa: D102  what a link has to do is said in ipcbus.transport, and what each of these does wrong in MUTANTS

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from typing import TYPE_CHECKING, Any

from ipcbus.errors import ChannelEmpty, ChannelFull, EndOfChannel, PeerDied
from ipcbus.testing.broken import Receiver, Sender
from ipcbus.transport import LINGER

if TYPE_CHECKING:
    from multiprocessing.synchronize import Semaphore

    from ipcbus.transport import ChannelSpec, Frame

__all__ = [
    "EndsAtMark",
    "GivesBack",
    "InParts",
    "MarksEnd",
    "ReadyForTheRest",
    "Reserves",
    "SendsAgain",
    "WaitsForTheRest",
    "reserve",
]

_HEAD, _MARK = b"more of it comes", b"nothing more comes"


class InParts(Sender):
    """Writes what a large message is made of one after the other."""

    def send(self, frame: Frame, timeout: float | None) -> None:
        if sum(memoryview(part).nbytes for part in frame) > 1 << 20:
            super().send((_HEAD,), timeout)
            time.sleep(1.0)  # long enough to be stopped in
        super().send(frame, timeout)


class WaitsForTheRest(Receiver):
    """Waits for the rest of a message that has begun to arrive, however long that takes."""

    def recv(self, timeout: float | None) -> Frame:
        frame = super().recv(timeout)
        return super().recv(None) if bytes(frame[0]) == _HEAD else frame


class ReadyForTheRest(Receiver):
    """Takes a message that has begun to arrive for one that is there."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._begun = False

    def recv(self, timeout: float | None) -> Frame:
        frame = super().recv(timeout)
        self._begun = bytes(frame[0]) == _HEAD
        return super().recv(timeout) if self._begun else frame

    def ready(self) -> bool:
        return self._begun or super().ready()


class Reserves(Sender):
    """Takes room before it sends, from all processes together, and gives none back when it dies in between."""

    def send(self, frame: Frame, timeout: float | None) -> None:
        if not _rooms[-1].acquire(timeout=timeout):
            raise ChannelFull("there is no room")
        time.sleep(0.05)  # long enough to be killed in
        super().send(frame, timeout)


class GivesBack(Receiver):
    """Makes room for all processes together once it has received."""

    def recv(self, timeout: float | None) -> Frame:
        frame = super().recv(timeout)
        _rooms[-1].release()
        return frame


_rooms: list[Semaphore] = []
"""The room of the latest channel, for a process that is forked as well."""


def reserve(spec: ChannelSpec) -> ChannelSpec:
    """Have room for what is sent through the channel that is made next, and more than enough in the transport below."""
    _rooms.append(multiprocessing.Semaphore(spec.capacity))
    return dataclasses.replace(spec, capacity=1000)


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
        self._again: list[Frame] = []

    def send(self, frame: Frame, timeout: float | None) -> None:
        while self._again:
            super().send(self._again[0], timeout)
            self._again.pop()
        try:
            super().send(frame, timeout)
        except PeerDied:
            self._again, self._sent = self._sent[:1], []
            raise
        self._sent.append([bytes(part) for part in frame])
