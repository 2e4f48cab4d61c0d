"""Plans: what a URL and options ask for, checked and complete, before anything is made."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ipcbus.codec import AUTO, Codec
from ipcbus.errors import ConfigError, Unsupported
from ipcbus.options import URL, build, nearest, parse_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ipcbus.transport import Transport

__all__ = ["PRIVATE_MAX_MESSAGE", "ChannelOptions", "Plan", "make_codec", "resolve"]

PRIVATE_MAX_MESSAGE = 1 << 30
"""Bytes of the largest frame on a channel that only this user can reach, where nothing else is said."""
_PUBLIC_MAX_MESSAGE = 64 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class ChannelOptions:
    """What every channel can be told, as arguments of ``open``, after ``?`` in the URL, or in a TOML table."""

    capacity: int = 1024
    """Messages accepted and not yet received."""
    serializer: str = AUTO
    """How objects become bytes; ``auto`` picks by the type of each and by who can reach the channel."""
    accept: tuple[str, ...] | None = None
    """Serializers that may decode here; None: every installed one on a private channel, else every safe one."""
    receivers: Literal["one", "many"] = "one"
    """Whether one process receives, or several compete for the messages."""
    overflow: Literal["block", "fail", "drop_new", "drop_old"] = "block"
    """What a send does when the channel is full: wait, raise ``ChannelFull``, or drop the newest or oldest message."""
    max_message: int | None = None
    """Bytes of the largest frame; None: 1 GiB on private channels, else 64 MiB."""
    checksum: bool = False
    """Whether frames carry a CRC-32."""
    key_file: str | None = None
    """A file of mode 0600 with a secret that both ends have; frames then carry a MAC."""


class Plan(NamedTuple):
    """What a URL and options ask for."""

    transport: type[Transport]
    url: URL
    settings: ChannelOptions
    own: Mapping[str, Any]
    """The transport's options."""
    private: bool
    max_message: int
    """Bytes."""


def resolve(url: str, **options: Any) -> Plan:
    """Find out what a channel would be, and make none; arguments and errors are those of :func:`ipcbus.open`."""
    from ipcbus.selection import select

    parsed = parse_url(url)
    transport, parsed = select(parsed, options)
    where = str(parsed)
    common, own = _split({**parsed.options, **options}, transport, where)
    settings = build(ChannelOptions, common, where)
    _check(settings, transport, where)
    private = not (transport.capabilities.crosses_hosts or transport.capabilities.addressable)
    limit = settings.max_message or (PRIVATE_MAX_MESSAGE if private else _PUBLIC_MAX_MESSAGE)
    return Plan(transport, parsed, settings, own, private, limit)


def make_codec(settings: ChannelOptions, *, private: bool, max_message: int, where: str) -> Codec:
    """Make the codec that a channel's settings ask for; raises what :func:`ipcbus.open` raises."""
    return Codec(
        settings.serializer,
        settings.accept,
        private=private,
        max_message=max_message,
        key=_read_key(settings.key_file, where),
        checksum=settings.checksum,
    )


def _split(values: Mapping[str, Any], transport: type[Transport], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    common_names = {field.name for field in dataclasses.fields(ChannelOptions)}
    own_names = {field.name for field in dataclasses.fields(transport.options)}
    for key in values:
        if key not in common_names | own_names:
            raise ConfigError(f"{where}: unknown option {key!r}; {nearest(key, common_names | own_names)}")
    return (
        {key: value for key, value in values.items() if key in common_names},
        {key: value for key, value in values.items() if key in own_names},
    )


def _check(settings: ChannelOptions, transport: type[Transport], where: str) -> None:
    if settings.capacity < 1:
        raise ConfigError(f"{where}: capacity must be at least 1 message, not {settings.capacity}")
    if settings.max_message is not None and settings.max_message < 64:
        raise ConfigError(f"{where}: max_message must be at least 64 bytes, not {settings.max_message}")
    if settings.receivers == "many" and not transport.capabilities.many_receivers:
        raise Unsupported(f"{where!r} has one receiver; receivers='many' needs another transport, such as queue:")
    if settings.overflow == "drop_old" and not transport.capabilities.drops_old:
        raise Unsupported(f"{where!r} cannot drop old messages; use overflow='drop_new' or another transport")


def _read_key(path: str | None, where: str) -> bytes | None:
    if path is None:
        return None
    file = Path(path)
    try:
        state = file.stat()
        key = file.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"{where}: key_file {path!r} cannot be read: {error.strerror}") from error
    if state.st_mode & 0o077 or state.st_uid != os.geteuid():
        raise ConfigError(f"{where}: key_file {path!r} must belong to you alone; run: chmod 600 {path}")
    if len(key) < 16:
        raise ConfigError(f"{where}: key_file {path!r} holds {len(key)} bytes; a key has at least 16")
    return key
