"""Mutants: inproc with one rule broken each, which the contract must catch. Who changes a check runs them.

A mutant is a transport whose links wrap inproc's. Its name is its scheme, and each names a check that must fail on it:
the contract is worth what its checks notice.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import ipcbus
from ipcbus.errors import ChannelClosed, ChannelEmpty, ChannelFull, EncodeError
from ipcbus.testing.subject import Subject
from ipcbus.transport import LINGER, ChannelSpec, Frame, Handle, NoOptions, RecvLink, SendLink, Transport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ipcbus.transport import Capabilities, Guarantees

__all__ = ["MUTANTS", "Mutant", "MutantSubject", "register"]


class _Sender(SendLink):
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


class _Receiver(RecvLink):
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


class _Handle(Handle):
    __slots__ = ("_inner", "_receiver", "_sender")

    def __init__(self, inner: Handle, sender: type[_Sender], receiver: type[_Receiver]) -> None:
        self._inner = inner
        self._sender = sender
        self._receiver = receiver

    def open_sender(self) -> SendLink:
        return self._sender(self._inner.open_sender())

    def open_receiver(self) -> RecvLink:
        return self._receiver(self._inner.open_receiver())

    def release(self) -> None:
        self._inner.release()

    def destroy(self) -> None:
        self._inner.destroy()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Handle, (self._inner, self._sender, self._receiver)


class _MutantTransport(Transport):
    """inproc, with links of the mutant's."""

    capabilities: ClassVar[Capabilities]
    guarantees: ClassVar[Guarantees]
    options = NoOptions
    mutant: ClassVar[Mutant]

    @classmethod
    def create(cls, spec: ChannelSpec, options: object) -> Handle:
        inner = ipcbus.transports.get("inproc").create(cls.mutant.respec(spec), options)
        return _Handle(inner, cls.mutant.sender, cls.mutant.receiver)


@dataclass(frozen=True)
class Mutant:
    """One way of being wrong."""

    scheme: str
    breaks: str
    """What it does wrong."""
    killed_by: str
    """The check that must fail on it; empty for the one that does nothing wrong."""
    sender: type[_Sender] = _Sender
    receiver: type[_Receiver] = _Receiver
    respec: Callable[[ChannelSpec], ChannelSpec] = lambda spec: spec
    tamper: Callable[[ipcbus.Channel], None] = lambda _: None
    """Called with each channel; for what is wrong above the transport."""


class MutantSubject(Subject):
    """A subject whose channels are tampered with."""

    def open(self, **options: Any) -> ipcbus.Channel:
        """Open a channel and hand it to the mutant."""
        channel = super().open(**options)
        transport = self.transport
        if issubclass(transport, _MutantTransport):
            transport.mutant.tamper(channel)
        return channel


def register() -> None:
    """Make every mutant's scheme known in this process. Idempotent."""
    inproc = ipcbus.transports.get("inproc")
    for mutant in MUTANTS:
        if mutant.scheme not in ipcbus.transports:
            facts = {
                "scheme": mutant.scheme,
                "capabilities": inproc.capabilities,
                "guarantees": inproc.guarantees,
                "mutant": mutant,
            }
            ipcbus.transports.register(mutant.scheme, type("MutantTransport", (_MutantTransport,), facts))


# --------------------------------------------------------------------------- the ways of being wrong


class _DropsRareValue(_Sender):
    def send(self, frame: Frame, timeout: float | None) -> None:
        if not b"".join(map(bytes, frame)).endswith(b"\xff"):
            super().send(frame, timeout)


class _DuplicatesEmpty(_Sender):
    def send(self, frame: Frame, timeout: float | None) -> None:
        super().send(frame, timeout)
        if sum(memoryview(part).nbytes for part in frame) == 4:  # a header and no payload
            super().send(frame, timeout)


class _BreaksOrder(_Receiver):
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


class _Tears(_Sender):
    """Loses the tail of large messages."""

    def send(self, frame: Frame, timeout: float | None) -> None:
        parts = [bytes(part) for part in frame]
        if len(parts[-1]) > 65_536:
            parts[-1] = parts[-1][:65_536] + bytes(len(parts[-1]) - 65_536)
        super().send(parts, timeout)


class _SendsLate(_Sender):
    """Sends the caller's own buffers some time after it has returned, as a feeder thread does."""

    def send(self, frame: Frame, timeout: float | None) -> None:
        if any(isinstance(part, memoryview) and not part.readonly for part in frame):
            threading.Timer(0.05, super().send, (frame, timeout)).start()
        else:
            super().send(frame, timeout)


class _IgnoresTimeout(_Receiver):
    """Waits a fixed time, whatever it was told."""

    def recv(self, timeout: float | None) -> Frame:
        return super().recv(0.5 if timeout == 0 else timeout)


class _CannotWaitLong(_Receiver):
    """Hands a timeout to a system call that takes 31 bits of milliseconds."""

    def recv(self, timeout: float | None) -> Frame:
        if timeout is not None and timeout > (1 << 31) / 1000:
            raise OverflowError("timeout is too large")
        return super().recv(timeout)


class _OverrunsDeadline(_Sender):
    """Starts its deadline anew."""

    def send(self, frame: Frame, timeout: float | None) -> None:
        try:
            super().send(frame, timeout)
        except ChannelFull:
            if timeout:
                time.sleep(2.0)
            raise


class _GivesUpEarly(_Receiver):
    def recv(self, timeout: float | None) -> Frame:
        return super().recv(timeout / 2 if timeout else timeout)


class _SendsAfterFull(_Sender):
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


class _BusyIsFull(_Sender):
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


class _UsableAfterClose(_Sender):
    def close(self) -> None:
        pass


