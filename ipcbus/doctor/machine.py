"""The machine: Python, the kernel, and the limits that both set."""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import ipcbus
from ipcbus.doctor.finding import Finding, size
from ipcbus.errors import IpcbusError
from ipcbus.selection import transports

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["descriptors", "kernel", "kernel_limits", "locked_memory", "shared_memory", "start_method", "versions"]

PROC = Path("/proc")
SHM = Path("/dev/shm")  # noqa: S108  no file of ours: where the system has its shared memory
_KERNEL = (5, 3)
"""The first Linux with ``pidfd_open``, by which the death of a process is noticed."""
_FEW_FREE = 64
"""Descriptors that a small program needs: a channel takes up to ten in each process."""
_FEW = 1024
"""The soft limit that Linux distributions give; below it somebody has lowered it."""
_LOCKED = 64 * 1024
"""Bytes that Linux lets every process lock unless somebody has lowered it."""
_SHM_SMALL = 64 * 1024**2
"""Bytes of /dev/shm that containers get if nobody says otherwise."""
_SHM_FREE = 1024**2
"""Bytes that must be free there: semaphores take 32 each, shared arrays what they hold."""
_PIPES = 64
"""Senders over pipe: that a user should be able to have at the same time."""


def versions() -> Iterator[Finding]:
    """Say which Python and which ipcbus this is."""
    yield Finding("Python", "ok", f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}")
    yield Finding("ipcbus", "ok", f"{ipcbus.__version__}, {Path(ipcbus.__file__).parent}")


def kernel() -> Iterator[Finding]:
    """Look at the kernel's name and version."""
    system, release = platform.system(), platform.release()
    said = f"{system} {release}"
    if system != "Linux":
        yield Finding("kernel", "problem", said, "use Linux: ipcbus rests on what only its kernel has")
    elif _version(release) < _KERNEL:
        yield Finding("kernel", "problem", said, f"use Linux {'.'.join(map(str, _KERNEL))} or newer")
    else:
        yield Finding("kernel", "ok", said)


def _version(release: str) -> tuple[int, ...]:
    """Read the two leading numbers of a kernel's release, such as ``6.8.0-45-generic``."""
    return tuple(int("".join(filter(str.isdigit, word)) or 0) for word in release.split("-", maxsplit=1)[0].split(".")[:2])


def start_method() -> Iterator[Finding]:
    """Say how ``multiprocessing`` starts processes here if a program does not choose."""
    default = multiprocessing.get_all_start_methods()[0]  # asking for the method in use would settle it
    if default == "fork":
        yield Finding(
            "start method",
            "note",
            "fork, unless a program chooses; from Python 3.14 on it is forkserver",
            "pass channels to a process as arguments: that works with every start method, inheriting them only with fork",
        )
    else:
        yield Finding("start method", "ok", f"{default}, unless a program chooses")


