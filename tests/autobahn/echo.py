"""The service that the suite talks to: it sends every message back as it came."""

from __future__ import annotations

from ipcbus.web import Service


class Echo(Service):
    path, codec = "/echo", "raw"

    async def on_message(self, conn, message):
        await conn.send(message)
