"""Mutants: inproc with one rule broken each, which the contract must catch. Who changes a check runs them.

A mutant is a transport whose links wrap inproc's, or pipe's where what it breaks shows between processes. Its name is
its scheme, and each names a check that must fail on it: the contract is worth what its checks notice.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import ipcbus
from ipcbus.errors import EncodeError
from ipcbus.testing import apart, broken, hasty, rude
from ipcbus.testing.subject import Subject
from ipcbus.transport import ChannelSpec, Handle, RecvLink, SendLink, Transport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ipcbus.transport import Capabilities, Guarantees

__all__ = ["MUTANTS", "Mutant", "MutantSubject", "register"]


class _Handle(Handle):
    __slots__ = ("_inner", "_receiver", "_sender")

    def __init__(self, inner: Handle, sender: type[broken.Sender], receiver: type[broken.Receiver]) -> None:
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
        return type(self), (self._inner, self._sender, self._receiver)


class _LeakyHandle(_Handle):
    """Keeps a descriptor each time it arrives."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive_leaking, (self._inner, self._sender, self._receiver)


def _arrive_leaking(*parts: Any) -> _LeakyHandle:
    os.eventfd(0)
    return _LeakyHandle(*parts)


class _HastyHandle(_Handle):
    """Opens something before it knows whether it may receive."""

    __slots__ = ()

    def open_receiver(self) -> RecvLink:
        fd = os.eventfd(0)
        link = super().open_receiver()
        os.close(fd)
        return link


class _MutantTransport(Transport):
    """inproc, or another, with links of the mutant's."""

    capabilities: ClassVar[Capabilities]
    guarantees: ClassVar[Guarantees]
    mutant: ClassVar[Mutant]

    @classmethod
    def create(cls, spec: ChannelSpec, options: object) -> Handle:
        inner = ipcbus.transports.get(cls.mutant.inner).create(cls.mutant.respec(spec), options)
        return cls.mutant.handle(inner, cls.mutant.sender, cls.mutant.receiver)


@dataclass(frozen=True)
class Mutant:
    """One way of being wrong."""

    scheme: str
    breaks: str
    """What it does wrong."""
    killed_by: str
    """The check that must fail on it; empty for the one that does nothing wrong."""
    sender: type[broken.Sender] = broken.Sender
    receiver: type[broken.Receiver] = broken.Receiver
    handle: type[_Handle] = _Handle
    respec: Callable[[ChannelSpec], ChannelSpec] = lambda spec: spec
    inner: str = "inproc"
    """The transport that it wraps."""
    declares: Mapping[str, Any] = field(default_factory=dict)
    """Capabilities that are others than that one's."""
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
    for mutant in MUTANTS:
        if mutant.scheme not in ipcbus.transports:
            inner = ipcbus.transports.get(mutant.inner)
            facts = {
                "__module__": __name__,
                "scheme": mutant.scheme,
                "capabilities": dataclasses.replace(inner.capabilities, **mutant.declares),
                "guarantees": inner.guarantees,
                "options": inner.options,
                "mutant": mutant,
            }
            # Under a name of its own in this module, where a channel that arrives in a process looks for it.
            transport = globals()[mutant.scheme] = type(mutant.scheme, (_MutantTransport,), facts)
            ipcbus.transports.register(mutant.scheme, transport)


def _one_more(spec: ChannelSpec) -> ChannelSpec:
    return dataclasses.replace(spec, capacity=spec.capacity + 1)


