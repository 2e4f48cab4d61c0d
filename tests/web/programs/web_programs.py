"""What the tests of the supervisor and the server run in child processes."""

from __future__ import annotations

import os
import signal
import threading

from ipcbus.web import Service


def serve(life, channel):
    """Be ready, tell who it is, and go on until terminated."""
    life.ready()
    channel.send((life.name, life.incarnation, os.getpid()))
    threading.Event().wait()


def raises(life):
    raise RuntimeError("the disk is full")


def returns(life):
    """End without having been ready."""


def never_ready(life):
    threading.Event().wait()


def stubborn(life):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    life.ready()
    threading.Event().wait()


def dies_later(life, channel):
    """Be ready, wait to be told, end."""
    life.ready()
    channel.recv()


def dies_at_once(life, channel):
    """Be ready the first time; end at once every other time."""
    if life.incarnation == 0:
        life.ready()
        channel.recv()


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
