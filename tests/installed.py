"""The wheel as users get it; ``nox -s wheel`` runs this as a script, far from the checkout and without test tools."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ipcbus
from ipcbus.demo.selfcheck import channel_url


def run(*words: str | Path, timeout: float) -> None:
    done = subprocess.run(words, check=False, timeout=timeout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print("--", *words, "\n" + done.stdout, flush=True)
    if done.returncode:
        raise SystemExit(f"{words} ended with {done.returncode}")


def main(scratch: str) -> None:
    here = Path(ipcbus.__file__).resolve()
    assert here.is_relative_to(Path(scratch).resolve()), f"{here} is the checkout, not what was installed"
    command = Path(sys.executable).with_name("ipcbus")
    run(command, "transports", timeout=30)
    run(command, "demo", "--check", timeout=120)
    for scheme in ipcbus.transports:  # one after the other: each looks for what it has left behind on this machine
        run(sys.executable, "-m", "ipcbus.testing", channel_url(scheme), timeout=600)


if __name__ == "__main__":
    main(*sys.argv[1:])
