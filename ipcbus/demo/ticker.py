"""A ticker: prices that change thousands of times a second. Who cannot keep up gets the newest of each, and no backlog."""

from __future__ import annotations

import random

from ipcbus.web import Connection, Limits, Service

__all__ = ["SYMBOLS", "Ticker"]

SYMBOLS = (
    *("ALM", "BIRCH", "CEDAR", "DATE", "ELM", "FIR", "GUM", "HAZEL", "IVY", "JADE"),
    *("KELP", "LARCH", "MOSS", "NEEM", "OAK", "PINE", "QUINCE", "ROWAN", "SAGE", "TEAK"),
)
"""Nobody trades them."""
PERIOD = 0.008
"""Seconds between two changes of all prices: 2,500 changes a second."""
WATCHING = "watching"


class Ticker(Service):
    """Random walks of made-up prices. It costs next to nothing while nobody looks."""

    path, codec = "/ticker", "json"
    limits = Limits(message=64, rate=5, burst=5)  # clients have nothing to say here

    def __init__(self) -> None:
        self._prices = dict.fromkeys(SYMBOLS, 10_000)
        self._count = 0
        self.every(PERIOD)(self.tick)

    async def on_open(self, conn: Connection) -> None:
        """Let the client watch."""
        await conn.join(WATCHING)
        await conn.send({"op": "prices", "prices": self._prices, "rate": round(len(SYMBOLS) / PERIOD)})

    async def tick(self) -> None:
        """Change every price, and tell those who watch: symbol, price in cents, number of the change."""
        if not self.members(WATCHING):
            return
        for symbol, price in self._prices.items():
            self._count += 1
            self._prices[symbol] = price = max(100, price + random.randint(-20, 20))  # noqa: S311, PLW2901  no money depends on it
            await self.publish(WATCHING, [symbol, price, self._count], slow=f"latest:{symbol}")
