"""One message through one transport, for real: from a child process to its parent, and bounded in time whatever hangs.

Both run in processes made for it, in a session of their own: what a transport does wrong, it does there, and what does not
end is killed there.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ipcbus.channel import open_channel
from ipcbus.errors import ChannelEmpty, ConfigError, TransportUnavailable
from ipcbus.plumbing import rundir
from ipcbus.plumbing.clock import Deadline
from ipcbus.plumbing.kin import members
from ipcbus.plumbing.ports import free_port
from ipcbus.selection import transports
from ipcbus.wait import wait

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from ipcbus.channel import Channel
    from ipcbus.transport import Transport

__all__ = ["TIMEOUT", "Trial", "attempt", "main", "open_here"]

TIMEOUT = 5.0
"""Seconds for one transport: to start two processes takes a fraction of one, a busy machine some."""
_SHARE = 0.8
"""The part of it that the message itself may take; in what is left the trial says how it went."""
_PATIENCE = 1.0
"""Seconds for what a killed process has written to be read."""
_GREETING = b"ipcbus doctor "
_START = """
import json, sys
request = json.loads(sys.argv[1])
sys.path[:] = request.pop("path")
from ipcbus.doctor.trial import main
main(**request)
"""


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of it."""

    scheme: str
    milliseconds: float | None
    """From before the child's ``send``, which opens its end, to the parent's having the message; None if it did not come."""
    sender: str
    """Who sent it."""
    problem: str | None = None
    """What went wrong, with what to do about it behind a semicolon."""
    missing: bool = False
    """Whether it needs something that is not installed."""
    hung: str | None = None
    """What it was doing when its time was over and it was killed."""


