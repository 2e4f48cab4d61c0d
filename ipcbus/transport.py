"""THE contract between ipcbus and a transport: three small classes and twenty rules.

A plugin provides a :class:`Transport` per URL scheme under the entry-point group ``ipcbus.transports``. It makes
:class:`Handle` objects, which say where a channel is and pickle into other processes; a handle opens a
:class:`SendLink` or a :class:`RecvLink` (a *link*: one open end in one process). Links move frames, which are lists of
buffers, and know nothing of objects, serializers or overflow policies: the Channel above them does.

The rules (each is checked by ``ipcbus.testing.contract`` for every scheme and every start method):

 1. **FIFO.** Messages of one sending process arrive in the order in which it sent them.
 2. **Whole.** A message arrives whole or not at all.
 3. **At most once.** No message arrives twice, unless the guarantees say *at least once*.
 4. **Snapshot.** What arrives is what was passed to ``send``, even if the caller changes it right after the call. A
    buffer that is not ``bytes`` is the link's only until ``send`` returns.
 5. **Empty is a message.** A message of zero bytes, and ``None``, arrive like any other.
 6. **Refused in send.** What cannot be encoded raises ``EncodeError`` in ``send`` with the path to every culprit;
    nothing is sent and no room is used up.
 7. **Poison is consumed.** What cannot be decoded raises ``DecodeError`` in ``recv``, and the next message arrives.
 8. **Too large.** A message over ``max_message`` raises ``MessageTooLarge`` before one byte of it is written. A
    length read from the outside is checked against it before anything is allocated.
 9. **Full.** A full channel applies its overflow policy, and every message dropped is counted.
10. **Deadlines.** Every call honours its timeout over the *whole* operation; ``timeout=0`` never blocks.
11. **Harmless failure.** A call that timed out or was interrupted leaves the channel usable, and every message whole.
12. **Shutdown.** After ``shutdown`` a send raises ``ChannelClosed``, receivers drain what was sent and then get
    ``EndOfChannel``, all of them, every time they ask. A send that overlaps a shutdown either returns, and its message
    is delivered, or raises ``ChannelClosed``, and then it may have been.
13. **Close.** ``close`` is idempotent, wakes a blocked call of another thread, is bounded in time (``LINGER``) and frees
    every descriptor, thread, name and file of this process's end. The channel lives on for the others, and so does what
    waits in it, where ``capacity_scope`` is the channel and not the sender.
14. **Closed is closed.** Use after close raises ``ChannelClosed``.
15. **Threads.** Threads may share an end. That one is busy with it for a moment makes the channel neither full nor empty for
    another, whatever its timeout.
16. **Processes.** A channel works in a child made by fork, spawn or forkserver that got it as an argument, and in a
    forked child that merely inherited it.
17. **One receiver.** With ``receivers="one"``, a second process that tries to receive gets ``ChannelBusy`` and takes
    nothing.
18. **Killed.** When a user of the channel is killed at any instant, the others go on or get ``ChannelBroken`` within a
    second; never a hang, never a wrong message. Where a transport cannot, ``survives_kill`` is false.
19. **Bounded.** What is accepted and not yet received never exceeds ``capacity`` messages (per channel or per sending
    process, as ``capacity_scope`` says). So many small ones are accepted though nobody receives, and each that is
    received makes room for one at once; only large ones may find the medium full before. ``create`` refuses a capacity
    that cannot be had with ``ConfigError``; 1024, which is what a channel has by default, can.
20. **Honest.** Declared capabilities hold; what is not declared raises ``Unsupported``.

Consequences worth knowing before writing one: no lock without an owner on the data path; large messages must not block
small ones for ever; a wait never polls with a sleep, it waits on descriptors; children made by ``multiprocessing`` skip
``atexit``, so what must be flushed is flushed by ``close``, which ipcbus calls at every kind of regular exit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "LINGER",
    "Buffer",
    "Capabilities",
    "ChannelSpec",
    "Frame",
    "Guarantees",
    "Handle",
    "Link",
    "NoOptions",
    "RecvLink",
    "SendLink",
    "Transport",
]

Buffer: TypeAlias = bytes | bytearray | memoryview
"""A contiguous run of bytes. Buffers received are the caller's for as long as it keeps them: nobody writes to them any more,
and what the caller may not write to either is read-only."""

Frame: TypeAlias = "Sequence[Buffer]"
"""One message on the wire: one or more buffers. A transport may join them; the frame format can tell them apart."""

LINGER = 5.0
"""Seconds that closing a sender may spend on handing over what it has accepted."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a transport can do. The documentation's tables and ``ipcbus transports`` are generated from this."""

    many_receivers: bool = False
    """Several processes may receive from one channel; each message goes to one of them."""
    crosses_processes: bool = True
    """Works between processes, not only between threads."""
    crosses_hosts: bool = False
    """Works between machines. Such a channel can be reached by strangers and therefore refuses pickle without a key."""
    addressable: bool = False
    """The URL alone is enough to open the same channel in an unrelated process."""
    survives_kill: bool = True
    """Rule 18 holds."""
    detects_dead_receiver: bool = True
    """A sender that has to wait for a receiver which died gets ``PeerDied`` instead of waiting."""
    drops_old: bool = False
    """``overflow="drop_old"`` works: a sender can discard the oldest waiting message."""
    capacity_scope: Literal["channel", "sender"] = "channel"
    """Whether ``capacity`` counts for the whole channel or for each sending process."""
    passes_fds: bool = False
    """Descriptors inside messages travel with the frame and outlive the process that sent them."""
    durable: bool = False
    """Messages survive every process that uses the channel."""
    max_message: int | None = None
    """Bytes of the largest message that the medium can carry, at least 64; None where only the channel's limit bounds it.

    It is what a channel has where nothing else is asked for, so that no link is handed more; more is ``Unsupported``.
    """


