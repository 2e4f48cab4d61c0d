"""shm: a channel over a ring in shared memory that all its processes have mapped.

A message is copied in by its sender and out by its receiver, with no system call while neither has to wait. Locks are
robust and a message is published by one store, so killing a process harms nobody; large messages lie behind the ring, in
memory that the receiver maps. The ring is written in C: see ``native/layout.h`` and ``docs/transports/shm.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ipcbus.errors import ChannelClosed, ChannelError, ConfigError
from ipcbus.plumbing.fds import TravellingFd, refused
from ipcbus.plumbing.state import SharedState
from ipcbus.transport import Capabilities, ChannelSpec, Guarantees, Handle, Transport
from ipcbus_shm._native import LEAST_RING_BYTES, MOST_RING_BYTES, Segment, create
from ipcbus_shm._receiver import ShmReceiver
from ipcbus_shm._sender import ShmSender

__all__ = ["Shm", "ShmHandle", "ShmOptions"]

_MOST_SPIN = 100_000


@dataclass(frozen=True, slots=True)
class ShmOptions:
    """What may follow ``shm:?``."""

    ring_bytes: int = 1024 * 1024
    """Bytes of the ring, a power of two, reserved when the channel is made; a message of more than a quarter of it lies
    beside the ring, in memory that the receiver maps."""
    spin_us: int = 50
    """Microseconds for which a call that has to wait at most looks again and again before it sleeps; 0 sleeps at once."""


class Shm(Transport):
    """``shm:``."""

    scheme = "shm"
    capabilities = Capabilities(many_receivers=True, drops_old=True)
    guarantees = Guarantees(
        delivery="at-most-once",
        order="first in, first out, over all senders",
        accepted="in memory that all processes of the channel share",
        sender_dies="nothing that was accepted; the message being sent is lost whole",
        receiver_dies="the one message it was taking",
        home_dies="nothing",
        machine_dies="everything",
    )
    options = ShmOptions
    preference = 30

    @classmethod
    def create(cls, spec: ChannelSpec, options: object) -> ShmHandle:
        """Make a channel that lives as long as one process has it."""
        assert isinstance(options, ShmOptions)
        if spec.address:
            raise ConfigError(f"shm: takes no address, but was given {spec.address!r}; options follow a '?'")
        size = options.ring_bytes
        if not LEAST_RING_BYTES <= size <= MOST_RING_BYTES or size & (size - 1):
            raise ConfigError(f"shm: ring_bytes must be a power of two from {LEAST_RING_BYTES} to {MOST_RING_BYTES}")
        if not 0 <= options.spin_us <= _MOST_SPIN:
            raise ConfigError(f"shm: spin_us must be from 0 to {_MOST_SPIN}")
        segment = create(size, spec.capacity)
        try:
            return ShmHandle(spec, options, SharedState(), segment)
        except OSError as error:
            raise refused("a shm: channel cannot be made", error) from error


class ShmHandle(Handle):
    """What all processes of a channel share.

    Args:
        spec: the channel.
        options: its size, and how long to spin.
        state: who receives.
        segment: the memory.
    """

    __slots__ = ("_segment", "options", "spec", "state")

    def __init__(self, spec: ChannelSpec, options: ShmOptions, state: SharedState, segment: Segment) -> None:
        self.spec = spec
        self.options = options
        self.state = state
        self._segment: Segment | None = segment

    @property
    def segment(self) -> Segment:
        """The memory.

        Raises:
            ChannelClosed: the handle was released.
        """
        if self._segment is None:
            raise ChannelClosed("the shm: channel was closed in this process")
        return self._segment

    def open_sender(self) -> ShmSender:
        """Open a sending end."""
        if self.segment.is_shut:
            raise ChannelClosed("the shm: channel was shut down")
        return ShmSender(self)

    def open_receiver(self) -> ShmReceiver:
        """Open a receiving end; the only one of all processes unless the channel has many receivers."""
        try:
            return ShmReceiver(self)
        except ChannelError:
            raise
        except OSError as error:
            raise refused("the receiving end of a shm: channel cannot be opened", error) from error

    def shut(self) -> bool:
        """End the stream."""
        self.segment.shut()
        self.state.news.set()
        return True

    def release(self) -> None:
        """Free this process's descriptors, as soon as no call uses them any more."""
        self._segment = None
        self.state.close()

    def __reduce__(self) -> tuple[Any, ...]:
        memory, receivers, senders = (TravellingFd(fd) for fd in self.segment.fds)
        return _arrive, (self.spec, self.options, self.state, memory, receivers, senders)


def _arrive(spec: ChannelSpec, options: ShmOptions, state: SharedState, *fds: TravellingFd) -> ShmHandle:
    memory, receivers, senders = (fd.detach() for fd in fds)
    return ShmHandle(spec, options, state, Segment(options.ring_bytes, spec.capacity, memory, receivers, senders))
