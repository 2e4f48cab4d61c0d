"""What is done for who receives a message while that is encoded, and undone when it is not sent after all."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["note", "undo"]

_MOST = 1024
"""Things of one thread that can be undone; those of one message, and nobody sends so many in one."""


class _Done(threading.local):
    """What this thread did last, newest first: what the message has of it, and what undoes it."""

    def __init__(self) -> None:
        self.things: deque[tuple[bytes, Callable[[], None]]] = deque(maxlen=_MOST)


_done = _Done()


def note(token: bytes, back: Callable[[], None]) -> None:
    """Note something that is done for the receiver of the message that this thread is encoding.

    Args:
        token: bytes that the message has, and only one for which this was done.
        back: undoes it.
    """
    _done.things.appendleft((token, back))


def undo(is_in: Callable[[bytes], bool]) -> None:
    """Undo what was done for a message that was not sent.

    Args:
        is_in: tells whether the message has a token.
    """
    found: dict[bytes, Callable[[], None]] = {}
    for thing in list(_done.things):
        token, back = thing
        if token not in found and is_in(token):  # an earlier one was done for a message before this
            found[token] = back
            _done.things.remove(thing)
    for back in found.values():
        back()
