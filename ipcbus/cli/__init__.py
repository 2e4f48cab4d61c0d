"""The ``ipcbus`` command: one file per subcommand.

Importing this package imports nothing else: what a subcommand needs is imported when it runs.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line of this process and exit with its code.

    Exit codes: 0 done; 1 it failed, or says no; 2 the command line or a configuration is wrong; 130 interrupted.
    """
    try:
        _run()
    except KeyboardInterrupt:
        sys.exit(130)  # before the application could take it; it does the same
    sys.exit(0)


def _run() -> None:
    for name in ("typer", "rich"):
        try:
            import_module(name)
        except ImportError:
            sys.stderr.write(f"ipcbus: the command line needs {name}; try: pip install 'ipcbus[cli]'\n")
            sys.exit(1)
    from ipcbus.cli.app import app

    app(prog_name="ipcbus")