class _CloseWakesNobody(_Receiver):
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


class _HangsOnShutdown(_Sender):
    def shutdown(self) -> None:
        if not self.ready():
            threading.Event().wait(60)
        super().shutdown()


class _ForgetsOnShutdown(_Sender):
    """Ends the stream at once, with what is in it."""

    def shutdown(self) -> None:
        while self.link.discard_oldest():
            pass
        super().shutdown()


class _EndsOnce(_Receiver):
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


class _AlwaysReady(_Receiver):
    def ready(self) -> bool:
        return True


class _NeverReady(_Receiver):
    def ready(self) -> bool:
        return False


class _LeaksDescriptors(_Receiver):
    def __init__(self, link: Any) -> None:
        super().__init__(link)
        import os

        self._leaked = os.eventfd(0)


class _NotForThreads(_Receiver):
    """Looks first and takes later, as if it were alone."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._current: Frame = ()

    def recv(self, timeout: float | None) -> Frame:
        self._current = super().recv(timeout)
        time.sleep(0)  # lets another thread in, where the switch interval would only do so now and then
        return self._current


class _NoPoison(_Receiver):
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


class _CountsTooMany(_Sender):
    """Says of several messages that one more was sent than was."""

    def send_many(self, frames: Sequence[Frame], timeout: float | None) -> int:
        return min(len(frames), super().send_many(frames, timeout) + 1)


class _LosesBytes(_Sender):
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


class _Beheads(_Receiver):
    """Has a shorter way for bytes that takes whatever comes for some."""

    def bytes_receiver(self, head: bytes) -> Callable[[float | None], Frame | bytes]:
        def recv(timeout: float | None) -> Frame | bytes:
            frame = self.recv(timeout)
            return bytes(frame[0])[len(head) :] if len(frame) == 1 else frame

        return recv


def _one_more(spec: ChannelSpec) -> ChannelSpec:
    import dataclasses

    return dataclasses.replace(spec, capacity=spec.capacity + 1)


def _lose_room(channel: ipcbus.Channel) -> None:
    """Take room before encoding, and forget to give it back when that fails."""
    codec = channel._end.codec  # noqa: SLF001  a mutant is wrong inside
    encode = codec.encode

    def encode_in_a_slot(obj: Any, headers: Any = None) -> Any:
        try:
            return encode(obj, headers)
        except EncodeError:
            channel._end.open_sender().link._store.capacity -= 1  # type: ignore[attr-defined]  # noqa: SLF001  the same
            raise

    codec.encode = encode_in_a_slot  # type: ignore[method-assign]  # that is what tampering is


MUTANTS: tuple[Mutant, ...] = (
    Mutant("mutant-none", "does nothing wrong", ""),
    Mutant("mutant-drop", "drops messages that end in byte 255", "every_value_travels", sender=_DropsRareValue),
    Mutant("mutant-duplicate", "delivers empty messages twice", "empty_messages", sender=_DuplicatesEmpty),
    Mutant("mutant-order", "lets a message overtake", "fifo", receiver=_BreaksOrder),
    Mutant("mutant-tear", "loses the tail of large messages", "whole_messages", sender=_Tears),
    Mutant("mutant-late", "sends the caller's buffers after send() returned", "snapshot", sender=_SendsLate),
    Mutant("mutant-poison", "does not consume what cannot be decoded", "decode_error", receiver=_NoPoison),
    Mutant("mutant-capacity", "accepts one message too many", "capacity", respec=_one_more),
    Mutant("mutant-slot", "loses room when encoding fails", "encode_error", tamper=_lose_room),
    Mutant("mutant-block", "blocks although timeout=0", "recv_deadline", receiver=_IgnoresTimeout),
    Mutant("mutant-brief", "cannot wait for long", "endless_timeout", receiver=_CannotWaitLong),
    Mutant("mutant-overrun", "overruns its deadline", "send_deadline", sender=_OverrunsDeadline),
    Mutant("mutant-hasty", "gives up before its deadline", "recv_deadline", receiver=_GivesUpEarly),
    Mutant("mutant-refused", "delivers what it refused", "impatient_sender", sender=_SendsAfterFull),
    Mutant("mutant-busy", "takes a busy thread for a full channel", "threads_find_room", sender=_BusyIsFull),
    Mutant("mutant-open", "is usable after close", "close", sender=_UsableAfterClose),
    Mutant("mutant-deaf", "does not wake a blocked call when closed", "close_wakes", receiver=_CloseWakesNobody),
    Mutant("mutant-hang", "hangs on shutdown of a full channel", "shutdown_wakes", sender=_HangsOnShutdown),
    Mutant("mutant-forget", "does not drain before the end", "shutdown", sender=_ForgetsOnShutdown),
    Mutant("mutant-once", "tells of the end only once", "shutdown", receiver=_EndsOnce),
    Mutant("mutant-eager", "is ready when nothing is there", "wait", receiver=_AlwaysReady),
    Mutant("mutant-blind", "is never ready", "wait_wakes", receiver=_NeverReady),
    Mutant("mutant-leak", "keeps a descriptor after close", "close_frees", receiver=_LeaksDescriptors),
    Mutant("mutant-thread", "mixes up the messages of two threads", "threads", receiver=_NotForThreads),
    Mutant("mutant-counts", "says that it sent more of a list than it did", "many_of_all_kinds", sender=_CountsTooMany),
    Mutant("mutant-bytes", "loses bytes for which there is no room", "many_of_all_kinds", sender=_LosesBytes),
    Mutant("mutant-behead", "takes other messages for bytes", "every_value_travels", receiver=_Beheads),
)
"""Every mutant, the one that is none first."""
