"""Arenas: a process of its own in which measurements are made, and ended when they do not end.

The arena forks a process for each measurement, and that one forks the senders and receivers: so each begins with nothing
open, whatever this process has imported or started, and to fork costs little. Each measurement is a process group, and what
takes too long is killed by its number.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ipcbus.bench.case import Case, Outcome
from ipcbus.errors import ChannelBroken
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.kin import end, members

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from typing import Self

__all__ = ["LIMIT", "Arena", "main"]

LIMIT = 30.0
"""Seconds that one measurement may take beyond what it should, before it counts as stuck."""
_SLACK = 10.0
"""Seconds for the arena itself to answer and to end."""
_START = """
import json, sys
request = json.loads(sys.argv[1])
sys.path[:] = request["path"]
from ipcbus.bench.arena import main
main(request["place"])
"""
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""What keeps NumPy's libraries from starting threads when they are imported: a fork would copy none of them."""


class Arena:
    """The arena as seen from the process that wants to know; a context manager.

    Raises:
        ChannelBroken: (from ``run``) it died; says what it last said.
    """

    def __init__(self) -> None:
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115  closed in __exit__
        self._place = Path(tempfile.mkdtemp(prefix="ipcbus-bench-"))  # short, for the path of a socket has 107 bytes
        request = json.dumps({"path": [entry or str(Path.cwd()) for entry in sys.path], "place": str(self._place)})
        # -P: the working directory must not shadow the modules that the script itself imports.
        self._process = subprocess.Popen(  # noqa: S603  our own interpreter and our own script
            [sys.executable, "-P", "-c", _START, request],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            env={**os.environ, **_THREADS},
            start_new_session=True,  # a Ctrl-C is for this process, which ends the arena
        )

    def run(self, case: Case, seconds: float, limit: float = LIMIT) -> Outcome:
        """Measure a case once.

        Args:
            case: what.
            seconds: how long the part that counts should take.
            limit: seconds for everything else; then it is stuck, and its processes are killed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"case": case.facts(), "seconds": seconds, "limit": 3 * seconds + limit}
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._broken("ended") from None
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        if not poll.poll(1000 * (3 * seconds + limit + _SLACK)):
            raise self._broken("does not answer")
        line = self._process.stdout.readline()
        if not line:
            raise self._broken("ended")
        return Outcome.of(json.loads(line))

    def _broken(self, what: str) -> ChannelBroken:
        self._noise.seek(0)
        last = self._noise.read().decode(errors="replace").strip().rpartition("\n")[2]
        return ChannelBroken(f"the process that measures {what}{last and ': ' + last}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # the arena kills what it measures, and ends
        try:
            self._process.wait(_SLACK)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in members("session", self._process.pid):
            end(pid, _SLACK)  # the arena was killed, and could not end what it measured
        self._process.stdout.close()
        self._noise.close()
        shutil.rmtree(self._place, ignore_errors=True)
        _clear_shared_memory(self._process.pid)


def main(place: str) -> None:
    """Be the arena: read a case per line, and write what came of it, until the end of standard input.

    Args:
        place: a directory for what has a name. It goes with this process, too: the other one may have been killed.
    """
    verdict = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no verdict
    _preload()
    try:
        for number, line in enumerate(_Lines(0)):
            own = Path(place, str(number))
            own.mkdir()
            outcome = _measure(json.loads(line), own, verdict)
            shutil.rmtree(own, ignore_errors=True)
            _clear_shared_memory(os.getsid(0))
            if outcome is None:
                return
            print(json.dumps(outcome.facts()), file=verdict)
    finally:
        shutil.rmtree(place, ignore_errors=True)


class _Lines:
    """The lines of a descriptor, unbuffered: what is not asked for must stay where ``poll`` sees it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n"):
            data = os.read(self._fd, 1)
            if not data:
                raise StopIteration
            line += data
        return bytes(line)


def _preload() -> None:
    """Import what measurements need, once for all of them."""
    import ipcbus.bench.crew  # noqa: F401  that it is there when a process is forked

    for name in ("numpy", "google.protobuf.type_pb2"):
        with contextlib.suppress(ImportError):
            __import__(name)
    gc.freeze()  # what is imported is not looked through, and so not copied, by the processes that are forked


def _measure(request: dict[str, Any], place: Path, verdict: TextIO) -> Outcome | None:
    """Measure in a process group of its own; None when nobody wants to know any more."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_lead, args=(writer, request, place, verdict))
    process.start()
    writer.close()
    with contextlib.suppress(OSError):
        os.setpgid(process.pid or 0, process.pid or 0)  # here, too: it may not have come to it
    deadline = Deadline(request["limit"])
    try:
        outcome = _hear(reader, deadline, request["limit"])
        if outcome is not None and not outcome.stuck:
            process.join(_SLACK)
    finally:
        reader.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        for pid in members("group", process.pid or 0):
            end(pid, _SLACK)  # killed already; waited for, that it takes no part in what is measured next
        process.join()
    return outcome


def _hear(reader: Connection, deadline: Deadline, limit: float) -> Outcome | None:
    poll = select.poll()
    poll.register(reader.fileno(), select.POLLIN)
    poll.register(0, select.POLLIN)
    ready = [fd for fd, _ in poll.poll(deadline.milliseconds())]
    if 0 in ready:
        return None  # nothing is asked before the last answer: it is the end
    if not ready:
        return Outcome(problem=f"stuck: no result after {limit:.0f} s, so its processes were killed", stuck=True)
    try:
        return Outcome.of(reader.recv())
    except EOFError:
        return Outcome(problem="the process that was to lead the measurement died")


def _lead(writer: Connection, request: dict[str, Any], place: Path, verdict: TextIO) -> None:
    from ipcbus.bench.crew import measure

    os.setpgid(0, 0)
    verdict.close()  # the end of the arena is seen by the end of this
    # What is left there when this is killed, the arena removes.
    tempfile.tempdir = os.environ["TMPDIR"] = str(place)
    os.environ.pop("XDG_RUNTIME_DIR", None)  # or private directories would be made in that
    signal.alarm(int(request["limit"] + _SLACK))  # if the arena itself is killed
    writer.send(measure(Case.of(request["case"]), request["seconds"], place).facts())
    writer.close()


def _clear_shared_memory(session: int) -> None:
    """Remove what users of iceoryx2 left there; it keeps a file of each name, and of killed users everything."""
    from ipcbus.bench.foreign import ICEORYX_PREFIX

    for path in Path("/dev/shm").glob(f"{ICEORYX_PREFIX.format(session)}*"):  # noqa: S108  where it is
        path.unlink(missing_ok=True)
