"""Reporter: writes what a process counts into its slot, now and then and at its end.

Counters go on where the process's last start left them, so that they never go back; gauges are those of this start. How
late it was woken for a report is in the next one: so late is everything that this process does.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from collections.abc import Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ipcbus.web.snapshots import Slot

__all__ = ["Reporter", "added", "counted", "reporting"]

logger = logging.getLogger("ipcbus.web")

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
        before = slot.read()
        self._before = before.get("counters", {})
        self._starts = before.get("starts", 0) + 1
        self._counters = counters
        self._gauges = gauges
        self._failing = False
        self._lag = 0.0

    def write(self) -> None:
        """Report now.

        Raises:
            ValueError: it takes more than a slot has.
        """
        counters = added(self._before, self._counters())
        now = {"counters": counters, "gauges": dict(self._gauges()), "lag": self._lag}
        self._slot.write({"pid": os.getpid(), "starts": self._starts, **now})

    def attempt(self) -> None:
        """Report now, or log why that cannot be, once until it can be again: nobody's work is to end over it."""
        try:
            self.write()
        except Exception:
            if not self._failing:
                logger.exception(
                    "what this process (pid %d) has counted cannot be reported; until it can, its metrics stand still",
                    os.getpid(),
                )
            self._failing = True
        else:
            self._failing = False

    async def run(self, interval: float = INTERVAL) -> None:
        """Report every so many seconds until cancelled."""
        loop = asyncio.get_running_loop()
        never = loop.create_future()
        while True:
            self.attempt()
            due = loop.time() + interval
            await asyncio.wait((never,), timeout=interval)
            self._lag = max(0.0, loop.time() - due)


@asynccontextmanager
async def reporting(
    slot: Slot | None, counters: Callable[[], Mapping[str, Any]], gauges: Callable[[], Mapping[str, Any]] = dict
) -> AsyncIterator[None]:
    """Have a process reported on inside; without a slot nothing is."""
    if slot is None:
        yield
        return
    reporter = Reporter(slot, counters, gauges)
    task = asyncio.create_task(reporter.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        reporter.attempt()