def attempt(scheme: str, transport: type[Transport] | None = None, *, timeout: float = TIMEOUT) -> Trial:
    """Have a child process send a message through a transport, and another one receive it.

    Args:
        scheme: the transport's.
        transport: its class, if it is to be taken from where this process has it and not from what is installed.
        timeout: seconds for everything; then what still runs is killed.
    """
    where = None if transport is None else f"{transport.__module__}:{transport.__qualname__}"
    path = [str(entry) for entry in sys.path]
    request = json.dumps({"path": path, "scheme": scheme, "where": where, "timeout": timeout})
    # -P: the working directory must not shadow the modules that the script itself imports.
    process = subprocess.Popen(  # noqa: S603  our own interpreter and our own script
        [sys.executable, "-P", "-c", _START, request],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    hung = False
    with process:
        try:
            out, noise = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            hung = True
            _kill(process)
            out, noise = _rest(process)
        except BaseException:
            _kill(process)
            raise
    lines = [json.loads(line) for line in out.splitlines() if line.endswith(b"}")]
    doing = next((line["doing"] for line in reversed(lines) if "doing" in line), "starting Python")
    sender = next((line["sender"] for line in lines if "sender" in line), "a child process")
    result = next((line for line in lines if "milliseconds" in line), None)
    if hung:
        problem = f"it hung while {doing}, and was killed after {timeout:g} s"
        return Trial(scheme, None, sender, f"{problem}; on a very busy machine try --timeout {timeout * 4:g}", hung=doing)
    if result is None:
        return Trial(scheme, None, sender, f"{_death(process.returncode, noise)} while {doing}")
    return Trial(scheme, result["milliseconds"], sender, result["problem"], missing=result["missing"])


def _rest(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    try:
        return process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired as error:  # a process in yet another session holds the pipes open
        return error.output or b"", error.stderr or b""


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the session of a trial, and remove what only its processes can have left behind."""
    pids = {process.pid, *members("group", process.pid)}
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # it had ended, and was waited for
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # before that its directories are not left over
    for directory in rundir.leftovers(rundir.base()):
        if directory.name.removeprefix(rundir.PREFIX).partition("-")[0] in map(str, pids):
            rundir.remove(directory)


def _death(code: int, noise: bytes) -> str:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    last = noise.decode(errors="replace").strip().rpartition("\n")[2]
    return f"the process that tried it {how}{last and ' (' + last + ')'}"


def main(scheme: str, where: str | None, timeout: float) -> None:
    """Try a transport in this process, made for it, and write down how it goes, one JSON object per line."""
    deadline = Deadline(timeout * _SHARE)
    _end_after(timeout)
    verdict = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what plugins print is no verdict

    def say(**said: Any) -> None:
        print(json.dumps(said), file=verdict)

    milliseconds, problem, missing = None, None, False
    try:
        milliseconds = _try(scheme, where, deadline, say)
    except TransportUnavailable as error:
        problem, missing = str(error), True
    except ChannelEmpty:
        problem = f"the message that was sent had not arrived after {timeout * _SHARE:g} s"
    except Exception as error:  # noqa: BLE001  a plugin may raise anything, and whatever it is is the verdict
        problem = str(error) if isinstance(error, _Failed) else f"{type(error).__name__}: {error}"
    say(milliseconds=milliseconds, problem=problem, missing=missing)
    say(doing="ending the process")


class _Failed(Exception):
    """The trial failed, and the text says all about it."""


def _try(scheme: str, where: str | None, deadline: Deadline, say: Callable[..., None]) -> float:
    rundir.spare()
    say(doing="loading it")
    if where is not None:
        module, _, name = where.partition(":")
        transports.register(scheme, getattr(importlib.import_module(module), name), replace=True)
    crosses = transports.get(scheme).capabilities.crosses_processes
    say(doing="making a channel")
    with open_here(f"{scheme}:") as channel:
        say(doing="starting the sender", sender="a child process" if crosses else "another thread")
        if not crosses:
            thread = threading.Thread(target=_send, args=(channel.sender, deadline.remaining()), daemon=True)
            thread.start()
            say(doing="receiving")
            took = _take(channel, deadline)
            say(doing="closing the channel")
            return took
        reader, writer = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.Process(target=_send_or_say, args=(channel.sender, deadline.remaining(), writer), daemon=True)
        child.start()
        writer.close()
        say(doing="receiving")
        ready = wait([channel, reader], timeout=deadline.remaining())
        if channel not in ready and reader in ready and (failed := _said(reader)):
            raise _Failed(failed)
        try:
            took = _take(channel, deadline)
        except ChannelEmpty:
            if child.exitcode:
                raise _Failed(f"the child process that was to send died with exit code {child.exitcode}") from None
            raise
        say(doing="ending the sender")
        child.join(deadline.remaining())
        say(doing="closing the channel")
        return took


def open_here(url: str, **options: Any) -> Channel:
    """Open a channel by a URL that may lack the address its transport needs: then it is a free port of this machine."""
    scheme, colon, rest = url.partition(":")
    try:
        return open_channel(url, **options)
    except ConfigError as error:
        if not colon or (rest and not rest.startswith("?")):
            raise
        try:
            return open_channel(f"{scheme}://127.0.0.1:{free_port()}{rest}", **options)
        except ConfigError:
            raise error from None  # that was not what it lacked


def _take(channel: Channel, deadline: Deadline) -> float:
    """Receive the message and return how many milliseconds it took."""
    got = channel.recv(timeout=deadline.remaining())
    now = time.monotonic_ns()  # the same clock for all processes of a machine
    if not isinstance(got, bytes) or not got.startswith(_GREETING):
        raise _Failed(f"another message arrived than was sent: {got!r:.100}")
    return (now - int(got.removeprefix(_GREETING))) / 1e6


def _send(channel: Channel, timeout: float) -> None:
    channel.send(_GREETING + str(time.monotonic_ns()).encode(), timeout=timeout)


def _send_or_say(channel: Channel, timeout: float, failed: Connection) -> None:
    """Send the message, or tell the parent what came instead."""
    rundir.spare()
    _end_after(timeout)
    try:
        _send(channel, timeout)
    except Exception as error:  # noqa: BLE001  as in main
        failed.send(f"{type(error).__name__}: {error}")


def _said(reader: Connection) -> str | None:
    try:
        said: str = reader.recv()
    except EOFError:
        return None  # it has sent all that it had to, or died
    return said


def _end_after(timeout: float) -> None:
    """Have this process end even if the one that is to kill it was killed itself."""
    signal.alarm(int(timeout) + 5)
