"""How types that plain pickle refuses or gets wrong are pickled; ipcbus's own table, never the process-global one."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DispatchTable"]

_BY_ITSELF = operator.methodcaller("__reduce_ex__", 5)


class DispatchTable(dict[type, "Callable[[Any], Any]"]):
    """The pickler's table from type to reducer, filled as types turn up.

    Args:
        private: whether descriptors and other things of this machine may travel.
    """

    def __init__(self, *, private: bool) -> None:
        super().__init__()
        self.private = private

    def __missing__(self, kind: type) -> Callable[[Any], Any]:
        if issubclass(kind, type):
            raise KeyError(kind)  # a class is pickled by name, which the pickler does when the table has nothing
        self[kind] = _BY_ITSELF
        return _BY_ITSELF

    def known(self) -> dict[type, Callable[[Any], Any]]:
        """Return the types that have a reducer of ipcbus's own, for explaining what cannot travel."""
        return {kind: reduce for kind, reduce in self.items() if reduce is not _BY_ITSELF}
