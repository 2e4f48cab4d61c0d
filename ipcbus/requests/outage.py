"""Outages: what an inbox cannot do for a moment, for lack of descriptors, say: receive, or watch a process."""

from __future__ import annotations

import logging
import threading
from time import monotonic

from ipcbus.requests.route import PATIENCE

__all__ = ["AGAIN", "Outage"]

logger = logging.getLogger("ipcbus.requests")

AGAIN = 0.5
"""Seconds after which it is tried again to watch a process that could not be watched, for lack of descriptors, say."""
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
        threading.Event().wait(_PAUSE)  # nothing tells when it is over
        self._last = monotonic()
        return now - self._began < PATIENCE
