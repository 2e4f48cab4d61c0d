"""What a check is, and the list of them that the modules beside this one fill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.testing.subject import Subject
    from ipcbus.transport import Capabilities

__all__ = ["CHECKS", "Check", "check"]

Scope: TypeAlias = Literal["thread", "process", "start method"]


@dataclass(frozen=True)
class Check:
    """One check of the contract."""

    name: str
    """The function's name without ``check_``."""
    rules: tuple[int, ...]
    """The rules of :mod:`ipcbus.transport` it is about."""
    scope: Scope
    """``thread``: runs in one process. ``process``: starts others, by any method. ``start method``: to be run under each."""
    applies: Callable[[Capabilities], bool]
    """Whether a transport with these capabilities is to be checked."""
    run: Callable[[Subject], None]
    """Raises ``AssertionError``, with what happened and what should have, when a rule is broken."""

    @property
    def says(self) -> str:
        """What it demands, in a sentence."""
        return (self.run.__doc__ or "").strip().partition("\n")[0]


CHECKS: list[Check] = []
"""Every check, in the order in which they are best read."""


def check(
    *rules: int, scope: Scope = "thread", applies: Callable[[Capabilities], bool] = lambda _: True, largest: int = 2000
) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Enter a function ``check_NAME(subject)`` into the list.

    Args:
        *rules: the numbers of the rules it is about.
        scope: see :class:`Check`; anything but ``thread`` asks for a transport that crosses processes.
        applies: see :class:`Check`.
        largest: bytes that no message it sends exceeds; a transport whose medium carries less is not asked to.
    """

    def enter(function: Callable[[Subject], None]) -> Callable[[Subject], None]:
        def fits(capabilities: Capabilities) -> bool:
            most = capabilities.max_message
            carries = most is None or most >= largest
            return carries and (scope == "thread" or capabilities.crosses_processes) and applies(capabilities)

        CHECKS.append(Check(function.__name__.removeprefix("check_"), rules, scope, fits, function))
        return function

    return enter
