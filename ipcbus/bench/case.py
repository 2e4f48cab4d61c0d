"""Cases: what one measurement is of, and what comes of it, as data that crosses processes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ipcbus.bench.messages import Message

__all__ = ["SCENARIOS", "Absent", "Case", "Outcome", "Sample"]

SCENARIOS = {
    "one-way": "one sender, one receiver: how many messages go through",
    "round-trip": "a message there and one back over two of them: how long it takes",
    "request": "Channel.request and its answer: how long it takes",
    "fan-in": "several senders, one receiver: how many messages go through",
    "fan-out": "one sender, several receivers that compete: how many messages go through",
    "arrays": "NumPy arrays, one sender, one receiver: how many go through",
}
"""What can be measured, with what it is."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured: one carrier, one message, one scenario."""

    scenario: str
    carrier: str
    """The name of a peer, or the URL of a channel."""
    message: Message
    serializer: str = "auto"
    senders: int = 1
    receivers: int = 1

    @property
    def name(self) -> str:
        """What the carrier is called in a report."""
        return self.carrier if self.serializer == "auto" else f"{self.carrier} {self.serializer}"

    @property
    def trips(self) -> bool:
        """Whether the time of one message there and back is measured, not a rate."""
        return self.scenario in ("round-trip", "request")

    def facts(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Case:
        """Make it of what ``facts`` returned."""
        return cls(**{**facts, "message": Message(**facts["message"])})


@dataclass(frozen=True, slots=True)
class Absent:
    """A carrier that is not measured."""

    name: str
    why: str
    scenario: str | None = None
    """In which; None is in all."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one round gave."""

    seconds: float
    """For one message; of round trips the median of all."""
    messages: int
    """How many were timed."""
    slow: float | None = None
    """Of round trips: the seconds that 99 of 100 do not take longer than."""
    size: int | None = None
    """Bytes of the message encoded by the channel; of a peer's, by pickle."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A sample, or why there is none."""

    sample: Sample | None = None
    problem: str | None = None
    stuck: bool = False
    """Whether its processes had to be ended."""

    def facts(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Outcome:
        """Make it of what ``facts`` returned."""
        sample = facts["sample"]
        return cls(**{**facts, "sample": None if sample is None else Sample(**sample)})
