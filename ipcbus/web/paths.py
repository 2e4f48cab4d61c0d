"""Paths: which service serves which, in memory that all service processes share.

The next process of a service looks there before it says that it could serve: what it wants may be another service's, or
may be wanted at the same time by the next process of another one.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ipcbus.errors import ConfigError
from ipcbus.plumbing.claim import Claim, holder
from ipcbus.plumbing.fds import TravellingFd
from ipcbus.web.snapshots import Snapshots

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ipcbus.web.snapshots import Slot

__all__ = ["Paths", "both_want"]


def both_want(service: str, owner: str, path: str) -> str:
    """Return what is said of a path that two services want."""
    return f"{service} and {owner} both want the path {path!r}; a path has one service"


class Paths:
    """The paths that services serve, and whether they answer requests; pickles into a child that is being started.

    Args:
        processes: how many service processes there are.

    Raises:
        OSError: the system refused.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._page = Snapshots(map(str, range(2 * processes)))  # of each what it serves, and what its next one is about to
        self._claims = TravellingFd(os.memfd_create("ipcbus-paths", os.MFD_CLOEXEC))
        self._claim: Claim | None = None

    def reserve(self, process: int, service: str, path: str) -> None:
        """Keep a path for the next process of a service, until that one takes it or ends.

        Args:
            process: its index among all service processes.
            service: the name of its service.
            path: the path.

        Raises:
            ConfigError: another service serves the path, or its next process is about to.
        """
        with self._alone():
            owner = self._owner(service, path)
            if owner is not None:
                raise ConfigError(both_want(service, owner, path))
            self._claim = Claim(self._claims.fileno(), process)
            self._claim.take()
            self._slot(self._processes + process).write({"service": service, "path": path})

    def take(self, process: int, service: str, path: str, *, answers: bool = True) -> None:
        """Note which path a service process serves from here on. That of one that has ended stays noted: it is started again.

        Nothing is noted of a path that another service has, since front ends leave it with that one.

        Args:
            process: its index among all service processes.
            service: the name of its service.
            path: the path.
            answers: whether the service answers requests.
        """
        with self._alone():
            taken = self._owner(service, path) is not None
            self._slot(process).write({} if taken else {"service": service, "path": path, "answers": answers})
            if self._claim is not None:
                self._claim.close()
                self._claim = None

    def answers(self, service: str) -> bool:
        """Tell whether a service answers requests; also True while none of its processes has said so."""
        return all(said["answers"] for said in self._serving() if said["service"] == service)

    def _owner(self, service: str, path: str) -> str | None:
        for said in (*self._serving(), *self._reserved()):
            if said["path"] == path and said["service"] != service:
                return str(said["service"])
        return None

    def _serving(self) -> list[dict[str, Any]]:
        return [said for number in range(self._processes) if (said := self._slot(number).read())]

    def _reserved(self) -> list[dict[str, Any]]:
        claims, count = self._claims.fileno(), self._processes
        held = (number for number in range(count) if holder(claims, number) is not None)
        return [said for number in held if (said := self._slot(count + number).read())]

    def _slot(self, number: int) -> Slot:
        return self._page.slot(str(number))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Have no other process look or write meanwhile."""
        own = os.open(f"/proc/self/fd/{self._claims.fileno()}", os.O_RDWR | os.O_CLOEXEC)  # a lock belongs to who opened
        try:
            fcntl.flock(own, fcntl.LOCK_EX)
            yield
        finally:
            os.close(own)

    def close(self) -> None:
        """Free the descriptors: it cannot be passed on any more. Idempotent."""
        self._page.close()
        self._claims.close()
