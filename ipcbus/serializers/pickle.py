"""Pickle, protocol 5, with out-of-band buffers and ipcbus's own reducers."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from ipcbus.serializers.base import Serializer
from ipcbus.serializers.reducers import DispatchTable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ipcbus.transport import Buffer

__all__ = ["Pickle"]

_OUT_OF_BAND = 4096
"""Buffers below this many bytes travel inside the pickle: a buffer of its own costs more than the copy."""


class Pickle(Serializer):
    """Any Python object that pickles, and what the reducers add: connections, sockets, protobuf containers and more."""

    name = "pickle"
    content_type = "application/x-python-pickle"
    id = 2
    safe = False

    def __init__(self, *, private: bool = True) -> None:
        super().__init__(private=private)
        self._table = DispatchTable(private=private)
        self._idle: list[_Pickler] = []

    def dumps(self, obj: Any) -> tuple[Buffer, Sequence[Buffer]]:
        """Pickle an object; large buffers in it (NumPy arrays and the like) are left out of band and not copied."""
        # A pickler is kept and used again: making one costs more than pickling a small object with it. pop and append
        # on a list are atomic, so threads never share one; one that failed is not put back.
        try:
            pickler = self._idle.pop()
        except IndexError:
            pickler = _Pickler(self._table)
        payload = pickler.dump(obj)
        buffers = pickler.take_buffers()
        self._idle.append(pickler)
        return payload, buffers

    def loads(self, payload: Buffer, buffers: Sequence[Buffer]) -> Any:
        """Rebuild the object. Runs whatever code the pickle names: who may send it is the channel's business."""
        return pickle.loads(payload, buffers=buffers)


class _Pickler:
    """A C pickler that writes into a list and can be used again."""

    __slots__ = ("_buffers", "_clear", "_dump", "_pieces", "write")

    def __init__(self, table: DispatchTable) -> None:
        self._pieces: list[bytes] = []
        self._buffers: list[memoryview] = []
        # The pickler only ever calls write(), and hands over a whole frame at a time: for small objects all of it.
        self.write: Callable[[bytes], None] = self._pieces.append
        pickler = pickle.Pickler(self, 5, buffer_callback=self._keep_out)
        pickler.dispatch_table = table
        self._dump = pickler.dump
        self._clear = pickler.clear_memo

    def dump(self, obj: Any) -> bytes:
        self._dump(obj)
        self._clear()
        pieces = self._pieces
        if len(pieces) == 1:
            return pieces.pop()
        payload = b"".join(pieces)
        pieces.clear()
        return payload

    def take_buffers(self) -> Sequence[memoryview]:
        if not self._buffers:
            return ()
        taken = tuple(self._buffers)
        self._buffers.clear()
        return taken

    def _keep_out(self, buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < _OUT_OF_BAND:
            return True  # pickle's own words: true means in-band
        self._buffers.append(view)
        return False
