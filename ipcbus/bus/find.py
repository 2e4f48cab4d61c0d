"""Which bus somebody at a shell means who does not say.

For people only: a program that took the only bus it found would be on another one tomorrow. ``Bus.connect`` therefore goes
by the address that it is given, or ``IPCBUS_ADDRESS``.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ipcbus import config
from ipcbus.directory import client
from ipcbus.directory.place import Place
from ipcbus.directory.server import SOCKET
from ipcbus.directory.wire import Operation
from ipcbus.errors import ChannelBroken, ConfigError, InsecureConfiguration, IpcbusError
from ipcbus.plumbing import rundir

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Candidate", "find", "running"]

_PATIENCE = 1.0
"""Seconds that a process has to say whether it is the home of a bus: one that is stopped says nothing."""
_PRIVATE = "a bus is for the processes of the user who started it"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A bus that runs here."""

    address: str
    pid: int
    """Its home."""


def find(address: str | None = None) -> str:
    """Return the address of the bus that is meant.

    It is the one given; else what ``IPCBUS_ADDRESS`` says; else ``address`` in ``[bus]`` of ``ipcbus.toml`` (or of the file
    that ``IPCBUS_CONFIG`` names); else the only bus of this user that runs on this machine and has no address of its own.

    Raises:
        ConfigError: there is none, or there are several; says what to do.
        InsecureConfiguration: the directory is not private to this user.
    """
    said = address or os.environ.get(client.ADDRESS) or _configured()
    if said is not None:
        return _check(Path(said).absolute())
    found = list(running())
    if not found:
        raise ConfigError(
            "no bus of yours runs on this machine, or none that can be found without its address: give --address DIRECTORY or "
            f'set {client.ADDRESS}; to start one, run a program with ipcbus.Bus("ipcbus.toml") in it'
        )
    if len(found) > 1:
        lines = "".join(f"\n  --address {bus.address}  (process {bus.pid}: {_command(bus.pid)})" for bus in found)
        raise ConfigError(f"{len(found)} buses of yours run on this machine; choose one:{lines}")
    return found[0].address


def running() -> Iterator[Candidate]:
    """Yield the buses of this user whose homes made directories of their own for them, and that answer."""
    for parent in dict.fromkeys((rundir.base(), Path(tempfile.gettempdir()))):
        for directory in sorted(parent.glob(rundir.PREFIX + "*")):
            try:
                rundir.check(directory)
            except (ChannelBroken, InsecureConfiguration):
                continue  # somebody else's, or gone meanwhile
            if not (directory / SOCKET).is_socket():
                continue  # a transport's
            place = Place(str(directory), patience=_PATIENCE)
            try:
                place.ask(Operation.CALL, b"channels").close()
            except (IpcbusError, OSError):
                continue  # it has ended, is stopped, or is no bus but a process that shares a channel
            finally:
                place.close()
            yield Candidate(str(directory), place.pid)


def _configured() -> str | None:
    said = config.configured()
    return None if said is None else said.bus.address


def _check(directory: Path) -> str:
    try:
        rundir.check(directory)
    except ChannelBroken as error:
        why = error.__cause__
        if isinstance(why, PermissionError):
            raise InsecureConfiguration(f"you may not enter {directory.parent}; {_PRIVATE}") from error
        raise ConfigError(f"there is no bus at {directory}: {why.strerror if isinstance(why, OSError) else error}") from error
    except InsecureConfiguration as error:
        raise InsecureConfiguration(f"{error}; {_PRIVATE}") from error
    if not (directory / SOCKET).is_socket():
        raise ConfigError(f"there is no bus at {directory}: its home has ended, or has not started yet")
    return str(directory)


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "ended meanwhile"
    return " ".join(word.decode(errors="replace") for word in words).strip()[:80]
