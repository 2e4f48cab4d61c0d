"""Finalizers that are silent when the interpreter is being taken apart."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, ParamSpec

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["finalizer"]

P = ParamSpec("P")


def finalizer(function: Callable[P, None]) -> Callable[P, None]:
    """Make a ``__del__``, or what a weak reference calls, of a function: what it raises at the interpreter's end is not said.

    By then modules may have lost their names, ``os`` among them, and the system is about to free everything.
    """
    is_finalizing = sys.is_finalizing  # kept here, for this module may have lost its names as well

    @functools.wraps(function)
    def finalize(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except Exception:
            if not is_finalizing():
                raise

    return finalize
