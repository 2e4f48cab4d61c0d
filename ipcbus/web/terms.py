"""Terms: how long a client may take to speak, and how long a connection may last."""

from __future__ import annotations

import asyncio
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
        waits: whether the client has yet to speak.
    """

    __slots__ = ("_aging", "_silence", "waits")

    def __init__(self, config: FrontConfig, close: Callable[[int, str], object]) -> None:
        loop = asyncio.get_running_loop()
        self.waits = config.first_message > 0
        self._silence = loop.call_later(config.first_message, close, SILENT, "nothing was said") if self.waits else None
        age = config.max_lifetime * random.uniform(_EARLIEST, 1)  # noqa: S311  a spread, not a secret
        self._aging = loop.call_later(age, close, GOING_AWAY, "connect again") if age else None

    def spoke(self) -> None:
        """Note that the client has said something."""
        self.waits = False
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def end(self) -> None:
        """Forget all terms. Idempotent."""
        self.spoke()
        if self._aging is not None:
            self._aging.cancel()
            self._aging = None
