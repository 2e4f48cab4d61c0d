"""Ticker: what a service does every so many seconds."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any

from ipcbus.web.failures import FAILURES, pass_on_cancellation
from ipcbus.web.moments import until

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Ticker"]

logger = logging.getLogger("ipcbus.web")


class Ticker:
    """Calls functions at regular times; one that raises is logged, counted, and called again next time.

    Args:
        failed: called when one has raised.
    """

    def __init__(self, failed: Callable[[], None]) -> None:
        self._failed = failed
        self._functions: list[tuple[float, Callable[[], Any]]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._running = False

    def add(self, seconds: float, function: Callable[[], Any]) -> None:
        """Have a plain or async function called every so many seconds.

        Raises:
            ValueError: the time is not positive.
        """
        if seconds <= 0:
            raise ValueError(f"every {seconds!r} seconds: that must be more than 0")
        self._functions.append((seconds, function))
        if self._running:
            self._tasks.append(asyncio.create_task(self._tick(seconds, function)))

    def start(self) -> None:
        """Begin to call them."""
        self._running = True
        self._tasks = [asyncio.create_task(self._tick(*entry)) for entry in self._functions]

    async def stop(self) -> None:
        """Stop calling them; one that runs is cancelled."""
        self._running = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def call_all(self) -> None:
        """Call each of them once, now."""
        for _, function in list(self._functions):
            await self._call(function)

    async def _tick(self, seconds: float, function: Callable[[], Any]) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        while True:
            await until(due)
            await self._call(function)
            # A call that took longer than its time is not made up for: the next one comes at the next regular moment.
            due += seconds * max(1, -(-(loop.time() - due) // seconds))

    async def _call(self, function: Callable[[], Any]) -> None:
        try:
            result = function()
            if inspect.isawaitable(result):
                await result
        except FAILURES as error:
            pass_on_cancellation(error)
            self._failed()
            logger.exception("%s, called at regular times, failed", getattr(function, "__qualname__", function))
