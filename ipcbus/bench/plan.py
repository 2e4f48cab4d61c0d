"""Plans: which cases are measured, in which order, and how long that will take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ipcbus.bench.case import Absent, Case
from ipcbus.bench.messages import Message

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ipcbus.bench.carriers import Carrier

__all__ = ["ALL_SIZES", "Plan", "Wish", "estimate", "make_plan", "turns"]

ALL_SIZES = (64, 1 << 10, 1 << 16, 1 << 20, 64 << 20)
"""Bytes of the messages that the project measures itself with."""
_USUAL = ALL_SIZES[:-1]
"""Of those that are measured where nobody says: to send the largest often enough takes minutes."""
_ARRAYS = (1 << 20, 64 << 20)
_SET_UP = 0.12
"""Seconds for which a measurement starts and ends processes, about, and a few more for each of them."""
_PER_PROCESS = 0.02
_PHASES = 2.2
"""How much longer all phases take than the one that counts, about."""
_BYTES_PER_SECOND = 4e8
"""What a slow carrier moves of large messages."""
_LEAST = 5
"""Messages that are sent at least."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants to know."""

    scenarios: tuple[str, ...]
    kind: str = "bytes"
    """One of ``messages.KINDS``, or ``module:factory``."""
    sizes: tuple[int, ...] = ()
    """Bytes; empty for those that suit the scenario."""
    sized: bool = True
    """Whether the message is made as large as one says. Where a factory makes it as it likes, it has one size."""
    serializers: tuple[str, ...] = ("auto",)
    senders: tuple[int, ...] = (8,)
    """Numbers of senders of a fan-in."""
    receivers: int = 4
    """Of a fan-out."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and what is not and why."""

    cases: tuple[Case, ...]
    absent: tuple[Absent, ...]
    """Each that was left out once, even if it was for several messages."""


def make_plan(wish: Wish, carriers: Sequence[tuple[Carrier, str]]) -> Plan:
    """Plan cases for carriers.

    Args:
        wish: what somebody wants to know.
        carriers: with the serializer of each.
    """
    cases: list[Case] = []
    absent: dict[Absent, None] = {}
    for scenario in wish.scenarios:
        senders = wish.senders if scenario == "fan-in" else (1,)
        receivers = wish.receivers if scenario == "fan-out" else 1
        for message in _messages(wish, scenario):
            for count in senders:
                for carrier, serializer in carriers:
                    if scenario not in carrier.scenarios:
                        continue
                    case = Case(scenario, carrier.key, message, serializer, count, receivers)
                    if reason := carrier.refuses(scenario, message, count, receivers):
                        absent[Absent(carrier.name, reason, scenario)] = None
                    else:
                        cases.append(case)
    return Plan(tuple(cases), tuple(absent))


def _messages(wish: Wish, scenario: str) -> list[Message]:
    if scenario == "arrays":
        return [Message("array", size) for size in wish.sizes or _ARRAYS]
    return [Message(wish.kind, size) for size in wish.sizes or _USUAL] if wish.sized else [Message(wish.kind, None)]


def turns(cases: Sequence[Case], rounds: int) -> Iterator[tuple[int, Case]]:
    """Yield every case once a round; every other round backwards, so that nobody always comes after the same one."""
    for number in range(rounds):
        yield from ((number, case) for case in (reversed(cases) if number % 2 else cases))


def estimate(cases: Sequence[Case], rounds: int, seconds: float) -> float:
    """Return about how many seconds it takes to measure cases."""
    return rounds * sum(_one(case, seconds) for case in cases)


def _one(case: Case, seconds: float) -> float:
    large = _LEAST * (case.message.size or 0) * (2 if case.trips else 1) / _BYTES_PER_SECOND
    return _SET_UP + _PER_PROCESS * (case.senders + case.receivers) + max(_PHASES * seconds, large)
