"""State: what a service remembers about a connection, and what its next process gets to know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

__all__ = ["MAX_STATE", "State", "become", "decode_state", "encode_state"]

MAX_STATE = 4 << 10
"""Bytes that the state of one connection may take: front ends keep it for every client."""


class State(dict[str, Any]):
    """A dict that says when it is changed. A change *inside* a value is not seen: assign the value anew.

    Args:
        changed: called after each change.
        values: what it begins with.
    """

    __slots__ = ("_changed",)

    def __init__(self, changed: Callable[[], None], values: dict[str, Any]) -> None:
        super().__init__(values)
        self._changed = changed

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._changed()

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self._changed()

    def __ior__(self, other: Any) -> Self:  # type: ignore[override, misc]  # narrower than dict's overloads, as its use here
        self.update(other)
        return self

    def clear(self) -> None:
        """Remove everything."""
        super().clear()
        self._changed()

    def pop(self, *args: Any) -> Any:
        """Remove a key and return its value, as ``dict.pop``."""
        value = super().pop(*args)
        self._changed()
        return value

    def popitem(self) -> tuple[str, Any]:
        """Remove what was added last, as ``dict.popitem``."""
        item = super().popitem()
        self._changed()
        return item

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, which is set if it is not there."""
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *args: Any, **values: Any) -> None:
        """Set several keys, as ``dict.update``."""
        super().update(*args, **values)
        self._changed()


def become(state: dict[str, Any], values: dict[str, Any]) -> None:
    """Make a state what another process says it is; that is no change to be told of."""
    dict.clear(state)  # not State's own, which would tell
    dict.update(state, values)


def encode_state(values: dict[str, Any]) -> bytes:
    """Return a state as it travels.

    Raises:
        TypeError: something in it is no plain data (texts, numbers, booleans, None, bytes, lists, dicts), or a key no text.
        ValueError: it is over ``MAX_STATE``, a number in it has more than 64 bits, or it is nested too deeply.
    """
    import msgspec.msgpack

    if not values:
        return b""
    try:
        data = msgspec.msgpack.encode(dict(values))
        decode_state(data)  # what cannot be read would end every process that takes the connection over
    except msgspec.DecodeError as error:
        raise TypeError(f"conn.state cannot be read again: {error}") from error
    except (OverflowError, RecursionError) as error:
        raise ValueError(f"conn.state cannot travel: {error}") from error
    if len(data) > MAX_STATE:
        raise ValueError(
            f"conn.state takes {len(data)} bytes and may take {MAX_STATE}: keep what is large in a database, or in conn.local"
        )
    return data


def decode_state(data: bytes) -> dict[str, Any]:
    """Return what ``encode_state`` was given."""
    import msgspec.msgpack

    return msgspec.msgpack.decode(data, type=dict[str, Any]) if data else {}
