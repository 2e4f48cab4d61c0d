"""Messages for the measurement that do what messages should not."""

import os
import signal
from pathlib import Path


def note():
    with Path(os.environ["HANGING_PIDS"]).open("a") as file:
        file.write(f"{os.getpid()}\n")


def forever():
    note()
    signal.pause()


class Waits:
    """Hangs where it is decoded."""

    def __reduce__(self):
        return forever, ()


def empty():
    return b""


def waits():
    return Waits()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Dies:
    def __reduce__(self):
        return die, ()


def dies():
    return Dies()


def changed(value):
    return "something else"


class Changes:
    def __eq__(self, other):
        return isinstance(other, Changes)

    __hash__ = None

    def __reduce__(self):
        return changed, (1,)


def changes():
    return Changes()
