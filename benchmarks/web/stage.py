"""Server and generator as processes of the benchmark, and what the kernel says about them."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).resolve().parent
WS = "ws@8"
"""The generator's library, from npm."""
PATIENCE = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


class CannotRunError(Exception):
    """The benchmark cannot be run here; says why."""


class Program:
    """A process that speaks in lines of JSON and ends with its input."""

    def __init__(self, words: list[Any], **more: Any) -> None:
        self._process = subprocess.Popen([*map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **more)
        self._rest = b""

    def say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())
        self._process.stdin.flush()

    def hear(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """Return the next thing it says; raises CannotRunError if it ends or says nothing in time."""
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            if not select.select([self._process.stdout], [], [], timeout)[0]:
                raise CannotRunError(f"{self._process.args} has said nothing for {timeout:g} s")
            piece = os.read(self._process.stdout.fileno(), 65_536)
            if not piece:
                raise CannotRunError(f"{self._process.args} ended with {self._process.wait()}")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Server(Program):
    """A server under test."""

    def __init__(self, name: str, *words: Any, dialect: str = "json") -> None:
        super().__init__([sys.executable, HERE / name, *words])
        self.dialect = dialect
        try:
            self.facts = self.hear()
        except BaseException:
            self.__exit__()
            raise

    def pids(self) -> dict[str, int]:
        """Return its processes as they are now."""
        self.say("pids")
        self.facts = self.hear()
        return dict(self.facts["pids"])


class Load(Program):
    """The generator."""

    def __init__(self, server: Server, **plan: Any) -> None:
        words = ["node", HERE / "generate.js", json.dumps({"url": server.facts["url"], "dialect": server.dialect, **plan})]
        super().__init__(words, env={**os.environ, "NODE_PATH": str(generator_library())})

    def until(self, event: str, timeout: float = PATIENCE) -> dict[str, Any]:
        """Return the next thing of this kind that it says."""
        while (heard := self.hear(timeout))["event"] != event:
            if heard["event"] == "error":
                print(f"generator: {heard['text']}", file=sys.stderr)
        return heard

    def opened(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """Wait until every client is in its room."""
        said = self.until("open", timeout)
        if said["failed"]:
            raise CannotRunError(f"{said['failed']} of {said['failed'] + said['joined']} connections could not be opened")
        return said


def generator_library() -> Path:
    """Return where npm's ``ws`` is, installed in a folder of the benchmark's own in the user's cache."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise CannotRunError("node and npm are not installed; the load comes from a program for Node")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ipcbus-benchmark"
    modules = folder / "node_modules"
    if not (modules / "ws" / "package.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        words = ["npm", "install", "--no-fund", "--no-audit", "--silent", "--prefix", str(folder), WS]
        done = subprocess.run(words, capture_output=True, text=True, timeout=180, check=False)
        if done.returncode:
            raise CannotRunError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return modules


def cpu(pids: dict[str, int]) -> dict[str, float]:
    """Return the seconds of processor that each process has used so far."""
    found = {}
    for name, pid in pids.items():
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        found[name] = (int(stat[11]) + int(stat[12])) / _TICKS
    return found


def memory(pids: dict[str, int]) -> dict[str, int]:
    """Return the bytes that each process has for itself; what it shares with others is divided among them."""
    found = {}
    for name, pid in pids.items():
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                found[name] = int(line.split()[1]) * 1024
    return found
