"""Plans: what a URL and options ask for, checked and complete, before anything is made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ipcbus.codec import Codec
from ipcbus.errors import ConfigError
from ipcbus.options import URL, build, parse_url
from ipcbus.plumbing.fds import loading
from ipcbus.settings import ChannelOptions, check, max_message, read_key, split

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ipcbus.transport import Transport

__all__ = ["Plan", "make_codec", "resolve"]


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

    asked = parse_url(url)
    transport, parsed = select(asked, options)
    where = str(parsed)
    if parsed.options.keys() - asked.options.keys():  # which only the configuration adds
        with loading("the configuration"):
            from ipcbus.config import who_configures

        where = f"auto: is {where!r}, says {who_configures()}"
    common, own = split({**parsed.options, **options}, transport, where)
    settings = build(ChannelOptions, common, where)
    check(settings, transport, where)
    if settings.key_file is not None:  # read again by each process that the channel comes to, wherever that works
        settings = dataclasses.replace(settings, key_file=str(_found(settings.key_file, where)))
    private = not (transport.capabilities.crosses_hosts or transport.capabilities.addressable)
    return Plan(transport, parsed, settings, own, private, max_message(settings, transport, private=private))


def _found(path: str, where: str) -> Path:
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(f"{where}: key_file {path!r} cannot be found: {error}; write the whole path") from error


def make_codec(settings: ChannelOptions, *, private: bool, max_message: int, where: str) -> Codec:
    """Make the codec that a channel's settings ask for; raises what :func:`ipcbus.open` raises."""
    return Codec(
        settings.serializer,
        settings.accept,
        private=private,
        max_message=max_message,
        key=read_key(settings.key_file, where),
        checksum=settings.checksum,
    )
