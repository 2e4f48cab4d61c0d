"""Gate: what keeps events from a service process that cannot take them. No I/O.

It is *shut* while the process is away: of what happens then only messages are kept, because the snapshot for the next
process says everything else. It *holds* from the snapshot until that process is ready, and keeps all. *Open*, it lets as
many messages through as the process has given credit for; behind the first that has to wait everything waits, in order.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from ipcbus.web.link import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Gate"]

HELD_EVENTS = 2048
HELD_BYTES = 1 << 20
"""What may be held for one service process before its clients are not read any more."""

_SHUT, _HOLDING, _OPEN = range(3)


class Gate:
    """Lets events through, or holds them.

    Args:
        through: where events go, with the size of their payload.
    """

    __slots__ = ("_bytes", "_held", "_mode", "_through", "credit")

    def __init__(self, through: Callable[[tuple[Any, ...], int], None]) -> None:
        self._through = through
        self._mode = _SHUT
        self._held: deque[tuple[tuple[Any, ...], int]] = deque()
        self._bytes = 0
        self.credit = 0
        """Messages that may still pass."""

    def __len__(self) -> int:
        return len(self._held)

    @property
    def full(self) -> bool:
        """Whether more is held than should be."""
        return len(self._held) >= HELD_EVENTS or self._bytes >= HELD_BYTES

    def put(self, event: tuple[Any, ...], size: int = 0) -> None:
        """Let an event pass if that is possible now, else hold it (shut: only if it is a message)."""
        if self._mode == _OPEN and not self._held:
            if event[0] != Event.MSG:
                self._through(event, size)
                return
            if self.credit > 0:
                self.credit -= 1
                self._through(event, size)
                return
        if self._mode != _SHUT or event[0] == Event.MSG:
            self._held.append((event, size))
            self._bytes += size

    def shut(self, unsent: Iterable[tuple[Any, ...]] = ()) -> None:
        """Let nothing pass any more.

        Args:
            unsent: events that passed before and were not sent; they come before all that is held.
        """
        self._mode = _SHUT
        self.credit = 0
        held = [*((event, len(event[3])) for event in unsent if event[0] == Event.MSG), *self._held]
        self._held = deque((event, size) for event, size in held if event[0] == Event.MSG)
        self._bytes = sum(size for _, size in self._held)

    def hold(self) -> None:
        """Keep everything from here on: the snapshot is taken."""
        self._mode = _HOLDING

    def open(self, credit: int) -> None:
        """Let through what is held and what comes, but not more than ``credit`` messages."""
        self._mode = _OPEN
        self.credit = credit
        self._flow()

    def grant(self, count: int) -> None:
        """Let so many messages more through."""
        if self._mode == _OPEN:
            self.credit += count
            self._flow()

    def _flow(self) -> None:
        held = self._held
        while held:
            event, size = held[0]
            if event[0] == Event.MSG:
                if self.credit <= 0:
                    return
                self.credit -= 1
            held.popleft()
            self._bytes -= size
            self._through(event, size)
