"""The ``ipcbus`` command: one file per subcommand.

Importing this package imports nothing else: what a subcommand needs is imported when it runs.
"""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module
from typing import NoReturn

__all__ = ["main"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What the system says where standard output is a file that takes no more."""


def main() -> NoReturn:
    """Run the command line of this process and exit with its code.

    Exit codes: 0 done; 1 it failed, or says no; 2 the command line or a configuration is wrong; 130 interrupted.
    """
    try:
        _run()
    except KeyboardInterrupt:
        sys.exit(130)  # before the application could take it; it does the same
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        sys.stderr.write(f"ipcbus: what was to be printed could not be written: {error.strerror}\n")
        # What is left of it is not tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())
        sys.exit(1)
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