def _lose_room(channel: ipcbus.Channel) -> None:
    """Take room before encoding, and forget to give it back when that fails."""
    codec = channel._end.codec  # noqa: SLF001  a mutant is wrong inside
    encode = codec.encode

    def encode_in_a_slot(obj: Any, headers: Any = None) -> Any:
        try:
            return encode(obj, headers)
        except EncodeError:
            channel._end.open_sender().link._store.free -= 1  # type: ignore[attr-defined]  # noqa: SLF001  the same
            raise

    codec.encode = encode_in_a_slot  # type: ignore[method-assign]  # that is what tampering is


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "mutant-none",
        "does nothing wrong",
        "",
        sender=hasty.ShortSender,
        receiver=hasty.ShortReceiver,
        declares={"max_message": 32 << 20},
    ),
    Mutant("mutant-drop", "drops messages that end in byte 255", "every_value_travels", sender=broken.DropsRareValue),
    Mutant("mutant-duplicate", "delivers empty messages twice", "empty_messages", sender=broken.DuplicatesEmpty),
    Mutant("mutant-order", "lets a message overtake", "fifo", receiver=broken.BreaksOrder),
    Mutant("mutant-tear", "loses the tail of large messages", "whole_messages", sender=broken.Tears),
    Mutant("mutant-late", "sends the caller's buffers after send() returned", "snapshot", sender=broken.SendsLate),
    Mutant("mutant-poison", "does not consume what cannot be decoded", "decode_error", receiver=broken.NoPoison),
    Mutant("mutant-capacity", "accepts one message too many", "capacity", respec=_one_more),
    Mutant("mutant-slot", "loses room when encoding fails", "encode_error", tamper=_lose_room),
    Mutant("mutant-block", "blocks although timeout=0", "recv_deadline", receiver=broken.IgnoresTimeout),
    Mutant("mutant-brief", "cannot wait for long", "endless_timeout", receiver=broken.CannotWaitLong),
    Mutant("mutant-overrun", "overruns its deadline", "send_deadline", sender=broken.OverrunsDeadline),
    Mutant("mutant-hasty", "gives up before its deadline", "recv_deadline", receiver=broken.GivesUpEarly),
    Mutant("mutant-refused", "delivers what it refused", "impatient_sender", sender=broken.SendsAfterFull),
    Mutant("mutant-busy", "takes a busy thread for a full channel", "threads_find_room", sender=broken.BusyIsFull),
    Mutant("mutant-open", "is usable after close", "close", sender=broken.UsableAfterClose),
    Mutant("mutant-deaf", "does not wake a blocked call when closed", "close_wakes", receiver=broken.CloseWakesNobody),
    Mutant("mutant-hang", "hangs on shutdown of a full channel", "shutdown_wakes", sender=broken.HangsOnShutdown),
    Mutant("mutant-forget", "does not drain before the end", "shutdown", sender=broken.ForgetsOnShutdown),
    Mutant("mutant-once", "tells of the end only once", "shutdown", receiver=broken.EndsOnce),
    Mutant("mutant-eager", "is ready when nothing is there", "wait", receiver=broken.AlwaysReady),
    Mutant("mutant-blind", "is never ready", "wait_wakes", receiver=broken.NeverReady),
    Mutant("mutant-leak", "keeps a descriptor after close", "close_frees", receiver=broken.LeaksDescriptors),
    Mutant("mutant-trickle", "keeps a descriptor with every hundredth message", "close_frees", receiver=broken.Trickles),
    Mutant("mutant-arrive", "keeps a descriptor each time its handle arrives", "value", handle=_LeakyHandle),
    Mutant("mutant-reuse", "writes the next message over the one received", "many_buffers", receiver=broken.Reuses),
    Mutant("mutant-slab", "writes the next small message over the one received", "many_buffers", receiver=broken.ReusesSmall),
    Mutant("mutant-apart", "lets a message of a thread overtake another's", "fifo", sender=rude.ThreadsApart),
    Mutant("mutant-ended", "keeps a descriptor after a shutdown and close", "close_frees", sender=rude.ShutIsClosed),
    Mutant("mutant-waited", "keeps a descriptor when nothing came", "close_frees", receiver=rude.KeepsWhatItWaitedWith),
    Mutant("mutant-gather", "cannot send more than 1024 buffers", "many_buffers", sender=broken.WritesAtOnce),
    Mutant(
        "mutant-frame",
        "forgets its own header in what it says it carries",
        "most_that_is_carried",
        sender=broken.AddsHeader,
        declares={"max_message": 4096},
    ),
    Mutant("mutant-hold", "keeps the caller's buffers after send() returned", "snapshot", sender=broken.HoldsBuffers),
    Mutant("mutant-unmoved", "tells no sender that waits for room of a shutdown", "wait_wakes", sender=broken.WaitsForRoomOnly),
    Mutant("mutant-endless", "takes bytes after a shutdown", "shutdown", sender=hasty.BytesAfterEnd),
    Mutant("mutant-all", "waits for room for all of a list", "many_at_once", sender=hasty.WaitsForAll),
    Mutant("mutant-thread", "mixes up the messages of two threads", "threads", receiver=broken.NotForThreads),
    Mutant("mutant-counts", "says that it sent more of a list than it did", "many_of_all_kinds", sender=hasty.CountsTooMany),
    Mutant("mutant-bytes", "loses bytes for which there is no room", "many_of_all_kinds", sender=hasty.LosesBytes),
    Mutant("mutant-sent", "counts no bytes that it sends", "many_of_all_kinds", sender=hasty.CountsNoneSent),
    Mutant("mutant-received", "counts no bytes received", "many_of_all_kinds", receiver=hasty.CountsNoneReceived),
    Mutant("mutant-behead", "takes other messages for bytes", "every_value_travels", receiver=hasty.Beheads),
    Mutant("mutant-tired", "gives up a receive without a timeout", "endless_timeout", receiver=rude.TiredReceiving),
    Mutant("mutant-tired-send", "gives up a send without a timeout", "endless_timeout", sender=rude.TiredSending),
    Mutant("mutant-negative", "waits for ever where the deadline has passed", "recv_deadline", receiver=rude.NegativeIsNever),
    Mutant("mutant-struck", "takes a signal for its deadline", "signal_meanwhile", receiver=rude.StruckDown),
    Mutant("mutant-uncounted", "says at the sending end that nothing waits", "capacity", sender=rude.Uncounted),
    Mutant("mutant-miscounts", "counts drops that were none", "overflow_drop_old", sender=rude.AlwaysDrops),
    Mutant("mutant-empties", "takes what waits with it at close", "close_keeps", receiver=rude.Empties),
    Mutant("mutant-locks", "receives nothing while another thread waits", "waits_alone", receiver=rude.LocksReceiving),
    Mutant("mutant-locks-send", "sends nothing while another thread waits", "waits_alone", sender=rude.LocksSending),
    Mutant("mutant-sleeps", "loses a wake-up now and then", "one_at_a_time", sender=rude.LosesWakeups),
    Mutant("mutant-naps", "looks again and again for a message", "recv_deadline", receiver=rude.NapsReceiving),
    Mutant("mutant-naps-send", "looks again and again for room", "send_deadline", sender=rude.NapsSending),
    Mutant("mutant-ticks", "has a thread that looks again and again", "wait_quiet", receiver=rude.Ticks),
    Mutant("mutant-hoards", "keeps every message received", "memory", receiver=rude.Hoards),
    Mutant("mutant-selects", "knows 1024 descriptors only", "many_descriptors", receiver=rude.Selects),
    Mutant("mutant-resets", "changes what a signal does", "leaves_no_trace", sender=rude.Resets),
    Mutant("mutant-inherits", "gives descriptors to programs that are started", "leaves_no_trace", sender=rude.Inheritable),
    Mutant("mutant-forgotten", "leaves a file behind that it held", "leaves_no_trace", sender=rude.Forgotten),
    Mutant("mutant-dropped", "leaves a file behind under a name of its own", "close_frees", sender=rude.Dropped),
    Mutant("mutant-keeps", "does nothing about what a forked child inherits", "fork_frees", sender=rude.KeepsForEver),
    Mutant("mutant-pipe", "does nothing wrong between processes", "", inner="pipe"),
    Mutant(
        "mutant-rest",
        "waits for the rest of a message beyond its deadline",
        "stopped_sender",
        sender=apart.InParts,
        receiver=apart.WaitsForTheRest,
        inner="pipe",
    ),
    Mutant(
        "mutant-begun",
        "is ready when a message has begun to arrive",
        "stopped_sender",
        sender=apart.InParts,
        receiver=apart.ReadyForTheRest,
        inner="pipe",
    ),
    Mutant(
        "mutant-reserves",
        "loses room with a sender that is killed",
        "sender_killed",
        sender=apart.Reserves,
        receiver=apart.GivesBack,
        inner="pipe",
        respec=apart.reserve,
    ),
    Mutant(
        "mutant-mark",
        "ends before what another process had sent",
        "shutdown_of_many",
        sender=apart.MarksEnd,
        receiver=apart.EndsAtMark,
        inner="pipe",
    ),
    Mutant("mutant-again", "sends again what was received", "receiver_killed", sender=apart.SendsAgain, inner="pipe"),
    Mutant("mutant-stranger", "keeps a descriptor when it may not receive", "one_receiver", handle=_HastyHandle, inner="pipe"),
    Mutant("mutant-ends", "ends the channel when one sending end is closed", "close_one_role", sender=rude.EndsAll),
)
"""Every mutant, the one that is none first."""
