"""Reducers for the repeated and map fields of Protocol Buffers messages, which no pickle takes as they are.

What arrives is a container of the same class with the same content, as the field of a message of its own:

* a map, of the same field of the same message type;
* a repeated field of messages, of those messages;
* a repeated field of numbers, texts or bytes, of the same width and sign; enums as ``int32``, and every way of encoding
  an integer as the plain one, which no Python program can tell apart.

Where the descriptor pool refuses the helper type that needs, messages arrive as a ``list``, which compares equal.
"""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto

from ipcbus.serializers.protobuf import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

__all__: list[str] = []

_SCALARS = {
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "string": FieldDescriptorProto.TYPE_STRING,
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "float": FieldDescriptorProto.TYPE_FLOAT,
    "double": FieldDescriptorProto.TYPE_DOUBLE,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "uint32": FieldDescriptorProto.TYPE_UINT32,
    "uint64": FieldDescriptorProto.TYPE_UINT64,
}


def reduce_map(container: Any) -> tuple[Any, ...]:
    """Reduce a map field, as the one field of a message of its type."""
    entry = container.GetEntryClass().DESCRIPTOR
    parent = entry.containing_type
    field = next(field.name for field in parent.fields if field.message_type is entry)
    holder = message_factory.GetMessageClass(parent)()
    getattr(holder, field).MergeFrom(container)
    return _make_map, (pack(type(holder), module=True), field, holder.SerializePartialToString())


def _make_map(head: bytes, field: str, body: bytes) -> Any:
    return getattr(unpack(head, body, may_import=True), field)


def reduce_messages(container: Any) -> tuple[Any, ...]:
    """Reduce a repeated field of messages."""
    if len(container):
        kind = type(container[0])
    elif (descriptor := getattr(container, "_message_descriptor", None)) is not None:
        kind = message_factory.GetMessageClass(descriptor)  # the implementation in Python, whose copies cannot add
    else:
        kind = type(copy.deepcopy(container).add())
    return _make_messages, (pack(kind, module=True), [one.SerializePartialToString() for one in container])


def _make_messages(head: bytes, bodies: list[bytes]) -> Any:
    kind: Any = type(unpack(head, b"", may_import=True))
    home = _repeated_field(kind)
    if home is None:
        return [unpack(head, body, may_import=True) for body in bodies]
    holder, field = home
    container = getattr(holder(), field)
    for body in bodies:
        container.add().MergeFromString(body)
    return container


def reduce_scalars(container: Any) -> tuple[Any, ...]:
    """Reduce a repeated field of numbers, texts or bytes."""
    return _make_scalars, (_scalar_type(container), list(container))


def _make_scalars(kind: str, values: list[Any]) -> Any:
    container = getattr(_scalar_holder()(), f"{kind}_items")
    container.extend(values)
    return container


def _scalar_type(container: Any) -> str:
    """Find out what a container holds: it does not say, so it is asked to take one of each."""
    checker: Any = getattr(container, "_type_checker", None)  # the implementation in Python has one, and copies badly
    probe = None if checker else copy.deepcopy(container)

    def take(value: Any) -> Any:
        try:
            if probe is None:
                return checker.CheckValue(value)
            probe.append(value)
        except (TypeError, ValueError):
            return None
        return probe[-1]

    if take(b"\xff") is not None:
        return "bytes"
    if take("\N{SNOWMAN}") is not None:
        return "string"
    if (tenth := take(0.1)) is not None:
        return "double" if tenth == 0.1 else "float"
    if take(2) is True:
        return "bool"
    # A closed enum takes none of these, and fits into an int32.
    unsigned = take(2) is not None and take(-1) is None
    return f"{'u' * unsigned}int{32 if take(1 << 40) is None else 64}"


@functools.cache
def _scalar_holder() -> type[Message]:
    file = descriptor_pb2.FileDescriptorProto(name="ipcbus/scalars.proto", package="ipcbus", syntax="proto3")
    message = file.message_type.add(name="Scalars")
    for number, (name, type_) in enumerate(_SCALARS.items(), start=1):
        message.field.add(name=f"{name}_items", number=number, type=type_, label=FieldDescriptorProto.LABEL_REPEATED)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("ipcbus.Scalars"))


@functools.lru_cache(maxsize=1024)
def _repeated_field(kind: Any) -> tuple[type[Message], str] | None:
    """Return a message class with a repeated field of ``kind``: one of its own file, else one made for this."""
    wanted = kind.DESCRIPTOR
    for message in _messages(wanted.file.message_types_by_name.values()):
        for field in message.fields:
            if field.message_type is wanted and _is_repeated(field):
                return message_factory.GetMessageClass(message), field.name
    name = wanted.full_name.replace(".", "_")
    file = descriptor_pb2.FileDescriptorProto(name=f"ipcbus/repeated/{name}.proto", package="ipcbus.repeated", syntax="proto3")
    file.dependency.append(wanted.file.name)
    file.message_type.add(name=name).field.add(
        name="items",
        number=1,
        label=FieldDescriptorProto.LABEL_REPEATED,
        type=FieldDescriptorProto.TYPE_MESSAGE,
        type_name=f".{wanted.full_name}",
    )
    pool = wanted.file.pool
    try:
        pool.AddSerializedFile(file.SerializeToString())
        holder = pool.FindMessageTypeByName(f"ipcbus.repeated.{name}")
    except (TypeError, KeyError, ValueError):
        return None  # a pool over a database of descriptors takes no more files
    return message_factory.GetMessageClass(holder), "items"


def _is_repeated(field: Any) -> bool:
    known: bool | None = getattr(field, "is_repeated", None)  # new in 6.31, where label began to warn
    return field.label == field.LABEL_REPEATED if known is None else known


def _messages(found: Any) -> Iterator[Any]:
    for message in found:
        yield message
        yield from _messages(message.nested_types)
