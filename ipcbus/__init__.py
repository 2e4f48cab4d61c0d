"""One Channel over interchangeable transports.

>>> import ipcbus
>>> channel = ipcbus.open("pipe:")
>>> channel.send({"answer": 42})
>>> channel.recv()
{'answer': 42}
>>> channel.close()
"""

from __future__ import annotations

from ipcbus.bus.bus import Bus
from ipcbus.bus.topic import Subscription, Topic
from ipcbus.channel import Channel, Stats
from ipcbus.channel import open_channel as open  # noqa: A004  ipcbus.open reads like the built-in it resembles
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
    InsecureConfiguration,
    IpcbusError,
    MessageTooLarge,
    PeerDied,
    RemoteError,
    SerializationError,
    SerializerUnavailable,
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

__version__ = "0.1.0"

__all__ = [
    "Bus",
    "Channel",
    "ChannelBroken",
    "ChannelBusy",
    "ChannelClosed",
    "ChannelEmpty",
    "ChannelError",
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
    "InsecureConfiguration",
    "IpcbusError",
    "Message",
    "MessageTooLarge",
    "OpenFile",
    "PeerDied",
    "RemoteError",
    "SerializationError",
    "SerializerUnavailable",
    "Stats",
    "Subscription",
    "Topic",
    "TransportUnavailable",
    "UnknownSerializer",
    "UnknownTransport",
    "Unsupported",
    "__version__",
    "explain",
    "open",
    "pair",
    "transports",
    "wait",
]
