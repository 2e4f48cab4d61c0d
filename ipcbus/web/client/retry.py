"""When a connection is tried again, and when it is given up. No I/O in here."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Container

__all__ = ["Backoff", "is_final"]

_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses that say: later."""


class Backoff:
    """Delays that grow, with full jitter: clients that lost one server do not come back in one instant.

    Args:
        first: seconds that the first delay has at most.
        longest: seconds that any delay has at most.
        chance: returns a number between 0 and 1.
    """

    def __init__(self, first: float, longest: float, chance: Callable[[], float] = random.random) -> None:
        self._first = first
        self._longest = longest
        self._chance = chance
        self._failures = 0

    def lasted(self, seconds: float) -> None:
        """Note that there was a connection for so long. One that lasted longer than any delay begins the count anew."""
        if seconds > self._longest:
            self._failures = 0

    def delay(self) -> float:
        """Return how many seconds to wait now."""
        limit = min(self._longest, self._first * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return limit * self._chance()


def is_final(code: int, *, refused: bool, give_up_on: Container[int]) -> bool:
    """Tell whether another try is pointless.

    Args:
        code: the close code, or the HTTP status of an opening handshake that was refused.
        refused: whether it is the latter; 0 then stands for a server that could not be reached, or was none.
        give_up_on: codes of either kind after which the user does not want one.
    """
    if code in give_up_on:
        return True
    return refused and code != 0 and code not in _TRANSIENT
