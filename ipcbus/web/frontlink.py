"""Front links: a service process's side of what ties it to the front ends."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from ipcbus.web.link import Sequence, draw

if TYPE_CHECKING:
    from ipcbus.web.pump import Pump

__all__ = ["FrontLink"]

UNKNOWN = 0


class FrontLink:
    """What ties a service process to one front end.

    Args:
        pump: sends it commands.
        wait: seconds that it is first waited for an answer.
    """

    __slots__ = (
        "asked",
        "attached",
        "echo",
        "entries",
        "epoch",
        "heard",
        "hello",
        "here",
        "left",
        "parted",
        "pump",
        "ready",
        "sequence",
        "taken",
        "token",
        "wait",
    )

    def __init__(self, pump: Pump, wait: float) -> None:
        self.pump = pump
        self.asked = monotonic()  # when ATTACH was said last
        self.wait = wait  # and how long it is waited for an answer
        self.token = draw()
        self.epoch = UNKNOWN
        self.hello = 0  # the token it has said HELLO with
        self.attached = False  # and all that it has
        self.here = False  # it has done so before, and takes commands though it may be asked anew
        self.ready = False  # and READY was said to it
        self.parted = False
        self.sequence = Sequence()
        self.heard = monotonic()
        self.entries: list[list[Any]] = []
        self.left: list[list[Any]] = []
        self.taken = 0
        self.echo = 0.0  # the time in its last PONG
