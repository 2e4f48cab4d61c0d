"""Paces: how many messages each phase of a measurement has, until one takes about as long as it should."""

from __future__ import annotations

__all__ = ["Pace"]

_FIRST = 8
"""Messages of the phase that opens connections, fills caches and touches memory for the first time; how long it takes says
nothing. With fewer, the first large ones would be measured, each in memory that is used again from then on."""
_LEAST = 3
"""Messages of a phase that counts, and so the time of two."""
_GROWTH = (2.0, 16.0)
_ENOUGH = 0.5
"""The part of the wished time that a phase must take to count."""


class Pace:
    """Plans phases that grow until one takes about the wished time: that one counts.

    Args:
        seconds: what it should take.
        most: messages that a phase may have at most; None is without limit.

    Attributes:
        count: how many messages the next phase has.
    """

    def __init__(self, seconds: float, most: int | None = None) -> None:
        self._seconds = seconds
        self._most = most
        self._opening = True
        self.count = _FIRST

    def counts(self, took: float) -> bool:
        """Tell whether the phase that took so many seconds counts; if not, ``count`` is the next one's."""
        if not self._opening and (took >= _ENOUGH * self._seconds or self.count == self._most):
            return True
        if self._opening:
            self._opening, self.count = False, _LEAST
            return False
        lowest, highest = _GROWTH
        self.count = round(self.count * min(max(self._seconds / max(took, 1e-9), lowest), highest))
        if self._most is not None:
            self.count = min(self.count, self._most)
        return False
