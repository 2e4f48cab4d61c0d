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
        """Note which path a service process serves from here on. That of one that has ended stays noted: it is started again.

        Nothing is noted of a path that another service has, since front ends leave it with that one.

        Args:
            process: its index among all service processes.
            service: the name of its service.
            path: the path.
        """
        taken = self._owner(service, path) is not None
        self._page.slot(str(process)).write({} if taken else {"service": service, "path": path})

    def refuse_taken(self, service: str, path: str) -> None:
        """Raise ``ConfigError`` if another service serves the path."""
        owner = self._owner(service, path)
        if owner is not None:
            raise ConfigError(both_want(service, owner, path))

    def _owner(self, service: str, path: str) -> str | None:
        noted = ((said["service"], said["path"]) for said in self._page.read().values() if said)
        return next((other for other, its_path in noted if its_path == path and other != service), None)

    def close(self) -> None:
        """Free the descriptor: it cannot be passed on any more. Idempotent."""
        self._page.close()
