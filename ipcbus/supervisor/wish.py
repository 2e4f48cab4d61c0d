"""Wishes: what other threads want of the supervisor's."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ipcbus.supervisor.program import Program

__all__ = ["Wish"]


class Wish:
    """To start a program, to stop the one of that name, or to restart it.

    Args:
        what: which of the three.
        name: the program.
        program: the one to start.
    """

    def __init__(self, what: Literal["start", "stop", "restart"], name: str, program: Program | None = None) -> None:
        self.what = what
        self.name = name
        self.program = program
        self.done = threading.Event()
        self.error: Exception | None = None

    def refuse(self, error: Exception) -> None:
        """Let it raise."""
        self.error = error
        self.done.set()
