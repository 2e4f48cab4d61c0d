"""Failures: what users' functions may raise without ending more than themselves."""

from __future__ import annotations

import asyncio

__all__ = ["FAILURES", "pass_on_cancellation"]

FAILURES = (Exception, asyncio.CancelledError)
"""What a handler fails with. A task or a future that it awaits may have been cancelled, which is no ``Exception``."""


def pass_on_cancellation(error: BaseException) -> None:
    """Raise it again if it is the task that runs which is cancelled, and not something that it awaits."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error
