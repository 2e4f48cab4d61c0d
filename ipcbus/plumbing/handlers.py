"""Signal handlers: what one of them raises amid somebody else's code is not that code's error."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import CodeType

__all__ = ["raised_by_handler"]


def raised_by_handler(error: BaseException) -> bool:
    """Tell whether a signal handler of this process raised an error, and not what it interrupted."""
    import signal  # only where something went wrong, and so nobody waits for it at the start

    handlers = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def _code(handler: object) -> CodeType | None:
    """Return what runs as the Python code of a handler; None where it is no function of Python's."""
    import functools

    while isinstance(handler, functools.partial):
        handler = handler.func
    function = getattr(handler, "__func__", handler)
    if not hasattr(function, "__code__"):
        function = getattr(type(function), "__call__", None)  # noqa: B004  looked into, not only for
    code: CodeType | None = getattr(function, "__code__", None)
    return code
