"""Which part of an object a serializer refuses, where that is not pickle, of which :mod:`ipcbus.explain` knows more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ipcbus.explain import Culprit
from ipcbus.paths import Step, path_of
from ipcbus.plumbing.fds import packing
from ipcbus.remedies import peek, say, type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ipcbus.paths import Link

    _Refused = tuple[Link, Exception]

__all__ = ["find_refused"]

_REMEDY = "send what this serializer has a type for, or choose another one"


def find_refused(obj: object, name: str, encode: Callable[[Any], object], error: Exception) -> Culprit:
    """Find the innermost part that a serializer refuses, by giving it one part after the other.

    Args:
        obj: what was to be sent.
        name: the serializer's.
        encode: its ``dumps``; raises for what it refuses.
        error: what it raised for ``obj``.
    """
    search = _Search(obj, encode)
    found: _Refused = (None, obj, Step.ROOT, "obj"), error
    with packing():  # what it does not refuse is not sent, and hands no descriptor over
        while (inner := next(search.inside(*found), None)) is not None:
            found = inner
    link, error = found
    kind = type(link[1])
    return Culprit(path_of(link), type_name(kind), f"{name} cannot encode {kind.__qualname__}: {say(error)}", _REMEDY)


class _Search:
    def __init__(self, obj: object, encode: Callable[[Any], object]) -> None:
        self._encode = encode
        self._seen = {id(obj)}

    def inside(self, link: Link, error: Exception) -> Iterator[_Refused]:
        """Yield the refused parts of what was refused for an error."""
        obj: Any = link[1]
        if isinstance(error.__cause__ or error, RecursionError):
            return  # its depth is what is wrong, and that of its parts too
        kind: Any
        for kind in (dict, list, tuple, set, frozenset):
            if isinstance(obj, kind):
                if self._refusal(kind()) is None:  # else it takes none of these, whatever is inside
                    members = kind in (set, frozenset)
                    # The base's own methods: those of a subclass may do anything.
                    pairs = kind.items(obj) if kind is dict else enumerate(kind.__iter__(obj))
                    yield from self._refused(link, dict(pairs), Step.MEMBER if members else Step.ITEM)
                return
        fields = {name: peek(obj, name) for name in peek(type(obj), "__dataclass_fields__", ())}
        own = peek(obj, "__dict__")
        for part, why in self._refused(link, {**fields, **(own if type(own) is dict else {})}, Step.ATTRIBUTE):
            if say(why) == say(error):  # else it is the object that is refused, and not for what it holds
                yield part, why

    def _refused(self, link: Link, parts: dict[Any, Any], step: Step) -> Iterator[_Refused]:
        for key, part in parts.items():
            if id(part) not in self._seen and (why := self._refusal(part)) is not None:
                self._seen.add(id(part))
                yield (link, part, step, key), why

    def _refusal(self, part: object) -> Exception | None:
        try:
            self._encode(part)
        except Exception as error:  # noqa: BLE001  whatever a serializer raises is its answer
            return error
        return None
