"""Where a part is inside an object, written as Python would write it: the paths of :mod:`ipcbus.explain`.

A walk links each part to the one that holds it. Only the few links that end at a culprit are ever written down.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from types import GetSetDescriptorType, MemberDescriptorType
from typing import TYPE_CHECKING, Any, TypeAlias

from ipcbus.remedies import peek, short_repr

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["GETSTATE", "REDUCE_EX", "Call", "Link", "Step", "ancestry", "path_of"]

_SAFE = frozenset({"args", "__self__"})
_LONGEST_PATH = 48
_MISSING = object()


class Step(Enum):
    """How a part hangs below its parent in a path."""

    ROOT = auto()
    ITEM = auto()
    ATTRIBUTE = auto()
    KEY = auto()
    MEMBER = auto()
    PART = auto()


Link: TypeAlias = "tuple[Any, Any, Step, Any]"
"""(parent link, object, step, key): a plain tuple, since a graph has as many as it has objects."""


@dataclass(frozen=True, slots=True)
class Call:
    """The call that produced a part, to be written around its object's path."""

    before: str = ""
    after: str = ""


REDUCE_EX = Call(after=".__reduce_ex__(5)")
"""What pickle asks an object for when it has no rule of its own."""
GETSTATE = Call(after=".__getstate__()")
"""What ``object.__reduce_ex__`` asks it for in turn."""


def ancestry(link: Link | None) -> Iterator[Link]:
    """Yield a link and those above it, the root last."""
    while link is not None:
        yield link
        link = link[0]


def path_of(link: Link) -> str:
    """Write the path that leads to a link; the middle of one longer than 48 steps is left out."""
    chain = [*ancestry(link)][::-1]
    name: str = chain[0][3]
    if len(chain) <= _LONGEST_PATH:
        return _written(name, chain)
    half = _LONGEST_PATH // 2
    return _written(f"{_written(name, chain[:half])}...({len(chain) - 2 * half} more)...", chain[-half - 1 :])


def _written(text: str, chain: list[Link]) -> str:
    """Write what leads from the first link to the last one after ``text``."""
    at = 1
    while at < len(chain):
        owner, (_, part, step, key) = chain[at - 1][1], chain[at]
        if step is Step.PART:
            # A value that is also an attribute of its object, or held one or two containers deep in a state.
            for beyond in range(at, min(at + 3, len(chain))):
                attribute = _attribute(owner, chain[beyond][1])
                if attribute is not None:
                    at, text = beyond, text + attribute
                    break
            else:
                text = _called(text, *key)
        elif step is Step.ATTRIBUTE:
            text += _dotted(key)
        elif step is Step.ITEM:
            text += f"[{short_repr(key)}]"
        else:
            text += f"{{{'key' if step is Step.KEY else 'member'} {short_repr(part)}}}"
        at += 1
    return text


def _called(text: str, call: Call | None, position: int | None) -> str:
    call = call or REDUCE_EX
    return f"{call.before}{text}{call.after}" + ("" if position is None else f"[{position}]")


def _dotted(name: object) -> str:
    return f".{name}" if isinstance(name, str) and name.isidentifier() else f".__dict__[{short_repr(name)}]"


def _attribute(owner: Any, part: object) -> str | None:
    """Find the attribute, or the place in a tuple, under which an object holds ``part`` itself."""
    cls = type(owner)
    if part is cls:
        return ".__class__"
    values = peek(owner, "__dict__")
    if type(values) is dict:
        for name, value in list(values.items()):
            if value is part:
                return _dotted(name)
    for base in cls.__mro__:
        for name, descriptor in list(vars(base).items()):
            if _is_storage(name, descriptor) and _stored(owner, descriptor) is part:
                return f".{name}"
    if issubclass(cls, tuple):
        for index, item in enumerate(tuple.__iter__(owner)):
            if item is part:
                fields = peek(cls, "_fields", ())
                return f".{fields[index]}" if type(fields) is tuple and len(fields) == len(owner) else f"[{index}]"
    return None


def _is_storage(name: str, descriptor: object) -> bool:
    # Only what the interpreter keeps itself is read: a property would run code of its own.
    kind = type(descriptor)
    return (kind is MemberDescriptorType and name != "__dict__") or (kind is GetSetDescriptorType and name in _SAFE)


def _stored(owner: object, descriptor: Any) -> object:
    try:
        return descriptor.__get__(owner)
    except AttributeError:
        return _MISSING