@dataclass(frozen=True, slots=True)
class Guarantees:
    """What a transport promises, in words. Each is a sentence for the documentation; a test backs each of them."""

    delivery: Literal["at-most-once", "at-least-once"]
    order: str
    accepted: str
    """Where the bytes are when ``send`` returns."""
    sender_dies: str
    """What is lost when a sender is killed."""
    receiver_dies: str
    """What is lost when a receiver is killed."""
    home_dies: str
    """What is lost when the process that made the channel is killed."""
    machine_dies: str
    """What is lost when the machine stops."""


@dataclass(frozen=True, slots=True)
class ChannelSpec:
    """What every transport is told about the channel it is to make."""

    id: str
    """Thirty-two hexadecimal digits, drawn at random: the same channel in every process."""
    address: str
    """The part of the URL between the scheme and the options."""
    capacity: int
    """Messages that may be accepted and not yet received."""
    receivers: Literal["one", "many"]
    max_message: int
    """Bytes of the largest frame."""
    drops_old: bool = False
    """Whether senders will take messages out, too. Only asked of transports that can."""


@dataclass(frozen=True, slots=True)
class NoOptions:
    """The options of a transport that has none."""


class Transport(ABC):
    """Makes channels for one URL scheme. Never instantiated: a namespace of class attributes and one function."""

    scheme: ClassVar[str]
    """The URL scheme, lower case."""
    capabilities: ClassVar[Capabilities]
    guarantees: ClassVar[Guarantees]
    options: ClassVar[type]
    """A frozen dataclass of what may follow ``?`` in the URL besides the options every channel has."""
    preference: ClassVar[int] = 0
    """How gladly ``auto:`` picks this transport; the highest wins, 0 is never picked."""

    @classmethod
    @abstractmethod
    def create(cls, spec: ChannelSpec, options: object) -> Handle:
        """Make a channel and say where it is.

        Args:
            spec: what is wanted. ``receivers="many"`` is only asked of transports that can.
            options: an instance of ``cls.options``.

        Raises:
            ConfigError: the address or an option makes no sense.
            TransportUnavailable: something this needs is not installed.
            ChannelBroken: the system refused (descriptors, memory, permissions); says what to do.
        """


class Handle(ABC):
    """Where a channel is: a small description that pickles, and opens ends in whichever process has it."""

    __slots__ = ()

    @abstractmethod
    def open_sender(self) -> SendLink:
        """Open this process's sending end.

        Raises:
            ChannelBroken: the channel cannot be reached from here.
            ChannelClosed: it was shut down.
        """

    @abstractmethod
    def open_receiver(self) -> RecvLink:
        """Open this process's receiving end.

        Raises:
            ChannelBusy: the channel has one receiver and that is another process (rule 17).
            ChannelBroken: the channel cannot be reached from here.
        """

    def shut(self) -> bool:
        """End the stream for everybody, as ``shutdown`` of a link does, and say whether that can be done without one.

        Where it cannot, an end is opened for it; and where that is the receiving one, this process becomes the receiver.
        """
        return False

    @abstractmethod
    def release(self) -> None:
        """Free the descriptors this process's copy of the handle holds. Idempotent. Its open links are closed already.

        A channel may come to a process several times. Its first handle opens the ends; each other one is released at once.
        """

    def entrust(self, pid: int) -> None:  # noqa: B027  most handles name nothing, and then there is nothing to write
        """Have what has a name outlive this process, because the channel was sent on: another process answers for it.

        Args:
            pid: the process with whose end the names may go. ``destroy`` is not called here any more.
        """

    def destroy(self) -> None:  # noqa: B027  most handles name nothing, and then there is nothing to write
        """Remove what has a name, for everybody. Idempotent. Called in the process that made the channel (its home).

        That is when somebody calls ``Channel.destroy``, else at the process's exit. All ends of this process are closed
        and the handle is released by then. Where a topic's subscriber made the channel, those who sent to it and who
        learn that it has gone call this, too.
        """


