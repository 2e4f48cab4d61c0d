"""A pre-forked WebSocket server whose services live in processes of their own."""

from __future__ import annotations

from ipcbus.web.service import Connection, Service

__all__ = ["Connection", "Service"]
