"""Messages: what is sent while it is measured, made anew in each process that needs it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from dataclasses import dataclass
from typing import Any

from ipcbus.check import locate
from ipcbus.errors import ConfigError
from ipcbus.options import nearest
from ipcbus.remedies import say

__all__ = ["KINDS", "Message", "Reading", "count_bytes", "same", "say_bytes", "takes_size"]

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", re.IGNORECASE)
_TAGS = ["a", "b"]


@dataclass
class Reading:
    """A small dataclass, as programs send them."""

    id: int
    name: str
    value: float
    tags: list[str]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Message:
    """What one measurement sends: a kind of object of about a size, or what a function of the user's makes."""

    kind: str
    """One of ``KINDS``, or ``module:factory``."""
    size: int | None
    """Bytes; of a dict, a dataclass and a protobuf message those of its largest field. None: as the factory makes it."""

    @property
    def label(self) -> str:
        """What it is called in a report."""
        return self.kind if self.size is None else f"{self.kind}, {say_bytes(self.size)}"

    def make(self) -> Any:
        """Make the object.

        Raises:
            ConfigError: the kind is unknown or needs a package that is not installed, or the user's function cannot be
                imported or failed.
        """
        make = KINDS.get(self.kind)
        if make is not None:
            return make(64 if self.size is None else self.size)
        return _call(self.kind, self.size)


def _bytes(size: int) -> bytes:
    return (bytes(range(256)) * (size // 256 + 1))[:size]


def _dict(size: int) -> dict[str, Any]:
    small = {"id": 12345, "name": "sensor-7", "value": 21.5, "tags": list(_TAGS)}
    return {**small, "body": _bytes(size)} if size > 64 else small


def _dataclass(size: int) -> Reading:
    return Reading(12345, "sensor-7", 21.5, list(_TAGS), _bytes(size) if size > 64 else b"")


def _protobuf(size: int) -> Any:
    # A type that comes with the library: numbers, an enum and texts, as messages have them.
    field = _need("google.protobuf.type_pb2", "protobuf", "protobuf").Field
    body = "x" * size if size > 64 else ""
    return field(kind=5, cardinality=1, number=12345, name="sensor-7", json_name="a", default_value=body)


def _array(size: int) -> Any:
    numpy = _need("numpy", "numpy", "bench")
    return numpy.arange(max(size // 8, 1), dtype=numpy.float64)


def _need(module: str, package: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"such a message needs {package}; try: pip install 'ipcbus[{extra}]'") from error


KINDS = {"bytes": _bytes, "dict": _dict, "dataclass": _dataclass, "protobuf": _protobuf, "array": _array}
"""The kinds of objects that are measured where the user names none; each makes one of about so many bytes."""


def takes_size(target: str) -> bool:
    """Tell whether a user's function wants to be told the size.

    Raises:
        ConfigError: it cannot be imported, or is neither a function nor an object that can be sent as it is.
    """
    made, _ = locate(target)
    return bool(_needed(made))


def same(got: Any, sent: Any) -> bool:
    """Tell whether what arrived is equal to what was sent; where it cannot be compared but by identity, its type decides."""
    waiting = [(got, sent)]
    met: dict[tuple[int, int], tuple[Any, Any]] = {}  # kept, since an id is only good while its object lives
    while waiting:
        pair = other, own = waiting.pop()
        if (id(other), id(own)) in met:
            continue  # it holds itself
        met[id(other), id(own)] = pair
        inner = _compare(other, own)
        if isinstance(inner, bool):
            if not inner:
                return False
        else:
            waiting += inner
    return True


def _compare(got: Any, sent: Any) -> bool | list[tuple[Any, Any]]:
    """Tell whether two objects are the same, or return the pairs of their parts that are to be."""
    try:
        if hasattr(sent, "dtype"):
            alike = type(got) is type(sent) and got.dtype == sent.dtype and got.shape == sent.shape
            return alike and bool(((got == sent) | (sent != sent)).all())  # NaN is equal to nothing, and is itself all the same
        if got == sent:
            return True
        own: object = type(sent).__eq__
        vague = own is object.__eq__ or bool(sent != sent)
    except Exception:  # noqa: BLE001  a comparison of the user's may raise anything; that of a dict with arrays in it does
        vague = True
    if type(got) is not type(sent):
        return False
    parts, others = _parts(sent), _parts(got)
    if parts is None or others is None:
        return vague
    return len(others) == len(parts) and [*zip(others, parts, strict=True)]


def _parts(obj: Any) -> list[Any] | None:
    """Return what is to be compared one by one, None for what has no parts."""
    if isinstance(obj, dict):
        return list(obj.items())
    if isinstance(obj, list | tuple):
        return list(obj)
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return [getattr(obj, field.name, None) for field in dataclasses.fields(obj)]
    return None


def _call(target: str, size: int | None) -> Any:
    if ":" not in target:
        raise ConfigError(f"there is no kind of message {target!r}; {nearest(target, KINDS)}; yours are named module:factory")
    made, _ = locate(target)
    if not inspect.isroutine(made):
        return made
    needed = _needed(made)
    if len(needed) > 1:
        raise ConfigError(f"{target!r} must work without arguments, or with the size in bytes; it wants {', '.join(needed)}")
    try:
        return made(64 if size is None else size) if needed else made()
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{target!r}: calling it failed: {say(error)}") from error


def _needed(function: object) -> list[str]:
    """Return the parameters that a call has to give."""
    if not inspect.isroutine(function):
        return []
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # one of C's that does not say
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]


def count_bytes(text: str) -> int:
    """Return the bytes that a text such as ``64``, ``64KiB``, ``1 MiB`` or ``1M`` means; units are powers of 1024.

    Raises:
        ConfigError: it is no size.
    """
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * (1 << _UNITS[found[2].upper()])) if found else 0
    if size < 1:
        raise ConfigError(f"{text!r} is no size; write it as 64, 1KiB or 64MiB")
    return size


def say_bytes(size: float) -> str:
    """Write a number of bytes for people, in units of 1024."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if size >= 100 or size == int(size) else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
