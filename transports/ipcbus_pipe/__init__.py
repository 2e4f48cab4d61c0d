"""pipe: a channel over ``multiprocessing.Pipe``, one pipe per sending process, so that killing one harms no other.

Every sending process makes a pipe of its own (its *lane*) at its first message and leaves the reading end for the
receiver, which reads all lanes, a block of many messages at a time. No lock is shared between processes: the kernel
keeps small writes whole, and a lane whose sender was killed ends where it ends. See ``docs/transports/pipe.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ipcbus.errors import ChannelClosed, ChannelError, ConfigError
from ipcbus.plumbing.fds import refused
from ipcbus.plumbing.memfiles import KEPT
from ipcbus.plumbing.state import SharedState
from ipcbus.transport import Capabilities, ChannelSpec, Guarantees, Handle, Transport
from ipcbus_pipe._door import Door
from ipcbus_pipe._receiver import PipeReceiver
from ipcbus_pipe._sender import PipeSender

__all__ = ["Pipe", "PipeHandle", "PipeOptions"]


@dataclass(frozen=True, slots=True)
class PipeOptions:
    """What may follow ``pipe:?``."""

    pipe_bytes: int = 256 * 1024
    """Bytes that each sender's pipe asks the system for; Linux grants up to /proc/sys/fs/pipe-max-size."""
    large: int = 128 * 1024
    """Bytes above which a message travels in a memory file that the receiver maps, instead of through the pipe."""
    kept_bytes: int = KEPT
    """Bytes of memory files that a sending process keeps for its next large messages; with 0 each message gets a new one,
    whose pages cost more than the copy into them."""


class Pipe(Transport):
    """``pipe:``."""

    scheme = "pipe"
    capabilities = Capabilities(capacity_scope="sender")
    guarantees = Guarantees(
        delivery="at-most-once",
        order="first in, first out, for each sending process",
        accepted="in the kernel: in the sender's pipe, or in a memory file that was passed on",
        sender_dies="nothing that was accepted; the message being sent is lost whole",
        receiver_dies="what was in the pipes it had opened, for each sender at most `capacity` messages",
        home_dies="nothing",
        machine_dies="everything",
    )
    options = PipeOptions
    preference = 10

    @classmethod
    def create(cls, spec: ChannelSpec, options: object) -> PipeHandle:
        """Make a channel."""
        assert isinstance(options, PipeOptions)
        if spec.address:
            raise ConfigError(f"pipe: takes no address, but was given {spec.address!r}; options follow a '?'")
        if options.pipe_bytes < 4096 or not 4096 <= options.large < 1 << 30 or options.kept_bytes < 0:
            raise ConfigError("pipe: pipe_bytes must be at least 4096, large from 4096 to below 1 GiB, kept_bytes 0 or more")
        try:
            return PipeHandle(spec, options, SharedState(), Door())
        except OSError as error:
            raise refused("a pipe: channel cannot be made", error) from error


class PipeHandle(Handle):
    """The door and the state that all processes of a channel share.

    Attributes:
        door: where senders leave the descriptors of their lanes.
        state: whether it is shut down, and who receives.
        large: bytes above which a message travels in a memory file.
    """

    __slots__ = ("_options", "_spec", "door", "large", "state")

    def __init__(self, spec: ChannelSpec, options: PipeOptions, state: SharedState, door: Door) -> None:
        self._spec = spec
        self._options = options
        self.state = state
        self.door = door
        self.large = options.large

    def open_sender(self) -> PipeSender:
        """Open a sending end."""
        if self.state.is_shut:
            raise ChannelClosed("the pipe: channel was shut down")
        try:
            return PipeSender(self, self._spec, self._options)
        except OSError as error:
            raise refused("the sending end of a pipe: channel cannot be opened", error) from error

    def open_receiver(self) -> PipeReceiver:
        """Become the receiver."""
        try:
            return PipeReceiver(self, self._spec)
        except ChannelError:
            raise
        except OSError as error:
            raise refused("the receiving end of a pipe: channel cannot be opened", error) from error

    def shut(self) -> bool:
        """Mark the channel as shut down for everybody."""
        self.state.shut()
        return True

    def release(self) -> None:
        """Free this process's descriptors."""
        self.state.close()
        self.door.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return PipeHandle, (self._spec, self._options, self.state, self.door)
