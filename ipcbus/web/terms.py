"""Terms: how long a client may be silent, and how long a connection may last."""

from __future__ import annotations

import asyncio
import math
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.web.config import FrontConfig

__all__ = ["GOING_AWAY", "SILENT", "TOO_MANY", "Terms"]

GOING_AWAY = 1001
"""The close code of a connection that is to be made anew."""
SILENT = 4408
"""The close code of a client that has said nothing in time."""
TOO_MANY = 4429
"""The close code of a client that goes on sending too fast."""
_EARLIEST = 0.9
"""The part of its lifetime that a connection has at least: clients that came together do not all come back at once."""


class Terms:
    """The terms of one connection; they end with it.

    Args:
        config: what the front end grants.
        close: called with a close code and a reason when a term is over.

    Attributes:
        listen: whether it matters what the client says from here on.
    """

    __slots__ = ("_aging", "_close", "_heard", "_idle", "_limit", "_loop", "_silence", "listen")

    def __init__(self, config: FrontConfig, close: Callable[[int, str], object]) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._close = close
        first, self._limit = config.first_message, config.idle_timeout
        self.listen = first > 0 or self._limit > 0
        self._silence = loop.call_later(first, close, SILENT, "nothing was said") if first else None
        self._heard = loop.time()
        self._idle = loop.call_later(self._limit, self._look) if self._limit else None
        age = config.max_lifetime * random.uniform(_EARLIEST, 1)  # noqa: S311  a spread, not a secret
        self._aging = loop.call_later(age, close, GOING_AWAY, "connect again") if age else None

    def spoke(self) -> None:
        """Note that the client has said something."""
        self._heard = self._loop.time()
        self.listen = self._limit > 0
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def pause(self) -> None:
        """Note that the client is not read from here on, whatever it says, until ``spoke``."""
        self._heard = math.inf

    def _look(self) -> None:
        # Where a message came meanwhile the timer is set anew only now: most clients send many in this time.
        left = self._heard + self._limit - self._loop.time()
        if left <= 0:
            self._close(SILENT, "nothing was said for too long")
            return
        self._idle = self._loop.call_later(min(left, self._limit), self._look)

    def end(self) -> None:
        """Forget all terms. Idempotent."""
        for timer in (self._silence, self._idle, self._aging):
            if timer is not None:
                timer.cancel()
        self._silence = self._idle = self._aging = None
