"""What a serializer is, and the registry that finds one by its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from ipcbus.errors import SerializerUnavailable, UnknownSerializer
from ipcbus.registry import Registry, lacking

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ipcbus.transport import Buffer, Frame

    Finish = Callable[[bytes, Buffer, Sequence[Buffer]], Frame]
    """How the codec makes a frame of its start, a payload and buffers."""
    Explain = Callable[[Any, Exception], Exception]
    """How the codec says why an object cannot travel."""
    Pack = Callable[..., Frame]
    """How a codec has a frame made of an object, and of a start other than the head; see ``Serializer.packer``."""

__all__ = ["Serializer", "serializers"]


class Serializer(ABC):
    """Turns objects into bytes and back.

    Instances are made per channel and shared by its threads; both methods must be safe to call at the same time.

    Args:
        private: whether both ends belong to this user on this machine, so that what only makes sense here (a
            descriptor, a name of a lock) may travel.
    """

    name: ClassVar[str]
    """What users write: ``serializer="json"``."""
    content_type: ClassVar[str]
    """What the receiver decides by; also written on the wire when ``id`` is 0."""
    id: ClassVar[int] = 0
    """Wire id: 1 to 31 for ipcbus's own, 32 to 255 for others, 0 for a serializer that is named by its content type.

    Both ends must agree on what an id means; a content type says it in the frame and is the better choice for most.
    """
    safe: ClassVar[bool] = True
    """Whether decoding hostile bytes is harmless: no code chosen by the sender runs."""

    def __init__(self, *, private: bool = True) -> None:
        self.private = private

    @abstractmethod
    def dumps(self, obj: Any) -> tuple[Buffer, Sequence[Buffer]]:
        """Encode an object.

        Returns:
            The payload, and buffers left out of band (empty for most). A memoryview must be contiguous, of single bytes.

        Raises:
            Exception: any exception says that the object cannot be encoded; the channel raises ``EncodeError`` from it.
        """

    @abstractmethod
    def loads(self, payload: Buffer, buffers: Sequence[Buffer]) -> Any:
        """Decode what ``dumps`` made.

        Raises:
            Exception: any exception says that this cannot be decoded; the channel raises ``DecodeError`` from it.
        """

    def packer(self, head: bytes, limit: int, finish: Finish, explain: Explain) -> Pack:
        """Return a function that makes a frame of an object, by ``dumps``. May be replaced by something faster.

        It is what runs for every message: what is short and has no buffers is put behind the start of its frame at once.

        Args:
            head: how a frame starts.
            limit: bytes of the longest payload that is joined with it.
            finish: makes a frame of a start, a payload that is longer, and buffers.
            explain: makes what to raise of an object that cannot be encoded and of what ``dumps`` raised.

        Returns:
            A function of an object and of another start than the head, where its frame has one.
        """
        dumps = self.dumps

        def pack(obj: Any, start: bytes = head) -> Frame:
            try:
                payload, buffers = dumps(obj)
                if not buffers and len(payload) <= limit:
                    return (start + payload,)
            except Exception as error:  # noqa: BLE001  serializers raise what they like, and what is made of it says so
                raise explain(obj, error)  # noqa: B904  as above
            return finish(start, payload, buffers)

        return pack

    def loads_alone(self, payload: Buffer, /) -> Any:
        """Decode a payload that came without buffers. The same as ``loads``; may be replaced by something faster."""
        return self.loads(payload, ())


def _validate(name: str, thing: object) -> str | None:
    if not (isinstance(thing, type) and issubclass(thing, Serializer)):
        return f"{thing!r} is not a Serializer class"
    if lacks := lacking(thing, "name", "content_type"):
        return lacks
    if thing.name != name:
        return f"its class calls itself {thing.name!r}"
    own = thing.__module__.startswith("ipcbus.serializers.")
    if not (thing.id == 0 or 32 <= thing.id <= 255 or (own and 1 <= thing.id <= 31)):
        return f"its id is {thing.id}; use 32 to 255, or 0 to be named by content type (1 to 31 are ipcbus's own)"
    if not (thing.content_type.isascii() and thing.content_type.isprintable()) or not 1 <= len(thing.content_type) <= 255:
        return f"its content type {thing.content_type!r} is not 1 to 255 printable ASCII characters"
    return None


serializers: Registry[type[Serializer]] = Registry(
    "ipcbus.serializers", "serializer", UnknownSerializer, SerializerUnavailable, _validate
)
"""Every serializer of this process, by name."""
