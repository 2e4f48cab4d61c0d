"""The links of the mutants: each wraps one that keeps the rules and breaks one of them."""

# ruff: noqa: D102  what a link has to do is said in ipcbus.transport, and what each of these does wrong in MUTANTS

from __future__ import annotations

import errno
import os
import threading
import time
from typing import Any

from ipcbus.errors import ChannelClosed, ChannelEmpty, ChannelFull
from ipcbus.transport import LINGER, Frame, RecvLink, SendLink

__all__ = [
    "AddsHeader",
    "AlwaysReady",
    "BreaksOrder",
    "BusyIsFull",
    "CannotWaitLong",
    "CloseWakesNobody",
    "DropsRareValue",
    "DuplicatesEmpty",
    "EndsOnce",
    "ForgetsOnShutdown",
    "GivesUpEarly",
    "HangsOnShutdown",
    "HoldsBuffers",
    "IgnoresTimeout",
    "LeaksDescriptors",
    "NeverReady",
    "NoPoison",
    "NotForThreads",
    "OverrunsDeadline",
    "Receiver",
    "Reuses",
    "ReusesSmall",
    "Sender",
    "SendsAfterFull",
    "SendsLate",
    "Tears",
    "Trickles",
    "UsableAfterClose",
    "WaitsForRoomOnly",
    "WritesAtOnce",
]


class Sender(SendLink):
    """A sending link that does everything right."""

    def __init__(self, link: Any) -> None:
        self.link = link

    def send(self, frame: Frame, timeout: float | None) -> None:
        self.link.send(frame, timeout)

    def fileno(self) -> int:
        return int(self.link.fileno())

    def ready(self) -> bool:
        return bool(self.link.ready())

    def shutdown(self) -> None:
        self.link.shutdown()

    def close(self) -> None:
        self.link.close()

    def abandon(self) -> None:
        self.link.abandon()

    def depth(self) -> int | None:
        return self.link.depth()  # type: ignore[no-any-return]  # the link wrapped is any transport's

    def discard_oldest(self, timeout: float | None = LINGER) -> bool:
        return bool(self.link.discard_oldest(timeout))


class Receiver(RecvLink):
    """A receiving link that does everything right."""

    def __init__(self, link: Any) -> None:
        self.link = link

    def recv(self, timeout: float | None) -> Frame:
        return self.link.recv(timeout)  # type: ignore[no-any-return]  # the link wrapped is any transport's

    def fileno(self) -> int:
        return int(self.link.fileno())

    def ready(self) -> bool:
        return bool(self.link.ready())

    def shutdown(self) -> None:
        self.link.shutdown()

    def close(self) -> None:
        self.link.close()

    def abandon(self) -> None:
        self.link.abandon()

    def depth(self) -> int | None:
        return self.link.depth()  # type: ignore[no-any-return]  # as above


class DropsRareValue(Sender):
    """Takes a message that ends in a certain byte for none."""

    def send(self, frame: Frame, timeout: float | None) -> None:
        if not b"".join(map(bytes, frame)).endswith(b"\xff"):
            super().send(frame, timeout)


class DuplicatesEmpty(Sender):
    """Sends a message without a payload twice."""

    def send(self, frame: Frame, timeout: float | None) -> None:
        super().send(frame, timeout)
        if sum(memoryview(part).nbytes for part in frame) == 4:  # a header and no payload
            super().send(frame, timeout)


class BreaksOrder(Receiver):
    """Lets a later message overtake now and then."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._count = 0
        self._held: list[Frame] = []

    def recv(self, timeout: float | None) -> Frame:
        if self._held:
            return self._held.pop()
        self._count += 1
        frame = super().recv(timeout)
        if self._count % 97 == 0:
            try:
                later = super().recv(0)
            except (ChannelEmpty, EOFError):
                return frame
            self._held.append(frame)
            return later
        return frame

    def ready(self) -> bool:
        return bool(self._held) or super().ready()


class Tears(Sender):
    """Loses the tail of large messages."""

    def send(self, frame: Frame, timeout: float | None) -> None:
        parts = [bytes(part) for part in frame]
        if len(parts[-1]) > 65_536:
            parts[-1] = parts[-1][:65_536] + bytes(len(parts[-1]) - 65_536)
        super().send(parts, timeout)


class SendsLate(Sender):
    """Sends the caller's own buffers some time after it has returned, as a feeder thread does."""

    def send(self, frame: Frame, timeout: float | None) -> None:
        if any(isinstance(part, memoryview) and not part.readonly for part in frame):
            threading.Timer(0.05, super().send, (frame, timeout)).start()
        else:
            super().send(frame, timeout)


class IgnoresTimeout(Receiver):
    """Waits a fixed time, whatever it was told."""

    def recv(self, timeout: float | None) -> Frame:
        return super().recv(0.5 if timeout == 0 else timeout)


class CannotWaitLong(Receiver):
    """Hands a timeout to a system call that takes 31 bits of milliseconds."""

    def recv(self, timeout: float | None) -> Frame:
        if timeout is not None and timeout > (1 << 31) / 1000:
            raise OverflowError("timeout is too large")
        return super().recv(timeout)


class OverrunsDeadline(Sender):
    """Starts its deadline anew."""

    def send(self, frame: Frame, timeout: float | None) -> None:
        try:
            super().send(frame, timeout)
        except ChannelFull:
            if timeout:
                time.sleep(2.0)
            raise


