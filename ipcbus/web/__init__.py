"""WebSockets: a pre-forked server whose services live in processes of their own, and a client that feeds channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipcbus.web.limits import Limits
from ipcbus.web.service import Accept, Connection, Reject, Request, Service

if TYPE_CHECKING:
    from ipcbus.web.client import Client, Incoming, connect

__all__ = ["Accept", "Client", "Connection", "Incoming", "Limits", "Reject", "Request", "Service", "connect"]

_LATER = dict.fromkeys(("Client", "Incoming", "connect"), "ipcbus.web.client")
"""Names that are imported at their first use, and from where: a service needs nothing of the WebSocket library."""


if not TYPE_CHECKING:  # or a type checker would take every name for one that is imported later

    def __getattr__(name: str) -> object:
        module = _LATER.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        value = globals()[name] = getattr(importlib.import_module(module), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
