"""Who is in which group: the table both sides of a link keep."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

__all__ = ["Rooms"]

M = TypeVar("M", bound=Hashable)

_NOBODY: frozenset[Any] = frozenset()


class Rooms(Generic[M]):
    """Groups and their members, found from either side. A group exists while it has members."""

    __slots__ = ("_groups", "_members")

    def __init__(self) -> None:
        self._members: dict[str, set[M]] = {}
        self._groups: dict[M, set[str]] = {}

    def join(self, member: M, group: str) -> bool:
        """Put a member into a group; return False if it was in already."""
        members = self._members.setdefault(group, set())
        if member in members:
            return False
        members.add(member)
        self._groups.setdefault(member, set()).add(group)
        return True

    def leave(self, member: M, group: str) -> bool:
        """Take a member out of a group; return False if it was not in."""
        members = self._members.get(group)
        if members is None or member not in members:
            return False
        members.discard(member)
        if not members:
            del self._members[group]
        groups = self._groups[member]
        groups.discard(group)
        if not groups:
            del self._groups[member]
        return True

    def drop(self, member: M) -> None:
        """Take a member out of every group."""
        for group in self.groups(member):
            self.leave(member, group)

    def members(self, group: str) -> AbstractSet[M]:
        """Return the members of a group: a view that changes with the table."""
        return self._members.get(group, _NOBODY)

    def groups(self, member: M) -> frozenset[str]:
        """Return the groups a member is in."""
        return frozenset(self._groups.get(member, ()))

    def __len__(self) -> int:
        return len(self._members)
