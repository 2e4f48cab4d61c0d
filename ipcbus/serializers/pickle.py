"""Pickle, protocol 5, with out-of-band buffers and ipcbus's own reducers."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from ipcbus.frame import MAX_BUFFERS
from ipcbus.plumbing.unsent import undo
from ipcbus.serializers.base import Serializer
from ipcbus.serializers.reducers import DispatchTable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ipcbus.serializers.base import Explain, Finish, Pack
    from ipcbus.transport import Buffer, Frame

    _Reused = tuple[Any, Callable[[], None], list[bytes], list[memoryview]]
    """A pickler's ``dump`` and ``clear_memo``, and the lists it writes to and leaves buffers in."""

__all__ = ["OutOfBand", "Pickle", "loads", "retract"]

_OUT_OF_BAND = 4096
"""Buffers below this many bytes travel inside the pickle: a buffer of its own costs more than the copy."""
_REUSABLE = 2048
"""A pickler that made a larger pickle is dropped: its memo may have grown, and clearing it would slow every later call."""


class Pickle(Serializer):
    """Any Python object that pickles, and what the reducers add: connections, sockets, protobuf containers and more.

    Large buffers (NumPy arrays and the like) stay out of the pickle. An array arrives writable if it was writable, as from
    a ``multiprocessing.Queue``: where the transport hands out memory that cannot be written to, that costs one copy.
    """

    name = "pickle"
    content_type = "application/x-python-pickle"
    id = 2
    safe = False

    def __init__(self, *, private: bool = True) -> None:
        super().__init__(private=private)
        self._table = DispatchTable(private=private)
        self._idle: list[_Reused] = []
        self._dump = self.packer(b"", _REUSABLE, lambda _, payload, buffers: (payload, *buffers), lambda _, error: error)

    def dumps(self, obj: Any) -> tuple[Buffer, Sequence[Buffer]]:
        """Pickle an object; large buffers in it (NumPy arrays and the like) are left out of band and not copied."""
        payload, *buffers = self._dump(obj)
        return payload, buffers

    def packer(self, head: bytes, limit: int, finish: Finish, explain: Explain) -> Pack:
        """Return a function that pickles an object and puts it behind the start of its frame."""
        # A pickler is kept and used again: making one costs more than pickling a small object with it. pop and append
        # on a list are atomic, so threads never share one; one that failed is not put back. Written out rather than
        # divided into functions: this runs for every message.
        idle, make, limit = self._idle, self._make_pickler, min(limit, _REUSABLE)

        def pack(obj: Any, start: bytes = head) -> Frame:
            try:
                reused = idle.pop()
            except IndexError:
                reused = make()
            dump, clear, pieces, kept = reused
            try:
                dump(obj)
            except Exception as error:  # noqa: BLE001  serializers raise what they like, and what is made of it says so
                retract(dump.__self__)
                raise explain(obj, error)  # noqa: B904  as above
            clear()
            if len(pieces) == 1 and not kept:
                payload = pieces.pop()
                if len(payload) <= limit:
                    idle.append(reused)
                    return (start + payload,)
                return finish(start, payload, ())
            return finish(start, b"".join(pieces), tuple(kept))  # this pickler is not used again

        return pack

    def _make_pickler(self) -> _Reused:
        sink, buffers = _Sink(), OutOfBand()
        pickler = pickle.Pickler(sink, 5, buffer_callback=buffers.keep)
        pickler.dispatch_table = self._table
        return pickler.dump, pickler.clear_memo, sink.pieces, buffers.kept

    loads_alone = staticmethod(pickle.loads)

    def loads(self, payload: Buffer, buffers: Sequence[Buffer]) -> Any:
        """Rebuild the object. Runs whatever code the pickle names: who may send it is the channel's business."""
        if not buffers:
            return pickle.loads(payload)
        return loads(payload, buffers)


def retract(pickler: Any) -> None:
    """Undo what was done for an object that a pickler then could not pickle."""
    met = {part for _, part in pickler.memo.copy().values() if type(part) is bytes}
    undo(met.__contains__)


def loads(payload: Buffer, buffers: Sequence[Buffer]) -> Any:
    """Rebuild an object, over memory that can be written to: the pickle says itself which buffers were read-only."""
    return pickle.loads(payload, buffers=[bytearray(part) if memoryview(part).readonly else part for part in buffers])


class OutOfBand:
    """Collects the buffers that are worth keeping out of a pickle."""

    __slots__ = ("kept",)

    def __init__(self) -> None:
        self.kept: list[memoryview] = []

    def keep(self, buffer: pickle.PickleBuffer) -> bool:
        """Decide about one buffer, in pickle's own words: true means in-band."""
        view = buffer.raw()
        if view.nbytes < _OUT_OF_BAND or len(self.kept) == MAX_BUFFERS:
            return True
        self.kept.append(view)
        return False


class _Sink:
    """Where a C pickler writes: it only ever calls ``write``, with a whole frame at a time, for small objects all of it."""

    __slots__ = ("pieces", "write")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.write: Callable[[bytes], None] = self.pieces.append
