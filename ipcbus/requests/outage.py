"""Outages: times in which nothing can be received from an inbox, most of which are over soon."""

from __future__ import annotations

import logging
from time import monotonic, sleep

from ipcbus.requests.reply import PATIENCE

__all__ = ["Outage"]

logger = logging.getLogger("ipcbus.requests")

_PAUSE = 0.1
"""Seconds between two tries."""
_OVER = 1.0
"""Seconds without a failure after which the next one is of another outage."""


class Outage:
    """How long receiving has failed by now."""

    def __init__(self) -> None:
        self._began = self._last = -_OVER

    def endure(self, error: Exception) -> bool:
        """Let a moment pass after a failure, which is logged once for each outage; false once this has taken too long."""
        now = monotonic()
        if now - self._last >= _OVER:
            self._began = now
            logger.error("nothing can be received from the inbox of this process, which is tried again: %s", error)
        sleep(_PAUSE)
        self._last = monotonic()
        return now - self._began < PATIENCE
