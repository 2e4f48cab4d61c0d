"""Origins: the pages that may open a WebSocket here. No I/O."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Origins"]

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\*\.)?([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]+)?")
"""RFC 6454, section 6.2, as browsers write it: small letters, no path, and no port where it is the usual one."""
_LABELS = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


class Origins:
    """The origins whose pages may open a WebSocket here, besides those of this host itself.

    Browsers send the cookies of this host with every WebSocket, whichever page opens it, and always say whose page it is.
    Programs that are no browsers send no Origin and are let in.

    Args:
        texts: origins as browsers write them (``https://example.org``, ``null``); ``https://*.example.org`` is every name
            below that one, and ``*`` all there are.

    Raises:
        ValueError: one is none of these.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = frozenset(texts)
        for text in self._texts:
            if text not in ("*", "null") and not _ORIGIN.fullmatch(text):
                raise ValueError(
                    f"{text!r} is no origin; it reads scheme://host, with :port if it has one, and nothing behind it"
                )
        self._below = [(scheme, name) for text in self._texts for scheme, star, name in (text.partition("*"),) if star and name]

    def allow(self, given: Sequence[str], hosts: Sequence[str]) -> bool:
        """Tell whether who asks may.

        Args:
            given: the values of Origin in the request.
            hosts: those of Host.
        """
        if not given:
            return True
        if len(given) != 1:
            return False
        origin = given[0].lower()
        if "*" in self._texts or origin in self._texts or any(map(partial(_is_below, origin), self._below)):
            return True
        return len(hosts) == 1 and origin.partition("://")[2] == hosts[0].lower()


def _is_below(origin: str, pattern: tuple[str, str]) -> bool:
    scheme, name = pattern
    middle = origin[len(scheme) : -len(name)]
    return origin.startswith(scheme) and origin.endswith(name) and bool(_LABELS.fullmatch(middle))
