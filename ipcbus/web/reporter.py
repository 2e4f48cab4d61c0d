"""Reporter: writes what a process counts into its slot, now and then and at its end.

Counters go on where the process's last start left them, so that they never go back; gauges are those of this start.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.web.snapshots import Slot

__all__ = ["Reporter", "added", "counted"]

INTERVAL = 0.5
"""Seconds between two snapshots: what a killed process may have counted that nobody hears of."""


def counted(counts: Any) -> dict[str, Any]:
    """Return the fields of a dataclass of counters: whole numbers, and tables of them by reason, code and the like."""
    values = {field.name: getattr(counts, field.name) for field in dataclasses.fields(counts)}
    return {
        name: {str(key): number for key, number in value.items()} if isinstance(value, Mapping) else value
        for name, value in values.items()
        if isinstance(value, (int, Mapping))
    }


def added(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Add up two sets of counters; tables add up entry by entry."""
    total = dict(first)
    for name, value in second.items():
        before = total.get(name)
        if isinstance(value, Mapping):
            total[name] = added(before if isinstance(before, Mapping) else {}, value)
        else:
            total[name] = value + (before if isinstance(before, int) else 0)
    return total


class Reporter:
    """Reports for one process.

    Args:
        slot: where to.
        counters: returns what was counted since this process started.
        gauges: returns what is now.
    """

    def __init__(
        self, slot: Slot, counters: Callable[[], Mapping[str, Any]], gauges: Callable[[], Mapping[str, Any]] = dict
    ) -> None:
        self._slot = slot
        self._before = slot.read().get("counters", {})
        self._counters = counters
        self._gauges = gauges

    def write(self) -> None:
        """Report now."""
        self._slot.write({"counters": added(self._before, self._counters()), "gauges": dict(self._gauges())})

    async def run(self, interval: float = INTERVAL) -> None:
        """Report every so many seconds until cancelled, and once more then."""
        never = asyncio.get_running_loop().create_future()
        try:
            while True:
                self.write()
                await asyncio.wait((never,), timeout=interval)
        finally:
            self.write()
