"""Paths: which service serves which, in memory that all service processes share.

The next process of a service looks there before it says that it could serve: what it wants may be another service's.
"""

from __future__ import annotations

from ipcbus.errors import ConfigError
from ipcbus.web.snapshots import Snapshots

__all__ = ["Paths", "both_want"]


def both_want(service: str, owner: str, path: str) -> str:
    """Return what is said of a path that two services want."""
    return f"{service} and {owner} both want the path {path!r}; a path has one service"


class Paths:
    """The paths that services serve; pickles into a child that is being started.

    Args:
        processes: how many service processes there are.

    Raises:
        OSError: the system refused.
    """

    def __init__(self, processes: int) -> None:
        self._page = Snapshots(map(str, range(processes)))

    def take(self, process: int, service: str, path: str) -> None:
        """Note which path a service process serves from here on. Those of one that has ended stay noted: it is started again.

        Args:
            process: its index among all service processes.
            service: the name of its service.
            path: the path.
        """
        self._page.slot(str(process)).write({"service": service, "path": path})

    def refuse_taken(self, service: str, path: str) -> None:
        """Raise ``ConfigError`` if another service serves the path."""
        for said in self._page.read().values():
            if said and said["path"] == path and said["service"] != service:
                raise ConfigError(both_want(service, said["service"], path))

    def close(self) -> None:
        """Free the descriptor: it cannot be passed on any more. Idempotent."""
        self._page.close()
