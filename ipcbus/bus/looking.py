"""Looking at a message that is for somebody else: what would do something when it arrives is not made, but named.

A descriptor in a message can be had once, a reply handle tells the asker who has its request, a future or a channel opens
connections. Who only looks must do none of this, so in their places come stand-ins.
"""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any, NoReturn

from ipcbus.errors import Unsupported
from ipcbus.serializers.base import Serializer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ipcbus.transport import Buffer

__all__ = ["LookingCloudPickle", "LookingPickle", "StandIn"]

_ACTIVE = {
    "ipcbus.channel": "channel",
    "ipcbus.pair": "pair of channels",
    "ipcbus.plumbing.fds": "descriptor",
    "ipcbus.requests.callback": "callback",
    "ipcbus.requests.future": "future",
    "ipcbus.requests.reply": "reply handle",
    "ipcbus.serializers.local": "",  # many things; the name says which
}
"""The modules whose names in a pickle do something, and what to call what they make."""


class StandIn:
    """What is shown in place of something that only its receiver may have."""

    what = ""

    def __init__(self, *_: Any) -> None:
        """Take what the real thing is made of, and forget it."""

    def __setstate__(self, _state: Any) -> None:
        """The same."""

    def __repr__(self) -> str:
        return f"<a {self.what}, for its receiver>"


class LookingPickle(Serializer):
    """Reads what pickle wrote."""

    name = "pickle"
    content_type = "application/x-python-pickle"
    id = 2
    safe = False

    def dumps(self, obj: Any) -> NoReturn:
        """Refuse: who looks sends nothing."""
        raise _refusal(obj)

    def loads(self, payload: Buffer, buffers: Sequence[Buffer]) -> Any:
        """Rebuild an object, with stand-ins for what is not for everybody."""
        return _look(payload, buffers)


class LookingCloudPickle(Serializer):
    """Reads what cloudpickle wrote."""

    name = "cloudpickle"
    content_type = "application/x-python-cloudpickle"
    safe = False

    def dumps(self, obj: Any) -> NoReturn:
        """Refuse: who looks sends nothing."""
        raise _refusal(obj)

    def loads(self, payload: Buffer, buffers: Sequence[Buffer]) -> Any:
        """Rebuild an object, with stand-ins for what is not for everybody."""
        return _look(payload, buffers)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        what = _ACTIVE.get(module)
        if what is None and module.startswith("ipcbus.bus."):
            what = "part of a bus"
        if what is None or name == "_make_proxy":  # which is but a mapping
            return super().find_class(module, name)
        # A class, for a pickle may call it or have it make an empty object.
        return type(name, (StandIn,), {"what": what or name.strip("_").removeprefix("make_").removeprefix("take_")})


def _look(payload: Buffer, buffers: Sequence[Buffer]) -> Any:
    return _Unpickler(io.BytesIO(payload), buffers=buffers or None).load()


def _refusal(obj: Any) -> Unsupported:
    return Unsupported(f"{type(obj).__qualname__} cannot be sent through a tap, which is for looking")
