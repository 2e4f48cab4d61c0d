"""What a client puts on its channel, and the bounded queue before it. No I/O in here."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Incoming", "Mailbox", "Overflow"]

Overflow: TypeAlias = Literal["block", "drop_oldest", "drop_newest"]
"""What happens to messages that come faster than they are taken from the channel."""

_MESSAGES = frozenset({"text", "binary"})


class Incoming(NamedTuple):
    """One thing that a WebSocket connection brought."""

    kind: str
    """``text`` or ``binary``: a message. ``connected``; ``disconnected``: and it will be tried again; ``ended``: and it
    will not, so this is the last thing of this connection."""
    data: Any
    """The message, ``str`` or ``bytes``; in words, why it was disconnected or has ended."""
    connection: int = 0
    """Which one, by its place among the URLs."""
    at: float = 0.0
    """When it was received, in seconds since the epoch."""
    code: int = 0
    """Of ``disconnected`` and ``ended``: the close code, 1006 if there was none; or the HTTP status that refused."""
    missed: int = 0
    """Messages of this connection that came before this one and were dropped, because nobody took them in time."""

    @property
    def is_message(self) -> bool:
        """Whether it is a message, and not news of the connection."""
        return self.kind in _MESSAGES

    @classmethod
    def of(cls, values: Iterable[Any]) -> Incoming:
        """Rebuild one from the list that a serializer other than pickle made of it."""
        return cls(*values)


class Mailbox:
    """Holds what the channel has no room for yet.

    Whatever is dropped is counted in the ``missed`` of what comes next. News of the connection are dropped only when
    nothing else is left to drop.

    Args:
        overflow: what happens when it is full.
        limit: how many it holds.

    Attributes:
        missed: messages dropped so far.
    """

    def __init__(self, overflow: Overflow, limit: int) -> None:
        self._overflow = overflow
        self._limit = limit
        self._items: deque[Incoming] = deque()
        self._behind = 0  # dropped behind the last one that is held
        self._ahead = 0  # dropped before the first one that is held
        self.missed = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Incoming) -> bool:
        """Hold an item; return False if there is no room and it is to wait for some."""
        if len(self._items) >= self._limit:
            if self._overflow == "block":
                return False
            if self._overflow == "drop_newest" and item.is_message:
                self._behind += 1
                self.missed += 1
                return True
            self._drop()
        self.add(item)
        return True

    def add(self, item: Incoming) -> None:
        """Hold an item though there may be no room."""
        if self._behind:
            item = item._replace(missed=item.missed + self._behind)
            self._behind = 0
        self._items.append(item)

    def take(self) -> Incoming | None:
        """Return the next item, which is not held any more; None if there is none."""
        if not self._items:
            return None
        item = self._items.popleft()
        if self._ahead:
            item = item._replace(missed=item.missed + self._ahead)
            self._ahead = 0
        return item

    def back(self, item: Incoming) -> None:
        """Hold an item again that was just taken."""
        self._items.appendleft(item)

    def lost(self, item: Incoming) -> None:
        """Note that an item that was taken could not be delivered."""
        self._ahead += item.missed + item.is_message
        self.missed += item.is_message

    def abandon(self) -> None:
        """Note that nothing of what is held will be delivered."""
        while (item := self.take()) is not None:
            self.lost(item)

    def _drop(self) -> None:
        """Drop the oldest message, or the oldest of all if there is none."""
        place = next((place for place, item in enumerate(self._items) if item.is_message), 0)
        dropped = self._items[place]
        del self._items[place]
        count = dropped.missed + dropped.is_message
        self.missed += dropped.is_message
        if place < len(self._items):
            follower = self._items[place]
            self._items[place] = follower._replace(missed=follower.missed + count)
        else:
            self._behind += count
