"""MessagePack, by msgspec: the fast format for plain data that any language reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ipcbus.serializers.base import Serializer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ipcbus.transport import Buffer

__all__ = ["MsgPack"]


class MsgPack(Serializer):
    """Plain data: None, booleans, numbers, texts, bytes, lists, dicts, and datetimes with a time zone.

    What MessagePack has no type for arrives as the nearest it has: tuples, sets and named tuples as lists; dataclasses and
    ``msgspec.Struct`` as dicts; enums as their values; dates, times, naive datetimes, UUIDs and Decimals as texts.
    Integers are those of 64 bits.
    """

    name = "msgpack"
    content_type = "application/vnd.msgpack"
    id = 4

    def __init__(self, *, private: bool = True) -> None:
        super().__init__(private=private)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder().decode

    def dumps(self, obj: Any) -> tuple[Buffer, Sequence[Buffer]]:
        """Encode; raises ``TypeError`` or ``OverflowError`` for what MessagePack cannot carry."""
        return self._encode(obj), ()

    def loads(self, payload: Buffer, buffers: Sequence[Buffer]) -> Any:
        """Decode one MessagePack value."""
        if buffers:
            raise ValueError("MessagePack with out-of-band buffers")
        return self._decode(payload)
