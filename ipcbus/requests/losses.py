"""What is said of replies that do not come."""

from __future__ import annotations

from ipcbus.errors import ChannelBroken, ChannelClosed, PeerDied
from ipcbus.requests.route import PATIENCE

__all__ = ["death", "orphaned", "unread"]


def death(pid: int) -> PeerDied:
    """Return what ends a request whose taker has died."""
    return PeerDied(f"process {pid} died; whether it did what it was asked is not known", pid)


def orphaned(pid: int) -> ChannelClosed:
    """Return what ends a request in a process that was forked from the one that made it."""
    return ChannelClosed(
        f"process {pid}, from which this one was forked, made this request and gets the reply; a future that is sent through a "
        "channel brings it here, too"
    )


def unread() -> ChannelBroken:
    """Return what ends a request whose reply could not be delivered."""
    return ChannelBroken(
        f"the reply was lost: this process took nothing in for {PATIENCE:g} s, because it was stopped or a function that "
        "a future called took so long, or who answered could not send it, as its log says; what was asked may have been done"
    )
