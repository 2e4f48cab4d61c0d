"""Roster: the processes that there are, and those that are to take the place of one."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ipcbus.plumbing.clock import Deadline
from ipcbus.wait import wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ipcbus.supervisor.child import Child

__all__ = ["Roster"]


class Roster:
    """Children by the names of their programs: at most one that is *in office*, and one *heir* that waits for its place.

    Attributes:
        running: those in office.
        heirs: the others. Each has somebody of its name in office.
    """

    def __init__(self) -> None:
        self.running: dict[str, Child] = {}
        self.heirs: dict[str, Child] = {}
        self._lock = threading.RLock()  # which a signal handler that tells something may have

    @property
    def everybody(self) -> list[Child]:
        """All of them."""
        return [*self.running.values(), *self.heirs.values()]

    def has(self, child: Child) -> bool:
        """Tell whether it was not released."""
        return self.running.get(child.name) is child or self.is_heir(child)

    def is_heir(self, child: Child) -> bool:
        """Tell whether it waits for the place of another one."""
        return self.heirs.get(child.name) is child

    def add(self, child: Child) -> None:
        """Put it into office, or make it the heir if it was made to be one."""
        (self.heirs if child.heir else self.running)[child.name] = child

    def succeed(self, name: str) -> Child | None:
        """Put the heir of that name, if there is one, into the office that became free, and return it."""
        heir = self.heirs.pop(name, None)
        if heir is not None:
            self.running[name] = heir
        return heir

    def tell(self, name: str, data: bytes) -> bool:
        """Say something to who is in office; return whether that was possible."""
        with self._lock:
            child = self.running.get(name)
            return child is not None and child.tell(data)

    def release(self, child: Child) -> None:
        """Free what belongs to one that has ended."""
        child.listen()
        with self._lock:  # nobody tells it anything by a descriptor that is somebody else's by now
            child.release()
            for those in (self.running, self.heirs):
                if those.get(child.name) is child:
                    del those[child.name]

    def stop(self, names: Iterable[str], timeout: float, ended: Callable[[Child, bool], None]) -> None:
        """Stop processes together, heirs included.

        Args:
            names: of their programs.
            timeout: seconds that they have; then they are killed.
            ended: called for each that has ended and was released, with whether it was killed.
        """
        children = [child for name in names for those in (self.heirs, self.running) if (child := those.get(name))]
        for child in children:
            child.terminate(timeout)
        deadline = Deadline(timeout)
        waiting = {child.sentinel: child for child in children}
        while waiting and (gone := wait(waiting, deadline.remaining())):
            for sentinel in gone:
                child = waiting.pop(sentinel)
                child.process.join()
                self.release(child)
                ended(child, False)  # noqa: FBT003  the signature is three lines above
        for child in waiting.values():
            child.kill()
            self.release(child)
            ended(child, True)  # noqa: FBT003  as above
