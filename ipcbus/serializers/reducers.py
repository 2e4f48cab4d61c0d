"""How types that plain pickle refuses or gets wrong are pickled; ipcbus's own table, never the process-global one.

A rule names a type by its module and name, so that nothing is imported until an object of that type turns up. It covers
subclasses too, unless one says itself how it is pickled. What somebody registered with ``copyreg`` wins over a rule.
"""

from __future__ import annotations

import copyreg
import importlib
import operator
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["DispatchTable"]

_BY_ITSELF = operator.methodcaller("__reduce_ex__", 5)
_MAX_TYPES = 4096
"""Types remembered; programs that make classes without end must not fill memory with them."""


class _Rule(NamedTuple):
    module: str
    """Where the reducer is, inside ``ipcbus.serializers``."""
    reducer: str | None
    """Its name; None where the type pickles by itself and only must not leave the machine."""
    local: str = ""
    """What it is, if it means something on this machine only."""
    public: str | None = None
    """The reducer that says so itself, because some of its kind may leave the machine."""


_UPB = "google._upb._message"
_PYTHON = "google.protobuf.internal.containers"
_RULES: dict[tuple[str, str], _Rule] = {
    ("ipcbus.plumbing.fds", "TravellingFd"): _Rule("local", "reduce_fd", "descriptor"),
    ("ipcbus.channel", "Channel"): _Rule("local", "reduce_channel", "channel", "reduce_public_channel"),
    ("ipcbus.serializers.local", "Fd"): _Rule("", None, "descriptor"),
    ("ipcbus.serializers.local", "OpenFile"): _Rule("", None, "open file"),
    ("ipcbus.requests.future", "Future"): _Rule("", None, "future"),
    ("ipcbus.requests.callback", "Callback"): _Rule("", None, "callback"),
    ("ipcbus.requests.reply", "ReplyTo"): _Rule("", None, "reply handle"),
    ("multiprocessing.connection", "Connection"): _Rule("local", "reduce_connection", "connection"),
    ("ssl", "SSLSocket"): _Rule("local", "refuse_tls"),
    ("socket", "socket"): _Rule("local", "reduce_socket", "socket"),
    ("tempfile", "_TemporaryFileWrapper"): _Rule("local", "refuse_temporary"),
    ("multiprocessing.synchronize", "SemLock"): _Rule("local", "reduce_lock", "multiprocessing lock"),
    ("multiprocessing.synchronize", "Condition"): _Rule("local", "reduce_condition", "multiprocessing condition"),
    ("multiprocessing.synchronize", "Event"): _Rule("local", "reduce_event", "multiprocessing event"),
    ("logging", "Handler"): _Rule("local", "refuse_handler"),
    ("builtins", "mappingproxy"): _Rule("local", "reduce_proxy"),
    ("google.protobuf.message", "Message"): _Rule("protobuf", "reduce_message"),
    (_UPB, "RepeatedScalarContainer"): _Rule("containers", "reduce_scalars"),
    (_UPB, "RepeatedCompositeContainer"): _Rule("containers", "reduce_messages"),
    (_UPB, "ScalarMapContainer"): _Rule("containers", "reduce_map"),
    (_UPB, "MessageMapContainer"): _Rule("containers", "reduce_map"),
    (_PYTHON, "RepeatedScalarFieldContainer"): _Rule("containers", "reduce_scalars"),
    (_PYTHON, "RepeatedCompositeFieldContainer"): _Rule("containers", "reduce_messages"),
    (_PYTHON, "ScalarMap"): _Rule("containers", "reduce_map"),
    (_PYTHON, "MessageMap"): _Rule("containers", "reduce_map"),
}


class DispatchTable(dict[type, "Callable[[Any], Any]"]):
    """The pickler's table from type to reducer, filled as types turn up.

    Args:
        private: whether descriptors and other things of this machine may travel.
        fallback: reducers for types that have no rule, by exact type.
    """

    def __init__(self, *, private: bool, fallback: Mapping[type, Callable[[Any], Any]] | None = None) -> None:
        super().__init__()
        self.private = private
        self._fallback = {} if fallback is None else fallback

    def __missing__(self, kind: type) -> Callable[[Any], Any]:
        if issubclass(kind, type):
            raise KeyError(kind)  # a class is pickled by name, which the pickler does when the table has nothing
        if len(self) >= _MAX_TYPES:
            self.clear()
        reducer = self.find(kind) or _BY_ITSELF
        self[kind] = reducer
        return reducer

    def find(self, kind: type) -> Callable[[Any], Any] | None:
        """Return the reducer for objects of exactly this type, or None where they pickle by themselves.

        A reducer that always raises ``TypeError`` is one too: it says why such an object does not travel.
        """
        registered = copyreg.dispatch_table.get(kind)
        if registered is not None:
            return registered
        for base in kind.__mro__:
            rule = _RULES.get((base.__module__, base.__qualname__))
            if rule is not None:
                return self._apply(rule)
            if base is not object and ("__reduce__" in base.__dict__ or "__reduce_ex__" in base.__dict__):
                break  # a subclass that says itself how it is pickled
        return self._fallback.get(kind)

    def known(self) -> dict[type, Callable[[Any], Any]]:
        """Return every type loaded in this process that has a reducer, for explaining what cannot travel."""
        found = {}
        for kind in (*copyreg.dispatch_table, *self._fallback, *_loaded()):
            reducer = self.find(kind)
            if reducer is not None:
                found[kind] = reducer
        return found

    def _apply(self, rule: _Rule) -> Callable[[Any], Any] | None:
        name = rule.reducer if self.private or not rule.local else rule.public
        if name is None:
            return None if self.private or not rule.local else _Stays(rule.local)
        reducer: Callable[[Any], Any] = getattr(importlib.import_module(f"ipcbus.serializers.{rule.module}"), name)
        return reducer


class _Stays:
    """The reducer of what must not leave the machine."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __call__(self, obj: object) -> Any:
        article = "an" if self._what[0] in "aeiou" else "a"
        raise TypeError(
            f"{article} {self._what} ({type(obj).__qualname__}) cannot leave this machine, and other machines or users "
            "can reach this channel; send it through a private one, such as pipe:"
        )


def _loaded() -> Iterator[type]:
    """Yield the types that have a rule and are loaded, and their subclasses."""
    for module, name in _RULES:
        kind = type(type.__dict__) if name == "mappingproxy" else getattr(sys.modules.get(module), name, None)
        waiting = [kind] if isinstance(kind, type) else []
        while waiting:
            kind = waiting.pop()
            yield kind
            waiting += kind.__subclasses__()
