"""What the tests of the server run in child processes."""

from __future__ import annotations

import os
import signal

from ipcbus.web import Service


class Echo(Service):
    path, codec = "/echo", "raw"

    async def on_message(self, conn, message):
        await conn.send(message)


class Rival(Echo):
    """Wants the path of the other."""


class Crash(Service):
    path, codec = "/crash", "text"

    def on_message(self, conn, message):
        os.kill(os.getpid(), signal.SIGKILL)


def not_a_service():
    return 42
