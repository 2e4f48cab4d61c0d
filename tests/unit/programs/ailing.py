"""Transports that do not work, each in its own way."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from pathlib import Path

from ipcbus.errors import ChannelBroken, ConfigError
from ipcbus.plumbing import rundir
from ipcbus.transport import Capabilities, Handle, NoOptions, SendLink, Transport
from ipcbus_pipe import Pipe
from ipcbus_pipe import PipeOptions as _PipeOptions

PIDS = "AILING_PIDS"
"""The variable that names the file in which Hangs writes down its processes."""


def hang():
    threading.Event().wait()


class Hangs(Transport):
    """With a child that cannot be asked to end, and a private directory."""

    scheme = "ailing"
    capabilities = Capabilities()
    guarantees = Pipe.guarantees
    options = NoOptions

    @classmethod
    def create(cls, spec, options):
        place = rundir.create()
        ready, done = os.pipe()
        child = os.fork()
        if not child:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.close(done)
            os.write(1, b"what plugins print is no verdict\n")
            hang()
        os.close(ready)
        Path(os.environ[PIDS]).write_text(f"{os.getpid()} {child} {place}")
        hang()


class Raises(Hangs):
    @classmethod
    def create(cls, spec, options):
        raise ChannelBroken("there is no room; make some")


class Surprises(Hangs):
    @classmethod
    def create(cls, spec, options):
        print('{"milliseconds": 1, "problem": null, "missing": false}')
        return 1 / 0


class Dies(Hangs):
    @classmethod
    def create(cls, spec, options):
        os.write(2, b"something on the way\nout of paper\n")
        os._exit(3)


class Killed(Hangs):
    @classmethod
    def create(cls, spec, options):
        os.kill(os.getpid(), signal.SIGSEGV)


class WantsAddress(Hangs):
    @classmethod
    def create(cls, spec, options):
        if not spec.address.startswith("//127.0.0.1:"):
            raise ConfigError("it needs an address")
        return Pipe.create(_without_address(spec), _PipeOptions())


class SenderRaises(Hangs):
    @classmethod
    def create(cls, spec, options):
        return Ailing("raises", Pipe.create(spec, _PipeOptions()))


class SenderDies(Hangs):
    @classmethod
    def create(cls, spec, options):
        return Ailing("dies", Pipe.create(spec, _PipeOptions()))


class SenderHangs(Hangs):
    @classmethod
    def create(cls, spec, options):
        return Ailing("hangs", Pipe.create(spec, _PipeOptions()))


class Loses(Hangs):
    @classmethod
    def create(cls, spec, options):
        return Ailing("loses", Pipe.create(spec, _PipeOptions()))


class Confuses(Hangs):
    @classmethod
    def create(cls, spec, options):
        return Ailing("confuses", Pipe.create(spec, _PipeOptions()))


def _without_address(spec):
    return dataclasses.replace(spec, address="")


class Ailing(Handle):
    """A pipe with a sending end that does not work."""

    def __init__(self, how, inner):
        self.how, self.inner = how, inner

    def open_sender(self):
        if self.how == "raises":
            raise ChannelBroken("the door is shut; open it")
        if self.how == "dies":
            os._exit(7)
        if self.how == "hangs":
            hang()
        return Bad(self.how, self.inner.open_sender())

    def open_receiver(self):
        return self.inner.open_receiver()

    def release(self):
        self.inner.release()


class Bad(SendLink):
    def __init__(self, how, inner):
        self.how, self.inner = how, inner

    def send(self, frame, timeout):
        if self.how == "confuses":
            self.inner.send([bytes(part).replace(b"doctor", b"patient") for part in frame], timeout)

    def fileno(self):
        return self.inner.fileno()

    def ready(self):
        return self.inner.ready()

    def shutdown(self):
        self.inner.shutdown()

    def close(self):
        self.inner.close()

    def abandon(self):
        self.inner.abandon()

    def depth(self):
        return self.inner.depth()
