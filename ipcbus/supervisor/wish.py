"""Wishes: what other threads want of the supervisor's."""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Literal, TypeAlias

from ipcbus.errors import StartFailed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ipcbus.supervisor.program import Program

__all__ = ["Want", "Wish", "Wishes"]

Want: TypeAlias = Literal["start", "stop", "restart", "replace"]
"""What can be wished for."""


class Wish:
    """To start a program, to stop the one of that name, to restart it, or to replace its process.

    Args:
        what: which of the four.
        name: the program.
        program: the one to start.
    """

    def __init__(self, what: Want, name: str, program: Program | None = None) -> None:
        self.what = what
        self.name = name
        self.program = program
        self.done = threading.Event()
        self.error: Exception | None = None

    def refuse(self, error: Exception) -> None:
        """Let it raise."""
        self.error = error
        self.done.set()


class Wishes:
    """The wishes that are being granted, by program: each waits for a process to be ready, or to have ended."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, list[Wish]] = defaultdict(list)

    def __contains__(self, name: str) -> bool:
        return bool(self._waiting.get(name))

    def add(self, wish: Wish) -> None:
        """Have one wait."""
        self._waiting[wish.name].append(wish)

    def grant(self, name: str, *, starting: bool, again: bool = False) -> None:
        """Let those go who waited for a program to be ready, or to have ended.

        Args:
            name: the program.
            starting: which of the two has happened.
            again: whether another process follows at once, which those wait for who asked for a new one.
        """
        for wish in self._waiting.pop(name, []):
            if (wish.what != "stop") == starting and not (again and wish.what in ("restart", "replace")):
                wish.done.set()
            else:
                self._waiting[name].append(wish)

    def refuse(self, name: str, why: str, only: Want | None = None) -> None:
        """Let those raise who wait for a program, or those of them who want this."""
        for wish in self._waiting.pop(name, []):
            if only in (None, wish.what):
                wish.refuse(StartFailed(why, name))
            else:
                self._waiting[name].append(wish)

    def end(self, more: Iterable[Wish], why: str) -> None:
        """Let everybody go, and those of ``more`` that nobody has taken up: everything has stopped."""
        for wish in itertools.chain(*self._waiting.values(), more):
            if wish.what == "stop":
                wish.done.set()
            else:
                wish.refuse(StartFailed(f"{wish.name} was not started: {why}", wish.name))
        self._waiting.clear()
