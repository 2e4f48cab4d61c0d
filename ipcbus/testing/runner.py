"""Runs a check in a process of its own, so that one that hangs is a result and not the end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipcbus.testing import leaks

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.testing.contract import Check
    from ipcbus.testing.subject import Subject

__all__ = ["Verdict", "run_apart"]


@dataclass(frozen=True)
class Verdict:
    """How a check went."""

    check: Check
    passed: bool
    seconds: float
    report: str = ""
    """What was wrong."""


def run_apart(check: Check, make_subject: Callable[[], Subject], timeout: float = 40.0) -> Verdict:
    """Run a check in a forked process group and end whatever is left of it.

    It has a directory of its own for what is made: what other programs make meanwhile is not taken for left behind.

    Args:
        check: the check.
        make_subject: called there.
        timeout: seconds after which the check has failed.
    """
    with tempfile.TemporaryDirectory(prefix="it-", ignore_cleanup_errors=True) as place:  # short: a socket's path has 107 bytes
        return _run_in(place, check, make_subject, timeout)


def _run_in(place: str, check: Check, make_subject: Callable[[], Subject], timeout: float) -> Verdict:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(there, check, make_subject, place))
    started = time.monotonic()
    process.start()
    there.close()
    report = f"it was not over after {timeout} s"
    try:
        if here.poll(timeout):
            report = here.recv()
    except EOFError:
        report = "its process died"
    finally:
        here.close()
        try:
            os.killpg(process.pid or 0, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended, or died before it led a group
        process.join()
        process.close()
    return Verdict(check, not report, time.monotonic() - started, report)


def _run(line: Any, check: Check, make_subject: Callable[[], Subject], place: str) -> None:
    os.setsid()  # whatever the check leaves running can be found and ended
    os.environ.update(TMPDIR=place, XDG_RUNTIME_DIR=place)
    tempfile.tempdir = None  # looked up anew
    leaks.own(Path(place))
    report = ""
    try:
        with make_subject() as subject:
            check.run(subject)
    except AssertionError as error:
        report = str(error) or traceback.format_exc()
    except Exception:  # noqa: BLE001  any other error is the transport's, and a failure of the check
        report = traceback.format_exc()
    line.send(report)
    line.close()
