"""Bytes as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ipcbus.serializers.base import Serializer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ipcbus.transport import Buffer

__all__ = ["Raw"]


class Raw(Serializer):
    """Takes bytes-like objects only; they arrive as ``bytes``."""

    name = "raw"
    content_type = "application/octet-stream"
    id = 1

    def dumps(self, obj: Any) -> tuple[Buffer, Sequence[Buffer]]:
        """Return the bytes; of anything mutable, a copy."""
        if type(obj) is bytes:
            return obj, ()
        if isinstance(obj, (bytes, bytearray, memoryview)):
            return bytes(obj), ()
        raise TypeError(f"the raw serializer takes bytes, not {type(obj).__qualname__}")

    loads_alone = staticmethod(bytes)

    def loads(self, payload: Buffer, buffers: Sequence[Buffer]) -> bytes:
        """Return the payload as ``bytes``."""
        if buffers:
            raise ValueError("raw content with out-of-band buffers")
        return bytes(payload)
