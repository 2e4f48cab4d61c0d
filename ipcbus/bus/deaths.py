"""Deaths: how the home of a bus hears that a process has ended, which the end of its connection does not say."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ipcbus.errors import ChannelBroken

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.directory.server import Directory

__all__ = ["Deaths"]


class Deaths:
    """Tells of the end of processes, so that what is theirs ends with them and not with a connection they may make anew.

    Used in the directory's thread alone, but for this process itself, whose end nobody need be told of here.

    Args:
        directory: the home's, whose thread tells.
        died: is told the pid, once for each process.
    """

    def __init__(self, directory: Directory, died: Callable[[int], None]) -> None:
        self._directory = directory
        self._died = died
        self._watched: set[int] = set()

    def watch(self, pid: int) -> None:
        """Tell when a process ends. Watching it again changes nothing.

        Raises:
            ChannelBroken: the system refused.
        """
        if pid == os.getpid() or pid in self._watched:
            return
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            raise ChannelBroken(
                f"process {os.getpid()}, the home of the bus, cannot watch process {pid}: {error.strerror}; see 'ulimit -n'"
            ) from error
        self._directory.watch(pidfd, lambda: self._ended(pid))
        self._watched.add(pid)

    def _ended(self, pid: int) -> None:
        self._watched.discard(pid)
        self._died(pid)
