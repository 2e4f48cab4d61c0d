"""The wheel as users get it; ``nox -s wheel`` runs this as a script, far from the checkout and without test tools."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ipcbus
from ipcbus.demo.selfcheck import channel_url

AT_ONCE = 3
"""Contracts that run beside each other: more would measure the scheduler, fewer mostly wait."""


def run(*words: str | Path, timeout: float, **environment: str) -> None:
    done = subprocess.run(
        words,
        check=False,
        timeout=timeout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )
    print("--", *words, "\n" + done.stdout, flush=True)
    if done.returncode:
        raise SystemExit(f"{words} ended with {done.returncode}")


def main(scratch: str) -> None:
    here = Path(ipcbus.__file__).resolve()
    assert here.is_relative_to(Path(scratch).resolve()), f"{here} is the checkout, not what was installed"
    command = Path(sys.executable).with_name("ipcbus")
    run(command, "transports", timeout=30)
    run(command, "demo", "--check", timeout=120)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(contract, ipcbus.transports))  # raises what one of them raised


def contract(scheme: str) -> None:
    # In a place of its own, where it looks for what it has left behind. Short: a socket's path has 107 bytes.
    with tempfile.TemporaryDirectory(prefix="it-") as place:
        words = (sys.executable, "-m", "ipcbus.testing", channel_url(scheme))
        run(*words, timeout=600, TMPDIR=place, XDG_RUNTIME_DIR=place)


if __name__ == "__main__":
    main(*sys.argv[1:])
