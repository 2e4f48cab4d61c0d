"""A PostgreSQL of the tests' own: a private cluster on loopback, run as a user that is not root."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from ipcbus.plumbing.ports import free_port

DEBIAN = "/usr/lib/postgresql"
ACCOUNT = "postgres"
"""The user that Debian's package makes; root may not run a server, so it is run as that one."""


def programs() -> Path | None:
    """Return the folder of the server's programs, the newest there is."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    folders = (path.parent for path in Path(DEBIAN).glob("*/bin/initdb"))
    return max(folders, key=lambda folder: int(folder.parent.name), default=None)


@contextmanager
def running() -> Iterator[str]:
    """Have a server inside, with a database ``test``; yield its URL without a driver: ``user@host:port/test``."""
    folder = programs()
    assert folder is not None
    # Not in the session's own folder, which only this user may enter.
    place = Path(tempfile.mkdtemp(prefix="ipcbus-pg-", dir="/tmp"))
    port = free_port()
    who: dict[str, Any] = {"user": ACCOUNT, "group": ACCOUNT, "extra_groups": []} if os.geteuid() == 0 else {}
    if who:
        shutil.chown(place, ACCOUNT, ACCOUNT)
    common: dict[str, Any] = {"cwd": place, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C"}, **who}
    data = place / "data"
    try:
        subprocess.run(
            [folder / "initdb", "-D", data, "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=True, capture_output=True, timeout=60, **common,
        )  # fmt: skip
        settings = {
            "port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": place, "max_connections": 40,
            "fsync": "off", "autovacuum": "off", "dynamic_shared_memory_type": "mmap",
        }  # fmt: skip
        words = [folder / "postgres", "-D", data, *(f"--{name}={value}" for name, value in settings.items())]
        with (place / "log").open("wb") as log, subprocess.Popen(words, stdout=log, stderr=log, **common) as server:
            try:
                _until_ready(folder, place, port, server, common)
                ask = [folder / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "tester", "test"]
                subprocess.run(ask, check=True, capture_output=True, timeout=30, **common)
                yield f"tester@127.0.0.1:{port}/test"
            finally:
                server.send_signal(2)  # SIGINT: stop at once, whoever is connected
                server.wait(30)
    finally:
        shutil.rmtree(place)


def _until_ready(folder: Path, place: Path, port: int, server: subprocess.Popen[bytes], common: dict[str, Any]) -> None:
    deadline = monotonic() + 30
    ask = [folder / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
    while subprocess.run(ask, timeout=30, check=False, **common).returncode:
        if server.poll() is not None or monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL did not start:\n{(place / 'log').read_text()}")
        sleep(0.05)  # it tells nobody when it is ready
