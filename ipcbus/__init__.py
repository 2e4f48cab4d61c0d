"""One Channel over interchangeable transports.

>>> import ipcbus
>>> channel = ipcbus.open("pipe:")
>>> channel.send({"answer": 42})
>>> channel.recv()
{'answer': 42}
>>> channel.close()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipcbus.channel import Channel
from ipcbus.channel import open_channel as open  # noqa: A004  ipcbus.open reads like the built-in it resembles
from ipcbus.endpoint import Stats
from ipcbus.errors import (
    ChannelBroken,
    ChannelBusy,
    ChannelClosed,
    ChannelEmpty,
    ChannelError,
    ChannelFull,
    ConfigError,
    ContentRefused,
    DecodeError,
    EncodeError,
    EndOfChannel,
    GaveUp,
    InsecureConfiguration,
    IpcbusError,
    MessageTooLarge,
    PeerDied,
    RemoteError,
    SerializationError,
    SerializerUnavailable,
    StartFailed,
    TransportUnavailable,
    UnknownSerializer,
    UnknownTransport,
    Unsupported,
)
from ipcbus.explain import Culprit, Explanation, explain
from ipcbus.message import Message
from ipcbus.pair import Duplex, pair
from ipcbus.selection import transports
from ipcbus.serializers.local import Fd, OpenFile
from ipcbus.wait import wait

if TYPE_CHECKING:
    from ipcbus.bus.bus import Bus
    from ipcbus.bus.facts import ChannelFacts
    from ipcbus.bus.tap import Tap
    from ipcbus.bus.topic import Subscription, Topic
    from ipcbus.requests.callback import Callback, callback
    from ipcbus.requests.future import Future
    from ipcbus.requests.reply import ReplyTo
    from ipcbus.supervisor import Life, Occurrence, Program, Supervisor

__version__ = "0.1.0"

__all__ = [
    "Bus",
    "Callback",
    "Channel",
    "ChannelBroken",
    "ChannelBusy",
    "ChannelClosed",
    "ChannelEmpty",
    "ChannelError",
    "ChannelFacts",
    "ChannelFull",
    "ConfigError",
    "ContentRefused",
    "Culprit",
    "DecodeError",
    "Duplex",
    "EncodeError",
    "EndOfChannel",
    "Explanation",
    "Fd",
    "Future",
    "GaveUp",
    "InsecureConfiguration",
    "IpcbusError",
    "Life",
    "Message",
    "MessageTooLarge",
    "Occurrence",
    "OpenFile",
    "PeerDied",
    "Program",
    "RemoteError",
    "ReplyTo",
    "SerializationError",
    "SerializerUnavailable",
    "StartFailed",
    "Stats",
    "Subscription",
    "Supervisor",
    "Tap",
    "Topic",
    "TransportUnavailable",
    "UnknownSerializer",
    "UnknownTransport",
    "Unsupported",
    "__version__",
    "callback",
    "explain",
    "open",
    "pair",
    "transports",
    "wait",
]

_LATER = {
    "Bus": "ipcbus.bus.bus",
    "Callback": "ipcbus.requests.callback",
    "ChannelFacts": "ipcbus.bus.facts",
    "Future": "ipcbus.requests.future",
    "ReplyTo": "ipcbus.requests.reply",
    "Tap": "ipcbus.bus.tap",
    "callback": "ipcbus.requests.callback",
    **dict.fromkeys(("Subscription", "Topic"), "ipcbus.bus.topic"),
    **dict.fromkeys(("Life", "Occurrence", "Program", "Supervisor"), "ipcbus.supervisor"),
}
"""Names that are imported at their first use, and from where: what they need would make the import of ipcbus heavy."""


if not TYPE_CHECKING:  # or a type checker would take every name for one that is imported later

    def __getattr__(name: str) -> object:
        module = _LATER.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        from ipcbus.plumbing.fds import loading

        with loading(f"ipcbus.{name}"):
            value = globals()[name] = getattr(importlib.import_module(module), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
