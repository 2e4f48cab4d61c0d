"""Where the classes of arriving Protocol Buffers messages come from."""

from __future__ import annotations

import hashlib
import importlib
import os
import threading
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

if TYPE_CHECKING:
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message import Message

__all__ = ["MAX_DESCRIPTORS", "describe", "find_class", "register_pool", "remember"]

MAX_DESCRIPTORS = 1 << 20
"""Bytes of descriptors that may come with one message."""
_MAX_CLASSES = 1024
_MAX_POOLS = 8
"""Pools kept of each kind: those built here of descriptors that arrived, and those messages were sent from."""
_MAX_POOL = 4 * MAX_DESCRIPTORS
"""Bytes of descriptors in one pool built here."""

_WELL_KNOWN = frozenset(
    "any api duration empty field_mask source_context struct timestamp type wrappers descriptor".split()  # noqa: SIM905  a column of eleven would be worse
)

_lock = threading.Lock()
_registered: list[DescriptorPool] = []
_sent: list[DescriptorPool] = []
_built: dict[DescriptorPool, int] = {}
"""Pools made here, oldest first, and how many bytes of descriptors each holds."""
_classes: dict[tuple[str, str | None, bytes], type[Message]] = {}


def register_pool(pool: DescriptorPool) -> None:
    """Have arriving messages rebuilt with the classes of this pool.

    Messages that come with their descriptors look here first; those of generated modules in the default pool first.

    Args:
        pool: kept for the life of the process; registering it again changes nothing.
    """
    with _lock:
        if not any(known is pool for known in _registered):
            _registered.append(pool)
        _classes.clear()


def remember(pool: Any) -> None:
    """Keep a pool that a message was sent from, so that an answer with the same descriptors is of the same classes."""
    with _lock:
        if pool is not descriptor_pool.Default() and not any(known is pool for known in (*_registered, *_sent, *_built)):
            _sent.append(pool)
            del _sent[:-_MAX_POOLS]
            _classes.clear()


def describe(file: Any) -> bytes:
    """Return a serialized FileDescriptorSet of a file and everything it imports, imports first."""
    files = descriptor_pb2.FileDescriptorSet()
    seen: set[str] = set()

    def add(one: Any) -> None:
        if one.name not in seen:
            seen.add(one.name)
            for needed in one.dependencies:
                add(needed)
            one.CopyToProto(files.file.add())

    add(file)
    return files.SerializeToString(deterministic=True)


def find_class(name: str, module: str | None, files: bytes | None) -> type[Message]:
    """Find the class for a message.

    Args:
        name: its full name.
        module: a module that may be imported for it, if its name ends in ``_pb2``.
        files: a FileDescriptorSet that came with it.

    Raises:
        LookupError: this process knows no class of that name, and nothing that came along helps.
        ValueError: the descriptors make no sense.
    """
    # A digest, because keeping what strangers send would let them fill the memory.
    key = name, module, hashlib.sha256(files).digest() if files else b""
    found = _classes.get(key)
    if found is None:
        protos = list(descriptor_pb2.FileDescriptorSet.FromString(files).file) if files else []
        pool = _known(name, protos) or _imported(name, module)
        with _lock:
            if pool is None and protos:
                pool = _build(protos)
            if pool is None or not _has(pool, name):
                raise LookupError(
                    f"no Protocol Buffers message {name!r} is known in this process; import the module generated for it, "
                    "or give its pool to register_pool of ipcbus.serializers.protobuf"
                )
            found = message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
            if len(_classes) >= _MAX_CLASSES:
                _classes.clear()
            _classes[key] = found
    return found


def _known(name: str, protos: list[descriptor_pb2.FileDescriptorProto]) -> DescriptorPool | None:
    default = descriptor_pool.Default()
    with _lock:
        registered = [pool for pool in _registered if _has(pool, name)]
        own = [pool for pool in _sent if protos and all(_holds(pool, proto) for proto in protos)]
    generated = [default] if _has(default, name) else []
    # What has no descriptors was sent from a generated module, so ours comes first: a registered pool often holds a
    # second Timestamp and the like.
    found = [*registered, *own, *generated] if protos else [*generated, *registered]
    return found[0] if found else None


def _has(pool: DescriptorPool, name: str) -> bool:
    try:
        pool.FindMessageTypeByName(name)
    except KeyError:
        return False
    return True


def _holds(pool: DescriptorPool, proto: descriptor_pb2.FileDescriptorProto) -> bool:
    """Whether the pool has this very file."""
    try:
        known = pool.FindFileByName(proto.name)
    except KeyError:
        return False
    copy = descriptor_pb2.FileDescriptorProto()
    known.CopyToProto(copy)
    return copy == proto


def _imported(name: str, module: str | None) -> DescriptorPool | None:
    # Without the lock: an import may wait for another thread's, and that one for the lock.
    if name.startswith("google.protobuf."):
        for known in _WELL_KNOWN:
            importlib.import_module(f"google.protobuf.{known}_pb2")
    elif module is not None and module.endswith("_pb2"):
        try:
            importlib.import_module(module)
        except ImportError:
            return None  # the error to come says what to do
    default = descriptor_pool.Default()
    return default if _has(default, name) else None


def _build(protos: list[descriptor_pb2.FileDescriptorProto]) -> DescriptorPool:
    """Return a pool made here that holds these files, adding what is missing where nothing stands against it.

    One pool for many sets keeps their common files' classes the same, so that one message can be put into another.
    """
    size = sum(proto.ByteSize() for proto in protos)
    for pool in reversed(_built):
        if _built[pool] + size <= _MAX_POOL and _extend(pool, protos):
            return pool
    pool = descriptor_pool.DescriptorPool()
    _built[pool] = 0
    if len(_built) > _MAX_POOLS:
        del _built[next(iter(_built))]
        _classes.clear()
    if not _extend(pool, protos):
        raise ValueError("the descriptors that came with the message contradict each other")
    return pool


def _extend(pool: DescriptorPool, protos: list[descriptor_pb2.FileDescriptorProto]) -> bool:
    for proto in protos:
        if _holds(pool, proto):
            continue
        try:
            pool.AddSerializedFile(proto.SerializeToString())
            pool.FindFileByName(proto.name)
        except (TypeError, KeyError):
            return False  # another file of this name, or another type of one of its names, is in the pool
        _built[pool] += proto.ByteSize()
    return True


def _after_fork() -> None:
    global _lock  # noqa: PLW0603  the parent's lock may be held by a thread that the child does not have
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
