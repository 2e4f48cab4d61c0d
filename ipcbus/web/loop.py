"""The event loop that the processes of the web layer run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["loop_factory"]


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes a loop of uvloop where that is installed, else None: it is faster, not different."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
