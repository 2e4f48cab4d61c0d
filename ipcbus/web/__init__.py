"""A pre-forked WebSocket server whose services live in processes of their own."""

from __future__ import annotations

from ipcbus.web.limits import Limits
from ipcbus.web.service import Accept, Connection, Reject, Request, Service

__all__ = ["Accept", "Connection", "Limits", "Reject", "Request", "Service"]
