"""The bulletin: one number in shared memory that says whether the subscriptions of a bus have changed.

A file in the directory of the bus. Its home counts in it; everybody who publishes has it mapped and compares, which is
one read of memory, so that publishing asks the home only when there is news. A home that takes over counts on where the
last one stopped: that is news, too.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

from ipcbus.errors import ChannelBroken
from ipcbus.plumbing.mapping import map_shared

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BULLETIN", "NEVER", "Bulletin", "stamp"]

BULLETIN = "ipcbus-topics"
"""The name of the file: one that nobody has in a directory of his own, since it is written to."""
_SIZE = mmap.PAGESIZE
_CLOSED = 2**64 - 1
NEVER = 2**64 - 2
"""A number that is never in a bulletin."""


class Bulletin:
    """This process's view of it.

    Args:
        directory: of the bus.
        home: whether this process is the home, and makes it if it is not there.

    Attributes:
        number: item 0 is the number.

    Raises:
        ChannelBroken: there is none, or the system refused.
    """

    __slots__ = ("_memory", "number")

    def __init__(self, directory: Path, *, home: bool = False) -> None:
        path = directory / BULLETIN
        flags = os.O_RDWR | os.O_CREAT if home else os.O_RDONLY
        try:
            fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                if home:
                    os.posix_fallocate(fd, 0, _SIZE)  # a full disk shows here, and not as a SIGBUS later
                elif os.fstat(fd).st_size < _SIZE:
                    raise ChannelBroken(
                        f"{path} is not complete: the process that keeps the bus has just begun, or was killed then"
                    )
                self._memory = map_shared(fd, _SIZE, writable=home)
            finally:
                os.close(fd)
        except FileNotFoundError as error:
            raise ChannelBroken(f"there is no {path}: the process that keeps the bus has ended") from error
        except ChannelBroken:
            raise
        except OSError as error:
            raise ChannelBroken(f"{path} cannot be used: {error.strerror}; see 'ulimit -n' and the space there") from error
        self.number = self._memory.cast("Q")

    def count(self) -> int:
        """Have everybody notice that something has changed, and return the new number."""
        before = self.number[0]
        self.number[0] = after = 1 if before == _CLOSED else before + 1
        return after

    def end(self) -> None:
        """Say that nobody counts here any more."""
        self.number[0] = _CLOSED

    @property
    def ended(self) -> bool:
        """Whether its home has closed it."""
        return self.number[0] == _CLOSED

    def close(self) -> None:
        """Free the mapping. Idempotent."""
        self.number.release()
        self._memory.release()


def stamp(directory: Path) -> tuple[int, int]:
    """Return what differs once there is another bulletin in a directory, or the same has become complete."""
    try:
        found = os.stat(directory / BULLETIN)  # noqa: PTH116  while there is no home, this runs for every message
    except OSError:
        return 0, 0
    return found.st_ino, found.st_size
