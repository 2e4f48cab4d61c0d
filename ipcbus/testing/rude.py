"""More links of the mutants, as in :mod:`ipcbus.testing.broken`: those that harm the process, or the threads beside them."""

# ruff: noqa: D102  what a link has to do is said in ipcbus.transport, and what each of these does wrong in MUTANTS

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import select
import signal
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any

from ipcbus.errors import ChannelClosed, ChannelEmpty, ChannelFull, EndOfChannel
from ipcbus.plumbing.clock import Deadline
from ipcbus.testing.broken import Receiver, Sender
from ipcbus.transport import LINGER

if TYPE_CHECKING:
    from ipcbus.transport import Frame

__all__ = [
    "AlwaysDrops",
    "Dropped",
    "Empties",
    "EndsAll",
    "Forgotten",
    "Hoards",
    "Inheritable",
    "KeepsForEver",
    "KeepsWhatItWaitedWith",
    "LocksReceiving",
    "LocksSending",
    "LosesWakeups",
    "NapsReceiving",
    "NapsSending",
    "NegativeIsNever",
    "Resets",
    "Selects",
    "ShutIsClosed",
    "StruckDown",
    "ThreadsApart",
    "Ticks",
    "TiredReceiving",
    "TiredSending",
    "Uncounted",
]


class TiredReceiving(Receiver):
    """Takes no limit for a second."""

    def recv(self, timeout: float | None) -> Frame:
        return super().recv(1.0 if timeout is None else timeout)


class TiredSending(Sender):
    """Takes no limit for a second."""

    def send(self, frame: Frame, timeout: float | None) -> None:
        super().send(frame, 1.0 if timeout is None else timeout)


class NegativeIsNever(Receiver):
    """Hands its timeout to a system call for which a negative one is without limit."""

    def recv(self, timeout: float | None) -> Frame:
        return super().recv(None if timeout is not None and timeout < 0 else timeout)


class StruckDown(Receiver):
    """Takes a wait that a signal has ended for one that was over."""

    def recv(self, timeout: float | None) -> Frame:
        if timeout and timeout < math.inf and not self.ready():
            entry = (ctypes.c_int * 2)(self.link.fileno(), select.POLLIN)
            ctypes.CDLL(None).poll(entry, 1, int(min(timeout, 1e6) * 1000))
            timeout = 0
        return super().recv(timeout)


class Uncounted(Sender):
    """Says that nothing waits."""

    def depth(self) -> int:
        return 0


class ThreadsApart(Sender):
    """Has a connection for each thread that sends, and what goes through a later one takes longer."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._first = threading.get_ident()

    def send(self, frame: Frame, timeout: float | None) -> None:
        if threading.get_ident() == self._first:
            super().send(frame, timeout)
        else:
            threading.Timer(0.01, super().send, (frame, timeout)).start()


class AlwaysDrops(Sender):
    """Says that it has dropped a message, whether there was one or not."""

    def discard_oldest(self, timeout: float | None = LINGER) -> bool:
        super().discard_oldest(timeout)
        return True


class Empties(Receiver):
    """Takes with it, when it is closed, what nobody has received."""

    def close(self) -> None:
        with contextlib.suppress(ChannelClosed, ChannelEmpty, EndOfChannel):
            while True:
                self.link.recv(0)
        super().close()


class LosesWakeups(Sender):
    """Silences its bell right before it sleeps, and not before it looks."""

    def send(self, frame: Frame, timeout: float | None) -> None:
        deadline = Deadline(timeout)
        while True:
            try:
                return super().send(frame, 0)
            except ChannelFull:
                if deadline.expired:
                    raise
            poller = select.poll()
            poller.register(self.link._quiet().fileno(), select.POLLIN)  # noqa: SLF001  a mutant is wrong inside
            poller.poll(deadline.milliseconds())


class LocksReceiving(Receiver):
    """Waits with its lock held."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._lock = threading.Lock()

    def recv(self, timeout: float | None) -> Frame:
        with self._lock:
            return super().recv(timeout)


class LocksSending(Sender):
    """Waits with its lock held."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._lock = threading.Lock()

    def send(self, frame: Frame, timeout: float | None) -> None:
        with self._lock:
            super().send(frame, timeout)


class NapsReceiving(Receiver):
    """Looks twice a millisecond."""

    def recv(self, timeout: float | None) -> Frame:
        until = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return super().recv(0)
            except ChannelEmpty:
                if time.monotonic() >= until:
                    raise
            time.sleep(0.0005)


class NapsSending(Sender):
    """Looks twice a millisecond."""

    def send(self, frame: Frame, timeout: float | None) -> None:
        until = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return super().send(frame, 0)
            except ChannelFull:
                if time.monotonic() >= until:
                    raise
            time.sleep(0.0005)


class Ticks(Receiver):
    """Has a thread that looks twice a millisecond."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._over = False
        threading.Thread(target=self._tick, daemon=True).start()

    def _tick(self) -> None:
        while not self._over:
            time.sleep(0.0005)

    def close(self) -> None:
        self._over = True
        super().close()


class Hoards(Receiver):
    """Keeps what it has handed out."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._kept: list[Frame] = []

    def recv(self, timeout: float | None) -> Frame:
        self._kept.append(super().recv(timeout))
        return self._kept[-1]


class Selects(Receiver):
    """Waits by a system call that knows 1024 descriptors."""

    def recv(self, timeout: float | None) -> Frame:
        select.select([self.link.fileno()], [], [], 0)
        return super().recv(timeout)


class Resets(Sender):
    """Has a broken pipe end the process, as programs in C like it."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


class Holds(Sender):
    """Holds descriptors, and frees them as it should."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._fds = list(os.pipe())

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())
        super().close()

    def abandon(self) -> None:
        super().abandon()
        self.close()


class KeepsForEver(Holds):
    """Has nothing done about what a forked child inherits."""

    def abandon(self) -> None:
        self.link.abandon()


class Inheritable(Holds):
    """Has a descriptor that every program that is started inherits."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        os.set_inheritable(self._fds[0], True)  # noqa: FBT003  the call takes it by position


class ShutIsClosed(Holds):
    """Takes an end that was shut down for one that is closed."""

    def shutdown(self) -> None:
        super().shutdown()
        self._fds.clear()


class KeepsWhatItWaitedWith(Receiver):
    """Opens a descriptor to wait with, and closes it when something came."""

    def recv(self, timeout: float | None) -> Frame:
        fd = os.eventfd(0)
        frame = super().recv(timeout)
        os.close(fd)
        return frame


class Forgotten(Holds):
    """Holds a file under a name that says nothing, and leaves it there."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._fds.append(tempfile.mkstemp()[0])


class Dropped(Sender):
    """Makes a file where temporary files go, and leaves it there."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        os.close(tempfile.mkstemp()[0])


class EndsAll(Sender):
    """Ends the channel for everybody when this end is closed."""

    def close(self) -> None:
        try:
            self.shutdown()
        finally:
            super().close()
