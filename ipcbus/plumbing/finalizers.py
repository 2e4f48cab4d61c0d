"""Finalizers that are silent when the interpreter is being taken apart."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["finalizer"]


def finalizer(function: Callable[[Any], None]) -> Callable[[Any], None]:
    """Make a ``__del__`` of a function: what it raises at the end of the interpreter is not said.

    By then modules may have lost their names, ``os`` among them, and the system is about to free everything.
    """
    is_finalizing = sys.is_finalizing  # kept here, for this module may have lost its names as well

    @functools.wraps(function)
    def finalize(self: Any) -> None:
        try:
            function(self)
        except Exception:
            if not is_finalizing():
                raise

    return finalize
