"""Settings: what every channel can be told, and whether it makes sense."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ipcbus.errors import ConfigError, Unsupported
from ipcbus.options import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ipcbus.transport import Transport

__all__ = ["PRIVATE_MAX_MESSAGE", "PUBLIC_MAX_MESSAGE", "ChannelOptions", "check", "max_message", "read_key", "split"]

PRIVATE_MAX_MESSAGE = 1 << 30
"""Bytes of the largest frame of a channel that only this user's processes can reach, where nothing else is said."""
PUBLIC_MAX_MESSAGE = 64 << 20
"""Bytes of the largest frame of any other."""


_MOST_CAPACITY = (1 << 31) - 1
"""Messages that every transport can count to."""


@dataclasses.dataclass(frozen=True, slots=True)
class ChannelOptions:
    """What every channel can be told, as arguments of ``open``, after ``?`` in the URL, or in a TOML table."""

    capacity: int = 1024
    """Messages accepted and not yet received."""
    serializer: str = "auto"
    """How objects become bytes; ``auto`` picks by the type of each and by who can reach the channel."""
    accept: tuple[str, ...] | None = None
    """Serializers that may decode here; None: every installed one on a private channel, else every safe one."""
    receivers: Literal["one", "many"] = "one"
    """Whether one process receives, or several compete for the messages."""
    overflow: Literal["block", "fail", "drop_new", "drop_old"] = "block"
    """What a send does when the channel is full: wait, raise ``ChannelFull``, or drop the newest or oldest message."""
    max_message: int | None = None
    """Bytes of the largest frame; None: 1 GiB on private channels, else 64 MiB, or less where the medium carries less."""
    checksum: bool = False
    """Whether frames carry a CRC-32."""
    key_file: str | None = None
    """A file of mode 0600 with a secret that both ends have; frames then carry a MAC."""


def split(values: Mapping[str, Any], transport: type[Transport], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide options into those of every channel and those of a transport; raises ``ConfigError`` for others."""
    common_names = {field.name for field in dataclasses.fields(ChannelOptions)}
    own_names = {field.name for field in dataclasses.fields(transport.options)}
    for key in values:
        if key not in common_names | own_names:
            raise ConfigError(f"{where}: unknown option {key!r}; {nearest(key, common_names | own_names)}")
    return (
        {key: value for key, value in values.items() if key in common_names},
        {key: value for key, value in values.items() if key in own_names},
    )


def check(settings: ChannelOptions, transport: type[Transport], where: str) -> None:
    """Make sure that a channel can be as it is wanted; raises ``ConfigError`` and ``Unsupported``."""
    if not 1 <= settings.capacity <= _MOST_CAPACITY:
        least = "at least 1 message" if settings.capacity < 1 else f"at most {_MOST_CAPACITY} messages"
        raise ConfigError(f"{where}: capacity must be {least}, not {settings.capacity}")
    if settings.max_message is not None and settings.max_message < 64:
        raise ConfigError(f"{where}: max_message must be at least 64 bytes, not {settings.max_message}")
    most = transport.capabilities.max_message
    if settings.max_message is not None and most is not None and settings.max_message > most:
        raise Unsupported(
            f"{where!r} can carry messages of at most {most} bytes, not max_message={settings.max_message}; "
            "use another transport, such as pipe:"
        )
    if settings.accept == ():
        raise ConfigError(f"{where}: accept names no serializer, so nothing could be received; name one, or leave it out")
    if settings.receivers == "many" and not transport.capabilities.many_receivers:
        raise Unsupported(f"{where!r} has one receiver; receivers='many' needs another transport, such as unix:")
    if settings.overflow == "drop_old" and not transport.capabilities.drops_old:
        raise Unsupported(f"{where!r} cannot drop old messages; use overflow='drop_new' or another transport")


def max_message(settings: ChannelOptions, transport: type[Transport], *, private: bool) -> int:
    """Return how many bytes the largest frame of a channel has: what is asked for, else what is usual and can be carried."""
    if settings.max_message is not None:
        return settings.max_message
    usual = PRIVATE_MAX_MESSAGE if private else PUBLIC_MAX_MESSAGE
    return min(usual, transport.capabilities.max_message or usual)


def read_key(path: str | None, where: str) -> bytes | None:
    """Return the secret that a file holds, without white space at its ends, None for no file; raises ``ConfigError``."""
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
        raise ConfigError(
            f"{where}: key_file {path!r} holds {len(key)} bytes, white space at its ends left out; a key has at least 16; "
            "make one of 32 random bytes"
        )
    return key
