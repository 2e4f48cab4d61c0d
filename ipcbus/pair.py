"""Duplex: two channels as one object at each end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from ipcbus.channel import Channel, open_channel
from ipcbus.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from ipcbus.aio import AsyncChannel
    from ipcbus.endpoint import Watcher

__all__ = ["Duplex", "pair"]


@final
class Duplex:
    """One end of a two-way connection: what it sends, the other end receives. Picklable like a channel.

    Attributes:
        outgoing: the channel this end sends through.
        incoming: the channel this end receives from.
    """

    __slots__ = ("incoming", "outgoing")

    def __init__(self, outgoing: Channel, incoming: Channel) -> None:
        self.outgoing = outgoing
        self.incoming = incoming

    def send(self, obj: Any, timeout: float | None = None, headers: Mapping[str, str] | None = None) -> None:
        """Send to the other end; see ``Channel.send``."""
        self.outgoing.send(obj, timeout, headers=headers)

    def recv(self, timeout: float | None = None) -> Any:
        """Receive from the other end; see ``Channel.recv``."""
        return self.incoming.recv(timeout)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.incoming)

    def fileno(self) -> int:
        """Return the descriptor to wait on for receiving."""
        return self.incoming.fileno()

    def _watchers(self) -> set[Watcher]:
        return self.incoming._watchers()  # noqa: SLF001  a channel's, which is of this package

    def ready(self) -> bool:
        """Tell whether ``recv(timeout=0)`` would not find it empty."""
        return self.incoming.ready()

    @property
    def aio(self) -> AsyncDuplex:
        """The asyncio face: ``await end.aio.send(x)``, ``await end.aio.recv()``."""
        return AsyncDuplex(self.outgoing.aio, self.incoming.aio)

    def shutdown(self) -> None:
        """End what this end sends; the other end can still send."""
        self.outgoing.shutdown()

    def close(self) -> None:
        """Release this process's ends of both channels."""
        self.outgoing.close()
        self.incoming.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ipcbus.Duplex {self.outgoing!r} {self.incoming!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Duplex, (self.outgoing, self.incoming)


class AsyncDuplex:
    """The asyncio face of a :class:`Duplex`: ``send``, ``recv`` and ``async for``."""

    __slots__ = ("_incoming", "recv", "send")

    def __init__(self, outgoing: AsyncChannel, incoming: AsyncChannel) -> None:
        self._incoming = incoming
        self.send = outgoing.send
        self.recv = incoming.recv

    def __aiter__(self) -> AsyncIterator[Any]:
        return aiter(self._incoming)


def pair(url: str = "auto:", **options: Any) -> tuple[Duplex, Duplex]:
    """Make a two-way connection of two channels; arguments and errors as for ``open``.

    Raises:
        Unsupported: the URL has an address, which is that of one channel.
    """
    there = open_channel(url, **options)
    if there._end.spec.address:  # noqa: SLF001  a channel's, which is of this package
        there.destroy()
        raise Unsupported(
            f"a pair is two channels, and {there.url} is the address of one: open two, and give each side "
            "ipcbus.Duplex(the one that it sends through, the one that it receives from)"
        )
    try:
        back = open_channel(url, **options)
    except BaseException:
        there.destroy()
        raise
    return Duplex(there.sender, back.receiver), Duplex(back.sender, there.receiver)
