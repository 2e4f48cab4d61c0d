"""Seeing the one receiver die: a sender that waits for it to make room is not to wait for ever."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

from ipcbus.errors import ChannelBroken, PeerDied
from ipcbus.plumbing.fds import refused

if TYPE_CHECKING:
    from ipcbus.plumbing.state import SharedState
    from ipcbus.plumbing.wakeup import Echo

__all__ = ["Watch"]


class Watch:
    """Has a set of descriptors show the death of the receiver.

    Args:
        state: says who that is.
        epoll: the set.
        echo: tells others who wait on it of a death that was found, which nothing shows any more.
        needed: whether nothing else may show a death; if not, it is done without where no descriptor is left.
    """

    __slots__ = ("_echo", "_epoll", "_fd", "_needed", "_pid", "_state")

    def __init__(self, state: SharedState, epoll: select.epoll, echo: Echo, *, needed: bool = True) -> None:
        self._needed = needed
        self._state = state
        self._epoll = epoll
        self._echo = echo
        self._fd = -1
        self._pid = -1

    def check(self) -> None:
        """See to it that the death of the present receiver, if there is one, shows.

        Raises:
            PeerDied: it has died, and nobody has taken over.
            ChannelBroken: no descriptor is left to watch it with, and that is needed.
        """
        try:
            self._look()
        except ChannelBroken:
            self._echo.ring()
            raise

    def _look(self) -> None:
        while True:
            pid = self._state.receiver()
            if pid is None:
                self.close()
                if (dead := self._state.died()) is not None:
                    raise PeerDied(f"the receiver, process {dead}, died and nobody has taken over; there is no room", dead)
                return
            if pid != self._pid:
                self.close()
                if pid in (0, os.getpid()):  # in a namespace of its own it has no number here, and cannot be watched
                    return
                try:
                    self._open(pid)
                except ProcessLookupError:
                    if self._state.receiver() != pid:
                        continue
                    raise _orphaned(pid) from None
                except OSError as error:
                    if not self._needed:
                        return
                    raise refused("the receiver cannot be watched", error, "nothing was sent") from error
            if self._has_ended() and self._state.receiver() == pid:
                raise _orphaned(pid)
            return

    def _open(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)
        self._pid = pid
        self._epoll.register(self._fd, select.EPOLLIN)

    def _has_ended(self) -> bool:
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(0))

    def close(self) -> None:
        """Stop watching. Idempotent."""
        if self._fd >= 0 and not self._epoll.closed:
            self._epoll.unregister(self._fd)
        self.forget()

    def forget(self) -> None:
        """Free the descriptor and leave the set alone: it goes too, or is a parent's. Idempotent."""
        fd, self._fd, self._pid = self._fd, -1, -1
        if fd >= 0:
            os.close(fd)


def _orphaned(pid: int) -> PeerDied:
    """Return the error for a receiver that ended while a child that it forked still holds what was its."""
    return PeerDied(f"the receiver, process {pid}, died; there is no room", pid)
