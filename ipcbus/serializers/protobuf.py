"""Protocol Buffers: a message travels as its full name and its bytes, and is rebuilt with the class this process has for it.

The payload, little-endian::

    u8 flags    u16 length, full name in UTF-8
    0x01: u16 length, name of the Python module that was generated for it      (private channels only)
    0x02: u32 length, FileDescriptorSet: its file and all that it imports      (types no generated module is known for)
    the message in Protocol Buffers' own encoding, to the end
"""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pool
from google.protobuf.message import Message

from ipcbus.serializers.base import Serializer
from ipcbus.serializers.pools import MAX_DESCRIPTORS, describe, find_class, register_pool, remember

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ipcbus.transport import Buffer

__all__ = ["Protobuf", "pack", "reduce_message", "register_pool", "unpack"]

_MODULE, _DESCRIPTORS = 0x01, 0x02
_MAX_TYPES = 1024
_heads: dict[tuple[type[Message], bool], bytes] = {}


class Protobuf(Serializer):
    """Protocol Buffers messages, generated or of dynamic descriptor pools.

    A message of a generated class arrives as the class of the default pool, which holds every imported ``*_pb2`` module;
    else of a pool given to :func:`register_pool`; else, on a private channel, its module is imported. A message of a
    dynamic pool brings its descriptors, and arrives as a class of a registered pool, else of the pool this process itself
    sent such messages from, else of the default pool, else of its descriptors.
    """

    name = "protobuf"
    content_type = "application/x-protobuf"
    id = 5

    def dumps(self, obj: Any) -> tuple[Buffer, Sequence[Buffer]]:
        """Encode a message; raises ``TypeError`` for anything else, ``google.protobuf.message.EncodeError`` if incomplete."""
        if not isinstance(obj, Message):
            raise TypeError(f"the protobuf serializer takes Protocol Buffers messages, not {type(obj).__qualname__}")
        return pack(type(obj), module=self.private) + obj.SerializeToString(), ()

    def loads(self, payload: Buffer, buffers: Sequence[Buffer]) -> Message:
        """Rebuild the message; raises ``LookupError`` when this process knows no class for it."""
        if buffers:
            raise ValueError("a protobuf message with out-of-band buffers")
        view = memoryview(payload)
        size = _head_size(view)
        return unpack(bytes(view[:size]), view[size:], may_import=self.private)


def pack(kind: type[Message], *, module: bool) -> bytes:
    """Return what says which message follows, the same object every time.

    Args:
        kind: the message's class.
        module: whether the generated module may be named.
    """
    head = _heads.get((kind, module))
    if head is None:
        if len(_heads) >= _MAX_TYPES:
            _heads.clear()
        head = _heads[kind, module] = _make_head(kind, module=module)
    return head


def unpack(head: bytes, body: Buffer, *, may_import: bool) -> Message:
    """Rebuild a message of what ``pack`` returned and its bytes.

    Args:
        head: from ``pack``.
        body: the message's own encoding.
        may_import: whether a ``*_pb2`` module that the head names may be imported.
    """
    kind = _class(head, may_import=may_import)
    message = kind()
    message.MergeFromString(body)  # type: ignore[arg-type]  # every implementation takes any buffer; the stubs say bytes
    return message


def reduce_message(message: Message) -> tuple[Any, ...]:
    """Reduce a message inside a pickle. The head is one object per class, so a pickle of many messages holds it once."""
    return _arrive, (pack(type(message), module=True), message.SerializePartialToString())


def _arrive(head: bytes, body: bytes) -> Message:
    return unpack(head, body, may_import=True)


def _class(head: bytes, *, may_import: bool) -> type[Message]:
    flags = head[0]
    name, at = _section("<H", head, 1)
    module = files = None
    if flags & _MODULE:
        module, at = _section("<H", head, at)
    if flags & _DESCRIPTORS:
        files, at = _section("<I", head, at)
    return find_class(str(name, "utf-8"), str(module, "utf-8") if module and may_import else None, files)


def _head_size(view: memoryview) -> int:
    flags = view[0]
    if flags & ~(_MODULE | _DESCRIPTORS):
        raise ValueError(f"unknown flags 0x{flags:02x} in a protobuf payload")
    at = 3 + int(struct.unpack_from("<H", view, 1)[0])
    if flags & _MODULE:
        at += 2 + int(struct.unpack_from("<H", view, at)[0])
    if flags & _DESCRIPTORS:
        size = int(struct.unpack_from("<I", view, at)[0])
        if size > MAX_DESCRIPTORS:
            raise ValueError(f"a protobuf payload with {size} bytes of descriptors; at most {MAX_DESCRIPTORS} are read")
        at += 4 + size
    if at > len(view):
        raise ValueError("a protobuf payload ends inside its head")
    return at


def _section(size: str, head: bytes, at: int) -> tuple[bytes, int]:
    start = at + struct.calcsize(size)
    end = start + int(struct.unpack_from(size, head, at)[0])
    return head[start:end], end


def _make_head(kind: type[Message], *, module: bool) -> bytes:
    descriptor = kind.DESCRIPTOR
    name = descriptor.full_name.encode()
    generated = _generated_module(kind)
    if generated is not None:
        if not module or generated.startswith("google.protobuf."):
            return struct.pack("<BH", 0, len(name)) + name
        path = generated.encode()
        return struct.pack("<BH", _MODULE, len(name)) + name + struct.pack("<H", len(path)) + path
    files = describe(descriptor.file)
    if len(files) > MAX_DESCRIPTORS:
        raise ValueError(f"{descriptor.full_name} takes {len(files)} bytes of descriptors, too many to send with a message")
    remember(descriptor.file.pool)
    return struct.pack("<BH", _DESCRIPTORS, len(name)) + name + struct.pack("<I", len(files)) + files


def _generated_module(kind: type[Message]) -> str | None:
    """Return the name of the imported ``*_pb2`` module that holds this class, if there is one."""
    descriptor: Any = kind.DESCRIPTOR
    if descriptor.file.pool is not descriptor_pool.Default():
        return None
    while descriptor.containing_type is not None:
        descriptor = descriptor.containing_type
    module: str | None = kind.__module__  # None for classes of a pool
    if module is None or not module.endswith("_pb2"):
        return None
    outer = getattr(sys.modules.get(module), descriptor.name, None)
    return module if getattr(outer, "DESCRIPTOR", None) is descriptor else None
