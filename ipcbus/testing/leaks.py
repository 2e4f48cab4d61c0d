"""Leaks: what a test, or a closed channel, left behind in this process and on this machine."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
import time
from dataclasses import dataclass
from multiprocessing import forkserver, resource_sharer, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Snapshot", "compare", "held", "own", "snapshot", "warm_up"]

_OURS = ("ipcbus-", "psm_")
"""How names in /dev/shm begin that ipcbus, or Python's own shared memory, could have made."""
_STEP = 0.02
"""Seconds between two looks while what is on its way out goes."""


_places: list[Path] = []


@dataclass(frozen=True)
class Snapshot:
    """What this process holds, each thing with a name that a person can use."""

    fds: frozenset[str]
    """``number -> target``."""
    threads: frozenset[str]
    children: Mapping[int, str]
    """Child processes, grandchildren included: pid to command, which changes while a process starts."""
    names: frozenset[str]
    """Files in /dev/shm and in ipcbus's runtime directories, and all in directories that are ``own``."""


def warm_up(*modules: str) -> None:
    """Start what multiprocessing starts once per process and keeps, so that no test is blamed for it.

    Args:
        *modules: what the fork server shall import besides what children of the contract's tests need.
    """
    from ipcbus.testing.subject import preload_forkserver

    resource_tracker.ensure_running()
    preload_forkserver(*modules)
    forkserver.ensure_running()


def own(place: Path) -> None:
    """Have every name in a directory count, because nobody but this process makes any there."""
    _places.append(place)


def held() -> frozenset[str]:
    """Return the files that this process has open or mapped, wherever they are and whatever they are called."""
    mapped = {line.split(maxsplit=5)[5] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    return frozenset(name for name in mapped | {fd.partition(" -> ")[2] for fd in _fds()} if name.startswith("/"))


def snapshot() -> Snapshot:
    """Look at what is there now."""
    return Snapshot(_fds(), _threads(), _children(), _names())


def compare(before: Snapshot, *, grace: float = 1.0) -> list[str]:
    """Return what is there now and was not before, one line each, once garbage is collected.

    Args:
        before: an earlier snapshot.
        grace: seconds that what is on its way out (a thread, a child) has to go.
    """
    until = time.monotonic() + grace
    # Serves descriptors to whoever unpickles them; it has a thread and a socket, and starts again when needed.
    resource_sharer.stop(timeout=grace)
    collected = False
    while True:
        left = _difference(before, snapshot())
        if not left or (collected and time.monotonic() >= until):
            return left
        gc.collect()
        collected = True
        time.sleep(_STEP)


def _difference(before: Snapshot, after: Snapshot) -> list[str]:
    kinds = (
        ("descriptor", before.fds, after.fds),
        ("thread", before.threads, after.threads),
        ("file", before.names, after.names),
    )
    left = [f"{kind} {thing}" for kind, old, new in kinds for thing in sorted(new - old)]
    return left + [f"process {pid}: {command}" for pid, command in after.children.items() if pid not in before.children]


def _fds() -> frozenset[str]:
    found = set()
    with os.scandir("/proc/self/fd") as entries:
        for entry in entries:
            try:
                target = os.readlink(entry.path)  # noqa: PTH115  a Path per descriptor is slow
            except FileNotFoundError:
                continue  # closed meanwhile, by another thread
            # The listing's own, and the blocks that multiprocessing's heap keeps for its next shared array.
            if target != f"/proc/{os.getpid()}/fd" and "/pym-" not in target:
                found.add(f"{entry.name} -> {target}")
    return frozenset(found)


def _threads() -> frozenset[str]:
    # One that threading did not start, and met when something was logged there, is on its list for ever, before Python 3.13.
    running = {int(task) for task in os.listdir("/proc/self/task")}  # noqa: PTH208  as below
    return frozenset(f"{thread.name} ({thread.ident})" for thread in threading.enumerate() if thread.native_id in running)


def _children() -> dict[int, str]:
    found: dict[int, str] = {}
    todo = [os.getpid()]
    while todo:
        pid = todo.pop()
        try:
            tasks = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208  they are numbers, not used as paths
        except OSError:
            continue  # it has ended
        for task in tasks:
            try:
                pids = [int(word) for word in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
            except OSError:
                continue  # this thread has
            todo += pids
            found |= {child: _command(child) for child in pids}
    return found


def _command(pid: int) -> str:
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:100].strip() or "(zombie)"
        )
    except OSError:
        return "(gone)"


def _names() -> frozenset[str]:
    found = {path for place in _places for path in _beneath(place)}
    for root in {tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()}:
        for place in Path(root).glob("ipcbus-*"):
            found |= {str(place), *_beneath(place)}
    shared = Path("/dev/shm")  # noqa: S108  shared memory has its names there
    if shared.is_dir():
        # Other programs make names there, too: ours are those that we have mapped, and those that begin as ours do.
        mapped = Path("/proc/self/maps").read_text()
        found |= {str(path) for path in shared.iterdir() if path.name.startswith(_OURS) or str(path) in mapped}
    return frozenset(found)


def _beneath(place: Path) -> Iterator[str]:
    """Yield what is in a directory, at any depth. What goes meanwhile is passed over, by which ``Path.rglob`` may end."""
    for directory, folders, files in os.walk(place):
        yield from (f"{directory}/{name}" for name in (*folders, *files))
