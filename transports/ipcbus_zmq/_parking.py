"""Parked messages: what a sender leaves in the private directory when it closes before any receiver has come.

A file per closing sender, whole or not there at all: it gets its name when it is complete. Each message is a ``u32``
number of parts, a ``u64`` size of each, and the parts.
"""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ipcbus.transport import Frame

__all__ = ["Door", "parked", "publish", "unpark", "write"]

_PREFIX = "parked-"


class Door:
    """A file's lock, held inside ``with``: receivers come in one at a time, and not while a sender looks for one.

    Args:
        fd: a descriptor of the file that the caller closes afterwards, which lets go too if an interruption came in between.
        exclusive: true for a receiver.
    """

    __slots__ = ("_fd", "_kind")

    def __init__(self, fd: int, *, exclusive: bool) -> None:
        self._fd = fd
        self._kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH

    # No generator: one that is interrupted before the body of the "with" would let go later, of what has the number then.

    def __enter__(self) -> None:
        fcntl.flock(self._fd, self._kind)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)


def write(directory: Path, frames: Iterable[Frame]) -> Path:
    """Write messages to a file that receivers do not look at yet; raises ``OSError``, and then nothing is there."""
    fd, name = tempfile.mkstemp(prefix="parking-", dir=directory)
    try:
        with os.fdopen(fd, "wb") as file:
            for frame in frames:
                sizes = [memoryview(part).nbytes for part in frame]
                file.write(struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
                for part in frame:
                    file.write(part)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


def publish(file: Path, frames: list[Frame]) -> None:
    """Let receivers see what was written, and empty the list of it."""
    # Named after the time since boot: what one process parked twice comes out in order.
    public = file.with_name(f"{_PREFIX}{time.monotonic_ns():020}-{os.getpid()}")
    # In one step in C: a signal handler that raises cannot come in between, after which they would be left here twice.
    frames[:] = filter(None, map(os.rename, (file,), (public,)))


def parked(directory: Path) -> dict[Path, list[Frame]]:
    """Return what is parked, by file, in the order in which it was parked."""
    found = sorted(directory.glob(_PREFIX + "*"))
    return {path: list(_parse(path.read_bytes())) for path in found}


def unpark(files: Iterable[Path]) -> None:
    """Remove files that were received."""
    for path in files:
        path.unlink(missing_ok=True)


def _parse(content: bytes) -> Iterator[Frame]:
    view, at = memoryview(content), 0
    while at < len(view):
        (count,) = struct.unpack_from("<I", view, at)
        sizes = struct.unpack_from(f"<{count}Q", view, at + 4)
        at += 4 + 8 * count
        parts = []
        for size in sizes:
            parts.append(bytes(view[at : at + size]))
            at += size
        yield parts
