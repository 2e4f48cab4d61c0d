"""cloudpickle: functions and classes by value. Never chosen by itself; ask for it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import cloudpickle  # type: ignore[import-untyped]  # it ships no types

from ipcbus.serializers.base import Serializer
from ipcbus.serializers.pickle import OutOfBand, loads, retract
from ipcbus.serializers.reducers import DispatchTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ipcbus.transport import Buffer

__all__ = ["CloudPickle"]


class CloudPickle(Serializer):
    """What ``pickle`` takes, and lambdas, local functions and classes of ``__main__``, whose code travels along.

    Both ends should run the same version of Python: code objects are not portable between versions.
    """

    name = "cloudpickle"
    content_type = "application/x-python-cloudpickle"
    safe = False

    def __init__(self, *, private: bool = True) -> None:
        super().__init__(private=private)
        # But for its rule of files: what is sent must not come to hold all that a file does by mistake.
        rules = {kind: rule for kind, rule in cloudpickle.CloudPickler.dispatch_table.items() if kind is not io.TextIOWrapper}
        table = DispatchTable(private=private, fallback=rules)
        # CloudPickler has its table in the class, where one set on an instance is not looked for.
        self._pickler: Any = type("_Pickler", (cloudpickle.CloudPickler,), {"dispatch_table": table})

    def dumps(self, obj: Any) -> tuple[Buffer, Sequence[Buffer]]:
        """Pickle an object by value; large buffers in it are left out of band."""
        file = io.BytesIO()
        buffers = OutOfBand()
        pickler = self._pickler(file, 5, buffer_callback=buffers.keep)
        try:
            pickler.dump(obj)
        except Exception:
            retract(pickler)
            raise
        return file.getvalue(), buffers.kept

    def loads(self, payload: Buffer, buffers: Sequence[Buffer]) -> Any:
        """Rebuild the object, as ``pickle`` does."""
        return loads(payload, buffers)
