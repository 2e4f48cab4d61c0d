"""A guest book: what is written into it is there after every restart."""

from sqlalchemy import String, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from ipcbus.web import Connection, Service


class Base(DeclarativeBase):
    pass


class Entry(Base):
    __tablename__ = "entries"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(200))


def add(session: Session, text: str) -> None:
    session.add(Entry(text=text))


def newest(session: Session, count: int) -> list[str]:
    found = session.scalars(select(Entry).order_by(Entry.id.desc()).limit(count))
    return [entry.text for entry in found][::-1]


class GuestBook(Service):
    path, codec = "/book", "json"

    async def on_open(self, conn: Connection) -> None:
        self.database.create_all(Base.metadata)
        await conn.join("readers")
        await conn.send(await self.database.read(newest, 50))

    async def on_message(self, conn: Connection, message: str) -> None:
        await self.database.run(add, message[:200])
        await self.publish("readers", [message[:200]])