def descriptors() -> Iterator[Finding]:
    """Look at how many descriptors a process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir(PROC / "self" / "fd")) - 1  # noqa: PTH208  names are enough; one is the listing's own
    said = f"{_limit(soft)} for each process, which it may raise to {_limit(hard)}; {used} are open here"
    advice = f"ulimit -n {'unlimited' if hard == resource.RLIM_INFINITY else hard}"
    if soft == hard:
        advice = "have the administrator raise it: nofile in /etc/security/limits.conf, LimitNOFILE= of a systemd unit"
    if soft != resource.RLIM_INFINITY and soft - used < _FEW_FREE:
        yield Finding("descriptors", "problem", f"{said}: too few for a program with several channels", advice)
    elif soft != resource.RLIM_INFINITY and soft < _FEW:
        yield Finding("descriptors", "note", f"{said}: few for a bus or a server", advice)
    else:
        yield Finding("descriptors", "ok", said)


def locked_memory() -> Iterator[Finding]:
    """Look at how much memory a process may lock."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    said = f"{_bytes(soft)} for each process, which it may raise to {_bytes(hard)}"
    if soft != resource.RLIM_INFINITY and soft < _LOCKED:
        advice = "nothing, unless a transport of yours keeps its memory from being swapped; then: ulimit -l 64"
        yield Finding("locked memory", "note", said, advice)
    else:
        yield Finding("locked memory", "ok", said)


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _bytes(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else size(value)


def shared_memory() -> Iterator[Finding]:
    """Look at /dev/shm: semaphores and named shared memory are files there."""
    subject = "/dev/shm"  # noqa: S108  as above
    mount = "mount -t tmpfs -o mode=1777 tmpfs /dev/shm"
    try:
        state = os.statvfs(SHM)
    except OSError as error:
        yield Finding(subject, "problem", f"cannot be used: {error.strerror}", mount)
        return
    total, free = state.f_frsize * state.f_blocks, state.f_frsize * state.f_bavail
    said = f"{size(total)}, of which {size(free)} are free"
    if not os.access(SHM, os.W_OK | os.X_OK):
        yield Finding(subject, "problem", f"{said}; but this user may not write there", "chmod 1777 /dev/shm")
    elif free < _SHM_FREE:
        yield Finding(subject, "problem", said, "remove what nobody uses there, or: mount -o remount,size=1G /dev/shm")
    elif not _mounted():
        yield Finding(subject, "note", f"{said}; a directory on a disk, not in memory", mount)
    elif total <= _SHM_SMALL:
        advice = "docker run --shm-size=1g, or: mount -o remount,size=1G /dev/shm"
        yield Finding(subject, "note", f"{said}; enough for semaphores, little for shared arrays", advice)
    else:
        yield Finding(subject, "ok", said)


def _mounted() -> bool:
    try:
        lines = (PROC / "self" / "mounts").read_text().splitlines()
    except OSError:
        return True  # it cannot be told, and is no reason to alarm anybody
    return any(line.split()[1] == str(SHM) for line in lines)


def _wish(scheme: str, option: str) -> int | None:
    """Return what a transport asks of the kernel unless its URL says otherwise; None if nobody has such an option."""
    try:
        options = transports.get(scheme).options
    except IpcbusError:
        return None
    default = getattr(options(), option, None)
    return default if isinstance(default, int) else None


def kernel_limits(*, without: Iterable[str] = ()) -> Iterator[Finding]:
    """Look at the kernel's limits that decide what a transport gets.

    Args:
        without: schemes to leave out.
    """
    if "unix" not in without and (wished := _wish("unix", "socket_bytes")):
        yield _unix(wished // 2)  # Linux grants twice what is asked for
    if "pipe" not in without and (wished := _wish("pipe", "pipe_bytes")):
        yield _pipe(wished)
        yield _pipes(wished)


def _unix(wanted: int) -> Finding:
    subject = "net.core.wmem_max"
    granted = _sysctl(subject)
    if granted is None:
        return _unknown(subject, "unix:")
    if granted >= wanted:
        return Finding(subject, "ok", f"{size(granted)}: a unix: channel gets all it asks for")
    # Some 770 bytes for a small message: docs/transports/unix.md.
    room = f"about {2 * granted // 770} small messages can wait in one"
    said = f"{size(granted)}, and a unix: channel asks for {size(wanted)}: {room}"
    return Finding(subject, "note", said, f"sysctl -w {subject}={wanted}")


def _pipe(wanted: int) -> Finding:
    subject = "fs.pipe-max-size"
    granted = _sysctl(subject)
    if granted is None:
        return _unknown(subject, "pipe:")
    if granted >= wanted:
        return Finding(subject, "ok", f"{size(granted)}: a sender over pipe: gets all it asks for")
    said = f"{size(granted)}, and a sender over pipe: asks for {size(wanted)}; it gets less and is slower"
    return Finding(subject, "note", said, f"sysctl -w {subject}={wanted}")


def _pipes(wanted: int) -> Finding:
    subject = "fs.pipe-user-pages-soft"
    pages = _sysctl(subject)
    if pages is None:
        return _unknown(subject, "pipe:")
    each = max(1, wanted // resource.getpagesize())
    if pages == 0:
        return Finding(subject, "ok", "no limit for the pipes of a user")
    if pages // each >= _PIPES:
        return Finding(subject, "ok", f"{pages} pages: {pages // each} senders over pipe: get all they ask for")
    said = f"{pages} pages: after {pages // each} senders over pipe: further pipes of a user are small and slower"
    return Finding(subject, "note", said, f"sysctl -w {subject}={each * _PIPES}")


def _unknown(subject: str, url: str) -> Finding:
    return Finding(subject, "note", f"cannot be read here; {url} may get less than it asks for")


def _sysctl(name: str) -> int | None:
    try:
        return int((PROC / "sys" / name.replace(".", "/")).read_text())
    except (OSError, ValueError):
        return None
