"""Places: where private directories go, what killed processes left there, which buses run, and what is configured."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ipcbus import config
from ipcbus.bus import find
from ipcbus.channel import open_channel
from ipcbus.directory import client
from ipcbus.directory.server import SOCKET
from ipcbus.doctor.finding import Finding, size, split
from ipcbus.errors import ChannelBroken, InsecureConfiguration, IpcbusError
from ipcbus.options import parse_url
from ipcbus.plumbing import rundir
from ipcbus.plumbing.clock import Deadline
from ipcbus.selection import select

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["automatic", "buses", "configuration", "leftovers", "runtime_directory"]

_VARIABLE = "XDG_RUNTIME_DIR"
_LONGEST_NAME = f"{rundir.PREFIX}4194304-abcdefgh/{SOCKET}"
"""What follows the base in the longest path of a socket: the largest pid, and what ``mkdtemp`` draws."""
_BUSES = 5.0
"""Seconds for all buses together: one that is stopped takes a second to say nothing."""
_NAMED = 5
"""Leftovers and buses that are named; of the others the number is given."""


def runtime_directory() -> Iterator[Finding]:
    """Look at the directory in which private directories are made, and at how it was chosen."""
    wanted, base = os.environ.get(_VARIABLE), rundir.base()
    if wanted and Path(wanted) == base:
        yield Finding(_VARIABLE, "ok", wanted)
    else:
        fallback = f"{base} is used instead, with directories in it that only this user may enter"
        advice = f"point {_VARIABLE} at a directory of yours with mode 0700; pam_systemd makes one at login"
        yield Finding(_VARIABLE, "note", f"{_unfit(wanted)}; {fallback}", advice)
    yield _base(base)
    yield _room(base)


def _unfit(wanted: str | None) -> str:
    if not wanted:
        return "not set"
    if not Path(wanted).is_absolute():
        return f"{wanted!r} is not an absolute path"
    try:
        rundir.check(Path(wanted))
    except ChannelBroken as error:
        reason = error.__cause__
        return f"{wanted} cannot be looked at: {reason.strerror if isinstance(reason, OSError) else error}"
    except InsecureConfiguration as error:
        return split(str(error))[0]
    return f"{wanted} is not used"


def _base(base: Path) -> Finding:
    subject = "runtime directory"
    elsewhere = f"free space there, or point {_VARIABLE} or TMPDIR at a directory that you may write to"
    try:
        state, room = base.stat(), os.statvfs(base)
    except OSError as error:
        return Finding(subject, "problem", f"{base} cannot be used: {error.strerror}", elsewhere)
    free = room.f_frsize * room.f_bavail
    if not os.access(base, os.W_OK | os.X_OK):
        return Finding(subject, "problem", f"this user may not write to {base}", elsewhere)
    # Some file systems count no inodes and say that there are none in all.
    if not free or (room.f_files and not room.f_favail):
        return Finding(subject, "problem", f"{base} is full", elsewhere)
    if state.st_mode & stat.S_IWOTH and not state.st_mode & stat.S_ISVTX:
        said = f"{base} has mode {stat.S_IMODE(state.st_mode):04o}, so other users can rename what is in it"
        return Finding(subject, "problem", said, f"chmod +t {base}")
    private = state.st_uid == os.geteuid() and not state.st_mode & 0o077
    whose = "for this user alone" if private else "shared, so each channel's directory is private"
    return Finding(subject, "ok", f"{base}: {whose}; {size(free)} are free")


def _room(base: Path) -> Finding:
    length, most = len(os.fsencode(base / _LONGEST_NAME)), rundir.MAX_SOCKET_PATH
    said = f"up to {length} of the {most} bytes that a socket's path may have"
    if length > most:
        return Finding("socket paths", "problem", said, f"point {_VARIABLE} or TMPDIR at a path {length - most} bytes shorter")
    return Finding("socket paths", "ok", said)


def leftovers(*, clean: bool = False) -> Iterator[Finding]:
    """Look for private directories whose processes were killed.

    Args:
        clean: whether to remove them.
    """
    parents = dict.fromkeys((rundir.base(), Path(tempfile.gettempdir())))
    found = [path for parent in parents for path in (rundir.reap if clean else rundir.leftovers)(parent)]
    if not found:
        yield Finding("leftovers", "ok", "none")
    elif clean:
        yield Finding("leftovers", "ok", f"removed {len(found)} of killed processes: {_named(map(str, found), len(found))}")
    else:
        said = f"{len(found)} of killed processes: {_named(map(str, found), len(found))}"
        yield Finding(
            "leftovers", "note", said, "ipcbus doctor --clean; the next channel that needs a directory removes them, too"
        )


def _named(names: Iterator[str], count: int) -> str:
    return ", ".join(name for name, _ in zip(names, range(_NAMED), strict=False)) + (" ..." if count > _NAMED else "")


def buses() -> Iterator[Finding]:
    """Look for buses of this user that run, and at the one that programs are told to use."""
    deadline = Deadline(_BUSES)
    found, more = [], ""
    for bus in find.running():
        found.append(f"{bus.address} (process {bus.pid})")
        if deadline.expired:
            more = f"; not all were asked within {_BUSES:g} s"
            break
    yield Finding(
        "buses", "ok", (f"{len(found)}: {_named(iter(found), len(found))}" if found else "none that says where it is") + more
    )
    if address := os.environ.get(client.ADDRESS):
        try:
            yield Finding(client.ADDRESS, "ok", find.find(address))
        except IpcbusError as error:
            said, advice = split(str(error))
            yield Finding(client.ADDRESS, "problem", said, advice or f"start that bus, or unset {client.ADDRESS}")


def configuration() -> Iterator[Finding]:
    """Look at the configuration that programs in this directory and environment get, and at what ``auto:`` is with it."""
    named = os.environ.get(config.CONFIG_VARIABLE)
    file = named or config.DEFAULT_FILE
    how = f"{config.CONFIG_VARIABLE} names it" if named else "in this directory"
    try:
        found = config.configured()
    except IpcbusError as error:
        said, advice = split(str(error))
        yield Finding("configuration", "problem", f"{said} ({how})", advice or f"correct {file}")
    else:
        yield Finding("configuration", "ok", "none" if found is None else f"{file} ({how})")


def automatic() -> Iterator[Finding]:
    """Say what ``auto:`` is here, and who says so; loads every transport that is installed."""
    who = config.who_configures()
    try:
        chosen = config.configured_transport()
        _, url = select(parse_url("auto:"), {})
        open_channel("auto:").close()  # options and addresses are looked at only here
    except IpcbusError as error:
        said, advice = split(str(error))
        yield Finding("auto:", "problem", said, advice or f"correct {who}; ipcbus transports lists what is installed")
        return
    yield Finding("auto:", "ok", f"{url}, " + (f"says {who}" if chosen else "the best that is installed"))
