"""JSON, for programs in any language."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

from ipcbus.serializers.base import Serializer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ipcbus.transport import Buffer

__all__ = ["Json"]


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_decode = json.JSONDecoder(parse_constant=_refuse).decode


class Json(Serializer):
    """Texts, numbers, booleans, None, lists and dicts of them, as UTF-8.

    Tuples arrive as lists, and keys of dicts that are numbers, booleans or None as texts, as JSON has it. NaN and
    infinities are refused, in both directions.
    """

    name = "json"
    content_type = "application/json"
    id = 3

    def dumps(self, obj: Any) -> tuple[Buffer, Sequence[Buffer]]:
        """Encode; raises ``TypeError`` or ``ValueError`` for what JSON does not have."""
        return _encode(obj).encode(), ()

    def loads(self, payload: Buffer, buffers: Sequence[Buffer]) -> Any:
        """Decode one JSON value."""
        if buffers:
            raise ValueError("JSON with out-of-band buffers")
        return _decode(str(payload, "utf-8"))
