"""This process's way to directories: connections to those of others, and one of its own where there is no bus."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ipcbus.directory.place import Place
from ipcbus.directory.server import Directory
from ipcbus.directory.wire import Operation
from ipcbus.errors import ChannelBroken
from ipcbus.plumbing import forks, rundir
from ipcbus.plumbing.fds import close_all

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ADDRESS",
    "Found",
    "attach",
    "attached",
    "call",
    "current",
    "detach",
    "drop",
    "forget",
    "get",
    "keep",
    "keeper",
    "keeps",
    "own",
    "part",
    "place",
    "put",
    "settle",
    "take",
    "unkeep",
    "where",
]

ADDRESS = "IPCBUS_ADDRESS"
"""The environment variable that says where the bus's home is: its private directory."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a directory handed over; the descriptors are the caller's."""

    content: bytes
    fds: list[int]
    guest: int = 0
    """This process's number at that directory; 0 at one of its own."""


class _Here:
    """What this process has: one for each process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.places: dict[str, Place] = {}
        self.kept: dict[str, Directory] = {}
        """Directories that this process keeps, by address."""
        self.own: Directory | None = None
        self.attached: dict[str, int] = {}
        """The addresses of the buses that this process is on, the last one last, and how often it has come to each."""


_here = _Here()
_hooked = False


def keep(directory: Directory) -> None:
    """Note that this process keeps a directory: it needs no connection to it."""
    _hook()
    with _here.lock:
        _here.kept[str(directory.home)] = directory


def unkeep(directory: Directory) -> None:
    """Forget a directory that this process closes."""
    with _here.lock:
        _here.kept.pop(str(directory.home), None)


def attach(address: str) -> None:
    """Say where what this process shares is left from now on, until ``detach`` was called as often."""
    _hook()
    with _here.lock:
        _here.attached[address] = _here.attached.pop(address, 0) + 1


def detach(address: str) -> None:
    """Say that a bus was left; what this process shares is left where it was before, at last with itself."""
    with _here.lock:
        times = _here.attached.get(address, 0)
        if times > 1:
            _here.attached[address] = times - 1
        else:
            _here.attached.pop(address, None)


def keeps(address: str) -> bool:
    """Tell whether this process itself keeps the directory at an address."""
    return address in _here.kept


def attached() -> str | None:
    """Return where the home of this process's bus is, None without a bus."""
    with _here.lock:
        last = next(reversed(_here.attached), None)
    return last or os.environ.get(ADDRESS) or None


def where() -> str:
    """Return the address at which this process leaves what it shares: its bus's home if that answers, else its own.

    Raises:
        ChannelBroken: the system refused.
    """
    address = attached()
    if address is not None:
        if current(address) >= 0:
            return address
        try:
            place(address).greet()
        except ChannelBroken:
            pass  # the home has ended; what this process serves itself can be had while it lives
        else:
            return address
    return str(own().home)


def own() -> Directory:
    """Return this process's own directory, made at the first call; raises ``ChannelBroken``."""
    _hook()
    with _here.lock:
        found = _here.own
        if found is None:
            home = rundir.create()
            try:
                found = Directory(home)
            except BaseException:
                rundir.remove(home)
                raise
            if (other := _here.own) is not None:  # made by a signal handler, meanwhile
                found.close()
                rundir.remove(home)
                return other
            _here.own = found
            keep(found)
        return found


def place(address: str) -> Place:
    """Return this process's view of a directory that another process keeps."""
    _hook()
    with _here.lock:
        found = _here.places.get(address)
        if found is None:
            found = _here.places[address] = Place(address)
        return found


def part(address: str) -> None:
    """End the connection to a directory that nothing is wanted of any more."""
    with _here.lock:
        there = _here.places.pop(address, None)
    if there is not None:
        there.close()


def put(address: str, key: bytes, content: bytes, fds: Sequence[int], *, held: bool = True) -> int:
    """Leave something at an address.

    Args:
        address: where.
        key: under which it can be had.
        content: bytes.
        fds: descriptors; duplicated, and still the caller's.
        held: whether this process goes on to use it, until ``drop``.

    Returns:
        What ``current`` must say for it to be there still.

    Raises:
        ChannelBroken: nobody is there.
    """
    kept = _here.kept.get(address)
    if kept is not None:
        kept.put(key, content, fds, held=held)
        return 0
    there = place(address)
    there.ask(Operation.PUT, key, content, fds).close()
    if not held:
        there.drop(key)
    return there.generation


def keeper(address: str) -> int | None:
    """Return the pid of the process that keeps the directory at an address; None if it is this one."""
    return None if address in _here.kept else place(address).pid


def current(address: str) -> int:
    """Return a number that is another when the home at an address is another, -1 when none is known to be there."""
    if address in _here.kept:
        return 0
    there = _here.places.get(address)
    return there.generation if there is not None and there.alive() else -1


def get(address: str, key: bytes) -> Found:
    """Return what is under a key; this process counts as its user until ``drop``. Raises ``ChannelBroken`` as ``take`` does."""
    return _fetch(address, Operation.GET, key)


def take(address: str, key: bytes) -> Found:
    """Return what is under a key and have it forgotten there; raises ``ChannelBroken``."""
    return _fetch(address, Operation.TAKE, key)


def forget(address: str, key: bytes) -> None:
    """Have what was left under a key forgotten, if it is there still; nobody will come for it."""
    kept = _here.kept.get(address)
    if kept is not None:
        kept.forget(key)
        return
    with contextlib.suppress(ChannelBroken):  # gone with its home, or taken
        close_all(take(address, key).fds)


def drop(address: str, key: bytes) -> None:
    """Say that this process does not use a key any more. Never fails, never waits."""
    kept = _here.kept.get(address)
    if kept is not None:
        kept.drop(key)
    elif (there := _here.places.get(address)) is not None:
        there.drop(key)


def call(address: str, name: str, content: bytes = b"") -> Found:
    """Call a function of another process's directory by its name.

    Raises:
        ChannelBroken: nobody is there, or nobody who knows the name.
        IpcbusError: what the function raised.
    """
    answer = place(address).ask(Operation.CALL, name.encode(), content)
    return Found(answer.content, answer.fds)


def settle() -> None:
    """End connections, and this process's own directory: what it shared without a bus cannot be had any more.

    What buses it has come to and not left is forgotten.
    """
    with _here.lock:
        places, _here.places = _here.places, {}
        mine, _here.own = _here.own, None
        _here.attached.clear()
        if mine is not None:
            unkeep(mine)
    for there in places.values():
        there.close()
    if mine is not None:
        mine.close()
        rundir.remove(mine.home)


def _fetch(address: str, operation: Operation, key: bytes) -> Found:
    kept = _here.kept.get(address)
    if kept is None:
        answer = place(address).ask(operation, key)
        return Found(answer.content[8:], answer.fds, int.from_bytes(answer.content[:8], "little"))
    found = kept.look(key)
    if found is None:
        raise ChannelBroken("this process was asked to share this channel too long ago and does not keep it any more")
    if operation is Operation.TAKE:
        kept.forget(key)
    return Found(*found)


def _hook() -> None:
    global _hooked  # noqa: PLW0603  hooks of the interpreter are per process, and so is this
    if not _hooked:
        forks.at_exit(settle, -90)  # late: children that are joined before may still ask
        forks.in_child(_after_fork)
        _hooked = True


def _after_fork() -> None:
    global _here
    before, _here = _here, _Here()
    # A child of a bus's home leaves things at its parent's.
    _here.attached = before.attached
    for kept in before.kept.values():
        kept.abandon()
    for there in before.places.values():
        there.after_fork()
