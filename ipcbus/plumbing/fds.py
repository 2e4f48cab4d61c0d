"""Descriptors that travel inside pickles, to children and to other processes of this machine."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from ipcbus.errors import ChannelBroken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "REMEDY",
    "OwnedFd",
    "TravellingFd",
    "close_all",
    "close_last",
    "exhausted",
    "is_packing",
    "keep",
    "lacking",
    "loading",
    "packing",
    "refused",
    "unpacking",
]

REMEDY = "close some descriptors or raise 'ulimit -n'"
"""What to do where a process, or the system, has no descriptors left."""


def exhausted(error: OSError) -> bool:
    """Tell whether what is lacking is a descriptor."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


def lacking(error: ChannelBroken) -> bool:
    """Tell whether a channel can go on once there is a descriptor; what could not be done then has not been done at all.

    Its text is looked at, which says what the system has said, also where a transport in C has raised it.
    """
    return any(os.strerror(code) in str(error) for code in (errno.EMFILE, errno.ENFILE))


def refused(what: str, error: OSError, then: str = "", otherwise: str = "") -> ChannelBroken:
    """Return the error for what the system refused; where that is a descriptor, it says what to do.

    Args:
        what: what could not be done.
        error: why.
        then: what became of the call; nothing where that is clear.
        otherwise: what to do where it is no descriptor.
    """
    advice = f"{REMEDY}, and try again" if exhausted(error) else otherwise
    return ChannelBroken("; ".join(filter(None, (f"{what}: {error.strerror or error}", then, advice))))


@contextlib.contextmanager
def loading(what: str) -> Iterator[None]:
    """Import inside what is only needed now; raises ``ChannelBroken`` where the system refuses, and it may be tried again."""
    try:
        yield
    except OSError as error:
        raise refused(f"{what} cannot be loaded", error) from error


def keep(owner: object, name: str, opener: Callable[..., int], *arguments: object) -> None:
    """Set an attribute to what a function of the system returns, such as ``os.open``.

    In one step in C: a signal handler that raises (Ctrl-C) cannot come in between and lose the descriptor.
    """
    any(map(setattr, (owner,), (name,), map(opener, *zip(arguments, strict=False))))


def close_all(held: list[int]) -> None:
    """Close the descriptors in a list and empty it."""
    while held:
        close_last(held)


def close_last(held: list[Any]) -> None:
    """Close the descriptor that is the last in a list; it is taken out and closed in one step in C, as in ``keep``."""
    deque(map(os.close, map(list.pop, (held,))), 0)


class _Basket(threading.local):
    """The descriptors beside the pickle that this thread is just writing or reading."""

    packed: list[int] | None = None
    arrived: list[int] | None = None
    unpacked: list[TravellingFd] | None = None


_basket = _Basket()


@contextlib.contextmanager
def packing() -> Iterator[list[int]]:
    """Pickle inside: descriptors are left in the list this yields, in the order in which the pickle names them.

    They stay their owners'. Whoever reads the pickle must have them beside it.
    """
    fds: list[int] = []
    before, _basket.packed = _basket.packed, fds
    try:
        yield fds
    finally:
        _basket.packed = before


def is_packing() -> bool:
    """Tell whether this thread is inside ``packing``."""
    return _basket.packed is not None


@contextlib.contextmanager
def unpacking(fds: Sequence[int]) -> Iterator[None]:
    """Unpickle inside what was pickled in ``packing``: its descriptors are these.

    Those that it does not take are closed, and those that it took too, when it fails.
    """
    before, before_unpacked, arrived = _basket.arrived, _basket.unpacked, list(fds)
    unpacked: list[TravellingFd] = []
    _basket.arrived, _basket.unpacked = arrived, unpacked
    try:
        yield
    except BaseException:
        for taken in unpacked:
            taken.close()
        raise
    finally:
        _basket.arrived, _basket.unpacked = before, before_unpacked
        for fd in arrived:
            if fd >= 0:
                os.close(fd)


class OwnedFd:
    """A descriptor that belongs to this object.

    Args:
        fd: the descriptor; owned from here on.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor, -1 after ``close`` or ``detach``."""
        return self._fd

    def detach(self) -> int:
        """Return the descriptor and forget it: it is the caller's from here on."""
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        fd = self.detach()
        if fd >= 0:
            os.close(fd)


class TravellingFd(OwnedFd):
    """A descriptor that pickles: into a child being started by any start method, else through the sending process.

    While ``multiprocessing`` starts a child the descriptor is passed with it. Inside ``packing`` it stays beside the
    pickle. At any other time the process that pickled it serves it once to the process that unpickles it, and must live
    until then.

    Args:
        fd: the descriptor; owned from here on.
    """

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._fd < 0:
            raise ValueError("a closed descriptor cannot travel")
        packed = _basket.packed
        if packed is not None:
            packed.append(self._fd)
            return _unpack, (len(packed) - 1,)
        from multiprocessing.reduction import DupFd

        return _arrive, (DupFd(self._fd),)


def _unpack(index: int) -> TravellingFd:
    arrived = _basket.arrived
    if arrived is None or not 0 <= index < len(arrived) or arrived[index] < 0:
        raise ValueError("this pickle names descriptors that did not come with it")
    fd, arrived[index] = arrived[index], -1
    taken = TravellingFd(fd)
    if _basket.unpacked is not None:
        _basket.unpacked.append(taken)
    return taken


def _arrive(ticket: Any) -> TravellingFd:
    fd = ticket.detach()
    os.set_inheritable(fd, False)  # noqa: FBT003  the standard library takes it by position
    return TravellingFd(fd)
