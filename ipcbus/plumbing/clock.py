"""Deadlines: one timeout over a whole operation, however many waits it takes."""

from __future__ import annotations

from time import monotonic

__all__ = ["EVER", "NEVER", "Deadline"]

EVER = 2_000_000.0
"""Seconds, 23 days, from which on a timeout is without limit: the system can wait for no more than 2**31 milliseconds."""


class Deadline:
    """A moment by which an operation must be over.

    Args:
        timeout: seconds from now; None is never, and so is what is too long to be waited for.

    Raises:
        ValueError: it is not a number (NaN).
    """

    __slots__ = ("_at",)

    def __init__(self, timeout: float | None) -> None:
        if timeout is None or timeout > EVER:
            self._at: float | None = None
        elif timeout <= EVER:
            self._at = monotonic() + timeout
        else:  # every comparison is false, and so would be that of the clock with the moment: whoever waits would spin
            raise ValueError(f"a timeout is a number of seconds, not {timeout}")

    def remaining(self) -> float | None:
        """Return the seconds left, never negative; None is without limit."""
        return None if self._at is None else max(0.0, self._at - monotonic())

    def milliseconds(self) -> int:
        """Return what is left as ``poll`` and zmq want it: whole milliseconds rounded up, -1 without limit."""
        left = self.remaining()
        return -1 if left is None else -int(-left * 1000 // 1)

    @property
    def expired(self) -> bool:
        """Whether the moment has come."""
        return self._at is not None and monotonic() >= self._at


NEVER = Deadline(None)
"""The deadline that does not come."""
