"""WebSocket clients whose messages land on a channel, which any process can read."""

from __future__ import annotations

from ipcbus.web.client.client import Client, connect
from ipcbus.web.client.connection import Counts
from ipcbus.web.client.incoming import Incoming, Mailbox, Overflow
from ipcbus.web.client.options import ClientOptions

__all__ = ["Client", "ClientOptions", "Counts", "Incoming", "Mailbox", "Overflow", "connect"]