class _Link(ABC):
    """What both ends have in common."""

    __slots__ = ()

    @abstractmethod
    def fileno(self) -> int:
        """Return a descriptor that polls readable when a call that found nothing to do should be tried again.

        Readable means *try again*, not *certain*: after ``ready()`` was false, or a call with ``timeout=0`` raised
        ``ChannelEmpty`` or ``ChannelFull``, wait on it. It stays the same for the life of the link.

        Raises:
            ChannelClosed: this end is closed.
        """

    @abstractmethod
    def ready(self) -> bool:
        """Tell whether ``send`` or ``recv`` with ``timeout=0`` would do something other than find the channel full or empty."""

    @abstractmethod
    def shutdown(self) -> None:
        """End the stream for everybody (rule 12). Idempotent."""

    @abstractmethod
    def close(self) -> None:
        """Release this end (rule 13)."""

    @abstractmethod
    def abandon(self) -> None:
        """Free what a forked child inherited of its parent's link, leaving the parent's and the shared state untouched.

        Called once, in the child, right after the fork, while only one thread runs: must not lock, wait or flush.
        """

    @abstractmethod
    def depth(self) -> int | None:
        """Return how many messages wait in the channel as far as this end can tell, or None where it cannot."""


class SendLink(_Link):
    """The sending end in one process."""

    __slots__ = ()

    sent_short: int = 0
    """Messages that the function of ``bytes_sender`` has sent. It counts them itself, which takes who calls it longer."""

    @abstractmethod
    def send(self, frame: Frame, timeout: float | None) -> None:
        """Hand over one message.

        Args:
            frame: the message; its total size is at most ``spec.max_message``.
            timeout: seconds; None waits without limit, 0 never blocks.

        Raises:
            ChannelFull: no room within the timeout. Nothing was sent.
            ChannelClosed: closed or shut down. Nothing was sent.
            PeerDied: there is no room and the receiver that should make some has died. Nothing was sent.
            ChannelBroken: the channel cannot be used any more.
        """

    def send_many(self, frames: Sequence[Frame], timeout: float | None) -> int:
        """Hand over the first of several messages, and with it as many that follow as cost less together; return how many.

        It never waits for more than the first needs. What a transport does not write itself hands over one.

        Args:
            frames: the messages, at least one, each as for ``send``.
            timeout: seconds, as for ``send``.

        Raises:
            What ``send`` raises; nothing was sent then.
        """
        self.send(frames[0], timeout)
        return 1

    def bytes_sender(self, head: bytes, limit: int) -> Callable[[bytes], bool] | None:
        """Return a shorter way to send small messages of bytes, None where there is none.

        Args:
            head: four bytes; the frame of each such message is these and the bytes, in one buffer.
            limit: bytes that a message may have behind the head.

        Returns:
            What is called with ``bytes``. It returns True when they were sent as ``send`` would have, and False when
            ``send`` is to be called instead, because it could not be done at once; then it has done nothing. Raises nothing.
        """
        del head, limit
        return None

    def receiver(self) -> int | None:
        """Return the pid of the process that is the one receiver; None if there is none, or it is unknown, as after close."""
        return None

    def discard_oldest(self, timeout: float | None = LINGER) -> bool:
        """Take the oldest waiting message out of the channel, for ``overflow="drop_old"``; say whether there was one.

        Args:
            timeout: seconds to wait for it where it may be on its way into the channel, None without limit; elsewhere nobody
                waits.

        Raises:
            Unsupported: the transport does not declare ``drops_old``.
            ChannelBroken: there is no room, and nothing came that could be taken out.
        """
        from ipcbus.errors import Unsupported

        del timeout
        raise Unsupported(f"{type(self).__module__} cannot drop old messages")


class RecvLink(_Link):
    """The receiving end in one process."""

    __slots__ = ()

    received_short: int = 0
    """Messages that the function of ``bytes_receiver`` has returned as ``bytes``. It counts them itself, as above."""

    @property
    def spins(self) -> bool:
        """Whether ``recv`` itself looks for a moment before it sleeps, so that nobody else need do so."""
        return False

    @abstractmethod
    def recv(self, timeout: float | None) -> Frame:
        """Take the next message.

        Args:
            timeout: seconds; None waits without limit, 0 never blocks.

        Raises:
            ChannelEmpty: no message within the timeout.
            EndOfChannel: shut down and drained.
            ChannelClosed: this end is closed.
            ChannelBroken: the stream makes no sense or cannot go on.
        """

    def bytes_receiver(self, head: bytes) -> Callable[[float | None], Frame | bytes] | None:
        """Return a shorter way to receive messages of bytes, None where there is none.

        Args:
            head: four bytes; a message of one buffer that starts with them is bytes.

        Returns:
            What is called in place of ``recv``, and does the same, but returns of such a message what is behind its head,
            as ``bytes``, which no frame is.
        """
        del head
        return None


Link: TypeAlias = SendLink | RecvLink
"""One open end in one process."""
