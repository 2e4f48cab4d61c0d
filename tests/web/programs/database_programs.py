"""What the tests of the database run in child processes."""

from __future__ import annotations

import threading

from sqlalchemy import Column, Integer, MetaData, String, Table, func, insert, select

from ipcbus.web import Service

metadata = MetaData()
notes = Table("notes", metadata, Column("id", Integer, primary_key=True), Column("text", String, nullable=False))


def write(session, text):
    session.execute(insert(notes).values(text=text))


def count(session):
    return session.execute(select(func.count()).select_from(notes)).scalar_one()


def begin(database, barrier):
    barrier.wait(20)
    database.create_all(metadata)
    database.close()


def write_many(database, threads, times, report):
    """Make the tables, as every process does, and write from several threads, reading before each writing."""

    database.create_all(metadata)

    def work(name):
        try:
            for number in range(times):
                with database.begin() as session:
                    count(session)
                    write(session, f"{name} {number}")
        except Exception as error:
            report.send(repr(error))

    workers = [threading.Thread(target=work, args=(name,)) for name in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    database.close()
    report.send("done")


class Notes(Service):
    path, codec = "/notes", "text"

    async def on_open(self, conn):
        self.database.create_all(metadata)

    async def on_message(self, conn, message):
        await self.database.run(write, message)
        await conn.send(str(await self.database.read(count)))
