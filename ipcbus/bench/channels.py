"""Channels as carriers: every installed transport, by every serializer that can."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from ipcbus.bench.carriers import END, Carrier, Ends, Room, Talk
from ipcbus.bench.case import Absent
from ipcbus.bench.messages import Message, same
from ipcbus.codec import Codec
from ipcbus.doctor.trial import open_here
from ipcbus.errors import (
    EncodeError,
    InsecureConfiguration,
    IpcbusError,
    SerializationError,
    SerializerUnavailable,
)
from ipcbus.options import parse_url
from ipcbus.plan import resolve
from ipcbus.selection import AUTO, best, transports
from ipcbus.serializers.base import serializers

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.channel import Channel
    from ipcbus.transport import Capabilities

__all__ = ["ChannelCarrier", "able_serializers", "installed", "returns"]


class ChannelCarrier(Carrier):
    """A channel.

    Args:
        url: its URL; one that needs an address and has none gets a free port of this machine.
        serializer: the channel's.

    Raises:
        ConfigError: the URL makes no sense.
        UnknownTransport: nobody provides the scheme.
        TransportUnavailable: what the transport needs is not installed.
    """

    ours = True

    def __init__(self, url: str, serializer: str = "auto") -> None:
        parsed = parse_url(url)
        self._transport = best({}) if parsed.scheme == AUTO else transports.get(parsed.scheme)
        self.url = url
        self.serializer = serializer
        self.name = url if serializer == "auto" else f"{url} {serializer}"
        self.many_receivers = self._transport.capabilities.many_receivers

    @property
    def key(self) -> str:
        """The URL."""
        return self.url

    @property
    def capabilities(self) -> Capabilities:
        """What the transport can do."""
        return self._transport.capabilities

    @property
    def scheme(self) -> str:
        """The transport's scheme."""
        return self._transport.scheme

    def refuses(self, scenario: str, message: Message, senders: int, receivers: int) -> str | None:
        """Say why this cannot be measured, None if it can."""
        can = self._transport.capabilities
        if not can.crosses_processes:
            return "does not cross processes"
        if scenario == "request" and can.addressable:
            return "carries no requests: strangers can send through it"
        if scenario == "round-trip" and parse_url(self.url).address:
            return f"has one address, and a round trip needs two channels; write {self.scheme}: without one"
        return super().refuses(scenario, message, senders, receivers) or self._cannot_carry(message.kind)

    @functools.cache  # noqa: B019  a carrier lives as long as the process that plans
    def _cannot_carry(self, kind: str) -> str | None:
        """Say why the serializer of this channel does not bring such a message back; a small one is enough to know."""
        try:
            if not returns(self._codec(), Message(kind, 64).make()):
                return "what arrives is not equal to what was sent"
        except (SerializationError, InsecureConfiguration, SerializerUnavailable) as error:
            return str(error)
        return None

    def _codec(self) -> Codec:
        given = parse_url(self.url).options
        plan = resolve(self.url) if "serializer" in given else resolve(self.url, serializer=self.serializer)
        return Codec(plan.settings.serializer, None, private=plan.private, max_message=plan.max_message)

    def end(self, message: Any) -> Any:
        """Return no bytes, or an empty message of this type where the serializer does not take bytes."""
        try:
            self._codec().encode(END)
        except EncodeError:
            return type(message)()
        return END

    def connect(self, room: Room) -> Ends:
        """Open a channel."""
        channel = self._open(room)
        return Ends(lambda: channel.sender.send, lambda: channel.receiver.recv)

    def _open(self, room: Room) -> Channel:
        given = parse_url(self.url).options
        options: dict[str, Any] = {
            "capacity": room.capacity,
            "serializer": self.serializer,
            "receivers": "many" if room.receivers > 1 else "one",
            "max_message": max(room.most, 1 << 20),
        }
        return open_here(self.url, **{key: value for key, value in options.items() if key not in given})

    def ask(self, room: Room) -> Talk:
        """Make what ``Channel.request`` needs."""
        questions = self._open(room)

        def asker() -> Callable[[Any], Any]:
            return questions.request

        def answerer() -> Callable[[int], None]:
            from ipcbus.requests.serving import handle

            def answer(count: int) -> None:
                for _ in range(count):  # what Channel.serve does, but it would not end
                    handle(questions.recv_message(), lambda message: message.body)

            return answer

        return Talk(asker, answerer)


def installed() -> tuple[list[str], list[Absent]]:
    """Return the URLs of the transports that cross processes here, and those that cannot be loaded."""
    urls, absent = [], []
    for scheme in transports:
        try:
            transport = transports.get(scheme)
        except IpcbusError as error:  # something it needs, or a plugin that is broken: no reason to measure nothing
            absent.append(Absent(f"{scheme}:", str(error)))
        else:
            if transport.capabilities.crosses_processes:
                urls.append(f"{scheme}:")
    return urls, absent


def returns(codec: Codec, obj: Any) -> bool:
    """Tell whether an object is the same after it was encoded and decoded; raises what the codec raises."""
    return same(codec.decode([b"".join(codec.encode(obj))]), obj)


def able_serializers(obj: Any) -> list[str]:
    """Return the installed serializers that bring an object back equal to what it was."""
    able = []
    for name in serializers:
        try:
            codec = Codec(name, None, private=True, max_message=1 << 31)
            if returns(codec, obj):
                able.append(name)
        except Exception:  # noqa: BLE001, S112  a serializer that cannot is left out, whatever it says
            continue
    return able
