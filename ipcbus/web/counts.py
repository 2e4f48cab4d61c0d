"""Counts: what has happened in a front end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ipcbus.web.terms import SILENT, TOO_MANY

__all__ = ["Counts"]

_NAMED = frozenset({*range(1000, 1016), 3000, 3003, 3008, SILENT, TOO_MANY})
"""Close codes of RFC 6455 and of IANA's registry, and this server's own."""


@dataclass(slots=True)
class Counts:
    """What has happened in this front end."""

    opened: int = 0
    closed: int = 0
    received: int = 0
    """Messages of clients."""
    received_bytes: int = 0
    sent: int = 0
    """Messages written to clients."""
    sent_bytes: int = 0
    refused: int = 0
    """Connections and opening handshakes turned away, whatever for."""
    slow: int = 0
    """Connections cut because too much waited for them."""
    dropped: int = 0
    """Messages that a client did not get because it reads slowly, where the service allowed for that."""
    superseded: int = 0
    """The same, where a newer one of their key took their place."""
    delayed: int = 0
    """Messages whose connection was not read for a while because it sends too fast."""
    unknown: int = 0
    """Commands for a connection that is gone."""
    nonsense: int = 0
    """Batches and commands of services that made no sense."""
    stale: int = 0
    """Batches of a service that was replaced since."""
    reasons: Counter[str] = field(default_factory=Counter)
    """``refused`` by reason."""
    codes: Counter[int | str] = field(default_factory=Counter)
    """Closed connections by close code; 1006 where there was none. Those that have a meaning of their own are told apart, the
    others are ``"3xxx"`` and ``"4xxx"``: clients choose them, and must not choose how many entries there are."""

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return self.opened - self.closed

    def refuse(self, reason: str) -> None:
        """Count a refusal."""
        self.refused += 1
        self.reasons[reason] += 1

    def close(self, code: int) -> None:
        """Count a closed connection."""
        self.closed += 1
        self.codes[code if code in _NAMED else f"{code // 1000}xxx"] += 1

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            name: dict(value) if isinstance(value := getattr(self, name), Counter) else value
            for name in self.__dataclass_fields__
        }
