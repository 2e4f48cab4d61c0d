"""A message with what travels beside its body."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ipcbus.frame import NO_HEADERS

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Message"]


@dataclass(frozen=True, slots=True)
class Message:
    """What ``recv_message`` returns: the body that ``recv`` would have returned, and its envelope."""

    body: Any
    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)
    """Texts to texts, as given to ``send``."""
    content_type: str = ""
    """How the body travelled."""
    size: int = 0
    """Bytes of the frame."""
