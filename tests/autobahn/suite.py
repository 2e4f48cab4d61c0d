"""The Autobahn test suite for WebSockets: where it is, how it is run, and what its report says.

Its program, ``wstest``, runs on CPython 2.7 only. It is installed once, from PyPI, into a place of its own in the user's
cache; ``AUTOBAHN_HOME`` names another place, ``PYTHON27`` an interpreter that is not found by itself.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SUITE = "autobahntestsuite==25.10.1"
MAKER = "virtualenv==20.15.1"
"""The last one that makes environments for Python 2.7, where the standard library cannot."""
FRAGMENTS = {"WEBSOCKETS_MAX_FRAGMENTS": "70000"}
"""For the environment of what is tested: cases 9.3 and 9.4 send messages in more fragments than the library lets through."""

PROFILES = {
    "smoke": (["1.*", "2.*"], []),
    "core": (["*"], ["9.*", "12.*", "13.*"]),
    "std": (["*"], ["12.*", "13.*"]),
    "full": (["*"], []),
}
"""By name: the cases, and those of them that are left out: limits (9) and compression (12, 13), which take long."""

KNOWN = {"7.1.5": "the library closes with 1002 of its own accord, where the suite wants its 1000 back"}
"""Cases that may fail, and why that is right."""

GOOD = {"OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED"}
GOOD_CLOSE = {"OK", "INFORMATIONAL"}
PATIENCE = 900.0


class CannotRunError(Exception):
    """The suite cannot be run here; says why."""


@dataclass(frozen=True)
class Verdict:
    """What came of one run."""

    cases: int
    behaviors: Mapping[str, int]
    failed: Mapping[str, str]
    """By case: what the suite says about it. Those of ``KNOWN`` are not among them."""
    known: Mapping[str, str]
    """Those of ``KNOWN`` that failed."""

    @property
    def ok(self) -> bool:
        return self.cases > 0 and not self.failed

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self.behaviors.items()))
        lines = [f"{self.cases} cases: {counts or 'none ran'}"]
        lines += [f"  {case} failed, as is known: {KNOWN[case]}" for case in self.known]
        lines += [f"  {case} FAILED: {why}" for case, why in self.failed.items()]
        return "\n".join(lines)


def judge(index: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """Judge a report, which is case -> what the suite noted about it."""
    bad = {
        case: f"{noted['behavior']}, closing {noted['behaviorClose']}"
        for case, noted in sorted(index.items(), key=lambda item: [int(part) for part in item[0].split(".")])
        if noted["behavior"] not in GOOD or noted["behaviorClose"] not in GOOD_CLOSE
    }
    return Verdict(
        cases=len(index),
        behaviors=Counter(noted["behavior"] for noted in index.values()),
        failed={case: why for case, why in bad.items() if case not in KNOWN},
        known={case: why for case, why in bad.items() if case in KNOWN},
    )


# ---------------------------------------------------------------------- the program


def place() -> Path:
    """Return where the suite is, or would be."""
    if named := os.environ.get("AUTOBAHN_HOME"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ipcbus-autobahn"


def installed() -> Path | None:
    """Return the program if it is there."""
    program = place() / "venv" / "bin" / "wstest"
    return program if program.exists() else None


def install() -> Path:
    """Return the program, installing it if it is not there; raises ``CannotRunError``."""
    if (there := installed()) is not None:
        return there
    python, where = find_python27(), place()
    where.mkdir(parents=True, exist_ok=True)
    with_tool = {"PYTHONPATH": str(where / "tool")}  # for it alone: pip would take what is there for installed
    for words, more in (
        ([python, "-m", "pip", "install", "-q", "--upgrade", "--target", where / "tool", MAKER], {}),
        ([python, "-m", "virtualenv", "-q", where / "venv"], with_tool),
        ([where / "venv" / "bin" / "pip", "install", "-q", SUITE], {}),
    ):
        environment = {**os.environ, **more}
        done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False, env=environment)
        if done.returncode:
            shutil.rmtree(where / "venv", ignore_errors=True)
            raise CannotRunError(f"{' '.join(map(str, words))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return place() / "venv" / "bin" / "wstest"


def find_python27() -> str:
    """Return a CPython 2.7 that really runs; raises ``CannotRunError``."""
    candidates = [
        os.environ.get("PYTHON27"),
        shutil.which("python2.7"),
        *map(str, sorted(Path.home().glob(".pyenv/versions/2.7*/bin/python2.7"))),
    ]
    for candidate in filter(shutil.which, filter(None, candidates)):
        # A version manager puts a program of that name on PATH even where no such version is.
        if subprocess.run([candidate, "-c", "pass"], capture_output=True, timeout=20, check=False).returncode == 0:
            return candidate
    raise CannotRunError("no CPython 2.7, on which alone the Autobahn suite runs; PYTHON27 says where one is")


# ---------------------------------------------------------------------- runs


def test_server(url: str, profile: str, folder: Path) -> Verdict:
    """Run the suite against what echoes at a URL, and leave its report in a folder.

    Args:
        url: ``ws://host:port/path`` of something that sends every message back as it came.
        profile: one of ``PROFILES``, or cases as the suite writes them: ``"7.*,9.1.*"``.
        folder: for ``index.html`` and the details of each case.

    Raises:
        CannotRunError: nothing listens there, or the suite failed.
    """
    cases, left_out = PROFILES.get(profile) or (profile.split(","), [])
    program = install()
    host, _, port = url.split("/")[2].rpartition(":")
    try:  # where nobody listens the suite writes an empty report and is content
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise CannotRunError(f"nothing listens at {url}: {error}") from error
    spec = {"servers": [{"agent": "ipcbus", "url": url}], "cases": cases, "exclude-cases": left_out}
    words = [program, "-m", "fuzzingclient", "-s", _write(folder, spec)]
    with (folder / "wstest.log").open("wb") as log:
        done = subprocess.run(words, stdout=log, stderr=log, timeout=PATIENCE, check=False)
    if done.returncode:
        raise CannotRunError(f"wstest ended with {done.returncode}:\n{Path(log.name).read_text()[-2000:]}")
    return judge(_read(folder))


@contextmanager
def serving_clients(profile: str, folder: Path) -> Iterator[str]:
    """Have the suite serve clients inside, and yield its address; ``report`` reads what it made of them."""
    cases, left_out = PROFILES.get(profile) or (profile.split(","), [])
    program = install()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"ws://127.0.0.1:{port}"
    spec = {"url": url, "cases": cases, "exclude-cases": left_out}
    words = [program, "-m", "fuzzingserver", "-u", "0", "-s", _write(folder, spec)]
    with (folder / "wstest.log").open("wb") as log, subprocess.Popen(words, stdout=log, stderr=log) as process:
        try:
            _until_listening(process, port)
            yield url
        finally:
            process.terminate()


def report(folder: Path) -> Verdict:
    """Judge what ``serving_clients`` left."""
    return judge(_read(folder))


def _until_listening(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError as error:
            if process.poll() is not None or monotonic() > deadline:
                raise CannotRunError(f"wstest does not listen at port {port}") from error
            sleep(0.05)  # it says nothing when it is ready
        else:
            return


def _write(folder: Path, spec: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.json").unlink(missing_ok=True)
    file = folder / "spec.json"
    file.write_text(json.dumps({"outdir": str(folder.resolve()), "exclude-agent-cases": {}, **spec}))
    return file


def _read(folder: Path) -> dict[str, Any]:
    try:
        agents = json.loads((folder / "index.json").read_text())
    except FileNotFoundError:
        raise CannotRunError(f"the suite left no report in {folder}; see wstest.log there") from None
    return next(iter(agents.values()), {})
