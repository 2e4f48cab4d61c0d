"""queue: a channel over ``multiprocessing.Queue``, whose locks and room are descriptors instead of named semaphores."""

from __future__ import annotations

import multiprocessing
from typing import Any

from ipcbus.errors import ChannelBroken, ChannelError, ConfigError
from ipcbus.plumbing.claim import Claim
from ipcbus.plumbing.fds import refused
from ipcbus.transport import Capabilities, ChannelSpec, Guarantees, Handle, NoOptions, Transport
from ipcbus_queue.receiving import QueueRecvLink
from ipcbus_queue.sending import QueueSendLink
from ipcbus_queue.shared import SHUT, Shared

__all__ = ["Queue", "QueueHandle", "QueueRecvLink", "QueueSendLink"]


class Queue(Transport):
    """``queue:``."""

    scheme = "queue"
    capabilities = Capabilities(many_receivers=True, survives_kill=False, detects_dead_receiver=False, drops_old=True)
    guarantees = Guarantees(
        delivery="at-most-once",
        order="first in, first out per sending process",
        accepted="in the sending process's memory, from where a thread of it moves them to a pipe",
        sender_dies=(
            "what it had accepted and not yet written to the pipe, together with the room this took; if it was in the "
            "middle of writing a message larger than 4096 bytes, the channel"
        ),
        receiver_dies="the message it was taking; if it was in the middle of reading one, the channel",
        home_dies="what any sender loses; the channel has no home once other processes have it",
        machine_dies="everything",
    )
    options = NoOptions
    preference = 5

    @classmethod
    def create(cls, spec: ChannelSpec, options: object) -> QueueHandle:  # noqa: ARG003  queue has no options of its own
        """Make a channel that lives as long as one process has it."""
        if spec.address:
            raise ConfigError(f"queue: takes no address, but was given {spec.address!r}; write 'queue:'")
        try:
            return QueueHandle(spec, Shared.create(spec.capacity, spec.max_message))
        except OSError as error:
            raise refused("a queue: channel cannot be made", error) from error


class QueueHandle(Handle):
    """The descriptors of a channel.

    Args:
        spec: the channel.
        shared: what its processes share; owned from here on.
    """

    __slots__ = ("_shared", "_spec")

    def __init__(self, spec: ChannelSpec, shared: Shared) -> None:
        self._spec = spec
        self._shared = shared

    def open_sender(self) -> QueueSendLink:
        """Open a sending end."""
        try:
            return QueueSendLink(self._shared)
        except OSError as error:
            raise _cannot_open("sending", error) from error

    def open_receiver(self) -> QueueRecvLink:
        """Open a receiving end; the only one of all processes unless the channel has many receivers."""
        try:
            claim = Claim(self._shared.file.fileno()) if self._spec.receivers == "one" else None
            return QueueRecvLink(self._shared, claim)
        except ChannelError:
            raise
        except OSError as error:
            raise _cannot_open("receiving", error) from error

    def shut(self) -> bool:
        """End the stream."""
        self._shared.end(SHUT)
        return True

    def release(self) -> None:
        """Free the descriptors."""
        self._shared.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return QueueHandle, (self._spec, self._shared)


def _cannot_open(what: str, error: OSError) -> ChannelBroken:
    name = multiprocessing.current_process().name
    return refused(f"the {what} end of a queue: channel cannot be opened in {name}", error)
