"""History: what was said in the rooms of the chat, in whichever database the server has."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from time import time
from typing import Any

from sqlalchemy import LargeBinary, String, Text, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

__all__ = ["SHOWN", "Base", "Page", "add", "page", "secret"]

SHOWN = 50
"""Messages that who enters a room gets to see."""
CAUGHT_UP = 200
"""Messages that who was away for a while gets at most."""


class Base(DeclarativeBase):
    """The tables of the demo."""


class Said(Base):
    """One message; ``id`` grows with each."""

    __tablename__ = "said"
    id: Mapped[int] = mapped_column(primary_key=True)
    room: Mapped[str] = mapped_column(String(32), index=True)
    name: Mapped[str] = mapped_column(String(24))
    key: Mapped[str | None] = mapped_column(String(40), index=True)
    text: Mapped[str] = mapped_column(Text)
    at: Mapped[float]

    def entry(self) -> dict[str, Any]:
        """Return it as clients get it."""
        return {"id": self.id, "name": self.name, "key": self.key, "text": self.text, "at": self.at}


class Secret(Base):
    """What tokens are signed with: made by whichever process comes first, known to all, and new with a new database."""

    __tablename__ = "secret"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[bytes] = mapped_column(LargeBinary(32))


@dataclass(frozen=True, slots=True)
class Page:
    """Messages of one room, oldest first."""

    entries: list[dict[str, Any]]
    whole: bool
    """Whether nothing between what was asked for and the first of them is left out."""


def secret(session: Session) -> bytes:
    """Return what tokens are signed with; made at the first call."""
    found = session.get(Secret, 1)
    if found is None:
        found = Secret(id=1, value=secrets.token_bytes(32))
        session.add(found)
    return found.value


def add(session: Session, room: str, name: str, text: str, key: str | None) -> tuple[dict[str, Any], bool]:
    """Keep a message, unless this person has said it before by the same key.

    Returns:
        The message as it is kept, and whether it is new.
    """
    if key is not None:
        found = session.scalar(select(Said).where(Said.key == key, Said.name == name, Said.room == room))
        if found is not None:
            return found.entry(), False
    said = Said(room=room, name=name, text=text, key=key, at=time())  # the wall clock
    session.add(said)
    session.flush()  # which gives it its number
    return said.entry(), True


def page(session: Session, room: str, after: int | None) -> Page:
    """Return the newest messages of a room: the last 50, or those after a number, of which there are at most 200."""
    wanted = select(Said).where(Said.room == room).order_by(Said.id.desc())
    if after is None:
        return Page([said.entry() for said in session.scalars(wanted.limit(SHOWN))][::-1], whole=True)
    found = [said.entry() for said in session.scalars(wanted.where(Said.id > after).limit(CAUGHT_UP + 1))]
    return Page(found[:CAUGHT_UP][::-1], whole=len(found) <= CAUGHT_UP)
