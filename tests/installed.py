"""The wheel as users get it; ``nox -s wheel`` runs this as a script, far from the checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ipcbus


def main(scratch: str) -> None:
    here = Path(ipcbus.__file__).resolve()
    assert here.is_relative_to(Path(scratch).resolve()), f"{here} is the checkout, not what was installed"
    for scheme in ipcbus.transports:
        print(f"-- {scheme}:", flush=True)
        subprocess.run([sys.executable, "-m", "ipcbus.testing", f"{scheme}:"], check=True, timeout=300)
    subprocess.run([Path(sys.executable).with_name("ipcbus"), "transports"], check=True, timeout=30)


if __name__ == "__main__":
    main(*sys.argv[1:])
