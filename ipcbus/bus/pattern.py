"""Names of topics, and patterns over them: words between dots, ``*`` for any one word, ``>`` for one or more at the end.

No I/O. ``prices.eu.*`` matches ``prices.eu.dax`` and not ``prices.eu``; ``prices.>`` matches both, and not ``prices``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ipcbus.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ANY", "HEADER", "MOST_CHARACTERS", "REST", "best", "check_name", "check_pattern", "covers", "is_pattern", "matches"]

ANY = "*"
"""The word that stands for any one word."""
REST = ">"
"""The last word that stands for one or more."""
HEADER = "topic"
"""The header in which the name of its topic travels with a message."""
MOST_CHARACTERS = 200
"""Length of the longest name or pattern."""
_WORD = re.compile(r"[A-Za-z0-9_:-]+")
_RULE = f"a name is words of letters, digits, '_', ':' and '-' with dots between them, {MOST_CHARACTERS} characters at most"


def is_pattern(text: str) -> bool:
    """Tell whether a text can match more than one name."""
    return bool({ANY, REST} & set(text.split(".")))


def check_name(text: str) -> None:
    """Make sure that a text can name one topic; raises ``ConfigError``."""
    if is_pattern(text):
        raise ConfigError(f"{text!r} is a pattern, and a message has one topic: publish to a name without '*' and '>'")
    check_pattern(text)


def check_pattern(text: str) -> None:
    """Make sure that a text is a name or a pattern; raises ``ConfigError``."""
    words = text.split(".")
    for place, word in enumerate(words):
        if word == ANY or (word == REST and place == len(words) - 1):
            continue
        if word == REST:
            raise ConfigError(f"{text!r}: '>' stands for the rest of a name and can only come last; use '*' for one word")
        if not _WORD.fullmatch(word):
            hint = "; '*' and '>' stand for whole words" if ANY in word or REST in word else ""
            raise ConfigError(f"{text!r} cannot be a topic: {_RULE}{hint}")
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"{text[:40]!r}... has {len(text)} characters: {_RULE}")


def matches(pattern: str, name: str) -> bool:
    """Tell whether a pattern matches the name of a topic. Both are checked."""
    return covers(pattern, name)


def covers(wide: str, narrow: str) -> bool:
    """Tell whether every name that the second pattern, or name, matches is matched by the first. Both are checked."""
    asked, given = wide.split("."), narrow.split(".")
    if asked[-1] == REST:
        # '>' is at least one word, whether the other says so with a word, a '*' or a '>' of its own.
        asked.pop()
        if len(given) <= len(asked):
            return False
        given = given[: len(asked)]
    elif len(asked) != len(given):
        return False
    return all(one == other or (one == ANY and other != REST) for one, other in zip(asked, given, strict=True))


def best(patterns: Iterable[str], wanted: str) -> str | None:
    """Return the pattern, or name, that says most exactly what covers ``wanted``; None if none does.

    Itself comes first, then the one that has a word of its own where others have ``*``, and ``*`` where others have ``>``,
    looked at from the left.
    """
    return min((pattern for pattern in patterns if covers(pattern, wanted)), key=_looseness, default=None)


def _looseness(pattern: str) -> list[int]:
    # The number behind the words makes what ends earlier the looser one, though only with '>' can it cover the same.
    return [*((ANY, REST).index(word) + 1 if word in (ANY, REST) else 0 for word in pattern.split(".")), 3]
