"""What a command needs besides the command line, all of it said at once."""

from collections.abc import Mapping
from importlib.util import find_spec

from ipcbus.errors import IpcbusError

__all__ = ["DATABASE", "SERVER", "need"]

SERVER = {"websockets": "web", "msgspec": "web"}
"""Modules that every WebSocket server needs, and the extras that bring them."""
DATABASE = {"sqlalchemy": "db"}
"""What one with a database needs besides."""


def need(command: str, modules: Mapping[str, str]) -> None:
    """Make sure that modules are installed; raises ``IpcbusError`` with the command that installs those that are not."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        extras = ",".join(sorted({modules[module] for module in missing}))
        raise IpcbusError(f"{command} needs {' and '.join(missing)}; try: pip install 'ipcbus[{extras}]'")
