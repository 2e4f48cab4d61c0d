"""Scarcity: a process without descriptors, for which strangers can see, keeps its clients and goes on once it has some."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ipcbus.plumbing.fds import lacking
from ipcbus.web.moments import pause

if TYPE_CHECKING:
    from ipcbus.errors import ChannelBroken

__all__ = ["outlast"]

logger = logging.getLogger("ipcbus.web")

PAUSE = 0.5
"""Seconds until it is tried again: nothing tells when a descriptor is free."""


async def outlast(error: ChannelBroken, name: str) -> None:
    """Wait a moment if a descriptor is all that is lacking.

    Args:
        error: what a channel has raised, which has lost nothing then.
        name: of whom that concerns, for the log.

    Raises:
        ChannelBroken: it is something else.
    """
    if not lacking(error):
        raise error
    logger.warning("%s: %s (tried again by itself)", name, error)
    await pause(PAUSE)
