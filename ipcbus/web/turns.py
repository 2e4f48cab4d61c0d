"""Turns: handlers of one connection run one after another, those of different ones beside each other."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from typing import TYPE_CHECKING

from ipcbus.web.failures import FAILURES, pass_on_cancellation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Step = Callable[[], Awaitable[None] | None]

__all__ = ["BACKLOG", "Line", "Turns"]

BACKLOG = 4096
"""Events that may wait for their handlers before nothing more is taken from the inbox."""


class Line:
    """Steps that have to come one after another."""

    __slots__ = ("steps", "task")

    def __init__(self) -> None:
        self.steps: deque[Step] = deque()
        self.task: asyncio.Task[None] | None = None


class Turns:
    """Runs steps, and knows how many wait.

    Args:
        failed: called with the line whose step raised, and what it raised.
    """

    def __init__(self, failed: Callable[[Line, BaseException], None]) -> None:
        self._failed = failed
        self._pending = 0
        self._calm = asyncio.Event()
        self._calm.set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def waiting(self) -> int:
        """How many steps run or wait."""
        return self._pending

    @property
    def crowded(self) -> bool:
        """Whether so many steps wait that no more should come."""
        return not self._calm.is_set()

    async def calm(self) -> None:
        """Wait until so few steps wait that more may come."""
        await self._calm.wait()

    async def idle(self) -> None:
        """Wait until every step has run."""
        await self._idle.wait()

    def step(self, line: Line, step: Step) -> None:
        """Run a step of a line now, or after the ones before it."""
        if line.task is not None:
            line.steps.append(step)
            self._count(1)
            return
        pending = self._run(line, step)
        if pending is not None:
            self._count(1)
            line.task = asyncio.get_running_loop().create_task(self._work(line, pending))

    def _run(self, line: Line, step: Step) -> Awaitable[None] | None:
        try:
            result = step()
        except FAILURES as error:  # whatever a user's handler raises concerns one connection only
            self._failed(line, error)
            return None
        # A plain handler may well return the last send's awaitable, or something of its own: only the former is awaited.
        return result if inspect.isawaitable(result) else None

    async def _work(self, line: Line, pending: Awaitable[None] | None) -> None:
        while True:
            if pending is not None:
                try:
                    await pending
                except FAILURES as error:  # as in _run
                    pass_on_cancellation(error)
                    self._failed(line, error)
            self._count(-1)
            if not line.steps:
                line.task = None
                return
            pending = self._run(line, line.steps.popleft())

    def _count(self, change: int) -> None:
        self._pending += change
        if self._pending >= BACKLOG:
            self._calm.clear()
        elif self._pending < BACKLOG // 2:
            self._calm.set()
        if self._pending:
            self._idle.clear()
        else:
            self._idle.set()
