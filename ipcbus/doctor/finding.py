"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "size", "split"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found out about one subject."""

    subject: str
    state: Literal["ok", "note", "problem"]
    """A note is good to know and stops nothing; a problem stops something, or will."""
    said: str
    advice: str | None = None
    """What to do about it; None where there is nothing to do."""


def split(message: str) -> tuple[str, str | None]:
    """Take an error message apart: what happened, and what to do about it, which stands behind the first semicolon."""
    said, _, advice = message.partition("; ")
    return said, advice.removeprefix("try: ") or None


def size(count: int) -> str:
    """Write a number of bytes for people, in the largest unit that leaves a number of at least one."""
    number = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.3g} {unit}" if number < 100 else f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.3g} TiB" if number < 100 else f"{number:.0f} TiB"
