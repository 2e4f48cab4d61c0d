"""What the tests of the supervisor run in child processes."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from pathlib import Path

from ipcbus import Program, Supervisor


def serve(life, channel):
    """Be ready, tell who it is, and go on until terminated."""
    life.ready()
    channel.send((life.name, life.incarnation, os.getpid()))
    threading.Event().wait()


def stay(life):
    life.ready()
    threading.Event().wait()


def raises(life):
    raise RuntimeError("the disk is full")


def exits(life):
    sys.exit("no such device")


def babbles(life):
    raise RuntimeError("x" * 1_000_000)


def returns(life):
    """End without having been ready."""


def never_ready(life):
    threading.Event().wait()


def only_prepares(life, incarnation):
    """From this incarnation on, say again and again that another process may be stopped for it, and never be ready."""
    if life.incarnation < incarnation:
        stay(life)
    while True:
        life.prepared()
        threading.Event().wait(0.05)


def stubborn(life):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    life.ready()
    threading.Event().wait()


def stuck(life):
    """Be in a C call that lets no thread run."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    life.ready()
    ctypes.PyDLL(None).sleep(600)


def weak(life, channel):
    """Be ready the first time and wait to be told; fail at once every other time."""
    if life.incarnation == 0:
        life.ready()
        channel.recv()
    raise RuntimeError("the disk is full")


def recovers(life, channel):
    """Be ready the first time and wait to be told; fail the second time, and no more."""
    if life.incarnation != 1:
        life.ready()
        channel.recv()
    raise RuntimeError("the disk is full")


def leaves_a_process(life, channel):
    """Start another process that has everything this one has, and outlives it."""
    life.ready()
    pid = os.fork()
    if pid == 0:
        threading.Event().wait()
    channel.send((os.getpid(), pid))
    threading.Event().wait()


def nests(life, channel, method):
    """Supervise a process in turn."""
    with Supervisor([Program("inner", stay)], start_method=method) as supervisor:
        life.ready()
        channel.send(supervisor.pids["inner"])
        supervisor.wait()


def tells_handlers(life, channel, numbers):
    """Tell which signals are handled by a function."""
    life.ready()
    channel.send([number for number in numbers if callable(signal.getsignal(number))])
    threading.Event().wait()


# Plain functions: they know nothing of a supervisor.


def plain(channel):
    channel.send(os.getpid())
    threading.Event().wait()


def succeed(channel):
    channel.send(os.getpid())


def fail(channel):
    channel.send(os.getpid())
    sys.exit(3)


def fail_once(channel, place):
    """Fail the first time, succeed the second: a file says which it is."""
    channel.send(os.getpid())
    try:
        os.close(os.open(place, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    sys.exit(3)


def converse(life, channel):
    """Answer what it is told, and give heartbeats."""
    import select

    life.ready()
    poll = select.poll()
    poll.register(life.fileno(), select.POLLIN)
    while True:
        life.beat()
        if poll.poll(50) and (said := life.heard()) is not None:
            channel.send((os.getpid(), life.incarnation, said))


def succession(life, channel, place):
    """Tell how far it gets; a file says what goes wrong on the way there."""

    def end(*_):
        channel.send(("ends", os.getpid()))
        sys.exit()

    signal.signal(signal.SIGTERM, end)
    channel.send(("loads", os.getpid()))
    wrong = Path(place).read_text()
    if wrong == "raise":
        raise RuntimeError("does not import")
    if wrong == "hang":
        threading.Event().wait()
    life.wait_turn()
    if wrong == "die late":
        Path(place).write_text("")  # before the next one looks, which is started for this one's death
        os.kill(os.getpid(), signal.SIGKILL)
    channel.send(("serves", os.getpid()))
    life.ready()
    threading.Event().wait()


def overlap(life, channel):
    """Do not mind that another one still runs."""
    channel.send(os.getpid())
    life.ready()
    threading.Event().wait()
