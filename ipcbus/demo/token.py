"""Tokens: a name and an end, signed, so that who brings one need not be looked up anywhere."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PROTOCOL", "offer", "offered", "read", "sign"]

PROTOCOL = "ipcbus.chat"
"""The subprotocol of the chat."""
_PREFIX = "token."


def sign(name: str, until: float, secret: bytes) -> str:
    """Return a token of letters, digits, ``-``, ``_`` and one dot, as a subprotocol may have.

    Args:
        name: whose it is.
        until: seconds since 1970 (UTC) at which it ends.
        secret: known to the server alone.
    """
    claim = json.dumps([name, until]).encode()
    return f"{_text(claim)}.{_text(_mark(claim, secret))}"


def read(token: str, secret: bytes, now: float) -> str | None:
    """Return the name in a token; None if it was not signed with this secret, or has ended."""
    claim, _, mark = (_bytes(part) for part in token.partition("."))
    if not hmac.compare_digest(mark, _mark(claim, secret)):
        return None
    name, until = json.loads(claim)  # it is ours, so it can be read
    return str(name) if now < until else None


def offer(token: str) -> list[str]:
    """Return the subprotocols to offer with a token: pages can set no header, and a URL would be written to logs."""
    return [PROTOCOL, _PREFIX + token]


def offered(protocols: Iterable[str]) -> str | None:
    """Return the token among subprotocols, or None."""
    return next((name.removeprefix(_PREFIX) for name in protocols if name.startswith(_PREFIX)), None)


def _mark(claim: bytes, secret: bytes) -> bytes:
    return hmac.digest(secret, claim, hashlib.sha256)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return b""
