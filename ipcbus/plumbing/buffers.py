"""Buffers of one message: how many bytes they have, and what is left of them when some were written."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ipcbus.transport import Buffer

__all__ = ["behind", "size"]


def size(buffers: Sequence[Buffer]) -> int:
    """Return the bytes of buffers together."""
    return sum(part.nbytes if isinstance(part, memoryview) else len(part) for part in buffers)


def behind(buffers: Sequence[Buffer], done: int) -> list[Buffer]:
    """Return what is left of buffers behind their first ``done`` bytes."""
    left: list[Buffer] = []
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        if done >= view.nbytes:
            done -= view.nbytes
        else:
            left.append(view[done:])
            done = 0
    return left
