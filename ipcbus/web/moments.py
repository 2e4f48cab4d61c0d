"""Moments: waiting for a time that is an event in itself, such as the next tick. Nothing is asked for over and over by it."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["pause", "ticks", "until"]


async def until(moment: float) -> None:
    """Wait until a time of the event loop's clock."""
    loop = asyncio.get_running_loop()
    reached: asyncio.Future[None] = loop.create_future()
    timer = loop.call_at(moment, _reach, reached)
    try:
        await reached
    finally:
        timer.cancel()


def _reach(future: asyncio.Future[None]) -> None:
    if not future.done():  # else who waited was cancelled in the same turn
        future.set_result(None)


async def pause(seconds: float) -> None:
    """Wait so many seconds."""
    await until(asyncio.get_running_loop().time() + seconds)


async def ticks(seconds: float) -> AsyncIterator[tuple[float, float]]:
    """Yield every so many seconds the time, and when this process was found to have stood still last, or began to look.

    What has come while it stood still is not read yet: nobody could be heard until then, and nobody is to blame.
    """
    last = still = monotonic()
    while True:
        await pause(seconds)
        now = monotonic()
        if now - last > 2 * seconds:
            still = now
        last = now
        yield now, still
