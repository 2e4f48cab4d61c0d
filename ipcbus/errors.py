"""Every error ipcbus raises, in one tree.

::

    IpcbusError
    ├── ConfigError (ValueError)              a key, a value or a URL is wrong; names it and the nearest right one
    ├── UnknownTransport (LookupError)        no installed plugin provides the scheme
    ├── UnknownSerializer (LookupError)       no installed plugin provides the serializer
    ├── TransportUnavailable (ImportError)    the plugin is here, what it needs is not; carries the pip command
    ├── SerializerUnavailable (ImportError)   the same for a serializer
    ├── Unsupported                           this transport cannot do that, and its capabilities say so
    ├── InsecureConfiguration                 refused because strangers could use it to run code here
    ├── ChannelError
    │   ├── ChannelFull (queue.Full, TimeoutError)
    │   ├── ChannelEmpty (queue.Empty, TimeoutError)
    │   ├── ChannelClosed                     we closed it, or somebody shut it down for senders
    │   ├── ChannelBusy                       another process is already the one receiver
    │   ├── EndOfChannel (EOFError)           shut down, and everything sent has been received
    │   ├── ChannelBroken (OSError)           the other side is gone or the stream makes no sense
    │   │   └── PeerDied                      the other side was a process and it died
    │   └── MessageTooLarge (ValueError)      over max_message; nothing was sent
    ├── SerializationError
    │   ├── EncodeError                       cannot travel; nothing was sent; says which part and what to do
    │   ├── DecodeError                       arrived, but cannot be rebuilt here; was consumed
    │   └── ContentRefused                    arrived in a content type the receiver does not accept; was consumed
    ├── RemoteError                           an exception raised by the process on the other side
    ├── StartFailed                           a process did not become ready; says what it said
    └── GaveUp                                processes died too often, so their supervisor stopped everything

Errors keep their data in attributes, and all of them pickle. A driver's own errors (``OSError``, ``zmq.ZMQError``,
``pickle.PicklingError`` ...) never leave ipcbus untranslated; they are the ``__cause__``.
"""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ipcbus.explain import Culprit

__all__ = [
    "ChannelBroken",
    "ChannelBusy",
    "ChannelClosed",
    "ChannelEmpty",
    "ChannelError",
    "ChannelFull",
    "ConfigError",
    "ContentRefused",
    "DecodeError",
    "EncodeError",
    "EndOfChannel",
    "GaveUp",
    "InsecureConfiguration",
    "IpcbusError",
    "MessageTooLarge",
    "PeerDied",
    "RemoteError",
    "SerializationError",
    "SerializerUnavailable",
    "StartFailed",
    "TransportUnavailable",
    "UnknownSerializer",
    "UnknownTransport",
    "Unsupported",
]


class IpcbusError(Exception):
    """The root of the tree: catch this to catch everything ipcbus raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The default rebuilds with self.args alone, which loses attributes and fails for richer constructors.
        return _rebuild, (type(self), self.args, dict(self.__dict__))


def _rebuild(cls: type[IpcbusError], args: tuple[Any, ...], state: dict[str, Any]) -> IpcbusError:
    error = cls.__new__(cls, *args)
    error.args = args
    if isinstance(error, ImportError):
        error.msg = args[0] if args else ""  # its str() reads this, which only its __init__ sets
    error.__dict__.update(state)
    return error


class ConfigError(IpcbusError, ValueError):
    """A URL, an option, a configuration key or its value is wrong."""


class UnknownTransport(IpcbusError, LookupError):
    """No installed plugin provides the scheme."""


class UnknownSerializer(IpcbusError, LookupError):
    """No installed plugin provides the serializer or the content type."""


class TransportUnavailable(IpcbusError, ImportError):
    """The transport is known, but something it needs is not installed; the message carries the pip command."""


class SerializerUnavailable(IpcbusError, ImportError):
    """The serializer is known, but something it needs is not installed; the message carries the pip command."""


class Unsupported(IpcbusError):
    """The transport cannot do this, as its capabilities declare."""


class InsecureConfiguration(IpcbusError):
    """Refused: with this configuration a stranger could run code in this process."""


class ChannelError(IpcbusError):
    """Something happened to a channel. ``url`` says which one, where it is known."""

    url: str | None = None


class ChannelFull(ChannelError, queue.Full, TimeoutError):
    """No room within the timeout. Nothing was sent; the channel is as usable as before."""


class ChannelEmpty(ChannelError, queue.Empty, TimeoutError):
    """No message within the timeout. Nothing was taken; the channel is as usable as before."""


class ChannelClosed(ChannelError):
    """This process closed the channel, or it was shut down and takes no more messages."""


class ChannelBusy(ChannelError):
    """Another process is the one receiver of this channel. ``pid`` says which, where the transport knows."""

    def __init__(self, message: str, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


class EndOfChannel(ChannelError, EOFError):
    """The channel was shut down and every message in it has been received."""


class ChannelBroken(ChannelError, OSError):
    """The other side is gone, or what came from it makes no sense. What was in flight may be lost."""


class PeerDied(ChannelBroken):
    """The process on the other side died. ``pid`` and ``exitcode`` are ``None`` where they cannot be known."""

    def __init__(self, message: str, pid: int | None = None, exitcode: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid
        self.exitcode = exitcode


class MessageTooLarge(ChannelError, ValueError):
    """The encoded message is larger than ``max_message``. Not one byte of it was sent."""

    def __init__(self, message: str, size: int = 0, limit: int = 0) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class SerializationError(IpcbusError):
    """An object could not become bytes, or bytes could not become an object."""


class EncodeError(SerializationError):
    """The object cannot travel. Nothing was sent and no room was used up.

    ``culprits`` lists every part that cannot travel, with its path, the reason and a remedy.
    """

    def __init__(self, message: str, culprits: Sequence[Culprit] = ()) -> None:
        super().__init__(message)
        self.culprits = tuple(culprits)


class DecodeError(SerializationError):
    """A message arrived but cannot be rebuilt in this process. It was consumed; the next one can be received.

    ``content_type`` and ``size`` (bytes) describe what arrived, ``head`` holds its first 64 bytes.
    """

    def __init__(self, message: str, content_type: str = "", size: int = 0, head: bytes = b"") -> None:
        super().__init__(message)
        self.content_type = content_type
        self.size = size
        self.head = head


class ContentRefused(SerializationError):
    """A message arrived in a content type this receiver does not accept. It was consumed, and never decoded."""

    def __init__(self, message: str, content_type: str = "") -> None:
        super().__init__(message)
        self.content_type = content_type


class RemoteError(IpcbusError):
    """An exception raised on the other side: its type's name, its text and the traceback printed there."""

    def __init__(self, message: str, type_name: str = "", remote_traceback: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name
        self.remote_traceback = remote_traceback


class StartFailed(IpcbusError):
    """A supervised process did not become ready. ``name`` is its program's, empty where it is none's fault."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class GaveUp(IpcbusError):
    """Processes died too often, so their supervisor stopped everything. ``name`` is the program of the last one."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name