class GivesUpEarly(Receiver):
    """Waits for half of the time."""

    def recv(self, timeout: float | None) -> Frame:
        return super().recv(timeout / 2 if timeout else timeout)


class SendsAfterFull(Sender):
    """Raises ChannelFull, and sends the message later all the same."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._owed: list[Frame] = []

    def send(self, frame: Frame, timeout: float | None) -> None:
        while self._owed:
            self.link.send(self._owed[0], timeout)
            self._owed.pop(0)
        try:
            self.link.send(frame, timeout)
        except ChannelFull:
            if timeout:
                self._owed.append(frame)
            raise


class BusyIsFull(Sender):
    """Takes a thread that is sending for a channel that is full."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._lock = threading.Lock()

    def send(self, frame: Frame, timeout: float | None) -> None:
        if not self._lock.acquire(timeout=-1 if timeout is None else timeout):
            raise ChannelFull("another thread is sending")
        try:
            time.sleep(0.0001)  # lets the other threads run
            self.link.send(frame, timeout)
        finally:
            self._lock.release()


class UsableAfterClose(Sender):
    """Does not close."""

    def close(self) -> None:
        pass


class CloseWakesNobody(Receiver):
    """Closes only once a blocked call has come back."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._lock = threading.Lock()
        self._shut = False

    def recv(self, timeout: float | None) -> Frame:
        with self._lock:
            if self._shut:
                raise ChannelClosed("closed")
            return super().recv(3.0 if timeout is None else timeout)

    def close(self) -> None:
        self._shut = True
        with self._lock:
            super().close()


class HangsOnShutdown(Sender):
    """Waits for room before it ends the stream."""

    def shutdown(self) -> None:
        if not self.ready():
            threading.Event().wait(60)
        super().shutdown()


class ForgetsOnShutdown(Sender):
    """Ends the stream at once, with what is in it."""

    def shutdown(self) -> None:
        while self.link.discard_oldest():
            pass
        super().shutdown()


class EndsOnce(Receiver):
    """Tells of the end once, and then finds the channel empty."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._told = False

    def recv(self, timeout: float | None) -> Frame:
        try:
            return super().recv(timeout)
        except EOFError:
            if self._told:
                raise ChannelEmpty("nothing") from None
            self._told = True
            raise


class AlwaysReady(Receiver):
    """Says that there is something to do."""

    def ready(self) -> bool:
        return True


class NeverReady(Receiver):
    """Says that there is nothing to do."""

    def ready(self) -> bool:
        return False


class LeaksDescriptors(Receiver):
    """Keeps a descriptor for each end."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._leaked = os.eventfd(0)


class NotForThreads(Receiver):
    """Looks first and takes later, as if it were alone."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._current: Frame = ()

    def recv(self, timeout: float | None) -> Frame:
        self._current = super().recv(timeout)
        time.sleep(0)  # lets another thread in, where the switch interval would only do so now and then
        return self._current


class NoPoison(Receiver):
    """Puts back what could not be decoded: here, delivers every message of a certain kind again and again."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._stuck: Frame | None = None

    def recv(self, timeout: float | None) -> Frame:
        if self._stuck is not None:
            return self._stuck
        frame = super().recv(timeout)
        if b"explode" in b"".join(map(bytes, frame)):
            self._stuck = frame
        return frame


class Trickles(Receiver):
    """Keeps a descriptor with every hundredth message."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._count = 0

    def recv(self, timeout: float | None) -> Frame:
        frame = super().recv(timeout)
        self._count += 1
        if self._count % 100 == 0:
            os.eventfd(0)
        return frame


class Reuses(Receiver):
    """Hands out large messages in memory that the next one is written to."""

    sizes = range(100_000, 8 << 20)

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._memory = memoryview(bytearray(self.sizes.stop))

    def recv(self, timeout: float | None) -> Frame:
        frame = super().recv(timeout)
        whole = b"".join(frame)
        if len(whole) not in self.sizes:
            return frame
        self._memory[: len(whole)] = whole
        return [self._memory[: len(whole)]]


class ReusesSmall(Reuses):
    """Does so with what one read of a socket brings."""

    sizes = range(1, 1 << 16)


class WritesAtOnce(Sender):
    """Hands more buffers to one system call than it takes."""

    def send(self, frame: Frame, timeout: float | None) -> None:
        if len(frame) > 1024:
            raise OSError(errno.EMSGSIZE, "Message too long")
        super().send(frame, timeout)


class AddsHeader(Sender):
    """Writes pages, of which eight bytes are its own."""

    def send(self, frame: Frame, timeout: float | None) -> None:
        if sum(memoryview(part).nbytes for part in frame) > 4096 - 8:
            raise OSError(errno.EMSGSIZE, "Message too long")
        super().send(frame, timeout)


class HoldsBuffers(Sender):
    """Lets go of the caller's buffers with the next message."""

    def send(self, frame: Frame, timeout: float | None) -> None:
        super().send(frame, timeout)
        self._frame = frame


class WaitsForRoomOnly(Sender):
    """Is not ready when it was shut down and is full."""

    def ready(self) -> bool:
        return bool(self.link.depth() < self.link._store.capacity)  # noqa: SLF001  a mutant is wrong inside
