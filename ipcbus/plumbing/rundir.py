"""Private directories: a place for sockets and small files that only processes of this user can reach.

A directory belongs to the process that made it (its home) and is removed by it. One whose home was killed is left
behind; it is removed when a process of this user next makes one, unless somebody still holds it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ipcbus.errors import ChannelBroken, InsecureConfiguration
from ipcbus.plumbing.fds import refused

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "MAX_SOCKET_PATH",
    "PREFIX",
    "base",
    "check",
    "create",
    "entrust",
    "hold",
    "leftovers",
    "reap",
    "remove",
    "socket_path",
    "spare",
    "start_time",
]

PREFIX = "ipcbus-"
"""How the names of these directories begin."""
MAX_SOCKET_PATH = 107
"""Bytes in the path of a unix socket; see unix(7), ``sun_path``."""
_HOME = "home"
"""The file in each directory that names its home process, and that its users lock."""

_reaped_by = 0
"""The process that has looked for leftovers: once is enough."""


def base() -> Path:
    """Return where private directories are made: ``XDG_RUNTIME_DIR`` if it is ours alone, else where temporary files go."""
    wanted = os.environ.get("XDG_RUNTIME_DIR")
    if wanted and Path(wanted).is_absolute():
        try:
            check(Path(wanted))
        except (ChannelBroken, InsecureConfiguration):
            pass  # left over from before a change of user, or of another container
        else:
            return Path(wanted)
    return Path(tempfile.gettempdir())


def create() -> Path:
    """Make a private directory of mode 0700; first remove what killed processes left behind.

    Raises:
        ChannelBroken: the system refused.
    """
    global _reaped_by  # noqa: PLW0603  once per process, and a forked child is another one
    parent = base()
    try:
        if _reaped_by != os.getpid():
            _reaped_by = os.getpid()
            reap(parent)
        # Whose it is shows in its name, too: who is killed now leaves it empty.
        directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent))
        try:
            (directory / _HOME).write_bytes(_words_for(os.getpid()))
        except BaseException:
            remove(directory)
            raise
    except OSError as error:
        advice = "free space there, or point XDG_RUNTIME_DIR or TMPDIR at a directory you may write to"
        raise refused(f"no private directory can be made in {parent}", error, otherwise=advice) from error
    return directory


def check(directory: Path) -> None:
    """Make sure that a directory is private, before each use of a name inside it.

    Raises:
        ChannelBroken: it is gone.
        InsecureConfiguration: it is a link or no directory, or another user owns it or may enter it.
    """
    try:
        state = directory.lstat()
    except OSError as error:
        raise ChannelBroken(
            f"the directory {directory} is gone ({error.strerror}): the process that made the channel has ended"
        ) from error
    if not stat.S_ISDIR(state.st_mode):
        raise InsecureConfiguration(f"{directory} is not a directory; somebody replaced it, and nothing in it can be trusted")
    if state.st_uid != os.geteuid():
        raise InsecureConfiguration(f"{directory} belongs to user {state.st_uid}, not to this process's user {os.geteuid()}")
    if state.st_mode & 0o077:
        raise InsecureConfiguration(
            f"{directory} has mode {stat.S_IMODE(state.st_mode):04o}, so other users can reach what is in it; it must be 0700"
        )


def hold(directory: Path) -> int:
    """Keep a directory from being taken for a leftover, and return the descriptor that does it; close it to let go.

    Raises:
        ChannelBroken: the directory is gone, or just being removed.
        InsecureConfiguration: it is not private.
    """
    check(directory)
    gone = ChannelBroken(f"the directory {directory} is gone or being removed: the process that made the channel has ended")
    try:
        fd = os.open(directory / _HOME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError as error:
        raise gone from error
    except OSError as error:
        raise refused(f"{directory / _HOME} cannot be opened", error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise gone from error
    if os.fstat(fd).st_nlink == 0:
        os.close(fd)
        raise gone
    return fd


def entrust(directory: Path, pid: int) -> None:
    """Make another process the home of a directory: it is no leftover before that one has ended.

    Raises:
        ChannelBroken: the directory is gone.
    """
    check(directory)
    try:
        # Not another file in its place: those who hold the directory have locked this one. And over what it says, in one step:
        # while it said nothing, or if this process ended there, the directory would be a leftover of who made it.
        fd = os.open(directory / _HOME, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.pwrite(fd, _words_for(pid), 0)
        finally:
            os.close(fd)
    except OSError as error:
        raise refused(f"{directory} cannot be handed to process {pid}", error) from error


def remove(directory: Path) -> None:
    """Remove a directory and what is in it. Idempotent; who has something open in it keeps that."""
    shutil.rmtree(directory, ignore_errors=True)


def reap(parent: Path) -> list[Path]:
    """Remove this user's leftovers in a directory, and return them.

    A leftover is one whose home process no longer runs and that nobody holds.
    """
    removed = []
    for directory in _each_leftover(parent):
        remove(directory)
        removed.append(directory)
    return removed


def leftovers(parent: Path) -> list[Path]:
    """Return what ``reap`` would remove, and leave it."""
    return list(_each_leftover(parent))


def spare() -> None:
    """Have ``create`` remove no leftovers in this process, for who only looks."""
    global _reaped_by  # noqa: PLW0603  as in create
    _reaped_by = os.getpid()


def _each_leftover(parent: Path) -> Iterator[Path]:
    """Yield this user's leftovers in a directory; while the caller has one, nobody can begin to hold it."""
    for directory in parent.glob(PREFIX + "*"):
        try:
            check(directory)
            fd = os.open(directory / _HOME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            if _maker_ended(directory):
                yield directory
            continue  # else it is just being made, or just being removed
        except (OSError, InsecureConfiguration):
            continue  # not ours
        try:
            if not _home_ended(os.pread(fd, 100, 0), directory):
                continue  # not locked even for a moment: somebody who wants to hold it would take it for gone
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _home_ended(os.pread(fd, 100, 0), directory):
                yield directory
        except BlockingIOError:
            pass  # somebody holds it
        finally:
            os.close(fd)


def socket_path(directory: Path, name: str) -> Path:
    """Return the path of a unix socket in a directory.

    Raises:
        ChannelBroken: the path is longer than a unix socket's may be.
    """
    path = directory / name
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH:
        raise ChannelBroken(
            f"the socket path {path} has {length} bytes, and {MAX_SOCKET_PATH} is the most that works; "
            "point XDG_RUNTIME_DIR or TMPDIR at a shorter one"
        )
    return path


def _maker_ended(directory: Path) -> bool:
    pid = directory.name.removeprefix(PREFIX).partition("-")[0]
    return pid.isdecimal() and not start_time(int(pid))


def _words_for(pid: int) -> bytes:
    """Return what the file of a home says, always as long."""
    return f"{pid} {start_time(pid)}".ljust(40).encode()


def _home_ended(said: bytes, directory: Path) -> bool:
    words = said.split()
    if len(words) != 2:
        return _maker_ended(directory)  # its home has not written it yet
    return start_time(int(words[0])) != words[1].decode()


def start_time(pid: int) -> str:
    """Return when a process started, in clock ticks since boot: with it a pid names one process for ever. Empty if it ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]  # the command may hold spaces and parentheses; see proc(5)
