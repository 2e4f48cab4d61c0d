"""Opening the channels of a bus, which are for processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ipcbus.channel import open_channel
from ipcbus.errors import ConfigError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ipcbus.channel import Channel

__all__ = ["open_between_processes"]


def open_between_processes(url: str, options: Mapping[str, Any], where: str) -> Channel:
    """Make a channel that a bus can pass on.

    Args:
        url: as for ``ipcbus.open``.
        options: the same.
        where: what said so, for errors.

    Raises:
        ConfigError: the URL or an option is wrong.
        Unsupported: it would work between threads only.
        IpcbusError: what ``ipcbus.open`` raises.
    """
    try:
        channel = open_channel(url, **options)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not channel.capabilities.crosses_processes:
        channel.close()
        raise Unsupported(f"{where}: {channel.url} works between threads only, and a bus is for processes: pipe:")
    return channel
