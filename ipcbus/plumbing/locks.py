"""Locks that an interruption cannot leak.

A signal handler that raises (Ctrl-C) may strike right after ``lock.acquire(...)`` returned and before a ``try`` that
stands behind it. So the acquire goes *inside* the ``try``, and the ``finally`` releases what this thread has::

    try:
        if not lock.acquire(blocking=False): ...
        ...
    finally:
        release(lock)

An RLock knows its owner, which makes that safe when the acquire failed. (``with lock:`` needs none of this, but knows
no timeout.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threading import RLock

__all__ = ["release"]


def release(lock: RLock) -> None:
    """Release a lock if this thread has it."""
    try:
        lock.release()
    except RuntimeError:
        pass  # the acquire before it failed or was interrupted
